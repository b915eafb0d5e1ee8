"""What a student is: everything that is needed to build it and to use it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Decoding, Preprocessing
from ka_ray.errors import InputError
from ka_ray.images.views import View, view_of
from ka_ray.storage.files import read_json
from ka_ray.student.families import FAMILIES
from ka_ray.student.resized import WidthGroup, find_width_groups, resize_network
from ka_ray.teachers import Preprocess, build_network


@dataclass(frozen=True)
class StudentSpec:
    """Everything that is needed to build a student and to use it.

    Attributes:
        network: Name of a family (a key of :data:`ka_ray.student.families.FAMILIES`) or of a torchvision
            model, or the import path of a factory.
        arguments: Arguments of the network's builder.
        paths: tap -> layer of the family, or module path of the network, with or without the layout of its
            output; in order from the image to the scores.
        widths: tap -> number of channels of its code. In a family, layers without a tap keep the family's
            width.
        label_sets: teacher -> its class names, in the order of its scores.
        rule: Rule that combines the teachers' scores, see :class:`ka_ray.amalgamation.LabelSets`; None
            chooses one by whether the label sets overlap.
        preprocessing: Dump of the :class:`ka_ray.config.Preprocessing` of the student, resolved, so that it
            says everything about the way from a decoded image to the student's input.
        decoding: Dump of the :class:`ka_ray.config.Decoding` of the images that the student learned from.
        center: Whether each teacher's scores were centred before the rule.
        layer_widths: Path of the first layer of each group of channels whose number can be changed -> the
            number of its channels. Empty: the network keeps its own widths.
    """

    network: str
    arguments: Mapping[str, Any]
    paths: Mapping[str, str]
    widths: Mapping[str, int]
    label_sets: Mapping[str, tuple[str, ...]]
    rule: str | None
    preprocessing: Mapping[str, Any]
    decoding: Mapping[str, Any]
    center: bool = False
    layer_widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def view(self) -> View:
        """The pixels that the student gets of an image."""
        return view_of(Preprocessing.model_validate(dict(self.preprocessing)))

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, of the images that the student gets."""
        return self.view.crop

    @property
    def input_rules(self) -> dict[str, dict[str, Any]]:
        """How an image file becomes the student's input: `decoding` and `preprocessing`, as in a config."""
        return {"decoding": dict(self.decoding), "preprocessing": dict(self.preprocessing)}

    @property
    def decoding_rules(self) -> Decoding:
        """How image files become pixels for the student."""
        return Decoding.model_validate(dict(self.decoding))

    @property
    def unified_label_sets(self) -> LabelSets:
        """The teachers' label sets together with the rule that combines their scores."""
        return LabelSets(self.label_sets, self.rule, self.center)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the student's scores."""
        return self.unified_label_sets.classes

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps, from the image to the scores."""
        return tuple(self.paths)

    @property
    def is_family(self) -> bool:
        """Whether the student is built layer by layer, with the widths of its taps.

        A network of a family whose widths are given by layer is treated as any other network.
        """
        return self.network in FAMILIES and not self.layer_widths

    @property
    def example(self) -> Tensor:
        """Two black images as input of the network, `[2, C, H, W]`: only their shape matters."""
        preprocess = Preprocess(Preprocessing.model_validate(dict(self.preprocessing)))
        images: Tensor = preprocess(torch.zeros(2, *self.view.shape, dtype=torch.uint8))
        return images

    @property
    def width_groups(self) -> tuple[WidthGroup, ...]:
        """The groups of channels of the network whose number can be changed, with its own widths.

        Raises:
            InputError: The network cannot be traced, or its channels are not understood.
        """
        arguments = json.dumps(dict(self.arguments), sort_keys=True, default=str)
        shape = tuple(self.view.shape)
        return _find_cached_groups(_Architecture(self.network, arguments, len(self.classes), shape, self))

    def build_own_network(self, num_classes: int | None = None) -> nn.Module:
        """Build the student's network with the widths that are its own, and random weights.

        Args:
            num_classes: Length of the score vector; None: the number of the student's classes.
        """
        return build_network(self.network, self.arguments, num_classes or len(self.classes))

    def build_network(self) -> nn.Module:
        """Build the student's network before it is cut, with the student's widths and random weights.

        Raises:
            InputError: The network cannot be built, or does not work with these widths.
        """
        network = self.build_own_network()
        if not self.layer_widths:
            return network
        return resize_network(network, self.width_groups, self.layer_widths, self.example)


def read_spec(path: Path) -> StudentSpec:
    """Read what a saved student is.

    Args:
        path: The file ``student.json`` in its folder.

    Raises:
        InputError: The file is damaged, or was written by another version of ka_ray.
    """
    content = read_json(path)
    content.pop("classes", None)  # written for other readers; the label sets contain them
    unknown = sorted(content.keys() - {part.name for part in fields(StudentSpec)})
    try:
        if unknown:
            raise ValueError(f"it has unknown keys: {', '.join(unknown)}")
        spec = TypeAdapter(StudentSpec).validate_python(content)
        # Each raises if its part of the content is not as it was written.
        _ = spec.view, spec.decoding_rules, spec.classes
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{path} is damaged, or was written by another version of ka_ray: {error}") from None
    return spec


@dataclass(frozen=True)
class _Architecture:
    """What the groups of channels of a student depend on, as the key of a cache.

    Attributes:
        network: As in the spec.
        arguments: Arguments of the network's builder, as JSON.
        num_classes: Length of the score vector.
        shape: Shape of an image.
        spec: A student of this architecture; not a part of the key.
    """

    network: str
    arguments: str
    num_classes: int
    shape: tuple[int, ...]
    spec: StudentSpec = field(compare=False)


@lru_cache(maxsize=16)  # a student is built many times, and tracing a large network takes seconds
def _find_cached_groups(architecture: _Architecture) -> tuple[WidthGroup, ...]:
    spec = architecture.spec
    return find_width_groups(spec.build_own_network(), spec.example)
