"""Test URIs in a config: they are kept, also in dumps, and unusable ones are refused when it is loaded."""

import json

import pytest

from ka_ray.config import Config, flatten, with_overrides
from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote, write_text
from ka_ray.storage.uris import to_path


@pytest.fixture
def config_on_s3(s3, load_config, config_tree):
    """Return a config whose teachers, class names and output lie on S3."""
    checkpoint = to_path(f"{s3}/teachers/low.safetensors")
    checkpoint.write_bytes(b"weights")
    write_text(to_path(f"{s3}/names.txt"), "red\n\n  green \n")
    config_tree["teachers"][0] |= {"checkpoint": str(checkpoint), "classes": f"{s3}/names.txt"}
    return load_config(f"output={s3}/runs/one/")


def test_uris_in_a_config_are_kept(config_on_s3, s3):
    assert str(config_on_s3.output_dir) == f"{s3}/runs/one"
    assert is_remote(config_on_s3.output_dir)
    assert str(config_on_s3.teachers[0].checkpoint) == f"{s3}/teachers/low.safetensors"
    assert not is_remote(config_on_s3.teachers[1].checkpoint)
    assert config_on_s3.teachers[0].classes == ("red", "green")


def test_a_dumped_config_with_uris_loads_again(config_on_s3, s3):
    dumped = json.loads(json.dumps(config_on_s3.model_dump(mode="json")))
    assert dumped["output"] == f"{s3}/runs/one"
    assert Config.model_validate(dumped) == config_on_s3
    assert Config.model_validate(config_on_s3.model_dump()) == config_on_s3
    assert with_overrides(config_on_s3, ["seed=3"]).teachers == config_on_s3.teachers
    assert flatten(config_on_s3)["teachers.0.checkpoint"] == f"{s3}/teachers/low.safetensors"


def test_a_config_file_can_be_on_s3(config_on_s3, s3):
    write_text(to_path(f"{s3}/config.yaml"), json.dumps(config_on_s3.model_dump(mode="json")))
    assert Config.load(f"{s3}/config.yaml", ["seed=5"]) == with_overrides(config_on_s3, ["seed=5"])
    with pytest.raises(InputError, match=f"config {s3}/other.yaml does not exist"):
        Config.load(f"{s3}/other.yaml")


def test_a_missing_object_is_reported_with_its_key(config_on_s3, s3, load_config):
    for key in ("teachers.0.checkpoint", "extend", "teachers.1.classes"):
        with pytest.raises(InputError, match=rf"{key}: {s3}/nowhere does not exist"):
            load_config(f"{key}={s3}/nowhere")
    with pytest.raises(InputError, match=rf"images\.path: {s3}/nowhere does not exist"):
        load_config(f"images={{source: folder, path: {s3}/nowhere, size: 8}}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=s3://AKIA:s3cret@bucket/x", "output: credentials in the URI would be shown in reports"),
        ("extend=https://host/run?token=s3cret", "extend: credentials in the URI"),
        ("output=webdisk://x/y", "output: webdisk:// is not a protocol that fsspec knows"),
        ("outputt=s3://AKIA:s3cret@bucket/x", "outputt: unknown key"),
        ("output=s3://AKIA:se/cret@bucket/x", "output: credentials"),
        ("output=https://token@host/x", "output: credentials"),
        ("output=https://host/x?sig=abc", "output: credentials"),
        ("output=3", "output: must be a path or a URI, it is a int"),
    ],
)
def test_an_unusable_uri_is_reported_in_one_message_that_names_its_key(load_config, override, message):
    with pytest.raises(InputError) as caught:
        load_config(override)
    assert "1 problem" in str(caught.value)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_package_is_reported_with_the_key(load_config, monkeypatch):
    import fsspec

    def missing(name: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=r"output: s3:// needs .* pip install 'ka_ray\[s3\]'"):
        load_config("output=s3://bucket/run")
