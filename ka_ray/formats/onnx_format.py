"""Students as ONNX models, for ONNX Runtime and others."""

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ka_ray.errors import InputError
from ka_ray.formats.job import INPUT, OUTPUT, ExportFormat, ExportJob, Predict, require_packages
from ka_ray.formats.networks import export_program, first_line
from ka_ray.formats.quiet_libraries import quiet_libraries

FILE = "student.onnx"


def write_onnx(job: ExportJob, file: Path, format_name: str) -> None:
    """Write a student as an ONNX model, with float weights, and what travels with it as metadata.

    Args:
        job: The student.
        file: The file to write.
        format_name: The format that needs it, for error messages.

    Raises:
        InputError: A package is missing, or the student has an operation that ONNX does not know.
    """
    names = ("onnx", "onnxscript")
    require_packages(
        format_name, _EXTRAS[format_name], {name: partial(importlib.import_module, name) for name in names}
    )
    program = export_program(job.network, job.example)
    try:
        with quiet_libraries():
            exported: Any = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter has a type of its own for each of its steps
        raise InputError(
            f"--format {format_name}: torch.onnx cannot write the student: {first_line(error)}"
        ) from None
    exported.save(str(file), external_data=False)
    _add_metadata(job, file)


_EXTRAS = {"onnx": "export", "openvino": "openvino"}
"""Format -> extra of this package with what it needs."""


def _add_metadata(job: ExportJob, file: Path) -> None:
    """Write the card into the model, call the first axis `batch`, and remove the paths of this machine."""
    import onnx

    model: Any = onnx.load(str(file))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # the lines of code that each operation comes from
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in job.card.items()})
    onnx.save(model, str(file))


def _write(job: ExportJob, folder: Path) -> None:
    require_packages("onnx", "export", {"onnxruntime": partial(importlib.import_module, "onnxruntime")})
    write_onnx(job, folder / FILE, "onnx")
    if job.calibration is not None:
        from ka_ray.formats.int8 import quantize

        quantize(job, folder / FILE)


def _load(job: ExportJob, folder: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session: Any = onnxruntime.InferenceSession(
        str(folder / FILE), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])


ONNX = ExportFormat("onnx", _write, _load, takes_int8=True)
