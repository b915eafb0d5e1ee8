"""Choose without labels which student of joint learning is kept: its start, or the student of an epoch.

Joint learning can lose what a start had, so each is judged on held-out images.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import on_any_rank, rank, wait_for_all
from ka_ray.stages.held_out import Quality, measure_quality
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import atomic_file, make_folder
from ka_ray.student import Student
from ka_ray.student.trace import eval_mode
from ka_ray.training.batches import Batches

START = "start"
"""Name of the student before joint learning."""

CHOICE = "choice"
"""Key of the file's metadata with the qualities, as JSON."""


SAME = 1e-5
"""Nats: as far as rounding to float16, in which scores are stored, takes a student from its own scores."""

LOST = 2.0
"""Divergence from the ensemble, in units of the start's, above which joint learning has lost what it had.

Students of fine-tuned networks came back from 1.4 and 1.6 times, but never from 3.7 times and more.
"""


class KeptStudent:
    """The best student so far, in a file, so that a resumed stage does not lose it.

    All ranks make the same calls; only rank 0 writes.

    Args:
        folder: Output folder of the run.
        held_out: Images to judge students on, with the stored scores of the teachers.

    Attributes:
        qualities: Name of each student that was offered -> its quality.
        best: Name of the best one; empty before any was offered.
        lost: Learning rates with which joint learning lost what the start had, in the order they were tried.
    """

    def __init__(self, folder: Path, held_out: Batches) -> None:
        # `save_stage` removes the stage's files with this suffix.
        self._path = stage_summary_path(folder, "joint").with_name("joint_kept.epoch")
        self._held_out = held_out
        self.qualities: dict[str, Quality] = {}
        self.best = ""
        self.lost: list[float] = []
        self._state: dict[str, Tensor] = {}
        exists = self._path.exists()
        if on_any_rank(exists) and on_any_rank(not exists):
            raise InputError(
                f"{self._path}: the workers see different files; set `output` to a folder that all nodes "
                "share, or to a URI"
            )
        if exists:
            self._read()
        wait_for_all()  # before rank 0 writes the file again

    def _read(self) -> None:
        try:
            with safe_open(fetch_local_copy(self._path), framework="pt") as file:
                choice = json.loads(file.metadata()[CHOICE])
                self._state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.qualities = {name: Quality(**fields) for name, fields in choice["qualities"].items()}
            self.best = choice["best"]
            self.lost = [float(rate) for rate in choice.get("lost", [])]  # earlier versions lowered no rate
            if self.best not in self.qualities:
                raise ValueError(f"no quality of {self.best!r}")
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{self._path} is damaged ({error}). Delete it and the file joint.epoch beside it, and the "
                "stage starts from its first epoch"
            ) from None

    def offer(self, name: str, student: Student) -> None:
        """Judge a student, and keep it if it is closer to the ensemble than all others so far.

        Args:
            name: Name of the student in the report. A resumed stage repeats an epoch, and offers the same
                name again: then the better one of the two counts.
            student: The student; its mode does not change.
        """
        with eval_mode(student):
            quality = measure_quality(student, self._held_out, student.spec.unified_label_sets)
        if name in self.qualities and not quality.is_closer_than(self.qualities[name]):
            return
        self.qualities[name] = quality
        is_best = self.best in ("", name) or quality.is_closer_than(self.qualities[self.best])
        if is_best:
            self.best = name
            # Copies: training goes on in place.
            self._state = {
                key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for key, value in student.state_dict().items()
            }
        self._save()

    def _save(self) -> None:
        if rank() == 0:
            make_folder(self._path.parent)
            with atomic_file(self._path) as part:
                content = self.to_json() | {"lost": self.lost}
                save_file(self._state, part, metadata={CHOICE: json.dumps(content)})

    def offer_epoch(self, epoch: int, student: Student, averaged: Student | None) -> None:
        """Judge the student of an epoch, and the moving average of its weights.

        Args:
            epoch: Number of the epoch, from 1.
            student: The trained student.
            averaged: The student with the averaged weights; None if there is none.
        """
        self.offer(f"epoch {epoch}", student)
        if averaged is not None:
            self.offer(f"epoch {epoch}, averaged", averaged)

    @property
    def start_is_ensemble(self) -> bool:
        """Whether the start gives the ensemble's scores already, so that nothing is left to learn."""
        return self.best == START and abs(self.qualities[START].divergence) <= SAME

    def has_lost_start(self, epoch: int) -> bool:
        """Return whether an epoch has lost what the start had, and none was closer to the ensemble.

        Args:
            epoch: Number of the epoch.
        """
        limit = LOST * self.qualities[START].divergence
        # Not `>`: a divergence that is no number is lost, too.
        return self.best == START and not self.qualities[f"epoch {epoch}"].divergence <= limit

    def give_up(self, rate: float) -> None:
        """Keep the qualities of all epochs so far under the name of their rate: the epochs begin again.

        Args:
            rate: The learning rate with which they lost what the start had.
        """
        given_up = {
            name if name == START or " at rate " in name else f"{name} at rate {rate:g}": quality
            for name, quality in self.qualities.items()
        }
        self.qualities, self.lost = given_up, [*self.lost, rate]
        self._save()

    def to_json(self) -> dict[str, Any]:
        """Return the choice as a JSON object: the name of the best, and the qualities of all."""
        return {"best": self.best, "qualities": {n: q.to_json() for n, q in self.qualities.items()}}

    def load_best(self, student: Student) -> None:
        """Load the best student's weights, in place.

        Raises:
            InputError: They are those of another student.
        """
        try:
            student.load_state_dict(self._state)
        except RuntimeError as error:
            raise InputError(f"{self._path} does not fit the student: {str(error).splitlines()[0]}") from None
