"""Test that a damaged JSON file is one message that names the file."""

import pytest

from ka_ray.errors import InputError
from ka_ray.storage.files import read_json, write_json
from ka_ray.storage.uris import to_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is damaged: it is not JSON"),
        (b'{"a": 1', r"is damaged: it is not JSON"),
        (b"\xff\x00", r"is damaged: it is not JSON"),
        (b"[" * 100_000, r"is damaged: it is not JSON"),
        (b"[1]", r"is damaged: it holds a list, not an object"),
        (b"null", r"is damaged: it holds a NoneType, not an object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "done.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"done\.json {message}"):
        read_json(tmp_path / "done.json")


@pytest.mark.parametrize("value", [None, "1", 1.0, True, [1]])
def test_a_key_of_another_type_is_named(tmp_path, value):
    write_json(tmp_path / "done.json", {"images": value})
    with pytest.raises(InputError, match=r"done\.json is damaged: images is .*, not of type int"):
        read_json(tmp_path / "done.json", images=int)


def test_a_sound_file_is_read(tmp_path):
    write_json(tmp_path / "done.json", {"images": 3, "name": "caf\u00e9"})
    assert read_json(tmp_path / "done.json", images=int, name=str) == {"images": 3, "name": "caf\u00e9"}


@pytest.mark.parametrize("name", ["~nobody_has_this_name/x", "a\0b"])
def test_a_name_that_is_no_path_is_one_message(name):
    with pytest.raises(InputError, match=r"\S"):
        to_path(name)
