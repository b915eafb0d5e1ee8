"""Label sets: from each teacher's scores to one score vector over all classes.

Shapes: B images, K_t classes of teacher t, K classes of the union.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError


@dataclass(frozen=True)
class LabelSets:
    """The teachers' label sets, matched by class name.

    Attributes:
        by_teacher: teacher -> its class names, in the order of its scores.
    """

    by_teacher: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        """Refuse overlapping label sets.

        Raises:
            InputError: Two teachers name the same class.
        """
        owner: dict[str, str] = {}
        for teacher, classes in self.by_teacher.items():
            for name in classes:
                if name in owner:
                    raise InputError(
                        f"teachers {owner[name]!r} and {teacher!r} both name the class {name!r}; "
                        "this version amalgamates disjoint label sets only"
                    )
                owner[name] = teacher

    @property
    def classes(self) -> tuple[str, ...]:
        """The union of all class names, teacher after teacher."""
        return tuple(name for classes in self.by_teacher.values() for name in classes)

    def columns(self, teacher: str) -> list[int]:
        """Where the classes of one teacher stand in the amalgamated score vector."""
        union = self.classes
        return [union.index(name) for name in self.by_teacher[teacher]]

    def amalgamate(self, scores: Sequence[Tensor]) -> Tensor:
        """Concatenate the teachers' scores `[B, K_t]`, in teacher order, to `[B, K]`."""
        return torch.cat(list(scores), dim=1)
