"""The formats by name."""

from ka_ray.errors import InputError
from ka_ray.formats.job import ExportFormat
from ka_ray.formats.library_folders import HUGGINGFACE, TIMM_FOLDER
from ka_ray.formats.onnx_format import ONNX
from ka_ray.formats.openvino_format import OPENVINO
from ka_ray.formats.torch_formats import PT2, TORCHSCRIPT
from ka_ray.formats.weights import SAFETENSORS

FORMATS = {one.name: one for one in (ONNX, PT2, TORCHSCRIPT, SAFETENSORS, TIMM_FOLDER, HUGGINGFACE, OPENVINO)}
"""Name on the command line -> format."""


def find_format(name: str, preprocessing: bool, int8: bool) -> ExportFormat:
    """Find a format that can do what is asked for.

    Args:
        name: Its name.
        preprocessing: Whether the normalisation of pixels shall be inside.
        int8: Whether the export shall be quantized.

    Raises:
        InputError: There is no such format, or it cannot do that; the message names those that can.
    """
    found = FORMATS.get(name)
    if found is None:
        raise InputError(f"--format {name!r}: there are {', '.join(FORMATS)}")
    if preprocessing and not found.takes_preprocessing:
        able = ", ".join(one.name for one in FORMATS.values() if one.takes_preprocessing)
        raise InputError(
            f"--preprocessing: {name} holds weights and a config, which says how pixels are normalised; with "
            f"the normalisation inside there are {able}"
        )
    if int8 and not found.takes_int8:
        able = ", ".join(one.name for one in FORMATS.values() if one.takes_int8)
        raise InputError(f"--quantize int8: works with --format {able}, not with {name}")
    return found
