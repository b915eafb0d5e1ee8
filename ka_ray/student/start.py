"""Start a student from its teachers' weights, or from a checkpoint, instead of from random ones.

A network that was fine-tuned on a few thousand photos cannot be learned again from random weights on as many.
Networks that were fine-tuned from one network are close to each other, and so is the mean of their weights.

Shapes: K classes of the student, K_t classes of teacher t.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.student.spec import StudentSpec
from ka_ray.teachers import Teacher
from ka_ray.teachers.module_versions import with_versions

Weights = Mapping[str, Tensor]
"""Name of each weight or buffer of a network -> tensor."""


@dataclass(frozen=True)
class Start:
    """The weights that a student starts from, in its network before it is cut.

    Attributes:
        network: The network, of K classes, in eval mode.
        random: Names of the weights that were found nowhere and stay random.
        mixed_norms: Paths of the batch norms whose statistics are a mean of different ones. They fit no
            network, and have to be measured again.
        share: Share of the values before the head that come from the start.
        note: What was tried to build it, for the user.
    """

    network: nn.Module
    random: tuple[str, ...]
    mixed_norms: frozenset[str] = frozenset()
    share: float = 1.0
    note: str = ""


def build_start(spec: StudentSpec, trunk: Sequence[Weights], teachers: Sequence[Teacher]) -> Start:
    """Build the student's network with given weights and with the teachers' heads side by side.

    Args:
        spec: The student.
        trunk: Weights of networks; the student gets their mean. A weight that one of them lacks, or that has
            another shape than the student's, stays random.
        teachers: The teachers, whose heads become the rows of the student's head: for a class that several
            of them know, the mean of their rows. With centred scores, each head is centred first.

    Raises:
        InputError: No weight in front of the head fits the student.
    """
    network = spec.build_network()
    axes, expected = find_head(spec, teachers), network.state_dict()
    state, random = dict(expected), list[str]()
    for key, tensor in expected.items():
        if key in axes:
            rows = _side_by_side(key, axes[key], tensor, teachers, spec.unified_label_sets)
            state[key], found = tensor if rows is None else rows, rows is not None
        else:
            found = all(key in weights and weights[key].shape == tensor.shape for weights in trunk)
            if found:
                state[key] = _mean([weights[key] for weights in trunk])
        if not found:
            random.append(key)
    # Counters, which are integers, fit any network and say nothing.
    sizes = {key: t.numel() for key, t in expected.items() if key not in axes and t.is_floating_point()}
    share = 1 - sum(sizes.get(key, 0) for key in random) / max(1, sum(sizes.values()))
    if set(random) >= sizes.keys():
        raise InputError(
            f"student.start: no weight before the head fits the student's network {spec.network!r}"
        )
    network.load_state_dict(with_versions(state, network))
    return Start(network.eval(), tuple(random), frozenset(_mixed_norms(trunk)), share)


def _mixed_norms(trunk: Sequence[Weights]) -> Iterator[str]:
    """Yield the paths of the batch norms whose statistics differ between networks."""
    for key, first in trunk[0].items():
        path, _, name = key.rpartition(".")
        if name in ("running_mean", "running_var") and not all(
            key in weights and torch.equal(weights[key], first) for weights in trunk
        ):
            yield path


def find_head(spec: StudentSpec, teachers: Sequence[Teacher]) -> dict[str, int]:
    """Return the weights whose shape depends on the number of classes: name -> the axis of the classes.

    Args:
        spec: The student.
        teachers: The teachers. A factory is not told the number of classes, so its head is what differs
            between the student and a teacher with another number.

    Raises:
        InputError: The head of a factory's network cannot be found, and the classes have another order.
    """
    # With the network's own widths, because those of a student would differ from the teachers' everywhere.
    here = _shapes(spec.build_own_network())
    larger = _shapes(spec.build_own_network(len(spec.classes) + 1))
    head = _differing_axes(here, larger)
    if head or not teachers:
        return head
    others = [teacher for teacher in teachers if len(teacher.classes) != len(spec.classes)]
    if not others and any(teacher.classes != spec.classes for teacher in teachers):
        raise InputError(
            f"student.start: which weights of {spec.network!r} belong to classes is not known, and the "
            "teachers list their classes in different orders"
        )
    return _differing_axes(here, _shapes(others[0].network)) if others else {}


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def _differing_axes(here: Mapping[str, torch.Size], there: Mapping[str, torch.Size]) -> dict[str, int]:
    """Return the weights that differ in the size of one axis, and this axis."""
    axes = {
        key: [axis for axis, (a, b) in enumerate(zip(shape, there[key], strict=True)) if a != b]
        for key, shape in here.items()
        if key in there and len(there[key]) == len(shape)
    }
    return {key: differing[0] for key, differing in axes.items() if len(differing) == 1}


def _side_by_side(
    key: str, axis: int, expected: Tensor, teachers: Sequence[Teacher], label_sets: LabelSets
) -> Tensor | None:
    """Return a weight of the head whose rows are the teachers'; None if a class has a row in none of them."""
    rows: dict[str, list[Tensor]] = {name: [] for name in label_sets.classes}
    for teacher in teachers:
        weight = teacher.network.state_dict().get(key)
        wanted = [len(teacher.classes) if i == axis else size for i, size in enumerate(expected.shape)]
        if weight is None or list(weight.shape) != wanted:
            continue
        if label_sets.center:
            weight = weight - weight.mean(dim=axis, keepdim=True)
        for index, name in enumerate(teacher.classes):
            rows[name].append(weight.select(axis, index))
    if not all(rows.values()):
        return None
    return torch.stack([_mean(found) for found in rows.values()], dim=axis)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of weights in their dtype; of integers, such as counters, the first."""
    first = tensors[0]
    if not first.is_floating_point():
        return first
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(first.dtype)


def _flatten_kernels(network: nn.Module, head: Mapping[str, int]) -> Tensor:
    """Return all kernels before the head, as one vector in float64."""
    kernels = [
        value.detach().flatten().double()
        for key, value in network.named_parameters()
        if key not in head and value.dim() > 1  # norms and biases begin equal in all networks
    ]
    return torch.cat(kernels) if kernels else torch.zeros(0, dtype=torch.float64)


def weight_distance(networks: Iterable[nn.Module], head: Mapping[str, int]) -> float:
    """Return how far apart the weights of networks are, relative to their norm.

    Weights of networks that were trained from different seeds are as far apart as random vectors, by a factor
    of about 1.4. Fine-tuned from one network, they are much closer.

    Args:
        networks: Networks of the same architecture.
        head: Weights that are left out; see :func:`find_head`.

    Returns:
        The largest distance of a network to the first one, divided by the norm of the first one.
    """
    # By `map`, which keeps no network while it asks for the next one.
    kernels = map(partial(_flatten_kernels, head=head), networks)
    first = next(kernels)
    return max(float((other - first).norm() / first.norm()) for other in kernels)
