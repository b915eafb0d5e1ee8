"""Test extending a finished run by teachers: which auto-encoders are reused, and what is refused."""

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


class FakeRuns:
    """Make configs of runs, and write the files of a finished run without training it.

    Attributes:
        folder: Folder of the checkpoints.
        finished_run: Output folder of the run that is to be extended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.finished_run = folder, folder / "finished_run"

    def teacher_config(self, name: str, **changed: Any) -> dict[str, Any]:
        checkpoint = self.folder / f"{name}.safetensors"
        if not checkpoint.exists():
            save_file(plain_conv_net(2, WIDTHS).state_dict(), checkpoint)
        arguments, classes = {"widths": WIDTHS}, [f"{name}_1", f"{name}_2"]
        config = {"name": name, "network": "plain", "arguments": arguments, "classes": classes}
        return config | {"checkpoint": str(checkpoint)} | changed

    def run_config(
        self, teachers: Sequence[dict[str, Any]], method: str = "incremental", **sections: Any
    ) -> Config:
        tree = {"name": "run", "images": {"source": "digits"}, "teachers": list(teachers)}
        codes = {"method": method} | sections.pop("codes", {})
        return Config.model_validate(tree | {"codes": codes} | sections)

    def write_finished_run(self, num_teachers: int, method: str = "incremental", **sections: Any) -> None:
        """Write the config and the summary of the codes that a run with the first teachers writes."""
        config = self.run_config(
            [self.teacher_config(name) for name in NAMES[:num_teachers]], method, **sections
        )
        digests = {
            name: hashlib.sha256((self.folder / f"{name}.safetensors").read_bytes()).hexdigest()
            for name in NAMES[:num_teachers]
        }
        (self.finished_run / "stages").mkdir(parents=True)
        write_json(self.finished_run / "config.json", config.model_dump(mode="json"))
        summary = {
            "teachers": digests,
            "shapes": plan_of(config).code_shapes(),
            "links": {"reused": 0, "trained": num_teachers - 1, "seconds": [1.0] * (num_teachers - 1)},
            "taps": {},
            "history": [],
            "seconds": 1.0,
        }
        write_json(self.finished_run / "stages" / "codes.json", summary)

    def check(
        self, teachers: Sequence[dict[str, Any]], method: str = "incremental", **sections: Any
    ) -> str | None:
        """Check the config of a run with these teachers that extends the finished run."""
        config = self.run_config(teachers, method, extend=self.finished_run, **sections)
        return check_extension(config, plan_of(config))


@pytest.fixture
def fake_runs(tmp_path: Path) -> FakeRuns:
    return FakeRuns(tmp_path)


def assert_refused(check: Callable[[], object], *message_parts: str) -> None:
    with pytest.raises(InputError) as caught:
        check()
    for part in message_parts:
        assert part in str(caught.value)


def test_check_extension_returns_none_for_a_run_that_extends_nothing(fake_runs):
    config = fake_runs.run_config([fake_runs.teacher_config(name) for name in NAMES[:2]])
    assert check_extension(config, plan_of(config)) is None


@pytest.mark.parametrize(("num_before", "num_now"), [(2, 3), (2, 4), (3, 4)])
def test_an_incremental_run_trains_one_auto_encoder_per_added_teacher(fake_runs, num_before, num_now):
    fake_runs.write_finished_run(num_before)
    message = fake_runs.check([fake_runs.teacher_config(name) for name in NAMES[:num_now]])
    assert message == (
        f"extending {fake_runs.finished_run}: {num_before - 1} auto-encoder(s) per tap are reused unchanged, "
        f"{num_now - num_before} trained"
    )


@pytest.mark.parametrize("method", ["direct", "common_features"])
@pytest.mark.parametrize("method_before", ["direct", "incremental"])
def test_other_methods_train_all_auto_encoders_again_and_the_message_says_so(
    fake_runs, method_before, method
):
    fake_runs.write_finished_run(2, method_before)
    message = fake_runs.check([fake_runs.teacher_config(name) for name in NAMES[:3]], method)
    assert str(fake_runs.finished_run) in message
    assert f"codes.method {method} all auto-encoders are trained again" in message


def test_settings_that_do_not_affect_the_codes_may_change(fake_runs):
    fake_runs.write_finished_run(2)
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    sections = {"seed": 7, "joint": {"epochs": 9}, "codes": {"epochs": 99}, "scores": {"views": "flip"}}
    assert "1 auto-encoder(s) per tap are reused" in fake_runs.check(teachers, **sections)


def test_the_checkpoint_of_a_teacher_may_have_been_moved(fake_runs):
    fake_runs.write_finished_run(2)
    moved = fake_runs.folder / "moved.safetensors"
    shutil.move(fake_runs.folder / "cats.safetensors", moved)
    teachers = [
        fake_runs.teacher_config("cats", checkpoint=str(moved)),
        fake_runs.teacher_config("dogs"),
        fake_runs.teacher_config("birds"),
    ]
    assert "reused" in fake_runs.check(teachers)


@pytest.mark.parametrize("missing", ["config.json", "stages/codes.json"])
def test_a_folder_without_codes_is_refused(fake_runs, missing):
    fake_runs.write_finished_run(2)
    (fake_runs.finished_run / missing).unlink()
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    assert_refused(
        lambda: fake_runs.check(teachers),
        f"extend: {fake_runs.finished_run} holds no {missing}",
        "finished run",
    )


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
def test_teachers_other_than_those_of_the_extended_run_followed_by_new_ones_are_refused(
    fake_runs, names, method
):
    fake_runs.write_finished_run(2)
    teachers = [fake_runs.teacher_config(name) for name in names]
    assert_refused(lambda: fake_runs.check(teachers, method), "extend: ", "['cats', 'dogs']", str(names))


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"classes": ["dogs_2", "dogs_1"]}, "classes"),
        ({"preprocessing": {"size": 16}}, "preprocessing"),
        ({"arguments": {"widths": [4, 7]}, "checkpoint": None, "training": {"epochs": 1}}, "arguments"),
        ({"network": "resnet18", "arguments": {}, "checkpoint": None, "training": {"epochs": 1}}, "network"),
    ],
    ids=["classes", "preprocessing", "arguments", "network"],
)
def test_a_changed_teacher_is_refused_and_the_message_names_the_key(fake_runs, changed, key):
    fake_runs.write_finished_run(2)
    taps = {"conv1": dict.fromkeys(NAMES[:3], "norm1")}
    if "network" in changed:
        taps["conv1"]["dogs"] = "layer1"
    teachers = [
        fake_runs.teacher_config("cats"),
        fake_runs.teacher_config("dogs", **changed),
        fake_runs.teacher_config("birds"),
    ]
    message = f"teachers.dogs: {key}"
    assert_refused(
        lambda: fake_runs.check(teachers, taps=taps), message, "differ", str(fake_runs.finished_run)
    )


def test_a_teacher_with_other_weights_is_refused(fake_runs):
    fake_runs.write_finished_run(2)
    other = fake_runs.folder / "other.safetensors"
    save_file(plain_conv_net(2, WIDTHS).state_dict(), other)
    teachers = [
        fake_runs.teacher_config("cats"),
        fake_runs.teacher_config("dogs", checkpoint=str(other)),
        fake_runs.teacher_config("birds"),
    ]
    assert_refused(
        lambda: fake_runs.check(teachers),
        "teachers.dogs.checkpoint: ",
        str(other),
        str(fake_runs.finished_run),
    )


TO_BE_TRAINED: dict[str, Any] = {"checkpoint": None, "training": {"epochs": 3}}
"""Keys of a teacher that has no checkpoint yet, so that the run has to train it."""


def test_a_teacher_that_was_trained_in_the_extended_run_needs_no_checkpoint(fake_runs):
    fake_runs.write_finished_run(2)
    checkpoint = fake_runs.finished_run / "teachers" / "cats" / "teacher.safetensors"
    checkpoint.parent.mkdir(parents=True)
    shutil.move(fake_runs.folder / "cats.safetensors", checkpoint)
    teachers = [
        fake_runs.teacher_config("cats", **TO_BE_TRAINED),
        fake_runs.teacher_config("dogs"),
        fake_runs.teacher_config("birds", **TO_BE_TRAINED),
    ]
    assert "1 auto-encoder(s)" in fake_runs.check(teachers)


def test_training_a_teacher_of_the_extended_run_again_is_refused(fake_runs):
    fake_runs.write_finished_run(2)
    teachers = [
        fake_runs.teacher_config("cats", **TO_BE_TRAINED),
        fake_runs.teacher_config("dogs"),
        fake_runs.teacher_config("birds"),
    ]
    assert_refused(lambda: fake_runs.check(teachers), "teachers.cats", str(fake_runs.finished_run))


@pytest.mark.parametrize("method", ["direct", "common_features"])
def test_auto_encoders_of_another_method_cannot_be_extended(fake_runs, method):
    fake_runs.write_finished_run(2, method)
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    message_parts = (f"made with codes.method {method}", "run it again with codes.method=incremental")
    assert_refused(lambda: fake_runs.check(teachers), "extend: ", *message_parts)


@pytest.mark.parametrize(
    ("sections", "tap"),
    [
        ({"codes": {"widths": {"conv2": 5}}}, "conv2"),
        ({"taps": {"early": "norm1"}}, "early"),
        ({"student": {"preprocessing": {"size": 16}}}, "conv1"),
    ],
    ids=["width", "name", "size"],
)
def test_different_codes_are_refused_and_the_message_names_the_tap(fake_runs, sections, tap):
    fake_runs.write_finished_run(2)
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    assert_refused(
        lambda: fake_runs.check(teachers, **sections), f"extend: tap {tap} has ", "must be the same"
    )


def test_a_tap_that_the_extended_run_did_not_have_is_refused(fake_runs):
    fake_runs.write_finished_run(2, taps={"conv1": "norm1"})
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    assert_refused(lambda: fake_runs.check(teachers), "extend: tap conv2 has no codes")


def test_a_tap_that_reads_another_module_is_refused(fake_runs):
    fake_runs.write_finished_run(2, taps={"conv1": "norm1"})
    teachers = [fake_runs.teacher_config(name) for name in NAMES[:3]]
    assert_refused(lambda: fake_runs.check(teachers, taps={"conv1": "conv1"}), "extend: tap conv1")


def test_find_earlier_checkpoint_finds_only_checkpoints_of_extended_runs(fake_runs):
    teachers = [
        fake_runs.teacher_config("cats", **TO_BE_TRAINED),
        fake_runs.teacher_config("dogs", **TO_BE_TRAINED),
    ]
    first = fake_runs.finished_run.with_name("first")
    for folder, extended in ((fake_runs.finished_run, str(first)), (first, None)):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"extend": extended}))
    not_extending = fake_runs.run_config(teachers)
    extending = fake_runs.run_config(teachers, extend=fake_runs.finished_run)
    path = fake_runs.finished_run / "teachers" / "cats" / "teacher.safetensors"
    assert find_earlier_checkpoint(extending, extending.teachers[0]) is None
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_earlier_checkpoint(extending, extending.teachers[0]) == path
    assert find_earlier_checkpoint(extending, extending.teachers[1]) is None
    checkpoint_of_first = first / "teachers" / "dogs" / "teacher.safetensors"
    checkpoint_of_first.parent.mkdir(parents=True)
    checkpoint_of_first.touch()
    assert find_earlier_checkpoint(extending, extending.teachers[1]) == checkpoint_of_first
    assert find_earlier_checkpoint(not_extending, not_extending.teachers[0]) is None
