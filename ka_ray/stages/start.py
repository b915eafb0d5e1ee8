"""The stage `start`: build the starts of the student, and keep the one that follows its teachers best.

No labels are needed: batch norms and heads are measured on images, and starts are judged on held-out images
by the stored scores of the teachers.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.config import STUDENT
from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.views import IMAGE
from ka_ray.numerics.ranks import rank, sum_over_ranks
from ka_ray.stages.held_out import Quality, held_out_batches, joint_rows, measure_quality
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.stages.start_list import list_sources, reads_teacher_images
from ka_ray.stages.start_sources import Source
from ka_ray.student import Student, save_student
from ka_ray.student.batch_norms import measure_batch_norms
from ka_ray.student.ridge_head import find_linear_head, fit_ridge_head
from ka_ray.student.start import find_head
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.training.fit import Progress

MAX_BATCHES = 60
"""Number of batches from which batch norm statistics and ridge heads are measured."""

TRANSFER_TOLERANCE = 1e-3
"""The student's scores may differ by this share of the largest one from those of the network that is cut."""


def start_student_folder(folder: Path) -> Path:
    """Return the folder with the student as it starts, in the output folder of a run."""
    return stage_summary_path(folder, "start").with_suffix("")


@dataclass
class _Candidate:
    """A start with its head, and how well it fits the teachers' scores."""

    name: str
    network: nn.Module
    random: tuple[str, ...]
    quality: Quality
    seconds: float
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return what the report says of it, in types of JSON."""
        return {"name": self.name, "note": self.note, "seconds": self.seconds, **self.quality.to_json()}


def make_start(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Build every start that the config asks for, and move the best one into the student.

    Returns:
        The student, and the stage's summary, which lists all starts.

    Raises:
        InputError: No start applies.
    """
    config, spec = inputs.config, inputs.plan.spec
    teachers = [load_teacher(teacher).to(inputs.device) for teacher in config.teachers]
    judge, sources = _Judge(inputs, teachers), list_sources(config, spec, teachers)
    best, listed, skipped = None, list[dict[str, Any]](), dict[str, str]()
    for number, (name, source) in enumerate(sources.items(), start=1):
        try:
            for one in judge.candidates(name, source):
                listed.append(one.to_json())
                # Only the best network is kept: there can be many.
                best = one if best is None or one.quality.is_better_than(best.quality) else best
        except InputError as error:
            skipped[name] = str(error)
        so_far = {} if best is None else {"worst_divergence": best.quality.worst_divergence}
        judge.report("start", number, len(sources), so_far)
    if best is None:
        raise InputError("; ".join(skipped.values()))
    student = judge.student
    transfer_weights(best.network, student)
    _check_transfer(best.network, student, judge.example)
    if rank() == 0:
        save_student(student, start_student_folder(inputs.folder))
    chosen = {"chosen": best.name, "random": list(best.random)}
    return student, {"history": [], "candidates": listed, "skipped": skipped, **chosen}


class _Judge:
    """Measures what a start leaves open on images, and judges it on others.

    Args:
        inputs: Inputs of the stage.
        teachers: The teachers with their weights.
    """

    def __init__(self, inputs: StageInputs, teachers: Sequence[Teacher]) -> None:
        self.student = Student(inputs.plan.spec).to(inputs.device).eval()
        self._head, self._rule = find_head(inputs.plan.spec, teachers), inputs.config.student.head
        self._began, self._report = time.perf_counter(), inputs.report
        self._device, self._label_sets = inputs.device, inputs.plan.label_sets
        store, rows = inputs.store(FEATURES, IMAGES), joint_rows(inputs)
        self._columns = {STUDENT: IMAGE}
        if reads_teacher_images(inputs.config):
            self._columns |= {t.name: inputs.plan.views.column(t.name) for t in teachers}
        columns = list(dict.fromkeys([IMAGE, SCORES, *self._columns.values()]))
        self._batches = inputs.batches("joint", store, columns, rows=rows)
        self._held_out = held_out_batches(inputs)

    @property
    def example(self) -> Tensor:
        """Some images, as the student gets them."""
        return next(iter(self._batches.epoch(0)))[IMAGE]

    def candidates(self, name: str, source: Source) -> Iterator[_Candidate]:
        """Yield a start with the teachers' heads and with a computed head, whichever the config allows."""
        began = time.perf_counter()
        start = source.build(self._read_images, self.report, self._divergence)
        network = start.network.to(self._device)
        measure_batch_norms(network, start.mixed_norms, (i for i, _ in self._measured()), sum_over_ranks)
        path = find_linear_head(network, self._head)
        if self._rule != "ridge":
            yield self._judged(name, network, start.random, began, start.note)
        elif path is None:
            raise InputError("student.head: ridge needs a network whose scores come from one linear layer")
        if self._rule != "teachers" and path is not None:
            began, network = time.perf_counter(), copy.deepcopy(network)
            fit_ridge_head(network, path, self._measured())
            random = tuple(key for key in start.random if key not in self._head)
            yield self._judged(f"{name}, ridge head", network, random, began, start.note)

    def report(self, what: str, number: int, total: int, losses: dict[str, float]) -> None:
        """Report that some of several steps are done; each of them counts as an epoch of one step."""
        self._report(
            Progress(
                stage=what,
                epoch=number,
                epochs=total,
                step=1,
                steps=1,
                images=number * len(self._held_out.rows),
                seconds=time.perf_counter() - self._began,
                losses=losses,
            )
        )

    def _read_images(self) -> Iterator[dict[str, Tensor]]:
        """Yield the pixels that each network gets of the images."""
        for batch in self._batches.epoch(0):
            yield {name: batch[column] for name, column in self._columns.items()}

    def _measured(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield preprocessed images and the amalgamated scores, of the same images for every start."""
        for batch in islice(self._batches.epoch(0), MAX_BATCHES):
            yield self.student.preprocess(batch[IMAGE]), self._label_sets.amalgamate(batch[SCORES])

    def _divergence(self, network: nn.Module) -> float:
        divergence = self._measure(network).worst_divergence
        return divergence if math.isfinite(divergence) else math.inf

    def _measure(self, network: nn.Module) -> Quality:
        # The student also folds and unpacks what its network gives.
        transfer_weights(network.eval(), self.student)
        return measure_quality(self.student, self._held_out, self._label_sets)

    def _judged(
        self, name: str, network: nn.Module, random: tuple[str, ...], began: float, note: str
    ) -> _Candidate:
        quality = self._measure(network)
        if not math.isfinite(quality.worst_divergence):
            raise InputError(f"student.start: the scores of {name} are not finite")
        return _Candidate(name, network, random, quality, time.perf_counter() - began, note)


def _check_transfer(network: nn.Module, student: Student, images: Tensor) -> None:
    """Check that cutting and folding have not changed the network."""
    with torch.no_grad():
        expected, found = network(student.preprocess(images)), student(images)
    if not isinstance(expected, Tensor):
        return  # a network of several outputs, which the student unpacks
    if (expected - found).abs().max() > TRANSFER_TOLERANCE * expected.abs().max():
        raise RuntimeError("the student computes other scores than the network that it was cut from")
