"""The base of every config section, and the field types that they share."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
)

from ka_ray.config.job_paths import Places, is_absolute, lies_elsewhere
from ka_ray.storage.files import absolute, exists, is_path, read_text
from ka_ray.storage.uris import CREDENTIALS_ADVICE, refuse_credentials, to_path


class Section(BaseModel):
    """A config section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _absolute(value: Any, info: ValidationInfo | None = None) -> Path:
    if not is_path(value):
        raise ValueError(f"must be a path or a URI, it is a {type(value).__name__}")
    if info is not None and is_absolute(str(value)) and isinstance(info.context, Places):
        refuse_credentials(str(value), CREDENTIALS_ADVICE)
        return Path(str(value))  # a place on a cluster, whose packages for it are not needed here
    return absolute(to_path(value))


def _existing(path: Path) -> Path:
    if not exists(path):
        raise ValueError(f"{path} does not exist")
    return path


def _existing_or_elsewhere(value: Any, info: ValidationInfo) -> Path:
    path = _absolute(value, info)
    return path if lies_elsewhere(value, info.context) else _existing(path)


def read_names(value: Any, info: ValidationInfo) -> Any:
    """Turn a path to a text file of class names, one a line, into the list of names; pass a list on.

    Of a file on a cluster two names stand for those that only the job will read.
    """
    if isinstance(value, str) and lies_elsewhere(value, info.context):
        return [f"{value}, class {i}" for i in (1, 2)]
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

ExistingPath = Annotated[Path, PlainValidator(_existing_or_elsewhere), PlainSerializer(str, when_used="json")]
"""A URI or an absolute path of something that exists, at least on the cluster that a job is sent to."""

ClassNames = Annotated[tuple[str, ...], BeforeValidator(read_names), AfterValidator(_named_once)]
"""Class names: a list, or a text file with one name a line. No name twice."""
