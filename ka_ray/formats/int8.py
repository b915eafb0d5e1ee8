"""Quantize an ONNX model to 8-bit integers, with ranges measured on images.

Static and not dynamic: dynamic quantization leaves convs as they are, and they are nearly all of the work of
a classifier of images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ka_ray.formats.job import INPUT, ExportJob
from ka_ray.formats.quiet_libraries import quiet_libraries

OPERATIONS = ("Conv", "Gemm", "MatMul")
"""Operations whose inputs and weights are quantized. The normalisation of pixels stays as it is."""

CALIBRATION_BATCH = 8
"""Number of images per call while ranges are measured."""


def quantize(job: ExportJob, file: Path) -> None:
    """Replace a model by its quantized form.

    Args:
        job: The student with the images from which the ranges are measured.
        file: The ONNX file.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        """Gives the calibration one batch after another."""

        def __init__(self, pixels: Tensor) -> None:
            self._batches: Iterator[Tensor] = iter(pixels.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: job.to_input(batch).numpy()}

    assert job.calibration is not None
    prepared = file.with_suffix(".prepared")
    with quiet_libraries():
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(file),
            Images(job.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATIONS),
            per_channel=True,
            # 7 bits for weights: processors without VNNI add two products in 16 bits, which 8 bits overflow,
            # so the scores would depend on the processor.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()
