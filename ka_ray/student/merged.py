"""A student as a teacher of another run: merged networks can be merged again.

Shapes: B images, H and W in pixels, K classes of the union.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ka_ray.student.network import Student
from ka_ray.student.spec import StudentSpec


class MergedNetwork(nn.Module):
    """The stages of a student without its preprocessing, which a teacher has by itself.

    Its state dict is the student's, so that ``student.safetensors`` fits as it is.

    Args:
        spec: What the student is.
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.stages = Student(spec).stages

    def forward(self, images: Tensor) -> Tensor:
        """Map preprocessed images ``[B, C, H, W]`` to scores ``[B, K]``."""
        for stage in self.stages.values():
            images = stage(images)
        return images


def build_merged_network(num_classes: int, **spec: Any) -> nn.Module:
    """Build the network of a student with random weights.

    Args:
        num_classes: Number of classes. If it differs from the student's, only the last layer differs.
        **spec: The fields of :class:`ka_ray.student.network.StudentSpec`, as ``student.json`` has them.
    """
    return MergedNetwork(_with_num_classes(StudentSpec(**_with_tuples(spec)), num_classes))


def _with_tuples(spec: Mapping[str, Any]) -> dict[str, Any]:
    # JSON and YAML turn tuples into lists.
    return {**spec, "label_sets": {name: tuple(names) for name, names in spec["label_sets"].items()}}


def _with_num_classes(spec: StudentSpec, num_classes: int) -> StudentSpec:
    """Return a spec with as many classes as given; other names stand for them if the number changes."""
    if len(spec.classes) == num_classes:
        return spec
    names = tuple(f"class {number}" for number in range(num_classes))
    return replace(spec, label_sets={"all": names}, rule=None, center=False)
