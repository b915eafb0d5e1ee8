"""The base of every config section, and the field types that they share."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from ka_ray.config.class_names import ACCEPTED_FORMS, normalise, parse_names
from ka_ray.config.job_paths import ClusterContext, is_absolute, is_on_cluster
from ka_ray.config.ranges import MAX_TEXT_LENGTH, find_flag
from ka_ray.storage.files import absolute, exists, is_path, read_text
from ka_ray.storage.uris import CREDENTIALS_ADVICE, refuse_credentials, to_path


class Section(BaseModel):
    """A config section: immutable; unknown keys, numbers that are not finite and endless text are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        str_max_length=MAX_TEXT_LENGTH,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_flags(cls, given: Any) -> Any:
        # Not a validator of all fields: pydantic refuses one on the key that tells the kind of a source.
        for key, value in given.items() if isinstance(given, Mapping) else ():
            field = cls.model_fields.get(key)
            if field is not None and find_flag(value, field.annotation):
                raise ValueError(f"{key}: {value!r}; true and false are no values of this key")
        return given


def drop_nulls(given: Any, keys: Collection[str]) -> Any:
    """Return a section without the keys that are null, so that they count as not given.

    Args:
        given: The section as it was read; anything but a mapping is returned as it is.
        keys: Keys whose value is chosen by the config if they are not given.
    """
    if not isinstance(given, Mapping):
        return given
    return {key: value for key, value in given.items() if key not in keys or value is not None}


AnySection = TypeVar("AnySection", bound=Section)


def with_defaults(section: AnySection, defaults: Mapping[str, Any]) -> AnySection:
    """Return a section whose keys that were not given have other defaults.

    They still count as not given, so that the choice is made again if the config is changed.

    Args:
        section: A validated section.
        defaults: Key -> default.
    """
    changed = section.model_copy()
    changed.__dict__.update({k: v for k, v in defaults.items() if k not in section.model_fields_set})
    return changed


def _absolute(value: Any, info: ValidationInfo | None = None) -> Path:
    if not is_path(value):
        raise ValueError(f"must be a path or a URI, it is a {type(value).__name__}")
    if info is not None and is_absolute(str(value)) and isinstance(info.context, ClusterContext):
        refuse_credentials(str(value), CREDENTIALS_ADVICE)
        return Path(str(value))  # on the cluster: the file system's package may be missing here
    return absolute(to_path(value))


def _existing(path: Path) -> Path:
    if not exists(path):
        raise ValueError(f"{path} does not exist")
    return path


def _existing_or_on_cluster(value: Any, info: ValidationInfo) -> Path:
    path = _absolute(value, info)
    return path if is_on_cluster(value, info.context) else _existing(path)


_MODEL_NAME = re.compile(r"hf-hub:[\w.\-]+/[\w.\-]+(@[\w.\-]+)?|timm/[\w.\-]+|[a-z]\w*")
"""Names of models: on Hugging Face's hub, of timm and of torchvision. A path with a suffix is none."""


def _model_source(value: Any, info: ValidationInfo) -> str:
    """Make the path of a model absolute; return the name of a model unchanged."""
    if not is_path(value):
        raise ValueError(f"must be a path, a URI or the name of a model, it is a {type(value).__name__}")
    text = str(value).removeprefix("local-dir:")  # timm's prefix for a folder
    if not text:
        raise ValueError("is empty")
    is_name = _MODEL_NAME.fullmatch(text) is not None
    if is_name and not exists(_absolute(text)):  # a file or folder of this name is preferred
        return text
    try:
        return str(_existing_or_on_cluster(text, info))
    except ValueError as error:
        raise ValueError(
            f"{error}; accepted are a file, a folder, a URI, hf-hub:ORGANISATION/MODEL, timm/MODEL, or the "
            "name of a torchvision model"
        ) from None


def read_names(value: Any, info: ValidationInfo) -> Any:
    """Read class names from a file; return a list unchanged.

    For a file on the cluster, return two placeholder names: only the job can read the file.

    Args:
        value: The path of a file, see :func:`ka_ray.config.class_names.parse_names`, or a list of names.
        info: Its context is a :class:`ka_ray.config.job_paths.ClusterContext` if the config is sent to a
            cluster.
    """
    if isinstance(value, str) and is_on_cluster(value, info.context):
        return [f"{value}, class {i}" for i in (1, 2)]
    if isinstance(value, str):
        path = _existing(_absolute(value))
        if not path.is_file():
            raise ValueError(f"{path} must be a file: {ACCEPTED_FORMS}")
        return parse_names(read_text(path), path)
    return value


def _named_once(names: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(normalise(name) for name in names)
    if not all(name.strip() for name in names):
        raise ValueError("a class name is empty; an image without a class has an empty label")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class named twice: {', '.join(twice)}; every class name must be unique")
    return names


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{value!r} is empty; give a name, or leave the key out")
    return value


NotBlank = Annotated[str, AfterValidator(_not_blank)]
"""A text with at least one character that can be seen."""

_PathText = WithJsonSchema({"type": "string"})

AbsolutePath = Annotated[Path, PlainValidator(_absolute), PlainSerializer(str, when_used="json"), _PathText]
"""A URI, or a path that is made absolute when the config is loaded: Ray's workers run in other folders."""

ExistingPath = Annotated[
    Path, PlainValidator(_existing_or_on_cluster), PlainSerializer(str, when_used="json"), _PathText
]
"""A URI or a path that exists. If the config is sent to a cluster, absolute paths are checked only there."""

ModelSource = Annotated[str, BeforeValidator(_model_source)]
"""A file or folder that holds a model, as an absolute path or URI, or the name of a model."""

ClassNames = Annotated[
    tuple[str, ...],
    BeforeValidator(read_names),
    AfterValidator(_named_once),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]
"""Class names: a list, or a file of them. Every name is unique; names are compared in Unicode's NFC."""
