"""The student: stages between taps, and the folder that it is saved in.

Shapes: B images, H and W in pixels, C channels of a code, K classes of all teachers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.features.store import write_json
from ka_ray.student.families import find_family
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.teachers.preprocess import Preprocess

SCORES = "scores"
"""The name of the last stage, which gives the scores."""


@dataclass(frozen=True)
class StudentSpec:
    """All that is needed to build a student and to use it.

    Attributes:
        network: Its family.
        arguments: Of the family.
        widths: tap -> channels of its code, in the order of the taps. Layers without a tap keep the
            family's width.
        label_sets: teacher -> its classes; their concatenation is the student's score vector.
        image_size: Sides of the decoded images that it was learned from, in pixels.
        resize: How those were made square.
        preprocessing: As :class:`ka_ray.config.Preprocessing`, dumped.
    """

    network: str
    arguments: Mapping[str, Any]
    widths: Mapping[str, int]
    label_sets: Mapping[str, tuple[str, ...]]
    image_size: int
    resize: str
    preprocessing: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the scores."""
        return tuple(name for names in self.label_sets.values() for name in names)

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps, from the image to the scores."""
        return tuple(self.widths)


class Student(nn.Module):
    """A chain of stages; stage ``l`` leads from tap ``l-1`` to tap ``l``, the last to the scores.

    Every stage ends in its conv or linear layer, so an adapter behind it can be folded into that layer.
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.preprocess = Preprocess(Preprocessing.model_validate(dict(spec.preprocessing)))
        self.stages = nn.ModuleDict()
        channels, parts = 3, list[nn.Module]()
        for layer in find_family(spec.network, dict(spec.arguments)):
            width = len(spec.classes) if layer.name == SCORES else spec.widths.get(layer.name, layer.width)
            parts += layer.build(channels, width)
            channels = width
            if layer.name in spec.widths or layer.name == SCORES:
                self.stages[layer.name] = nn.Sequential(*parts)
                parts = []

    def forward(self, images: Tensor) -> Tensor:
        """Score pixels `[B, 3, H, W]` in 0 ... 255: `[B, K]`."""
        features: Tensor = self.preprocess(images)
        for stage in self.stages.values():
            features = stage(features)
        return features


def save_student(student: Student, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` into a folder."""
    save_weights(student, folder / "student.safetensors")
    write_json(folder / "student.json", asdict(student.spec) | {"classes": student.spec.classes})


def load_student(folder: str | Path) -> Student:
    """Load a student from the folder of a run, in eval mode; nothing else of the run is needed.

    Raises:
        InputError: The folder holds no student.
    """
    folder = Path(folder)
    for name in ("student.json", "student.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; give the output folder of a finished run")
    content = json.loads((folder / "student.json").read_text())
    content.pop("classes")
    content["label_sets"] = {name: tuple(names) for name, names in content["label_sets"].items()}
    student = Student(StudentSpec(**content))
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student.eval()
