"""What gates see of the images that a run has stored, and where what they say is stored.

Shapes: n images, N teachers, K_t classes of teacher t, D_t channels of its embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ka_ray.config import DESCRIPTIVE, NOBODY, Config, FolderImages, ListImages, MixedImages
from ka_ray.errors import InputError
from ka_ray.features.stack import EMBEDDING, OWNERS, P_NOBODY, SCORES
from ka_ray.features.store import (
    FEATURES,
    IMAGES,
    Store,
    create_shard_folder,
    mark_folder_finished,
    write_shard,
)
from ka_ray.gates import GateSample, OwnerGate
from ka_ray.gates.gate import NOBODY_THRESHOLD, believe_nobody, believe_owners
from ka_ray.images import open_source
from ka_ray.images.sources import OWNER
from ka_ray.images.split import ImageSet
from ka_ray.runs.context import Run
from ka_ray.runs.descriptive import learns_gate
from ka_ray.runs.execution import is_stored
from ka_ray.runs.extended_gate import has_finished_gate
from ka_ray.runs.gate_choice import EXTENDED
from ka_ray.student.plan import FLOAT16_BYTES, Plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.descriptive import load_descriptive

HINTS = "hints"
"""Name of the folder with the images of `scores.hints`."""

LEFT_OUT = "left_out"
"""Key in ``done.json`` of what a gate says: the number of images that belong to nobody."""

ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class Embedding:
    """Where the embedding of a teacher, or of the descriptive network, is read.

    Attributes:
        path: Path of the last layer, whose input it is; of the descriptive network, it can be
            :data:`ka_ray.teachers.descriptive.OUTPUT`.
        channels: D_t.
    """

    path: str
    channels: int

    @property
    def bytes(self) -> int:
        """Bytes on disk of one image's embedding."""
        return FLOAT16_BYTES * self.channels


def find_embeddings(run: Run, students: Sequence[Config]) -> dict[str, Embedding]:
    """Return what :func:`list_embeddings` finds, and tell the user why a gate is not learned.

    Args:
        run: The run.
        students: The configs of its students.

    Raises:
        InputError: It is not clear what the embedding of a teacher is.
    """
    embeddings, notes = list_embeddings(run.config, run.plan, students)
    for note in notes:
        run.notify(note)
    return embeddings


def list_embeddings(
    config: Config, plan: Plan, students: Sequence[Config]
) -> tuple[dict[str, Embedding], list[str]]:
    """Return teacher -> its embedding, if gates look at them and can; otherwise nothing. And notes.

    A gate of a finished run looks at the embeddings of that run's teachers, so the others need not have one.
    The descriptive network comes last, if there is one.

    Args:
        config: The config of a run.
        plan: Its plan.
        students: The configs of its students.

    Raises:
        InputError: It is not clear what the embedding of a teacher is.
    """
    asked = any(EXTENDED in student.gates for student in students)
    learned, reused = learns_gate(students), asked and has_finished_gate(config, plan)
    if not (learned or reused):
        return {}, []
    found, notes = dict[str, Embedding](), list[str]()
    for section in config.teachers:
        embedding = load_teacher(section).find_embedding(plan.views.teachers[section.name])
        if embedding is not None:
            found[section.name] = Embedding(*embedding)
        elif learned:
            message = f"the last layer of teacher {section.name} has not one output per class"
            if any(student.scores.gate not in ("auto", EXTENDED) for student in students):
                raise InputError(
                    f"scores.gate: {message}, so that its input is not clear; set it to auto or none"
                )
            notes.append(f"scores.gate: auto learns no gate: {message}")
            if not reused:
                return {}, notes
    descriptive, view = config.scores.descriptive, plan.views.descriptive
    if descriptive is not None and view is not None:
        found[DESCRIPTIVE] = Embedding(*load_descriptive(descriptive).find_embedding(view))
    return found, notes


def list_hints(config: Config) -> ImageSet | None:
    """Return the images of `scores.hints`, each with its owner; None if there are none.

    Args:
        config: Config of the run.

    Raises:
        InputError: A folder or list has no images.
    """
    shared = {key: getattr(config.images, key) for key in ("size", "resize", "decoding", "max_unreadable")}
    parts = [
        ListImages(source="list", path=path, owner=teacher, **shared)
        if path.is_file()
        else FolderImages(source="folder", path=path, labelled=False, owner=teacher, **shared)
        for teacher, path in config.scores.hints.items()
    ]
    if not parts:
        return None
    images = MixedImages(source="mixed", parts=tuple(parts), **shared) if len(parts) > 1 else parts[0]
    source = open_source(images)
    return ImageSet(images, source, np.arange(source.num_images))


def read_sample(store: Store, embeddings: Mapping[str, Embedding], rows: npt.NDArray[np.int64]) -> GateSample:
    """Read what a gate sees of stored images.

    Args:
        store: The stored images.
        embeddings: Source -> its embedding, in stacking order; empty to read the scores alone.
        rows: Numbers of the rows.
    """
    columns = store.gather([EMBEDDING, SCORES] if embeddings else [SCORES], rows)
    scores = torch.from_numpy(columns[SCORES]).float()
    if not embeddings:
        return GateSample({}, scores)
    parts = torch.from_numpy(columns[EMBEDDING]).split([e.channels for e in embeddings.values()], dim=1)
    return GateSample(dict(zip(embeddings, parts, strict=True)), scores)


def read_owners(store: Store, teachers: Sequence[str], rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return the known owners of stored images, `[n]`: the index of a teacher, N for nobody, or -1.

    Args:
        store: The stored images.
        teachers: Names of the teachers.
        rows: Numbers of the rows.

    Raises:
        InputError: The images name an owner that is no teacher.
    """
    if OWNER not in store.column_names:
        return torch.full((len(rows),), -1)
    names = store.gather([OWNER], rows)[OWNER]
    index = {"": -1} | {name: number for number, name in enumerate([*teachers, NOBODY])}
    unknown = sorted(set(names) - index.keys())
    if unknown:
        raise InputError(
            f"images: owner {unknown[0]!r} is no teacher; there are {', '.join(teachers)}, and {NOBODY}"
        )
    return torch.tensor([index[name] for name in names])


def count_owners(owners: torch.Tensor, teachers: Sequence[str]) -> dict[str, int]:
    """Return owner -> number of images that it is known to own, of owners that have some.

    Args:
        owners: `[n]`, see :func:`read_owners`.
        teachers: Names of the teachers.
    """
    counts = {name: int((owners == index).sum()) for index, name in enumerate([*teachers, NOBODY])}
    return {name: count for name, count in counts.items() if count}


def store_owners(gate: OwnerGate, store: Store, embeddings: Mapping[str, Embedding], folder: Path) -> None:
    """Store log p(owner | image) and p(nobody | image) of all images, unless the folder is finished.

    Known owners are believed: the gate decides for the other images. `done.json` says how many images are
    left out, because they belong to nobody.

    Args:
        gate: The gate.
        store: The stored images.
        embeddings: Teacher -> its embedding.
        folder: Gets shards with the columns ``owners [n, N]`` and ``p_nobody [n]``.
    """
    if is_stored(folder):
        return
    create_shard_folder(folder)
    teachers, left_out = list(gate.label_sets.by_teacher), 0
    for rows in _chunks(len(store)):
        sample, known = read_sample(store, embeddings, rows), read_owners(store, teachers, rows)
        nobody = believe_nobody(gate.nobody(sample), known, len(teachers))
        left_out += int((nobody > NOBODY_THRESHOLD).sum())
        columns = {
            "image_id": store.image_ids[rows],
            OWNERS: believe_owners(gate.log_owners(sample).float(), known).numpy(),
            P_NOBODY: nobody.numpy(),
        }
        write_shard(folder, columns)
    mark_folder_finished(folder, {"images": len(store), LEFT_OUT: left_out})


def _chunks(count: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, count, ROWS_PER_SHARD):
        yield np.arange(start, min(start + ROWS_PER_SHARD, count))


def open_stored(folder: Path, embedded: bool) -> Store:
    """Open all images that a run has stored with scores.

    Args:
        folder: Output folder of the run.
        embedded: Whether the teachers' embeddings are needed, too.

    Raises:
        InputError: They were stored without embeddings, by a command that needed no gate.
    """
    store = Store(*[folder / name for name in (FEATURES, IMAGES) if is_stored(folder / name)])
    if embedded and EMBEDDING not in store.column_names:
        raise InputError(
            f"scores.gate: {folder} holds images that were stored without the teachers' embeddings, which a "
            "gate needs; give another --output"
        )
    return store
