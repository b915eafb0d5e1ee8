"""What went wrong in a run without an error: students and layers that learned nothing, or too little."""

from collections.abc import Iterator, Mapping, Sequence

from ka_ray.reports.choices import HeldOutQuality, StudentChoice
from ka_ray.reports.labels import LabelMatch, describe_unmatched
from ka_ray.reports.sections import Accuracy, CodeQuality, LayerQuality, StageName

NOTHING_LEARNED = 0.9
"""Relative error of a layer from which on it has learned nothing: a constant output has an error of 1."""

UNTRAINED = 1.5
"""A code with an error of so many times the lowest possible one is not trained."""

NEGLIGIBLE = 0.05
"""Relative error of a code up to which there is nothing to warn of."""

FAR_UNDER = 0.9
"""Share of the ensemble's accuracy under which a student's accuracy is far from what it could be."""

LOW_AGREEMENT = 0.5
"""Agreement under which a student without labelled images is probably bad."""

WORSE_THAN_START = 1.1
"""Divergence from the ensemble, in units of the start's, above which the last epoch is clearly worse."""


def list_warnings(
    accuracy: Accuracy,
    codes: Mapping[str, CodeQuality],
    layers: Mapping[str, LayerQuality],
    losses: Mapping[StageName, Sequence[float]],
    starts_random: bool,
) -> list[str]:
    """List the results of a run that are bad, each with what to change.

    Args:
        accuracy: Accuracies of the student.
        codes: Tap -> its code.
        layers: Tap, or ``scores`` -> the layer that leads there.
        losses: Stage -> its loss after every epoch.
        starts_random: Whether the student started from random weights.
    """
    advice = _advice(starts_random)
    return [
        *warn_of_labels(accuracy),
        *_student_warnings(accuracy, advice),
        *_code_warnings(codes),
        *_layer_warnings(layers),
        *_loss_warnings(losses),
    ]


def _advice(starts_random: bool) -> str:
    if starts_random:
        return "Start from the teachers' weights (student.start: auto), or give more images or joint.epochs"
    return (
        "Give more images, or images like those that the teachers learned from; try scores.center: true, or "
        "other joint.epochs and joint.learning_rate"
    )


def learned_nothing(accuracy: Accuracy) -> bool:
    """Whether the student agrees with its teachers no more often than one that always answers the same."""
    agreement, constant = accuracy.agreement, accuracy.constant_agreement
    # All images got one class, and the student follows: then nothing can be said.
    return agreement is not None and constant is not None and agreement <= constant and agreement < 1


def is_far_under(accuracy: Accuracy) -> bool:
    """Whether the student's accuracy is far under that of its teachers together."""
    if accuracy.union is None or not accuracy.ensemble:
        return False
    return accuracy.union < FAR_UNDER * accuracy.ensemble


def warn_of_bad_students(accuracies: Mapping[str, Sequence[Accuracy]]) -> Iterator[str]:
    """Yield a warning for each method of a comparison whose students learned nothing, or too little.

    Args:
        accuracies: Label of a method -> the accuracies of its students, one for each seed.
    """
    for label, of_seeds in accuracies.items():
        nothing, under = sum(map(learned_nothing, of_seeds)), sum(map(is_far_under, of_seeds))
        if nothing:
            yield (
                f"{label}: {nothing} of {len(of_seeds)} students agree with their teachers no more often "
                "than one that always gives the same answer."
            )
        elif under:
            yield f"{label}: {under} of {len(of_seeds)} students are far under their teachers' ensemble."


def rarely_agrees(accuracy: Accuracy) -> bool:
    """Whether a student without labelled images agrees with its teachers on too few of them."""
    return accuracy.union is None and accuracy.agreement is not None and accuracy.agreement < LOW_AGREEMENT


def _student_warnings(accuracy: Accuracy, advice: str) -> Iterator[str]:
    if learned_nothing(accuracy):
        yield (
            f"The student has learned nothing: it agrees with its teachers on {accuracy.agreement:.3f} of "
            "the images, and a student that always gives the same answer would on "
            f"{accuracy.constant_agreement:.3f}. {advice}."
        )
    elif is_far_under(accuracy):
        yield (
            f"The student's accuracy, {accuracy.union:.3f}, is far under that of its teachers together, "
            f"{accuracy.ensemble:.3f}. {advice}."
        )
    elif rarely_agrees(accuracy):
        yield (
            f"The student agrees with its teachers on only {accuracy.agreement:.3f} of the images. {advice}."
        )


def warn_of_labels(accuracy: Accuracy) -> Iterator[str]:
    """Yield a warning if accuracies leave out images because their labels are no classes.

    Args:
        accuracy: The accuracies of a student.
    """
    match = LabelMatch(accuracy.images, accuracy.labelled, accuracy.unmatched, accuracy.missing)
    left_out = describe_unmatched(match, "the student")
    if left_out:
        yield f"Accuracies are those of {accuracy.labelled:,} of {accuracy.images:,} images. {left_out}"


def _code_warnings(codes: Mapping[str, CodeQuality]) -> Iterator[str]:
    bad = [
        f"{tap} ({code.relative_error:.2f} of {code.optimal_relative_error:.2f} possible)"
        for tap, code in codes.items()
        if code.relative_error > max(UNTRAINED * code.optimal_relative_error, NEGLIGIBLE)
    ]
    if bad:
        yield (
            f"Codes that are far from the best possible ones, by their relative errors: {', '.join(bad)}. "
            "codes.solver: exact computes the best ones; with sgd, give more codes.epochs."
        )


def _layer_warnings(layers: Mapping[str, LayerQuality]) -> Iterator[str]:
    bad = [tap for tap, layer in layers.items() if layer.relative_error >= NOTHING_LEARNED]
    if bad:
        shown = ", ".join(f"{tap} ({layers[tap].relative_error:.2f})" for tap in bad)
        yield (
            f"Layers that have learned nothing, with their relative errors: {shown}. More taps make each of "
            "them easier; layers.solver: least_squares needs no learning rate; a start from the teachers' "
            "weights needs no layers."
        )


def _loss_warnings(losses: Mapping[StageName, Sequence[float]]) -> Iterator[str]:
    for stage, values in losses.items():
        if len(values) > 1 and values[-1] >= values[0]:
            yield (
                f"The loss of {stage} did not fall: {values[0]:.4g} in the first epoch, {values[-1]:.4g} in "
                f"the last one. Lower {stage}.learning_rate."
            )


def warn_of_lost_start(choice: StudentChoice | None) -> Iterator[str]:
    """Yield a warning if joint learning only led away from the ensemble, so that the start is kept.

    Args:
        choice: The choice between the start and the epochs; None if the last epoch is always kept.
    """
    if choice is None or choice.best != "start" or len(choice.qualities) == 1:
        return
    start, last = choice.qualities["start"].divergence, list(choice.qualities.values())[-1].divergence
    if last > WORSE_THAN_START * start:
        tried = {name.partition(" at rate ")[2] for name in choice.qualities} - {""}
        rates = " and ".join(sorted(tried, reverse=True))
        what = f", as at the rate{'s' if len(tried) > 1 else ''} {rates}" if tried else ""
        advice = "Give more images, or a still lower" if tried else "Lower"
        yield (
            f"Joint learning lost what the start had, which is kept: {start:.3f} nats from the ensemble at "
            f"the start, {last:.3f} after the last epoch{what}. {advice} joint.learning_rate."
        )


def describe_choice(best: str, qualities: Mapping[str, HeldOutQuality]) -> str:
    """Describe which student joint learning keeps, and how good it is.

    Args:
        best: Name of the student that is kept.
        qualities: Name of each student -> its quality on held-out images.

    Example:
        >>> quality = HeldOutQuality(agreement=0.8, divergence=0.3, worst_divergence=0.2, images=100)
        >>> describe_choice("start", {"start": quality, "epoch 1": quality})
        'Kept is the student of: start. On 100 held-out images it is 0.300 nats from the ensemble.'
    """
    quality = qualities[best]
    nothing = " Nothing was left to learn." if len(qualities) == 1 else ""
    return (
        f"Kept is the student of: {best}. On {quality.images:,} held-out images it is "
        f"{quality.divergence:.3f} nats from the ensemble.{nothing}"
    )
