"""Layer-wise learning behind a start: codes in the basis of the student, and layers that only get better.

The codes of a tap have any basis, but the student starts with features of its own. So the codes are mapped to
these features first, by ridge regression. The layers of the start then nearly reproduce the codes already,
and the adapters begin as the identity.

Shapes: C code channels.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.numerics.channelwise import apply_channelwise
from ka_ray.numerics.moments import MomentsMeter
from ka_ray.numerics.positions import sample_features
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.numerics.relative_error import relative_error
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, solve
from ka_ray.stages.layers_learner import LayerwiseLearner
from ka_ray.student import Student
from ka_ray.training.batches import Batches


class StudentCode(nn.Module):
    """A code in the basis of the student's own features.

    Args:
        amalgamation: Computes the code of a tap.
        weight: `[C, C]`, from the code to the student's features.
        bias: `[C]`.
    """

    def __init__(self, amalgamation: Amalgamation, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.amalgamation = amalgamation
        self.linear = nn.Linear(len(bias), len(bias))
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

    def encode(self, stacked: Tensor) -> Tensor:
        """Map stacked features `[B, S, *space]` to the code `[B, C, *space]`, as the student has it."""
        return apply_channelwise(self.linear, self.amalgamation.encode(stacked))


@torch.no_grad()
def express_codes(
    student: Student, encoders: nn.ModuleDict, batches: Batches, positions_per_image: int
) -> nn.ModuleDict:
    """Express the code of every tap in the basis of the student's features, by ridge regression.

    Args:
        student: The student as it starts.
        encoders: Tap name -> :class:`ka_ray.amalgamation.Amalgamation`.
        batches: Images, stacked features of every tap, and two random numbers per image in ``draws``.
        positions_per_image: Maximum number of positions of a map to use.

    Returns:
        Tap name -> :class:`StudentCode`.
    """
    sizes = {tap: 2 * student.spec.widths[tap] for tap in encoders}
    meters = {tap: [MomentsMeter(size, batches.device) for _ in range(2)] for tap, size in sizes.items()}
    student.eval()
    for batch in batches.single_pass():
        held_out = batch["draws"][:, 1] < HELD_OUT_FRACTION
        for tap, features in _features_of(student, batch["image"]):
            code = cast(Amalgamation, encoders[tap]).encode(batch[tap])
            both = torch.cat([code, features], dim=1)
            for meter, chosen in zip(meters[tap], (~held_out, held_out), strict=True):
                meter.add(sample_features(both[chosen], batch["draws"][chosen, 0], positions_per_image))
    expressed = {}
    for tap, pair in meters.items():
        learned_from, held_out_moments = (meter.total.merge_over_ranks() for meter in pair)
        solution = solve([learned_from], [held_out_moments], student.spec.widths[tap])
        code_of_tap = cast(Amalgamation, encoders[tap])
        expressed[tap] = StudentCode(code_of_tap, solution.weight[0], solution.bias[0])
    return nn.ModuleDict(expressed).to(batches.device)


def _features_of(student: Student, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield tap and the student's own features there, `[B, C, *space]`."""
    output = student.preprocess(images)
    for tap, stage in student.stages.items():
        output = stage(output)
        if tap in student.layouts:
            yield tap, student.layouts[tap].split(output)[0]


class LayerComparison:
    """The layers of a start and their errors, to put back those that end worse than they began.

    Args:
        learner: The learner before it learns.
        held_out: Images that no layer learns from, with the columns of the learner.

    Attributes:
        before: Tap name -> relative error of the start's layer on the held-out images.
    """

    def __init__(self, learner: LayerwiseLearner, held_out: Batches) -> None:
        self._learner, self._held_out = learner, held_out
        self._stages = copy.deepcopy(learner.student.stages.state_dict())
        self.before = measure_errors(learner, held_out)

    def put_back_worse(self) -> dict[str, dict[str, Any]]:
        """Put back the layers that have become worse, with the adapters in front of them.

        Returns:
            Tap name -> ``error_before``, ``relative_error`` of the layer that stays, and ``put_back``.
        """
        after = measure_errors(self._learner, self._held_out)
        taps = list(self._learner.student.stages)
        worse = [tap for tap in taps if not after[tap] < self.before[tap]]
        stages = self._learner.student.stages.state_dict()
        for tap in worse:
            stages |= {key: value for key, value in self._stages.items() if key.startswith(f"{tap}.")}
            position = taps.index(tap)
            if position:
                self._learner.adapters[taps[position - 1]] = self._identity(taps[position - 1])
        self._learner.student.stages.load_state_dict(stages)
        return {
            tap: {
                "error_before": self.before[tap],
                "relative_error": (self.before if tap in worse else after)[tap],
                "put_back": tap in worse,
            }
            for tap in taps
        }

    def _identity(self, tap: str) -> nn.Module:
        adapter = self._learner.adapters[tap]
        return type(adapter)(self._learner.student.spec.widths[tap]).to(self._held_out.device)


@torch.no_grad()
def measure_errors(
    learner: LayerwiseLearner, batches: Batches, taps: Sequence[str] | None = None
) -> dict[str, float]:
    """Measure the relative errors of layers, over all ranks, of which some may have no images.

    Args:
        learner: The learner; its layers are evaluated in eval mode.
        batches: Images with the columns of the learner.
        taps: Names of the layers; None: all.
    """
    trained, learner.trained_taps = learner.trained_taps, list(taps or learner.student.stages)
    learner.eval()
    # All ranks add up the same sums, also one without images.
    spec, sums = learner.student.spec, dict[str, Tensor]()
    for tap in learner.student.stages:
        if tap in learner.trained_taps:
            channels = spec.widths.get(tap, len(spec.classes))
            sums[tap] = torch.zeros(2 + 2 * channels, dtype=torch.float64, device=batches.device)
    for batch in batches.single_pass():
        for tap, part in learner.error_sums(batch).items():
            sums[tap] += part
    learner.trained_taps = trained
    return {tap: relative_error(sum_over_ranks(total)) for tap, total in sums.items()}
