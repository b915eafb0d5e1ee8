"""Measure the widths of the student's layers that keep a share of the variance of the stacked features."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ka_ray.config import EnergyWidths
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.views import IMAGE
from ka_ray.numerics.ranks import rank, wait_for_all
from ka_ray.stages.held_out import joint_rows
from ka_ray.stages.inputs import StageInputs
from ka_ray.storage.files import write_json
from ka_ray.student.layer_widths import stacked_widths
from ka_ray.student.stacked_networks import StackedNetworks
from ka_ray.student.width_spectra import measure_group_spectra
from ka_ray.teachers import Teacher, load_teacher

MAX_IMAGES = 3000
"""Number of images, over all ranks, from which covariances are measured."""


def layer_widths_path(folder: Path) -> Path:
    """Return the path of the file with the widths that were measured: layer -> number of channels.

    Args:
        folder: Output folder of the run.
    """
    return folder / "widths.json"


def measure_layer_widths(inputs: StageInputs) -> None:
    """Measure the widths of ``student.widths: {energy: SHARE}``; rank 0 writes them into the output folder.

    Args:
        inputs: Inputs of a stage; the student of its plan has the network's own widths.

    Raises:
        InputError: The network is not one that the start `exact` can solve.
    """
    config, spec = inputs.config, inputs.plan.spec
    rule = config.student.widths
    assert isinstance(rule, EnergyWidths)
    teachers = [load_teacher(teacher).to(inputs.device) for teacher in config.teachers]
    network = spec.build_network().eval().requires_grad_(False).to(inputs.device)
    with torch.no_grad():
        example = spec.example.to(inputs.device)
        networks = StackedNetworks(network, {t.name: t.network for t in teachers}, example)
    spectra = measure_group_spectra(networks, _read_batches(inputs, teachers))
    largest = stacked_widths(spec.width_groups, [teacher.network for teacher in teachers])
    widths = {
        group.name: max(group.min_width, min(spectra[group.index].count_components(rule.energy), limit))
        if group.index in spectra
        else group.width
        for group in spec.width_groups
        for limit in [largest[group.name]]
    }
    if rank() == 0:
        write_json(layer_widths_path(inputs.folder), widths)
    wait_for_all()


def _read_batches(inputs: StageInputs, teachers: list[Teacher]) -> Iterator[list[Tensor]]:
    """Yield the input of each teacher for this rank's images."""
    store, rows = inputs.store(FEATURES, IMAGES), joint_rows(inputs)
    columns = [inputs.plan.views.column(teacher.name) for teacher in teachers]
    batches = inputs.batches("joint", store, list(dict.fromkeys([IMAGE, *columns])), rows=rows)
    limit = max(1, MAX_IMAGES // inputs.config.joint.batch_size)
    for batch in islice(batches.epoch(0), limit):
        yield [teacher.preprocess(batch[c]) for teacher, c in zip(teachers, columns, strict=True)]
