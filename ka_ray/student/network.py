"""The student network: stages between taps, and the files that it is saved in.

Shapes: B images, H and W height and width in pixels, C channels of a code, K classes of the union.
"""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.features.find_layout import find_layout
from ka_ray.features.layouts import Layout, parse_tap_path
from ka_ray.features.stack import SCORES
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.storage.files import exists, make_folder, write_json
from ka_ray.storage.uris import to_path
from ka_ray.student.adapter import build_identity_layer
from ka_ray.student.cut import cut_into_stages
from ka_ray.student.families import build_family_stages, find_family, get_channelwise_prefix
from ka_ray.student.fold import can_fold
from ka_ray.student.graph_student import GRAPH, GraphStudent, load_graph
from ka_ray.student.spec import StudentSpec, read_spec
from ka_ray.teachers import Preprocess
from ka_ray.teachers.checkpoint import save_weights
from ka_ray.teachers.factories import is_known_source
from ka_ray.teachers.networks import STUDENT_NETWORK

_logger = logging.getLogger(__name__)


class Student(nn.Module):
    """A network as a chain of stages: each stage leads from one tap to the next, the last one to the scores.

    An adapter after a stage can always be folded into it. If the network's own layers do not allow that (the
    stage ends in an identity shortcut or an activation), the stage gets one more 1x1 conv at its end, which
    stays in the student and counts among its parameters.

    Args:
        spec: Everything that is needed to build the student.

    Attributes:
        spec: As given.
        paths: The paths of the spec with the layout of every tap, such as ``blocks.5:prefix=1``.
        layouts: tap -> layout of the stage's output. A stage gets and returns what the network's own modules
            do, also tokens; :class:`ka_ray.features.layouts.Layout` says what of it is the features.
        shapes: tap -> shape of one image's features, ``(C, *space)``.
        kept_adapters: tap -> number of parameters of the 1x1 conv that was added there.
        stages: tap -> stage, in order.

    Raises:
        InputError: The network cannot be built or cut, fails on an image, or does not give one score per
            class.
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.preprocess = Preprocess(Preprocessing.model_validate(dict(spec.preprocessing)))
        self.paths = dict(spec.paths)
        self.layouts: dict[str, Layout] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kept_adapters: dict[str, int] = {}
        self.stages = self._build_stages()
        shape = self.shapes.pop(SCORES)
        if shape != (len(spec.classes),):
            raise InputError(
                f"student.network {spec.network!r}: gives scores of shape {shape} for {len(spec.classes)} "
                "classes; it must give one score per class"
            )

    def _build_stages(self) -> nn.ModuleDict:
        """Build the stages, and run an image through them to learn the shapes at the taps."""
        spec = self.spec
        if spec.is_family:
            network = None
            family = find_family(spec.network, dict(spec.arguments))
            stages = build_family_stages(family, spec.paths, spec.widths, len(spec.classes))
        else:
            network = spec.build_network()
            module_paths = {tap: parse_tap_path(tap, path)[0] for tap, path in spec.paths.items()}
            stages = cut_into_stages(network, module_paths, len(spec.classes))
            network.eval()  # in training mode, batch norm refuses one value per channel
        # Any image shows the shapes.
        image = torch.zeros(1, *spec.view.shape, dtype=torch.uint8)
        with torch.no_grad():
            features = inputs = self.preprocess(image)
            for tap in list(stages):
                features = self._run(stages[tap].eval(), features)
                if tap == SCORES:
                    self.shapes[SCORES] = tuple(features.shape[1:])
                    continue
                layout = Layout() if network is None else self._find_layout(network, tap, features, inputs)
                self.layouts[tap] = layout
                self.shapes[tap] = tuple(layout.split(features)[0].shape[1:])
                if not can_fold(stages[tap]):
                    layer = build_identity_layer(self.shapes[tap], layout.channels_last)
                    self.kept_adapters[tap] = sum(p.numel() for p in layer.parameters())
                    stages[tap] = nn.Sequential(OrderedDict(network=stages[tap], adapter=layer))
        return stages.train()

    def _find_layout(self, network: nn.Module, tap: str, output: Tensor, inputs: Tensor) -> Layout:
        """Find the layout of a stage's output, and make it explicit in the tap's path."""
        path, given = parse_tap_path(tap, self.spec.paths[tap])
        layout = find_layout(network, tap, path, output, inputs, given)
        self.paths[tap] = self.spec.paths[tap] if given is not None else path + layout.rule
        return layout

    def _run(self, stage: nn.Module, features: Tensor) -> Tensor:
        """Run a stage; if it fails, raise an InputError that names the network and the image size."""
        try:
            output: Tensor = stage(features)
        except Exception as error:  # networks raise various errors if an image is too small for them
            size = self.spec.image_size
            raise InputError(
                f"student.network {self.spec.network!r}: it fails on an image of {size} x {size} pixels: "
                f"{error}"
            ) from None
        return output

    def activations(self) -> dict[str, nn.Module]:
        """Return tap -> the activation and pooling through which the next layer sees the tap's features.

        Stages that torch.fx cut out of a network give an identity, because their modules are in no fixed
        order.
        """
        pairs = itertools.pairwise(self.stages.items())
        return {tap: get_channelwise_prefix(next_stage) for (tap, _), (_, next_stage) in pairs}

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]`, pixels in 0 ... 255, to scores `[B, K]`."""
        features: Tensor = self.preprocess(images)
        for stage in self.stages.values():
            features = stage(features)
        return features


def save_student(student: Student, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json``; an older student in the folder is replaced.

    Args:
        student: The student.
        folder: The folder, local or remote; it is created if it does not exist.
    """
    make_folder(folder)
    save_weights(student, folder / "student.safetensors")
    write_json(folder / "student.json", asdict(student.spec) | {"classes": student.spec.classes})


@overload
def load_student(folder: str | Path, *, trust: Literal[True]) -> Student: ...


@overload
def load_student(folder: str | Path, *, trust: bool = False) -> Student | GraphStudent: ...


def load_student(folder: str | Path, *, trust: bool = False) -> Student | GraphStudent:
    """Load a student from the output folder of a run, in eval mode.

    Only ``student.json`` and ``student.safetensors`` are needed, and without trust in a function that they
    name also the exported graph, which is then used instead; it gives the same scores.

    Args:
        folder: The folder.
        trust: Whether the function that builds the network may be one of another package. The folder names
            it, and it runs: say so only for a folder that you know.

    Raises:
        InputError: One of the files is missing or damaged, or the network needs a function that is not
            trusted, and there is no graph.
    """
    folder = to_path(folder)
    for name in ("student.json", "student.safetensors"):
        try:
            is_there, holds_others = (folder / name).is_file(), exists(folder)
        except OSError as error:  # such as a name that is too long
            raise InputError(f"{folder}: {error.strerror}; give the folder of a run") from None
        if not is_there:
            missing = f"{folder} holds no {name}" if holds_others else f"{folder} does not exist"
            raise InputError(f"{missing}; give the output folder of a finished run")
    spec = read_spec(folder / "student.json")
    function = None if trust else find_foreign_function(spec)
    if function is not None:
        return _load_graph_instead(folder, spec, function)
    try:
        student = Student(spec)
        student.load_state_dict(load_tensors(folder / "student.safetensors"))
    except InputError:
        raise
    except Exception as error:  # what is damaged in the files decides which error building a network ends in
        reason = shorten(str(error), 300)
        raise InputError(
            f"the student in {folder} cannot be built: its files are damaged ({reason})"
        ) from None
    return student.eval()


def _load_graph_instead(folder: Path, spec: StudentSpec, function: str) -> GraphStudent:
    graph = load_graph(folder, spec)
    if graph is None:
        raise InputError(
            f"the student in {folder} is built by the function {function!r}, which would run, and there is "
            f"no {GRAPH} to use instead. If you trust it, say so: --trust, or load_student(folder, "
            "trust=True)"
        )
    _logger.warning("%s: using the exported graph; the function %r was not run", folder, function)
    return graph


def find_foreign_function(spec: StudentSpec) -> str | None:
    """Return the function that builds a student; None if it is of this package, torchvision or timm.

    Args:
        spec: What the student is; in a student of students, the inner one names the function.
    """
    network, arguments = spec.network, spec.arguments
    while network == STUDENT_NETWORK and isinstance(arguments, Mapping):
        network, arguments = str(arguments.get("network")), arguments.get("arguments", {})
    return network if ":" in network and not is_known_source(network) else None
