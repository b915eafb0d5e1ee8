"""Students as folders that timm and Hugging Face's transformers load: a config, and weights beside it."""

import math
from pathlib import Path
from typing import Any

from torch import nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.formats.job import ExportFormat, ExportJob, Predict, require_packages
from ka_ray.formats.networks import build_library_network, first_line
from ka_ray.formats.weights import FILE, write_weights
from ka_ray.storage.files import write_json
from ka_ray.teachers.networks import CREATE_TIMM_MODEL, TIMM
from ka_ray.teachers.sources.library_preprocessing import TIMM_RESIZE, preprocessing_of_timm

CONFIG = "config.json"

WRAPPER = {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
"""How transformers is told that a folder holds a network of timm."""


COMPARED = (
    *("size", "crop", "interpolation", "antialias"),
    *("channel_order", "channels", "rescale", "mean", "std"),
)
"""Keys of a preprocessing that must be the same in timm's words."""


def _write_timm(job: ExportJob, folder: Path) -> None:
    require_packages("timm", "timm", {"timm": _import_timm})
    _write_folder(job, folder, "timm", {})


def _write_huggingface(job: ExportJob, folder: Path) -> None:
    require_packages("huggingface", "hf", {"timm": _import_timm, "transformers": _import_transformers})
    _write_folder(job, folder, "huggingface", WRAPPER)


def _import_timm() -> Any:
    import timm

    return timm


def _import_transformers() -> Any:
    import transformers

    return transformers


def _write_folder(job: ExportJob, folder: Path, format_name: str, more: dict[str, Any]) -> None:
    architecture, arguments = _find_architecture(job, format_name)
    network = build_library_network(job.student, format_name)
    classes = list(job.spec.classes)
    settings = _describe_pixels(job, format_name)
    config = {
        **more,
        "architecture": architecture,
        "num_classes": len(classes),
        "label_names": classes,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {**settings, "num_classes": len(classes), "custom_load": False},
    }
    write_json(folder / CONFIG, config)
    write_weights(network, folder / FILE, {})


def _find_architecture(job: ExportJob, format_name: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the student's network, and the arguments with which it is built."""
    spec = job.spec
    arguments = {key: value for key, value in spec.arguments.items() if key != "num_classes"}
    if spec.network.startswith(TIMM):
        name = spec.network.removeprefix(TIMM)
    elif spec.network == CREATE_TIMM_MODEL:
        name = str(arguments.pop("model_name"))
    else:
        raise InputError(
            f"--format {format_name}: the student's network is {spec.network}, and such a folder can only "
            "hold a network of timm; give the student one (student.network: timm/MODEL), or choose onnx, "
            "pt2, torchscript, safetensors or openvino"
        )
    if spec.layer_widths:
        raise InputError(
            f"--format {format_name}: the student has other widths than timm's {name}, which builds it from "
            "its name; choose onnx, pt2, torchscript, safetensors or openvino"
        )
    return name.partition(".")[0], arguments


def _describe_pixels(job: ExportJob, format_name: str) -> dict[str, Any]:
    """Express the student's preprocessing as timm does.

    Raises:
        InputError: timm has no words for it.
    """
    own = Preprocessing.model_validate(dict(job.spec.preprocessing))
    modes = {resize: mode for mode, resize in TIMM_RESIZE.items()}
    assert own.crop is not None
    assert own.size is not None
    settings = {
        "input_size": [own.channels, own.crop, own.crop],
        "mean": list(own.mean),
        "std": list(own.std),
        "interpolation": own.interpolation,
        "crop_pct": _find_crop_share(own.crop, own.size),
        # An image that has its size already is not changed by resizing to this size.
        "crop_mode": modes.get(own.resize or "", "squash"),
    }
    try:
        found = preprocessing_of_timm(settings | {"input_size": (own.channels, own.crop, own.crop)})
    except InputError as error:
        raise InputError(f"--format {format_name}: {error}") from None
    as_timm = Preprocessing.model_validate(found).resolve(own.size, "squash")
    has_margin = own.resize not in ("none", "squash") or own.size != own.crop
    keys = (*COMPARED, "round_crop") if has_margin else COMPARED
    differing = [key for key in keys if getattr(as_timm, key) != getattr(own, key)]
    if differing:
        given = ", ".join(f"{key}: {getattr(own, key)}" for key in differing)
        raise InputError(
            f"--format {format_name}: timm's config has no words for the student's preprocessing ({given}); "
            "choose onnx or another format, whose export.json says it"
        )
    return settings


def _find_crop_share(crop: int, size: int) -> float:
    """Return `crop_pct`, from which timm computes the resized side: the integer part of crop / crop_pct."""
    share = crop / size
    while math.floor(crop / share) < size:  # rounding made the share too large
        share = math.nextafter(share, 0)
    return share


def _load_timm(job: ExportJob, folder: Path) -> Predict:
    network: nn.Module = _import_timm().create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()


def _load_huggingface(job: ExportJob, folder: Path) -> Predict:
    transformers = _import_transformers()
    transformers.utils.logging.disable_progress_bar()
    try:
        model: Any = transformers.AutoModelForImageClassification.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:  # the library raises many types
        raise InputError(f"--format huggingface: transformers cannot load it: {first_line(error)}") from None
    names = [model.config.id2label[index] for index in range(len(job.spec.classes))]
    if names != list(job.spec.classes):
        raise InputError("--format huggingface: transformers reads other names of the classes")
    model.eval()
    return lambda inputs: model(pixel_values=inputs).logits


TIMM_FOLDER = ExportFormat("timm", _write_timm, _load_timm, takes_preprocessing=False)
HUGGINGFACE = ExportFormat("huggingface", _write_huggingface, _load_huggingface, takes_preprocessing=False)
