"""Students as OpenVINO models, for processors of Intel."""

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ka_ray.formats.job import ExportFormat, ExportJob, Predict, require_packages
from ka_ray.formats.onnx_format import write_onnx
from ka_ray.formats.quiet_libraries import quiet_libraries

FILE = "student.xml"
"""The graph; the weights are beside it, in a file that ends in `.bin`."""


def _write(job: ExportJob, folder: Path) -> None:
    modules = {name: partial(importlib.import_module, name) for name in ("openvino",)}
    require_packages("openvino", "openvino", modules)
    import openvino

    # By way of ONNX: openvino's converter of torch programs loses the fixed axes of the input.
    intermediate = folder / "student.onnx"
    write_onnx(job, intermediate, "openvino")
    with quiet_libraries():
        model: Any = openvino.Core().read_model(str(intermediate))
        for key, value in job.card.items():
            model.set_rt_info(json.dumps(value), ["ka_ray", key])
        openvino.save_model(model, str(folder / FILE), compress_to_fp16=False)
    intermediate.unlink()


def _load(job: ExportJob, folder: Path) -> Predict:
    import openvino

    # On processors with bfloat16, OpenVINO would compute in it by default.
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model: Any = openvino.Core().compile_model(str(folder / FILE), "CPU", options)
    return lambda inputs: torch.from_numpy(model(inputs.numpy())[0].copy())


OPENVINO = ExportFormat("openvino", _write, _load)
