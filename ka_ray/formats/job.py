"""What every format gets, and what it gives back.

Shapes: B images, C, H and W of the student's view of an image, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.formats.networks import build_exported_network
from ka_ray.student import Student, StudentSpec
from ka_ray.student.graph_student import GraphStudent
from ka_ray.teachers import Preprocess

CARD = "export.json"
"""The file in an exported folder that says what is in it, for people and programs."""

INPUT, OUTPUT = "images", "scores"
"""Names of input and output, in the formats that name them."""

Predict = Callable[[Tensor], Tensor]
"""The loaded export: its own input `[B, C, H, W]` -> scores `[B, K]`."""


@dataclass(frozen=True)
class ExportJob:
    """A student that is written in another format.

    Attributes:
        student: The student, in eval mode on the CPU.
        preprocessing: Whether the export takes pixels, uint8 in 0 ... 255, and normalises them itself;
            otherwise it takes normalised images, float32.
        calibration: Pixels `[B, C, H, W]`, uint8, from which the ranges of int8 values are measured; None:
            the export is not quantized.
    """

    student: Student | GraphStudent
    preprocessing: bool = False
    calibration: Tensor | None = None

    @property
    def spec(self) -> StudentSpec:
        """What the student is."""
        return self.student.spec

    @cached_property
    def network(self) -> nn.Module:
        """The student with the input of the export."""
        return build_exported_network(self.student, self.preprocessing)

    @cached_property
    def normalise(self) -> Preprocess:
        """The student's normalisation of pixels."""
        return Preprocess(Preprocessing.model_validate(dict(self.spec.preprocessing)))

    def to_input(self, pixels: Tensor) -> Tensor:
        """Return the export's input for the student's view of images.

        Args:
            pixels: `[B, C, H, W]`, uint8.
        """
        inputs: Tensor = pixels if self.preprocessing else self.normalise(pixels).contiguous()
        return inputs

    @property
    def example(self) -> Tensor:
        """An input of two images, with which the student is traced."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, *self.spec.view.shape)
        return self.to_input(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))

    @property
    def card(self) -> dict[str, Any]:
        """What travels with every format: the input, and the classes in the order of the scores."""
        return {
            "input": {
                "kind": "pixels" if self.preprocessing else "normalised",
                "dtype": "uint8" if self.preprocessing else "float32",
                "shape": ["batch", *self.spec.view.shape],
                "meaning": _PIXELS if self.preprocessing else _NORMALISED,
            },
            "output": {"dtype": "float32", "shape": ["batch", len(self.spec.classes)], "meaning": _SCORES},
            "classes": list(self.spec.classes),
            **self.spec.input_rules,
        }


_PIXELS = "RGB pixels in 0 ... 255 after `decoding`, and the resizing and cropping of `preprocessing`"
_NORMALISED = "pixels as `preprocessing` makes them: resized, cropped, rescaled, minus mean, divided by std"
_SCORES = "one score per class; softmax makes them probabilities"


@dataclass(frozen=True)
class ExportFormat:
    """A format that a student can be written in.

    Attributes:
        name: Its name on the command line.
        write: Writes the student into an empty folder; raises InputError if the format cannot hold it.
        load: Loads what was written as other programs do, with as many threads as torch uses.
        takes_preprocessing: Whether the normalisation of pixels can be inside.
        takes_int8: Whether it can be quantized.
    """

    name: str
    write: Callable[[ExportJob, Path], None]
    load: Callable[[ExportJob, Path], Predict]
    takes_preprocessing: bool = True
    takes_int8: bool = False


def require_packages(format_name: str, extra: str, modules: Mapping[str, Callable[[], Any]]) -> None:
    """Check that the packages of a format are installed.

    Args:
        format_name: Name of the format.
        extra: The extra of this package that installs them.
        modules: Name of each package -> function that imports it.

    Raises:
        InputError: One is missing.
    """
    for package, load in modules.items():
        try:
            load()
        except ImportError:
            raise InputError(
                f'--format {format_name} needs the package {package}; pip install "ka_ray[{extra}]"'
            ) from None
