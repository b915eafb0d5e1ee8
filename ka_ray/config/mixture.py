"""Mixtures of image sources, and the `images` section as a whole."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from ka_ray.config.base import Section
from ka_ray.config.sources import (
    DatasetsImages,
    DigitsImages,
    FolderImages,
    Images,
    ListImages,
    ParquetImages,
    TorchvisionImages,
    WebDatasetImages,
)

PlainImages = (
    DigitsImages
    | FolderImages
    | ParquetImages
    | ListImages
    | DatasetsImages
    | WebDatasetImages
    | TorchvisionImages
)
"""The sources that a mixture may contain."""

SHARED_KEYS = ("size", "resize", "decoding", "max_unreadable")
"""Keys that a part of a mixture has from the mixture."""


def _inherit_from_mixture(part: Any, info: ValidationInfo) -> Any:
    """Copy the keys that all parts share with their mixture into a part, which may leave them out."""
    given = part.model_dump(exclude_unset=True) if isinstance(part, Images) else part
    if not isinstance(given, dict):
        return given
    # Only the keys of the mixture that are valid: pydantic reports the others itself.
    inherited = {key: info.data[key] for key in SHARED_KEYS if key in info.data}
    for key, value in list(inherited.items()):
        if key not in given:
            continue
        try:
            own = type(value).model_validate(given[key]) if isinstance(value, Section) else given[key]
        except ValidationError:  # pydantic finds it again, and knows the path of the key
            del inherited[key]
            continue
        if own != value:
            raise ValueError(
                f"{key} = {given[key]} differs from {value}, the mixture's; set {key} only on the mixture"
            )
    # `size` is required. Any valid one (8) keeps a wrong size of the mixture from being reported twice.
    return {"size": 8} | given | inherited


Part = Annotated[
    PlainImages,
    Field(discriminator="source"),
    BeforeValidator(_inherit_from_mixture),
]
"""A source that a mixture may contain."""


def _two_or_more(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    if len(parts) < 2:  # pydantic's min_length would not count the parts that have mistakes
        raise ValueError(f"at least two sources are needed to mix, there are {len(parts)}")
    return parts


class MixedImages(Images):
    """Several sources that are read as one, part after part; equal labels of two parts are one class.

    The ``limit`` of a part chooses among its images, and does not depend on the seed. The ``limit`` of the
    mixture then chooses among all of these.
    """

    source: Literal["mixed"] = Field(description="The kind of source.")
    parts: Annotated[tuple[Part, ...], AfterValidator(_two_or_more)] = Field(
        description="At least two sources; they share the mixture's size, resize, decoding, max_unreadable."
    )

    @property
    def has_labels(self) -> bool:
        """Whether all parts have classes."""
        return all(part.has_labels for part in self.parts)

    @property
    def has_owners(self) -> bool:
        """Whether it is known of some images which teacher's classes they show."""
        return self.owner is not None or any(part.has_owners for part in self.parts)

    @property
    def has_owner_column(self) -> bool:
        """Whether a column of a part may name owners."""
        return any(part.has_owner_column for part in self.parts)

    @property
    def are_nobodys(self) -> bool:
        """Whether the config says that all of these images show no teacher's classes."""
        return super().are_nobodys or all(part.are_nobodys for part in self.parts)

    @property
    def named_owners(self) -> frozenset[str]:
        """Names of owners of the mixture and its parts."""
        return super().named_owners.union(*(part.named_owners for part in self.parts))


ImagesConfig = Annotated[PlainImages | MixedImages, Field(discriminator="source")]
