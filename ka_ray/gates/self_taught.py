"""A gate that teaches itself: no label and no hint, from what the ensemble says of all images together."""

from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.gates.class_model import believe_class_model
from ka_ray.gates.fit import COMPONENTS
from ka_ray.gates.gate import Gate, list_class_scores
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.gates.shares import match_shares
from ka_ray.numerics.logistic_regression import repeat_per_class


def fit_self_gate(sample: GateSample, label_sets: LabelSets, *, shares: Tensor | None = None) -> Gate:
    """Learn a gate from images without labels and without owners, see :func:`believe_class_model`.

    Args:
        sample: The images.
        label_sets: The teachers' classes.
        shares: `[N]`, the share of the images that belongs to each teacher; None: whatever follows from the
            scores. Wrong shares do more harm than the gate can do good, see :func:`match_shares`.
    """
    scaling = InputScaling.measure(sample.features)
    basis = scaling.find_basis(sample.features, COMPONENTS)
    inputs = scaling(sample.features) @ basis
    model = believe_class_model(inputs, sample, label_sets)
    bias = model.bias
    scores, sizes = list_class_scores(label_sets, sample.scores, label_sets.num_scores)
    if shares is not None:
        bias = bias + repeat_per_class(match_shares(model.pool(inputs, scores, sizes), shares), sizes)
    scale = repeat_per_class(model.scale, sizes)
    return Gate(label_sets, scaling, basis @ model.weight, bias, scale, "self")
