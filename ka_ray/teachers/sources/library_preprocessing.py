"""Express the image transforms of timm, transformers and torchvision as a preprocessing of this package.

Each result is compared with the library's own transform on an image, so that a rule that preprocessing cannot
express is noticed here, and not as a network that is silently worse.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.teachers.preprocess import Preprocess

TOLERANCE = 1e-5
"""Largest difference of normalised pixels from the library's, which rounds in another order."""

TEST_SIZES = ((397, 311), (301, 517), (123, 77), (241, 224))
"""Width and height of the images on which transforms are compared: odd, upright, lying, large and small."""

LEVIT_ENLARGEMENT = 256 / 224
"""Levit's processor resizes the shorter side to this multiple of its size."""

TIMM_RESIZE = {"center": "shorter", "squash": "squash", "border": "longest"}
"""timm's `crop_mode` -> `resize`."""


def preprocessing_of_timm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Express a data config of timm.

    Args:
        settings: Result of ``timm.data.resolve_data_config``.

    Returns:
        Keys of :class:`ka_ray.config.Preprocessing`.

    Raises:
        InputError: A key has a value that preprocessing cannot express.
    """
    from timm.data.transforms_factory import create_transform

    channels, height, width = settings["input_size"]
    mode = settings.get("crop_mode") or "center"
    if height != width or mode not in TIMM_RESIZE:
        raise InputError(f"timm's input_size {settings['input_size']} with crop_mode {mode} is not supported")
    found = {
        "resize": TIMM_RESIZE[mode],
        "crop": width,
        "crop_fraction": settings["crop_pct"],
        "interpolation": _name_interpolation(settings["interpolation"]),
        "channels": channels,
        "mean": tuple(settings["mean"]),
        "std": tuple(settings["std"]),
    }
    transform = create_transform(**settings, is_training=False)
    check_equal(found, lambda image: np.asarray(transform(image)), "timm's transform")
    return found


def preprocessing_of_torchvision(weights: Any) -> dict[str, Any]:
    """Express the transform of published weights of torchvision.

    Args:
        weights: A member of a ``torchvision.models.WeightsEnum``.

    Returns:
        Keys of :class:`ka_ray.config.Preprocessing`.

    Raises:
        InputError: The transform does something that preprocessing cannot express.
    """
    transform = weights.transforms()
    found = {
        "resize": "shorter",
        "size": transform.resize_size[0],
        "crop": transform.crop_size[0],
        "interpolation": _name_interpolation(transform.interpolation.value),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
    }
    check_equal(found, lambda image: transform(image).numpy(), f"the transform of {weights}")
    return found


def preprocessing_of_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Express an image processor of transformers.

    Args:
        settings: Content of a ``preprocessor_config.json``.

    Returns:
        Keys of :class:`ka_ray.config.Preprocessing`.

    Raises:
        InputError: The processor does something that preprocessing cannot express, or cannot be loaded.
    """
    import transformers

    load: Any = transformers.AutoImageProcessor.from_pretrained
    # `auto_map` names code that comes with the model. The library reads local folders only.
    known = {key: value for key, value in settings.items() if key != "auto_map"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "preprocessor_config.json").write_text(json.dumps(known), encoding="utf-8")
            # The pixels of the library's other backend, torchvision, differ by one grey value here and there.
            processor = load(folder, backend="pil", trust_remote_code=False)
        found = _describe_processor(processor)
        transform = partial(_process, processor)
        check_equal(found, transform, f"transformers' {type(processor).__name__}")
    except InputError:
        raise
    except Exception as error:  # an unknown type, values that make no sense: many types
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
        raise InputError(
            f"the image processor {kind} in preprocessor_config.json cannot be used ({type(error).__name__}: "
            f"{str(error).partition('. ')[0][:200]})"
        ) from None
    return found


def _process(processor: Any, image: Image.Image) -> npt.NDArray[Any]:
    pixels: npt.NDArray[Any] = processor(image, return_tensors="np")["pixel_values"][0]
    return pixels


def _describe_processor(processor: Any) -> dict[str, Any]:
    def setting(name: str, default: Any = None) -> Any:
        value = getattr(processor, name, default)
        return default if value is None else value

    found = _processor_size(setting)
    if "Levit" in type(processor).__name__ and found["resize"] == "shorter":
        found["size"] = int(LEVIT_ENLARGEMENT * found["size"])
    if setting("do_center_crop", False):
        found["crop"] = _side(setting("crop_size"))
    normalized = setting("do_normalize", False)
    mean = np.array(setting("image_mean") if normalized else [0.0] * 3)
    std = np.array(setting("image_std") if normalized else [1.0] * 3)
    if setting("rescale_offset", False):  # EfficientNet's processor subtracts 1 from the rescaled pixels,
        mean = mean + 1
    if setting("include_top", False):  # and divides by the standard deviation again
        std = std * np.array(setting("image_std"))
    return {
        **found,
        "interpolation": Image.Resampling(int(setting("resample", Image.Resampling.BILINEAR))).name.lower(),
        "round_crop": "down",
        "channel_order": "bgr" if setting("do_flip_channel_order", False) else "rgb",
        "rescale": setting("rescale_factor", 1 / 255) if setting("do_rescale", True) else 1.0,
        "mean": tuple(mean.tolist()),
        "std": tuple(std.tolist()),
    }


def _processor_size(setting: Callable[..., Any]) -> dict[str, Any]:
    """Return the keys about the size of a processor's images."""
    if not setting("do_resize", False):
        return {"resize": "none", "size": _side(setting("crop_size") or setting("size"))}
    size = dict(setting("size"))
    shortest, fraction = size.get("shortest_edge"), setting("crop_pct")
    if shortest is None:
        return {"resize": "squash", "size": _side(size)}
    if fraction is None:
        return {"resize": "shorter", "size": shortest}
    if shortest < 384:  # ConvNeXt's processor crops small images, and squashes large ones
        return {"resize": "shorter", "size": int(shortest / fraction), "crop": shortest}
    return {"resize": "squash", "size": shortest}


def _side(size: Any) -> int:
    """Return the side of a square size of transformers."""
    sides = {key: value for key, value in dict(size).items() if value is not None}
    if sides.keys() != {"height", "width"} or sides["height"] != sides["width"]:
        raise InputError(f"the image processor's size {sides} is not supported: it must be square")
    return int(sides["height"])


def _name_interpolation(name: str) -> str:
    known = {"nearest", "bilinear", "bicubic", "lanczos"}
    if name not in known:
        raise InputError(f"interpolation {name!r} is not supported; supported are {', '.join(sorted(known))}")
    return name


def check_equal(
    found: Mapping[str, Any], transform: Callable[[Image.Image], npt.NDArray[Any]], name: str
) -> None:
    """Check that a preprocessing equals a library's transform, on images of several sizes.

    Args:
        found: Keys of :class:`ka_ray.config.Preprocessing`.
        transform: Maps an RGB image, or a grey one, to the network's input ``[C, H, W]``.
        name: What the transform is, for the error message.

    Raises:
        InputError: They differ.
    """
    preprocessing = Preprocessing.model_validate(dict(found)).resolve(size=224, resize="crop")
    view, normalise = view_of(preprocessing), Preprocess(preprocessing)
    for number, (width, height) in enumerate(TEST_SIZES):
        if preprocessing.resize == "none":
            width = height = view.size
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if preprocessing.channels == 1 else "RGB")
        ours = normalise(torch.from_numpy(view.apply(image))[None])[0].numpy()
        theirs = transform(image)
        allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
        if ours.shape != theirs.shape or np.abs(ours - theirs).max() > allowed:
            raise InputError(
                f"{name} does something that preprocessing cannot express (found: {dict(found)})"
            )
