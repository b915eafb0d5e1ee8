"""The networks that are exported: a student with pixels or with normalised images as its input.

Shapes: B images, C, H and W of an image, K classes.
"""

import warnings

import torch
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.student import Student
from ka_ray.student.graph_student import GraphStudent
from ka_ray.teachers import Preprocess
from ka_ray.teachers.module_versions import with_versions


class _WithoutPreprocessing(nn.Module):
    """The stages of a student, which take normalised images."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.stages = student.stages

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages.values():
            images = stage(images)
        return images


class _OnPixelsAgain(nn.Module):
    """A graph, whose first steps normalise pixels, as a network that takes normalised images.

    The normalisation is undone before the graph, because the graph does not say which of its steps it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, graph: GraphStudent) -> None:
        super().__init__()
        config = Preprocessing.model_validate(dict(graph.spec.preprocessing))
        self.student, preprocess = graph, Preprocess(config)
        self._rescale, self._bgr = config.rescale, config.channel_order == "bgr"
        self.register_buffer("mean", preprocess.mean)
        self.register_buffer("std", preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images * self.std + self.mean) / self._rescale
        scores: Tensor = self.student(pixels.flip(1) if self._bgr else pixels)
        return scores


def build_exported_network(student: Student | GraphStudent, preprocessing: bool) -> nn.Module:
    """Build the network that an export computes; it shares the student's weights.

    Args:
        student: The student.
        preprocessing: Whether it takes pixels `[B, C, H, W]` in 0 ... 255, as the student does, and not
            normalised images.

    Returns:
        The network, in eval mode: its input -> scores `[B, K]`.
    """
    if preprocessing:
        network: nn.Module = student
    elif isinstance(student, GraphStudent):
        network = _OnPixelsAgain(student)
    else:
        network = _WithoutPreprocessing(student)
    return network.eval()


def export_program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network by torch.export for any number of images.

    Args:
        network: The network.
        example: An input of two images.

    Raises:
        InputError: The network cannot be traced.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # the code of a network can raise anything when it is traced
        raise InputError(
            f"torch.export cannot trace the student for batches of any size: {first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def build_library_network(student: Student | GraphStudent, format_name: str) -> nn.Module:
    """Build the network that a student's spec names, as its library builds it, with the student's weights.

    Args:
        student: The student.
        format_name: The format that needs it, for the error message.

    Returns:
        The network, in eval mode: normalised images -> scores.

    Raises:
        InputError: The student is not such a network; the message says why.
    """
    reason = _find_reason(student)
    if reason is None:
        assert isinstance(student, Student)
        network = student.spec.build_network()
        # stages.TAP.NAME: a stage holds the network's own modules under their own names.
        state = {key.split(".", 2)[2]: tensor for key, tensor in student.state_dict().items()}
        missing = sorted(network.state_dict().keys() ^ state.keys())
        if not missing:
            network.load_state_dict(with_versions(state, network))
            return network.eval()
        reason = f"its stages do not use all weights of the network ({', '.join(missing[:4])})"
    raise InputError(
        f"--format {format_name}: the student is not a network that its library can load: {reason}"
    )


def _find_reason(student: Student | GraphStudent) -> str | None:
    """Return why a student is not the network that its spec names; None if it is."""
    spec = student.spec
    if isinstance(student, GraphStudent):
        return (
            f"it is a graph of operations, because its function {spec.network!r} may not run without --trust"
        )
    if spec.is_family:
        return f"it is built layer by layer (network {spec.network}), without batch norms"
    if student.kept_adapters:
        return f"a 1x1 conv was added at the taps {', '.join(student.kept_adapters)}"
    return None
