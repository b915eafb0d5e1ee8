"""Loading configs: each mistake gives one clear message, overrides set any key, configs can be flattened."""

import json
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from ka_ray.config import Config, TeachConfig, differing_keys, flatten, with_overrides
from ka_ray.config.load import load_images
from ka_ray.errors import InputError

MISTAKES = {
    "unknown section": (["colour=red"], ["colour: unknown key", "red"]),
    "unknown key": (["codes.epohcs=3"], ["codes.epohcs: unknown key"]),
    "unknown key of a source": (["images.colour=3"], ["images.colour: unknown key"]),
    "wrong type": (["codes.epochs=many"], ["codes.epochs: ", "integer", "'many'"]),
    "wrong type in a teacher": (["teachers.1.arguments=3"], ["teachers.1.arguments: ", "dict"]),
    "out of range": (["evaluation.holdout=1"], ["evaluation.holdout: ", "less than 1"]),
    "bad name": (["name=a b"], ["name: ", "a b"]),
    "unknown loss": (["joint.loss=hinge"], ["joint.loss: ", "'mse'", "'kl'", "'hinge'"]),
    "unknown source": (["images.source=webcam"], ["images", "'digits'", "'folder'", "'parquet'", "'webcam'"]),
    "missing checkpoint": (
        ["teachers.0.checkpoint=/nowhere/low.pt"],
        ["teachers.0.checkpoint: ", "/nowhere/low.pt does not exist"],
    ),
    "missing folder": (
        ["images={source: folder, path: /nowhere, size: 8}"],
        ["images.path: ", "/nowhere does not exist"],
    ),
    "duplicate class": (["teachers.0.classes=[a, b, a]"], ["teachers.0.classes: ", "class named twice: a"]),
    "a single class": (["teachers.0.classes=[a]"], ["teachers.0: ", "['a']; at least two"]),
    "missing file of class names": (
        ["teachers.0.classes=/nowhere.txt"],
        ["teachers.0.classes: ", "/nowhere.txt"],
    ),
    "file of class names is a folder": (["teachers.0.classes=/"], ["teachers.0.classes: "]),
    "duplicate teacher name": (["teachers.1.name=low"], ["teachers", "unique", "['low', 'low']"]),
    "no teachers": (["teachers=[]"], ["teachers", "at least", "[]"]),
    "both checkpoint and training": (
        ["teachers.0.training.epochs=1"],
        ["teachers.0", "low", "checkpoint", "training", "not both"],
    ),
    "batch smaller than the number of workers": (
        ["codes.batch_size=1"],
        ["codes.batch_size: 1 is smaller than ray.workers = 2"],
    ),
    "batch smaller than the maximum number of workers": (
        ["ray.workers={min: 2, max: 129}"],
        ["codes.batch_size: 64 is smaller than ray.workers = 129"],
    ),
    "teacher's batch smaller than the number of workers": (
        ["teachers.0.checkpoint=null", "teachers.0.training.batch_size=1"],
        ["teachers.low.training.batch_size: 1 is smaller than"],
    ),
    "fewer than no workers": (
        ["ray.workers=-1"],
        ["1 problem", "ray.workers: ", "greater than or equal to 0"],
    ),
    "an elastic group without workers": (
        ["ray.workers={min: 0, max: 2}"],
        ["1 problem", "ray.workers.min: "],
    ),
    "minimum of workers above the maximum": (
        ["ray.workers={min: 3, max: 2}"],
        ["ray.workers: max: 2 is smaller than min: 3"],
    ),
    "workers without a maximum": (["ray.workers={min: 3}"], ["1 problem", "ray.workers.max: "]),
    "one and a half GPUs": (
        ["placement.trainers.gpu=1.5"],
        ["placement.trainers.gpu: ", "a fraction of one GPU"],
    ),
    "a GPU for decoding": (
        ["placement.decoding.gpu=1"],
        ["placement.decoding.gpu: ", "less than or equal to 0"],
    ),
    "CPUs as a custom resource": (
        ["placement.teachers.resources={CPU: 2}"],
        ["placement.teachers.resources: cpu: are not custom resources"],
    ),
    "widths like an unknown teacher": (
        ["codes.widths.like=nobody"],
        ["codes.widths.like: no teacher 'nobody'", "'low'", "'high'"],
    ),
    "width that is not a number": (
        ["codes.widths.conv1=wide"],
        ["codes.widths.conv1: ", "integer", "'wide'"],
    ),
    "width of zero": (["codes.widths.conv1=0"], ["codes.widths.conv1: ", "greater than or equal to 1", "0"]),
    "negative width": (["codes.widths.conv1=-4"], ["codes.widths.conv1: ", "greater than or equal", "-4"]),
    "tap without one of the teachers": (
        ["taps.conv1={low: norm1}"],
        ["taps.conv1: ", "['low', 'high']", "'student'"],
    ),
    "tap of the student and one teacher": (
        ["taps.conv1={low: norm1, student: conv1}"],
        ["taps.conv1: ", "['low', 'student']", "['low', 'high']"],
    ),
    "tap of an unknown teacher": (
        ["taps.conv1={low: norm1, high: norm1, nobody: norm1}"],
        ["taps.conv1: ", "nobody", "['low', 'high']"],
    ),
    "tap that is not a path": (["taps.conv1=3"], ["taps.conv1: ", "3"]),
    "a teacher named student": (
        ["teachers.1.name=student"],
        ["teachers: ", "'student'", "['low', 'student']"],
    ),
    "unknown rule": (["scores.rule=median"], ["scores.rule: ", "'concatenate'", "'conditional'", "'median'"]),
    "unknown view in a list": (
        ["scores.views=[flip, rotate]"],
        ["scores.views.1: ", "'flip'", "'shift'", "'rotate'"],
    ),
    "unknown view": (["scores.views=rotate"], ["scores.views: ", "'flip'", "'shift'", "'rotate'"]),
    "shift of zero pixels": (["scores.shift=0"], ["scores.shift: ", "greater than or equal to 1"]),
    "unknown method": (["codes.method=best"], ["codes.method: ", "'direct'", "'incremental'", "'best'"]),
    "zero images for joint learning": (["joint.images=0"], ["joint.images: ", "greater than or equal to 1"]),
    "unknown baseline": (["baseline=teach"], ["baseline: ", "'distill'", "'scratch'", "'teach'"]),
    "unknown key of a baseline": (
        ["baselines.distill.epohcs=3"],
        ["baselines.distill.epohcs: unknown key"],
    ),
    "baseline's batch smaller than the number of workers": (
        ["baselines.scratch.batch_size=1"],
        ["baselines.scratch.batch_size: 1 is smaller than ray.workers = 2"],
    ),
    "baseline without joint learning": (
        ["baseline=distill", "joint.epochs=0"],
        ["joint.epochs: 0", "'distill'", "joint.images"],
    ),
    "learning rates without joint learning": (
        ["tune.learning_rates=[0.1]", "joint.epochs=0"],
        ["tune.learning_rates: ", "joint.epochs: 0"],
    ),
    "duplicate value to try": (["tune.ridges=[0.1, 0.1]"], ["tune: tune.ridges: ", "[0.1, 0.1]"]),
    "energy above 1": (
        ["codes.widths={energy: 1.5}"],
        ["codes.widths", "energy", "less than or equal"],
    ),
    "run to extend that does not exist": (
        ["extend=/nowhere/run"],
        ["extend: ", "/nowhere/run does not exist"],
    ),
}


@pytest.mark.parametrize(("overrides", "expected_parts"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message_that_names_its_key(load_config, overrides, expected_parts):
    with pytest.raises(InputError) as caught:
        load_config(*overrides)
    message = str(caught.value)
    assert "1 problem" in message
    for part in expected_parts:
        assert part in message


def test_all_mistakes_are_named_in_one_message(load_config):
    with pytest.raises(InputError, match="2 problem") as caught:
        load_config("codes.epochs=many", "joint.colour=red")
    assert "codes.epochs: " in str(caught.value)
    assert "joint.colour: unknown key" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "seed",
        "=3",
        "teachers.7.name=x",
        "teachers.first.name=x",
        "teachers.9={}",
        "name.deep=1",
        "name.much.deeper=1",
        "seed=[1",
    ],
)
def test_a_bad_override_is_named(load_config, override):
    with pytest.raises(InputError, match="--set") as caught:
        load_config(override)
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00\x01", "is not YAML"),
        (b"- a\n- b\n", "mapping"),
        (b"", "mapping"),
    ],
    ids=["missing", "broken", "binary", "list", "empty"],
)
def test_a_file_that_is_not_a_config_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Config.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("codes.learning_rate=1e-3", lambda c: c.codes.learning_rate, 1e-3),
        ("teachers.1.name=top", lambda c: c.teachers[1].name, "top"),
        ("teachers.1.classes.0=five", lambda c: c.teachers[1].classes[0], "five"),
        ("teachers.0.preprocessing.size=16", lambda c: c.teachers[0].preprocessing.size, 16),
        ("codes.widths.conv1=5", lambda c: c.codes.widths, {"conv1": 5}),
        ("codes.widths={like: high}", lambda c: getattr(c.codes.widths, "like", None), "high"),
        ("joint.augment.flip=true", lambda c: c.joint.augment.on, True),
        ("images={source: digits, split: test}", lambda c: c.images.split, "test"),
        ("student.arguments.note=a=b", lambda c: c.student.arguments, {"note": "a=b"}),
        ("tracking.uri=", lambda c: c.tracking.uri, None),
        ("scores.rule=max", lambda c: c.scores.rule, "max"),
        ("scores.views=flip", lambda c: c.scores.views, ("flip",)),
        ("scores.views=[shift, flip]", lambda c: c.scores.views, ("shift", "flip")),
        ("scores.shift=4", lambda c: c.scores.shift, 4),
        ("codes.method=incremental", lambda c: c.codes.method, "incremental"),
        ("joint.images=1000", lambda c: c.joint.images, 1000),
        ("baseline=scratch", lambda c: c.baseline, "scratch"),
        ("baselines.distill.loss=kl", lambda c: getattr(c.baselines.distill, "loss", None), "kl"),
        ("evaluation.each_epoch=true", lambda c: c.evaluation.each_epoch, True),
        (
            "taps.conv1={low: norm1, high: norm1, student: conv1}",
            lambda c: (c.taps or {}).get("conv1"),
            {"low": "norm1", "high": "norm1", "student": "conv1"},
        ),
    ],
)
def test_an_override_sets_its_key(load_config, override, read, expected):
    assert read(load_config()) != expected or expected is None
    assert read(load_config(override)) == expected


def test_optional_features_are_off_by_default(load_config):
    config = load_config()
    assert (config.scores.rule, config.scores.views) == (None, ())
    assert (config.codes.method, config.codes.widths) == ("direct", None)
    assert (config.baseline, config.extend, config.joint.images) == (None, None, None)
    assert set(config.baselines.distill.model_dump().values()) == {None}
    assert set(config.baselines.scratch.model_dump().values()) == {None}
    assert not config.evaluation.each_epoch


def test_no_views_may_be_written_as_null(load_config):
    assert load_config("scores.views=null").scores.views == ()


def test_the_run_to_extend_becomes_absolute(load_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "before").mkdir(parents=True)
    assert load_config("extend=runs/before").extend == tmp_path / "runs" / "before"


def test_a_config_can_be_changed_by_overrides(load_config):
    config = load_config("codes.widths.conv1=3", "taps={conv1: norm1, conv2: norm2}")
    changes = ["codes.method=incremental", "seed=5", "baselines.distill.batch_size=2", "teachers.1.name=top"]
    changed = with_overrides(config, changes)
    assert changed == load_config("codes.widths.conv1=3", "taps={conv1: norm1, conv2: norm2}", *changes)
    assert (config.codes.method, config.seed, config.teachers[1].name) == ("direct", 0, "high")


def test_no_overrides_return_an_equal_config(load_config):
    config = load_config("joint.augment.flip=true", "scores.views=flip", "codes.widths.like=high")
    assert with_overrides(config, []) == config


def test_overrides_leave_open_what_was_left_open(load_config):
    changed = with_overrides(load_config(), ["seed=3", "teachers.0.preprocessing.size=8"])
    assert changed.seed == 3
    assert "size" in changed.teachers[0].preprocessing.model_fields_set
    assert "interpolation" not in changed.teachers[0].preprocessing.model_fields_set


@pytest.mark.parametrize(
    ("overrides", "expected_parts"),
    [
        (["scores.rule=median"], ["1 problem", "scores.rule: ", "'median'"]),
        (["joint.batch_size=1"], ["joint.batch_size: 1 is smaller than ray.workers = 2"]),
        (["baseline=null", "colour=red"], ["colour: unknown key"]),
        (["seed"], ["--set 'seed'"]),
    ],
)
def test_a_changed_config_is_checked_again(load_config, overrides, expected_parts):
    with pytest.raises(InputError) as caught:
        with_overrides(load_config(), overrides)
    for part in expected_parts:
        assert part in str(caught.value)


def test_the_last_of_two_overrides_of_a_key_is_used(load_config):
    assert load_config("seed=1", "seed=2").seed == 2


def test_classes_are_read_from_a_text_file(load_config, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("red\n\n  green \nblue\n")
    assert load_config(f"teachers.0.classes={names}").teachers[0].classes == ("red", "green", "blue")


def test_a_class_twice_in_a_text_file_is_refused(load_config, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nred\n")
    with pytest.raises(InputError, match="class named twice: red"):
        load_config(f"teachers.0.classes={names}")


def test_paths_become_absolute(load_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("output=out", "teachers.0.checkpoint=low.safetensors")
    assert config.output_dir == tmp_path / "out"
    assert config.teachers[0].checkpoint == tmp_path / "low.safetensors"
    assert load_config().output_dir == tmp_path / "runs" / "run"


def test_a_config_is_frozen(load_config):
    config = load_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("taps={conv1: norm1, conv2: {low: norm2, high: act2}}", "codes.widths.conv1=3"),
        ("codes.widths.like=high", "joint.augment.shift=2", "student.arguments.widths=[4, 6]"),
        ("scores={rule: max, views: [flip, shift]}", "baseline=distill", "baselines.distill.loss=kl"),
        ("taps={conv1: {low: norm1, high: norm1, student: conv1}}", "evaluation.each_epoch=true"),
    ],
)
def test_flattened_keys_given_as_overrides_rebuild_the_config(tmp_path, load_config, overrides):
    config = load_config(*overrides)
    flat = flatten(config)
    # Overrides can only change existing items of a list of sections, so the file must contain two teachers.
    two_teachers = {"teachers": [{}, {}]}
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(two_teachers))
    reloaded = Config.load(path, [f"{key}={json.dumps(value)}" for key, value in flat.items()])
    assert reloaded == config
    assert flat["teachers.1.name"] == "high"
    assert not any(isinstance(value, dict) and value for value in flat.values())


def test_differing_keys_ignore_settings_of_the_environment_and_of_memory(load_config):
    old = load_config().model_dump(mode="json")
    memory_settings = ("extract.batch_size=8", "extract.shard_mib=1", "placement.teachers.cpu=2")
    environment_settings = ("ray.workers=1", "output=/tmp/other", "tracking.backend=none")
    changed = load_config(*environment_settings, *memory_settings).model_dump(mode="json")
    assert differing_keys(old, changed) == {}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("codes.epochs=7", {"codes.epochs": (6, 7)}),
        ("codes.widths.conv1=3", {"codes.widths": (None, None), "codes.widths.conv1": (None, 3)}),
        ("teachers.1.name=top", {"teachers.1.name": ("high", "top")}),
        ("images.limit=10", {"images.limit": (None, 10)}),
    ],
)
def test_differing_keys_name_what_changes_the_result(load_config, override, expected):
    given = ("student.start=random", "joint.epochs=1")
    old, new = (load_config(*given, *more).model_dump(mode="json") for more in ([], [override]))
    differing = differing_keys(old, new)
    assert differing == {key: pair for key, pair in expected.items() if pair[0] != pair[1]}


def test_a_teach_config_without_training_is_refused(tmp_path, config_tree):
    teacher = {**config_tree["teachers"][0], "checkpoint": None}
    path = tmp_path / "teach.yaml"
    path.write_text(yaml.safe_dump({"name": "t", "images": {"source": "digits"}, "teacher": teacher}))
    with pytest.raises(InputError, match=r"teacher\.training"):
        TeachConfig.load(path)
    with pytest.raises(InputError, match=r"teacher\.training\.batch_size: 1 .* ray\.workers = 2"):
        TeachConfig.load(path, ["teacher.training.batch_size=1"])
    assert TeachConfig.load(path, ["teacher.training.epochs=3"]).teacher.training.epochs == 3


def test_importing_the_config_imports_neither_torch_nor_ray():
    code = "import sys, ka_ray.config; print(*(m for m in ('torch', 'ray', 'mlflow') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_images_section_can_be_loaded_by_itself():
    images = load_images({"source": "digits"}, ["split=test", "limit=5"])
    assert (images.split, images.limit) == ("test", 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [("colour=red", "colour: unknown key"), ("size=2", "size: "), ("source=webcam", "'digits'")],
)
def test_a_mistake_in_the_images_section_names_its_key(override, message):
    with pytest.raises(InputError, match="1 problem") as caught:
        load_images({"source": "digits"}, [override])
    assert message in str(caught.value)


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(load_config):
    with pytest.raises(InputError, match=r"tracking\.uri: credentials in the URI") as error:
        load_config("tracking.uri=http://me:s3cret@server:5000")
    assert "s3cret" not in str(error.value)
    assert load_config("tracking.uri=http://server:5000").tracking.uri == "http://server:5000"
