"""Pseudo-owners: images that one teacher claims so clearly that its claim is taken for the truth.

Shapes: n images, N teachers, K_t classes of teacher t.
"""

import torch
from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets

MIN_PER_CLASS = 3
"""Smallest number of images that are taken of a class that a teacher predicts."""


def measure_claims(logits: Tensor) -> Tensor:
    """Return by how much each teacher's logit of owning an image exceeds that of all others, `[n, N]`.

    Args:
        logits: `[n, N]`, comparable between teachers.
    """
    teachers = logits.shape[1]
    others = logits[:, None].expand(-1, teachers, -1).clone()
    index = torch.arange(teachers, device=logits.device)
    others[:, index, index] = -torch.inf
    return logits - others.amax(dim=2)


def choose_pseudo_owners(
    logits: Tensor, teacher_scores: Tensor, label_sets: LabelSets, share: float
) -> Tensor:
    """Choose the images that each teacher claims most clearly, class by class.

    Ends of the energy difference alone can hold a few classes only, those that a teacher is surest of. So of
    the images for which a teacher predicts a class, the same share is taken for every class.

    Args:
        logits: `[n, N]`, comparable between teachers, such as standardised energies.
        teacher_scores: `[n, sum of K_t]`.
        label_sets: The teachers' classes.
        share: Share of the images of each predicted class, in (0, 1].

    Returns:
        `[n]`, the index of the pseudo-owner, or -1.
    """
    claims = measure_claims(logits)
    owners = torch.full((len(logits),), -1, dtype=torch.long)
    best = torch.full((len(logits),), -torch.inf, dtype=claims.dtype)
    for teacher, scores in enumerate(label_sets.split(teacher_scores)):
        predicted, claim = scores.argmax(dim=1), claims[:, teacher]
        for label in range(scores.shape[1]):
            places = (predicted == label).nonzero().flatten()
            count = max(MIN_PER_CLASS, int(len(places) * share))
            chosen = places[claim[places].argsort(descending=True, stable=True)[:count]]
            # Two teachers can choose one image; it is given to the one whose claim is clearer.
            chosen = chosen[claim[chosen] > best[chosen]]
            owners[chosen], best[chosen] = teacher, claim[chosen]
    return owners
