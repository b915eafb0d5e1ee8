"""Students as programs of torch: `pt2` of torch.export, and TorchScript."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from ka_ray.errors import InputError
from ka_ray.formats.job import CARD, ExportFormat, ExportJob, Predict
from ka_ray.formats.networks import export_program, first_line
from ka_ray.student.graph_student import GraphStudent

PT2_FILE, TORCHSCRIPT_FILE = "student.pt2", "student.ts"


def _write_pt2(job: ExportJob, folder: Path) -> None:
    program = export_program(job.network, job.example)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the files of this machine
    torch.export.save(program, folder / PT2_FILE, extra_files={CARD: json.dumps(job.card)})


def _load_pt2(job: ExportJob, folder: Path) -> Predict:
    # Loading unpickles parts of the file, so only a file that was written a moment ago is loaded.
    loaded: Any = torch.export.load(folder / PT2_FILE).module()
    return lambda inputs: loaded(inputs)


def _write_torchscript(job: ExportJob, folder: Path) -> None:
    if isinstance(job.student, GraphStudent):  # tracing would fix the number of images in its steps
        raise InputError(
            "--format torchscript: cannot hold the graph of a student whose function may not run without "
            "--trust; choose onnx, pt2 or openvino"
        )
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch warns that TorchScript is deprecated, and of each number that it may have fixed: whether
            # the number of images was one of them is checked afterwards.
            warnings.simplefilter("ignore")
            traced: Any = torch.jit.trace(job.network, (job.example,), check_trace=False)
    except Exception as error:  # the code of a network can raise anything when it is traced
        raise InputError(f"--format torchscript: the student cannot be traced: {first_line(error)}") from None
    traced.save(str(folder / TORCHSCRIPT_FILE), _extra_files={CARD: json.dumps(job.card)})


def _load_torchscript(job: ExportJob, folder: Path) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = torch.jit.load(str(folder / TORCHSCRIPT_FILE))
    return lambda inputs: loaded(inputs)


PT2 = ExportFormat("pt2", _write_pt2, _load_pt2)
TORCHSCRIPT = ExportFormat("torchscript", _write_torchscript, _load_torchscript)
