"""The `preprocessing` section of a network: from the decoded image to the network's input."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ka_ray.config.base import Section
from ka_ray.config.ranges import Pixels

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Mean and standard deviation of ImageNet's training images."""

PRESETS: dict[str, dict[str, Any]] = {
    # The transform of torchvision's published weights: Resize(256), CenterCrop(224).
    "torchvision": {"resize": "shorter", "size": 256, "crop": 224, **IMAGENET},
    # timm's default of `create_transform(..., is_training=False)`.
    "timm": {
        "resize": "shorter",
        "crop": 224,
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        **IMAGENET,
    },
    # The image processor of Hugging Face's ViT.
    "huggingface": {"resize": "squash", "size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "cifar": {"resize": "none", "size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)},
}
"""Name of a preset -> the keys that it sets."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = tuple[float, float, float] | tuple[float]


class Preprocessing(Section):
    """What a network does to a decoded image before its first layer."""

    preset: Literal["torchvision", "timm", "huggingface", "cifar"] | None = Field(
        None, description="Defaults of the other keys: those of the library that the network comes from."
    )
    resize: Literal["squash", "shorter", "longest", "none"] | None = Field(
        None,
        description="squash: scale both sides to size; shorter: scale the shorter side to size; longest: "
        "scale the longer side to size and pad the other one; none: images have this size already; null: as "
        "images.resize says.",
    )
    size: Pixels | None = Field(
        None, description="Pixels of the resized side; null: crop / crop_fraction, or images.size."
    )
    crop: Pixels | None = Field(
        None, description="Cut crop x crop pixels out of the centre; null: size x size."
    )
    crop_fraction: float | None = Field(
        None,
        ge=0.05,
        le=2,
        description="Side of the crop as a share of the resized side, at most 1 unless the image shall be "
        "padded; null: size says it.",
    )
    interpolation: Interpolation = Field("bilinear", description="How resizing computes pixels.")
    antialias: bool = Field(
        True, description="Whether shrinking averages over pixels, as Pillow and torchvision do."
    )
    round_crop: Literal["half_even", "down"] = Field(
        "half_even",
        description="Where a crop begins if the margin is odd. half_even: as torchvision and timm do; "
        "down: as Hugging Face does, which also rounds padding up.",
    )
    channel_order: Literal["rgb", "bgr"] = Field("rgb", description="Order of the colour channels.")
    channels: Literal[1, 3] = Field(3, description="1: the network takes grey images.")
    rescale: float = Field(
        1 / 255, ge=1e-6, le=1e6, description="Factor of the pixels 0 ... 255; 1: no scaling."
    )
    mean: Colour = Field(
        IMAGENET["mean"], description="Mean of the rescaled pixels, per channel; it is subtracted."
    )
    std: Colour = Field(
        IMAGENET["std"], description="Standard deviation, per channel; the difference is divided by it."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = dict(PRESETS.get(str(given.get("preset")), {}))
        # What the user says of the resized size replaces what the preset says of it, by whichever key.
        if given.keys() & {"size", "crop_fraction"}:
            preset = {key: value for key, value in preset.items() if key not in ("size", "crop_fraction")}
        # A larger crop than the size that was given would frame small images in black.
        size, crop = given.get("size"), preset.get("crop")
        if isinstance(size, int) and crop is not None and crop > size:
            del preset["crop"]
        return {**preset, **given}

    @model_validator(mode="after")
    def _check_values(self) -> "Preprocessing":
        brightest = 255 * self.rescale
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{key}: {list(values)}; the network's number of channels is {self.channels}"
                )
        # A mistake of units would reach the network as an image that is nearly constant.
        if min(self.mean) < 0 or max(self.mean) > brightest or (brightest > 2 and 0 < max(self.mean) <= 1):
            raise ValueError(
                f"mean: {list(self.mean)} does not fit pixels of 0 ... {brightest:g}. Give it in these "
                "units; rescale says which: 1/255 (0.00392) for 0 ... 1, 1 for 0 ... 255"
            )
        if min(self.std) < brightest / 1e6 or max(self.std) > brightest:
            raise ValueError(
                f"std: {list(self.std)} does not fit pixels of 0 ... {brightest:g}; each must lie in "
                f"{brightest / 1e6:g} ... {brightest:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> "Preprocessing":
        if self.crop_fraction is not None and self.size is not None:
            raise ValueError("crop_fraction: give it or size, not both")
        if self.crop_fraction is not None and self.crop is None:
            raise ValueError("crop_fraction: needs crop, the size of the network's input")
        if self.interpolation == "lanczos" and not self.antialias:
            raise ValueError("antialias: false is not possible with interpolation: lanczos")
        return self

    def resolve(self, size: int, resize: str) -> "Preprocessing":
        """Fill in what is left open, so that the images no longer matter.

        Args:
            size: `images.size`, for a network that names no size.
            resize: `images.resize`: ``squash`` or ``crop``.

        Returns:
            The same preprocessing with `resize`, `size` and `crop` set.
        """
        resized = self.size
        if resized is None:
            resized = size if self.crop is None else math.floor(self.crop / (self.crop_fraction or 1))
        return self.model_copy(
            update={
                "resize": self.resize or ("squash" if resize == "squash" else "shorter"),
                "size": resized,
                "crop": self.crop or resized,
                "crop_fraction": None,
            }
        )
