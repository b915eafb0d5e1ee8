"""Which of the learned gates `scores.gate: auto` uses, and what the log says of each."""

from collections.abc import Mapping

from ka_ray.config import NOBODY
from ka_ray.reports.gates import GateQuality

MIN_SURE_HINTS, MIN_LIKELY_HINTS = 100, 30
"""Images of known owner per teacher (and of nobody, if a gate finds others) from which cross-validation is
believed: that the gate helps, and that it helps by more than :data:`LIKELY_ERRORS`."""

LIKELY_ERRORS = 2.0
"""Standard errors by which a gate from fewer than :data:`MIN_SURE_HINTS` must be better.

Of 104 gates from few hints, on training images of CIFAR-10 that no teacher had seen, 11 were: each closed a
third of the gap or more, and 17 that did harm were not among them. Since then, one of the digits lost one of
359 images.
"""

OWNERS = "owners"
"""Name of the gate that believes known owners, and for other images the scores."""

EXTENDED = "extended"
"""Name of the gate that a finished run has learned, and to which the run adds teachers."""


def choose_gate_for_auto(found: Mapping[str, GateQuality]) -> str:
    """Return the gate that this run learned if it helps for sure, or the one of the run that it extends.

    The latter is not used if this run knows enough owners of every teacher to judge a gate, also if it judged
    that none helps. Without a gate, known owners are believed if there are any.

    Args:
        found: Name of each learned gate -> its quality.
    """
    hints, fewest = found.get("hints"), 0
    if hints is not None and hints.check is not None:
        fewest, check = _count_fewest(hints), hints.check
        gain = check.ungated_log_loss - check.log_loss
        is_likely = fewest >= MIN_LIKELY_HINTS and gain > LIKELY_ERRORS * check.standard_error
        if check.helps and (fewest >= MIN_SURE_HINTS or is_likely):
            return "hints"
    if fewest < MIN_SURE_HINTS and EXTENDED in found:
        return EXTENDED
    return OWNERS if OWNERS in found and found[OWNERS].hints else "none"


def _count_fewest(hints: GateQuality) -> int:
    """Return the smallest number of images of one owner that a gate learned from."""
    # Images of nobody count if the gate has learned to find others from them.
    finds_nobody = hints.check is not None and hints.check.nobody_found is not None
    return min(count for owner, count in hints.hints.items() if owner != NOBODY or finds_nobody)


def describe_gate(name: str, quality: GateQuality) -> str:
    """Return a line for the log.

    Args:
        name: Name of the gate.
        quality: What was found out about it.
    """
    text = f"gate {name}: {quality.changed:.1%} of the images change hands"
    if quality.left_out:
        text += f", {quality.left_out:.1%} belong to nobody and are left out"
    if quality.extended is not None:
        text += f"; among the teachers of {quality.extended}, its gate is reused"
    check = quality.check
    if check is None:
        return text + (f"; {sum(quality.hints.values())} have a known owner" if quality.hints else "")
    text += (
        f"; of {check.images} images of known owner it finds {check.owner_accuracy:.1%} by "
        f"cross-validation, the scores alone {check.ungated_owner_accuracy:.1%}"
    )
    if check.nobody_found is not None:
        text += (
            f"; it would leave out {check.nobody_found:.1%} of nobody's images, {check.lost:.1%} of others"
        )
    elif NOBODY in quality.hints:
        text += f"; {quality.hints[NOBODY]} images of nobody are too few to find others by"
    return text
