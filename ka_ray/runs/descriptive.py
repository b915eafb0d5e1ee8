"""The network that is nobody's teacher, in a run: found out, left out where no gate is learned, and tried.

Shapes: n images, D channels of its embedding.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ka_ray.amalgamation import LabelSets
from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.config import DESCRIPTIVE, Config
from ka_ray.errors import InputError
from ka_ray.gates import GateSample
from ka_ray.runs.extended_gate import sees_descriptive
from ka_ray.runs.gate_choice import EXTENDED
from ka_ray.student.plan import Plan
from ka_ray.teachers.descriptive import KEY, OUTPUT, load_descriptive
from ka_ray.teachers.named_classes import score_classes
from ka_ray.teachers.sources.describe import describe_descriptive

LEARNED_GATES = frozenset({"hints", "self"})
"""The gates that look at embeddings."""


def learns_gate(students: Sequence[Config]) -> bool:
    """Return whether a gate is learned from embeddings.

    Args:
        students: The configs of the students.
    """
    return any(LEARNED_GATES.intersection(student.gates) for student in students)


def prepare_descriptive(config: Config, students: Sequence[Config]) -> tuple[Config, list[str]]:
    """Find out what the config leaves open of the descriptive network; leave it out if no gate looks at it.

    Args:
        config: The config of a run.
        students: The configs of its students; empty if the command learns no gate.

    Returns:
        The config; and what was found, for the user.

    Raises:
        InputError: The source cannot be read, or does not say enough.
    """
    section = config.scores.descriptive
    if section is None:
        return config, []
    reused = any(EXTENDED in student.gates for student in students) and sees_descriptive(config)
    if reused or learns_gate(students):
        described, note = describe_descriptive(section)
    else:
        described, note = None, f"{KEY}: is not loaded, because no gate is learned (hints or self)"
    scores = config.scores.model_copy(update={DESCRIPTIVE: described})
    return config.model_copy(update={"scores": scores}), [note] if note else []


def check_descriptive(config: Config, plan: Plan, images: Tensor | None) -> Iterator[str]:
    """Try the descriptive network before anything starts.

    Args:
        config: The config of the run, described key by key.
        plan: The plan of the run, with the view of the network.
        images: The network's view of some images, `[n, C, H, W]` uint8; None if none could be read.

    Yields:
        What the embedding is, and what was done to load the network.

    Raises:
        InputError: It cannot be loaded, it is not clear what its embedding is, or embeddings are not finite
            in float16 or the same for all images.
    """
    section, view = config.scores.descriptive, plan.views.descriptive
    if section is None or view is None:
        return
    network = load_descriptive(section)
    path, channels = network.find_embedding(view)
    where = "its output" if path == OUTPUT else f"the input of its layer {path}"
    yield f"{KEY}: {section.network}: a gate sees {where}, {channels} numbers per image"
    if network.note:
        yield f"{KEY}: checkpoint: {network.note}"
    if images is None:
        return
    embedding = network.embed(images, path).float()
    if score_classes(network.network, embedding, _list_classes(plan.label_sets)) is not None:
        yield f"{KEY}: knows classes by their names"
    if not embedding.half().isfinite().all():
        raise InputError(f"{KEY}: its embeddings are not finite in float16; check its preprocessing")
    if bool((images != images[:1]).any()) and torch.equal(embedding, embedding[:1].expand_as(embedding)):
        raise InputError(
            f"{KEY}: gives the same embedding for all of {len(images)} images; check its checkpoint and its "
            "preprocessing"
        )


def score_by_name(
    config: Config, sample: GateSample, label_sets: LabelSets, owners: Tensor
) -> tuple[GateSample, str]:
    """Let the network say of a sample how well the names of the teachers' classes fit its images.

    Args:
        config: The config of the run.
        sample: The n images, with the network's embeddings.
        label_sets: The teachers' classes.
        owners: `[n]`, the known owners; -1 where the owner is not known.

    Returns:
        The sample with what the network says, and what is said of it to the user; both as they were, and an
        empty text, if there is no network that knows names.
    """
    section = config.scores.descriptive
    if section is None or DESCRIPTIVE not in sample.features:
        return sample, ""
    names = _list_classes(label_sets)
    network = load_descriptive(section).network
    logits = score_classes(network, sample.features[DESCRIPTIVE], names)
    if logits is None:
        return sample, ""
    chosen = compute_energies(label_sets, logits).argmax(dim=1)
    before = compute_energies(label_sets, sample.scores.float()).argmax(dim=1)
    known = (owners >= 0) & (owners < len(label_sets.by_teacher))
    note = f"{KEY}: by the names of classes, another teacher owns {(chosen != before).double().mean():.1%}"
    if known.any():
        right, was = ((one == owners)[known].double().mean() for one in (chosen, before))
        note += f"; of known owners, {right:.1%} are right, by the scores {was:.1%}"
    return dataclasses.replace(sample, by_name=logits), note


def _list_classes(label_sets: LabelSets) -> list[str]:
    """Return the classes of all teachers, teacher by teacher."""
    return [name for classes in label_sets.by_teacher.values() for name in classes]
