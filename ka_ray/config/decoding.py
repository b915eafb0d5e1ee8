"""The `decoding` section of images: how an image file becomes RGB pixels."""

from typing import Annotated, Literal

from pydantic import Field

from ka_ray.config.base import Section

Level = Annotated[int, Field(ge=0, le=255)]
"""The brightness of a colour channel."""


class Decoding(Section):
    """How an image file becomes RGB pixels. Training, `evaluate` and `predict` use the same rules."""

    exif_orientation: bool = Field(
        False,
        description="Turn a photo as the camera's EXIF tag says. false: leave it as it is stored, as "
        "torchvision's and timm's loaders do.",
    )
    background: tuple[Level, Level, Level] = Field(
        (255, 255, 255), description="Red, green, blue of what is behind transparent pixels."
    )
    white: float | None = Field(
        None,
        ge=1e-12,
        le=1e12,
        description="Value that is white in images of more than 8 bits per channel, such as 4095 for 12-bit "
        "X-rays. null: the largest value of the file's format; 1 for floats.",
    )
    truncated: Literal["refuse", "accept"] = Field(
        "refuse", description="Files that end too early. accept: fill the missing part with grey."
    )
    max_pixels: int = Field(
        178_956_970,
        ge=1,
        le=10**12,
        description="Larger images are unreadable: a small file can hold an image that fills the memory.",
    )
