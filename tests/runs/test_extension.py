"""Adding teachers to a finished run: what is used again is said, what does not fit is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.runs.extension import check_extension, find_earlier_checkpoint
from ka_ray.storage.files import write_json
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import build_teacher
from ka_ray.teachers.plain import plain_conv_net

NAMES = ["cats", "dogs", "birds", "fish"]
WIDTHS = [4, 6]


def plan_of(config: Config) -> Plan:
    return make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


class Place:
    """A folder in which runs are described, and finished without learning anything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, folder / "before"

    def teacher(self, name: str, **changed: Any) -> dict[str, Any]:
        checkpoint = self.folder / f"{name}.safetensors"
        if not checkpoint.exists():
            save_file(plain_conv_net(2, WIDTHS).state_dict(), checkpoint)
        arguments, classes = {"widths": WIDTHS}, [f"{name}_1", f"{name}_2"]
        given = {"name": name, "network": "plain", "arguments": arguments, "classes": classes}
        return given | {"checkpoint": str(checkpoint)} | changed

    def config(
        self, teachers: Sequence[dict[str, Any]], method: str = "incremental", **sections: Any
    ) -> Config:
        tree = {"name": "run", "images": {"source": "digits"}, "teachers": list(teachers)}
        codes = {"method": method} | sections.pop("codes", {})
        return Config.model_validate(tree | {"codes": codes} | sections)

    def finish(self, num_teachers: int, method: str = "incremental", **sections: Any) -> None:
        """Leave what a run with the first teachers leaves for one that extends it."""
        config = self.config([self.teacher(name) for name in NAMES[:num_teachers]], method, **sections)
        digests = {
            name: hashlib.sha256((self.folder / f"{name}.safetensors").read_bytes()).hexdigest()
            for name in NAMES[:num_teachers]
        }
        (self.before / "stages").mkdir(parents=True)
        write_json(self.before / "config.json", config.model_dump(mode="json"))
        summary = {
            "teachers": digests,
            "shapes": plan_of(config).code_shapes(),
            "links": {"reused": 0, "trained": num_teachers - 1, "seconds": [1.0] * (num_teachers - 1)},
            "taps": {},
            "history": [],
            "seconds": 1.0,
        }
        write_json(self.before / "stages" / "codes.json", summary)

    def check(
        self, teachers: Sequence[dict[str, Any]], method: str = "incremental", **sections: Any
    ) -> str | None:
        config = self.config(teachers, method, extend=self.before, **sections)
        return check_extension(config, plan_of(config))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def refused(check: Callable[[], object], *said: str) -> None:
    with pytest.raises(InputError) as caught:
        check()
    for part in said:
        assert part in str(caught.value)


def test_a_run_that_extends_nothing_has_nothing_to_say(place):
    config = place.config([place.teacher(name) for name in NAMES[:2]])
    assert check_extension(config, plan_of(config)) is None


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 4), (3, 4)])
def test_a_chain_of_auto_encoders_grows_by_one_a_teacher(place, before, now):
    place.finish(before)
    said = place.check([place.teacher(name) for name in NAMES[:now]])
    assert said == (
        f"extending {place.before}: {before - 1} auto-encoder(s) per tap are reused unchanged, "
        f"{now - before} trained"
    )


@pytest.mark.parametrize("method", ["direct", "common_features"])
@pytest.mark.parametrize("before", ["direct", "incremental"])
def test_other_methods_train_all_auto_encoders_again_and_say_so(place, before, method):
    place.finish(2, before)
    said = place.check([place.teacher(name) for name in NAMES[:3]], method)
    assert str(place.before) in said
    assert f"codes.method {method} all auto-encoders are trained again" in said


def test_what_does_not_decide_the_codes_may_change(place):
    place.finish(2)
    teachers = [place.teacher(name) for name in NAMES[:3]]
    sections = {"seed": 7, "joint": {"epochs": 9}, "codes": {"epochs": 99}, "scores": {"views": "flip"}}
    assert "1 auto-encoder(s) per tap are reused" in place.check(teachers, **sections)


def test_the_same_weights_may_lie_elsewhere(place):
    place.finish(2)
    moved = place.folder / "moved.safetensors"
    shutil.move(place.folder / "cats.safetensors", moved)
    teachers = [place.teacher("cats", checkpoint=str(moved)), place.teacher("dogs"), place.teacher("birds")]
    assert "reused" in place.check(teachers)


@pytest.mark.parametrize("missing", ["config.json", "stages/codes.json"])
def test_a_folder_without_codes_is_refused(place, missing):
    place.finish(2)
    (place.before / missing).unlink()
    teachers = [place.teacher(name) for name in NAMES[:3]]
    refused(lambda: place.check(teachers), f"extend: {place.before} holds no {missing}", "finished run")


@pytest.mark.parametrize(
    "names",
    [
        ["cats", "dogs"],
        ["dogs", "cats", "birds"],
        ["birds", "cats", "dogs"],
        ["cats", "birds", "dogs"],
        ["cats", "birds"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("method", ["incremental", "direct"])
def test_the_extended_runs_teachers_come_first_and_more_behind_them(place, names, method):
    place.finish(2)
    teachers = [place.teacher(name) for name in names]
    refused(lambda: place.check(teachers, method), "extend: ", "['cats', 'dogs']", str(names))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": ["dogs_2", "dogs_1"]}, "classes"),
        ({"preprocessing": {"size": 16}}, "preprocessing"),
        ({"arguments": {"widths": [4, 7]}, "checkpoint": None, "training": {"epochs": 1}}, "arguments"),
        ({"network": "resnet18", "arguments": {}, "checkpoint": None, "training": {"epochs": 1}}, "network"),
    ],
    ids=["classes", "preprocessing", "arguments", "network"],
)
def test_a_teacher_that_has_changed_is_refused_by_key(place, changed, said):
    place.finish(2)
    taps = {"conv1": dict.fromkeys(NAMES[:3], "norm1")}
    if "network" in changed:
        taps["conv1"]["dogs"] = "layer1"
    teachers = [place.teacher("cats"), place.teacher("dogs", **changed), place.teacher("birds")]
    message = f"teachers.dogs: {said}"
    refused(lambda: place.check(teachers, taps=taps), message, "differ", str(place.before))


def test_other_weights_are_refused(place):
    place.finish(2)
    other = place.folder / "other.safetensors"
    save_file(plain_conv_net(2, WIDTHS).state_dict(), other)
    teachers = [place.teacher("cats"), place.teacher("dogs", checkpoint=str(other)), place.teacher("birds")]
    refused(lambda: place.check(teachers), "teachers.dogs.checkpoint: ", str(other), str(place.before))


TRAINED: dict[str, Any] = {"checkpoint": None, "training": {"epochs": 3}}


def test_a_teacher_that_was_trained_in_the_extended_run_needs_no_checkpoint(place):
    place.finish(2)
    taught = place.before / "teachers" / "cats" / "teacher.safetensors"
    taught.parent.mkdir(parents=True)
    shutil.move(place.folder / "cats.safetensors", taught)
    teachers = [place.teacher("cats", **TRAINED), place.teacher("dogs"), place.teacher("birds", **TRAINED)]
    assert "1 auto-encoder(s)" in place.check(teachers)


def test_a_known_teacher_cannot_be_trained_anew(place):
    place.finish(2)
    teachers = [place.teacher("cats", **TRAINED), place.teacher("dogs"), place.teacher("birds")]
    refused(lambda: place.check(teachers), "teachers.cats", str(place.before))


@pytest.mark.parametrize("method", ["direct", "common_features"])
def test_auto_encoders_of_another_method_cannot_be_extended(place, method):
    place.finish(2, method)
    teachers = [place.teacher(name) for name in NAMES[:3]]
    said = (f"made with codes.method {method}", "run it again with codes.method=incremental")
    refused(lambda: place.check(teachers), "extend: ", *said)


@pytest.mark.parametrize(
    ("sections", "tap"),
    [
        ({"codes": {"widths": {"conv2": 5}}}, "conv2"),
        ({"taps": {"early": "norm1"}}, "early"),
        ({"student": {"preprocessing": {"size": 16}}}, "conv1"),
    ],
    ids=["width", "name", "size"],
)
def test_other_codes_are_refused_by_tap(place, sections, tap):
    place.finish(2)
    teachers = [place.teacher(name) for name in NAMES[:3]]
    refused(lambda: place.check(teachers, **sections), f"extend: tap {tap} has ", "must be the same")


def test_a_tap_that_the_extended_run_did_not_have_is_refused(place):
    place.finish(2, taps={"conv1": "norm1"})
    teachers = [place.teacher(name) for name in NAMES[:3]]
    refused(lambda: place.check(teachers), "extend: tap conv2 has no codes")


def test_codes_of_features_read_elsewhere_are_refused(place):
    place.finish(2, taps={"conv1": "norm1"})
    teachers = [place.teacher(name) for name in NAMES[:3]]
    refused(lambda: place.check(teachers, taps={"conv1": "conv1"}), "extend: tap conv1")


def test_only_a_checkpoint_that_the_extended_run_left_is_taken(place):
    teachers = [place.teacher("cats", **TRAINED), place.teacher("dogs", **TRAINED)]
    first = place.before.with_name("first")
    for folder, extended in ((place.before, str(first)), (first, None)):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"extend": extended}))
    alone, extending = place.config(teachers), place.config(teachers, extend=place.before)
    path = place.before / "teachers" / "cats" / "teacher.safetensors"
    assert find_earlier_checkpoint(extending, extending.teachers[0]) is None
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_earlier_checkpoint(extending, extending.teachers[0]) == path
    assert find_earlier_checkpoint(extending, extending.teachers[1]) is None
    earliest = first / "teachers" / "dogs" / "teacher.safetensors"
    earliest.parent.mkdir(parents=True)
    earliest.touch()
    assert find_earlier_checkpoint(extending, extending.teachers[1]) == earliest
    assert find_earlier_checkpoint(alone, alone.teachers[0]) is None
