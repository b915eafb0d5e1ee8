"""The base of every config section, and the field types that they share."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from ka_ray.config.places import lies_elsewhere


class Section(BaseModel):
    """A config section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _absolute(path: Path) -> Path:
    return Path(path).expanduser().absolute()


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    return path


def _existing_or_elsewhere(path: Path, info: ValidationInfo) -> Path:
    return path if lies_elsewhere(path, info.context) else _existing(_absolute(path))


def read_names(value: Any, info: ValidationInfo) -> Any:
    """Turn a path to a text file of class names, one a line, into the list of names; pass a list on.

    Of a file on a cluster two names stand for those that only the job will read.
    """
    if isinstance(value, str) and lies_elsewhere(value, info.context):
        return [f"{value}, class {i}" for i in (1, 2)]
    if isinstance(value, str):
        path = _existing(_absolute(Path(value)))
        if not path.is_file():
            raise ValueError(f"{path} must be a text file with one class name a line")
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return value


def _named_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class named twice: {', '.join(twice)}; every class name must be unique")
    return names


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
"""A path, made absolute against the folder that the command was started in (Ray workers change theirs)."""

ExistingPath = Annotated[Path, AfterValidator(_existing_or_elsewhere)]
"""An absolute path to something that exists."""

ClassNames = Annotated[tuple[str, ...], BeforeValidator(read_names), AfterValidator(_named_once)]
"""Class names: a list, or a text file with one name a line. No name twice."""
