"""The student: stages between taps, and the folder that it is saved in.

Shapes: B images, H and W in pixels, C channels of a code, K classes of all teachers.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import make_folder, read_json, write_json
from ka_ray.storage.uris import to_path
from ka_ray.student.adapter import identity_layer
from ka_ray.student.cut import cut
from ka_ray.student.families import FAMILIES, activation_of, chain_stages, find_family
from ka_ray.student.fold import can_fold
from ka_ray.teachers import Preprocess, build_network
from ka_ray.teachers.checkpoint import save_weights


@dataclass(frozen=True)
class StudentSpec:
    """All that is needed to build a student and to use it.

    Attributes:
        network: A family, a torchvision model or a factory.
        arguments: Of the network.
        paths: tap -> layer of the family, or module path of the network; from the image to the scores.
        widths: tap -> channels of its code. Layers without a tap keep the family's width; a network that is
            no family keeps its own widths everywhere.
        label_sets: teacher -> its classes.
        rule: How the teachers' scores become one vector; see :class:`ka_ray.amalgamation.LabelSets`.
        center: Likewise, whether each teacher's scores are centred before.
        image_size: Sides of the decoded images that it was learned from, in pixels.
        resize: How those were made square.
        preprocessing: As :class:`ka_ray.config.Preprocessing`, dumped.
    """

    network: str
    arguments: Mapping[str, Any]
    paths: Mapping[str, str]
    widths: Mapping[str, int]
    label_sets: Mapping[str, tuple[str, ...]]
    rule: str | None
    image_size: int
    resize: str
    preprocessing: Mapping[str, Any]
    center: bool = False

    @property
    def unified_label_sets(self) -> LabelSets:
        """The label sets, with what makes the teachers' scores one vector."""
        return LabelSets(self.label_sets, self.rule, self.center)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the scores."""
        return self.unified_label_sets.classes

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps, from the image to the scores."""
        return tuple(self.paths)


class Student(nn.Module):
    """A chain of stages; stage ``l`` leads from tap ``l-1`` to tap ``l``, the last to the scores.

    An adapter behind a stage can always be folded into it: where the network's own layers do not allow that
    (an identity shortcut, an activation), the stage ends in one more 1x1 conv, which stays and is counted.

    Attributes:
        spec: What it was built from.
        shapes: tap -> shape of one image's features, ``(C, *space)``.
        kept: tap -> parameters of the 1x1 conv that stays there.

    Raises:
        InputError: The network cannot be built or cut, or gives another number of scores than classes.
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.preprocess = Preprocess(Preprocessing.model_validate(dict(spec.preprocessing)))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kept_adapters: dict[str, int] = {}
        self.stages = self._stages()
        given = self.shapes.pop(SCORES)
        if given != (len(spec.classes),):
            raise InputError(
                f"student.network {spec.network!r}: gives {given} scores for {len(spec.classes)} classes"
            )

    def _stages(self) -> nn.ModuleDict:
        spec = self.spec
        if spec.network in FAMILIES:
            family = find_family(spec.network, dict(spec.arguments))
            stages = chain_stages(family, spec.paths, spec.widths, len(spec.classes))
        else:
            stages = cut(build_network(spec.network, spec.arguments, len(spec.classes)), spec.paths)
        image = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
        with torch.no_grad():
            features = self.preprocess(image)
            for tap in list(stages):
                features = self._run(stages[tap].eval(), features)
                self.shapes[tap] = tuple(features.shape[1:])
                if features.dim() not in (2, 4):
                    raise InputError(
                        f"taps.{tap}: the student gives {list(features.shape)}, not [B, C, *space]"
                    )
                if tap != SCORES and not can_fold(stages[tap]):
                    layer = identity_layer(self.shapes[tap])
                    self.kept_adapters[tap] = sum(p.numel() for p in layer.parameters())
                    stages[tap] = nn.Sequential(OrderedDict(network=stages[tap], adapter=layer))
        return stages.train()

    def _run(self, stage: nn.Module, features: Tensor) -> Tensor:
        try:
            output: Tensor = stage(features)
        except Exception as error:  # networks refuse sizes in many ways
            size = self.spec.image_size
            raise InputError(
                f"student {self.spec.network!r}: an image of {size} pixels fails: {error}"
            ) from None
        return output

    def activations(self) -> dict[str, nn.Module]:
        """Give what the layer behind each tap sees its features through: the activation, the pooling.

        A stage that was cut out of another network by torch.fx is not looked into: identities there.
        """
        later = itertools.pairwise(self.stages.items())
        return {tap: activation_of(following) for (tap, _), (_, following) in later}

    def forward(self, images: Tensor) -> Tensor:
        """Score pixels `[B, 3, H, W]` in 0 ... 255: `[B, K]`."""
        features: Tensor = self.preprocess(images)
        for stage in self.stages.values():
            features = stage(features)
        return features


def save_student(student: Student, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` into a folder, made if need be."""
    make_folder(folder)
    save_weights(student, folder / "student.safetensors")
    write_json(folder / "student.json", asdict(student.spec) | {"classes": student.spec.classes})


def load_student(folder: str | Path) -> Student:
    """Load a student from the folder of a run, in eval mode; nothing else of the run is needed.

    Raises:
        InputError: The folder holds no student.
    """
    folder = to_path(folder)
    for name in ("student.json", "student.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}; give the output folder of a finished run")
    content = read_json(folder / "student.json")
    content.pop("classes")
    content["label_sets"] = {name: tuple(names) for name, names in content["label_sets"].items()}
    student = Student(StudentSpec(**content))
    student.load_state_dict(load_file(fetch_local_copy(folder / "student.safetensors")))
    return student.eval()
