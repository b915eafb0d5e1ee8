"""The base of every config section, and the field types that they share."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PlainValidator

from ka_ray.files import absolute, exists, is_path, read_text, to_path


class Section(BaseModel):
    """A config section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _absolute(value: Any) -> Path:
    if is_path(value):
        return absolute(to_path(value))
    raise ValueError(f"must be a path or a URI, it is a {type(value).__name__}")


def _existing(path: Path) -> Path:
    if not exists(path):
        raise ValueError(f"{path} does not exist")
    return path


def read_names(value: Any) -> Any:
    """Turn a path to a text file of class names, one a line, into the list of names; pass a list on."""
    if isinstance(value, str):
        path = _existing(_absolute(value))
        if not path.is_file():
            raise ValueError(f"{path} must be a text file with one class name a line")
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return value


def _named_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class named twice: {', '.join(twice)}; every class name must be unique")
    return names


AbsolutePath = Annotated[Path, PlainValidator(_absolute), PlainSerializer(str, when_used="json")]
"""A URI, or a path, which is made absolute against the folder that the command was started in.

Ray workers change theirs.
"""

ExistingPath = Annotated[AbsolutePath, AfterValidator(_existing)]
"""A URI or an absolute path of something that exists."""

ClassNames = Annotated[tuple[str, ...], BeforeValidator(read_names), AfterValidator(_named_once)]
"""Class names: a list, or a text file with one name a line. No name twice."""
