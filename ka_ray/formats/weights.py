"""Students as weights in a safetensors file, under the names of their network."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ka_ray.errors import InputError
from ka_ray.formats.job import ExportFormat, ExportJob, Predict
from ka_ray.formats.networks import build_library_network
from ka_ray.student import Student, load_student, save_student
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.teachers.module_versions import with_versions
from ka_ray.teachers.outputs import find_scores

FILE = "model.safetensors"

METADATA = {"format": "pt"}
"""Metadata that transformers asks for: the weights are those of torch."""


def write_weights(network: nn.Module, file: Path, metadata: dict[str, str]) -> None:
    """Write the weights of a network with metadata.

    Args:
        network: The network; tied weights are written under each of their names.
        file: The file to write.
        metadata: Key -> text, in the header of the file.
    """
    save_weights(network, file)
    save_file(load_file(file), file, metadata=METADATA | metadata)


def _write(job: ExportJob, folder: Path) -> None:
    network = _find_network(job)
    if network is None:
        assert isinstance(job.student, Student)
        save_student(job.student, folder)
    else:
        card = {key: json.dumps(value) for key, value in (job.card | describe_network(job)).items()}
        write_weights(network, folder / FILE, card)


def _find_network(job: ExportJob) -> nn.Module | None:
    """Return the network of a library; None: the weights keep the student's names."""
    try:
        return build_library_network(job.student, "safetensors")
    except InputError:
        if not isinstance(job.student, Student):
            raise
        return None


def describe_network(job: ExportJob) -> dict[str, object]:
    """Return the part of the card that says which network has the weights."""
    spec = job.spec
    widths = {"layer_widths": dict(spec.layer_widths)} if spec.layer_widths else {}
    return {"network": {"name": spec.network, "arguments": dict(spec.arguments), **widths}}


def _load(job: ExportJob, folder: Path) -> Predict:
    if not (folder / FILE).exists():
        student = load_student(folder, trust=True)  # its network was built from the same spec before
        return ExportJob(student).network
    network, num_classes = job.spec.build_network(), len(job.spec.classes)
    network.load_state_dict(with_versions(load_file(folder / FILE), network))
    with safe_open(folder / FILE, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(job.spec.classes)
    network.eval()
    return lambda images: find_scores(network(images), num_classes)


SAFETENSORS = ExportFormat("safetensors", _write, _load, takes_preprocessing=False)
