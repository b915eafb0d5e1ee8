"""A student as a graph of operations that needs no function to build its network.

`torch.export.load` and TorchScript are no way to use a student from somebody else: the first unpickles what a
file holds, with ``weights_only=False``. So the graph that torch.export traces is kept as JSON, in which each
step names an operation of :mod:`ka_ray.student.graph_operations`, together with the weights in safetensors.
Nothing else runs.

Shapes: B images, C, H and W of an image, K classes of the union.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.student.graph_operations import find_operation
from ka_ray.student.spec import StudentSpec

GRAPH = "student_graph.safetensors"
"""The file of the graph in a student's folder: its steps as metadata, and tensors that are no weights."""

FORMAT = 1
"""Version of the form of the steps."""


class GraphStudent(nn.Module):
    """A student that is computed step by step from its graph.

    Args:
        spec: What the student is; its network is not built.
        graph: Content of the file, see :func:`ka_ray.student.exported_graph.save_graph`.
        tensors: Name -> weight or other tensor.

    Attributes:
        spec: As given.

    Raises:
        InputError: The graph names an operation that is not allowed, or is not complete.
    """

    def __init__(self, spec: StudentSpec, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spec = spec
        try:
            self._steps = [
                (str(name), find_operation(str(target)), decode_argument(args), decode_argument(options))
                for name, target, args, options in graph["steps"]
            ]
            self._image, self._scores = str(graph["image"]), str(graph["scores"])
            # Names of buffers may contain no dots, so the position stands for the name.
            self._tensors = {str(name): f"tensor{i}" for i, name in enumerate(graph["tensors"])}
            for name, key in graph["tensors"].items():
                self.register_buffer(self._tensors[name], tensors[key])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{GRAPH}: is damaged or not complete: {error}") from None
        self._last_use = self._find_last_use()

    def _find_last_use(self) -> dict[str, int]:
        """Return value -> number of the last step that uses it; after that step its memory is freed."""
        last = {self._image: -1}
        for number, (name, _, args, options) in enumerate(self._steps):
            last[name] = number
            for value in find_values((args, options)):
                last[value] = number
        return last | {self._scores: len(self._steps)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]`, pixels in 0 ... 255, to scores `[B, K]`.

        Raises:
            InputError: A step cannot be computed, because the graph does not fit the images or the weights.
        """
        values: dict[str, Any] = {name: getattr(self, key) for name, key in self._tensors.items()}
        values[self._image] = images
        for number, (name, function, args, options) in enumerate(self._steps):
            try:
                inputs = _fill_in(args, values, images.device)
                values[name] = function(*inputs, **_fill_in(options, values, images.device))
            except (RuntimeError, TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
                raise InputError(f"{GRAPH}: its step {name!r} fails: {error}") from None
            for used in find_values((args, options)):
                if self._last_use[used] == number:
                    values.pop(used, None)
        scores, shape = values.get(self._scores), (images.shape[0], len(self.spec.classes))
        if not isinstance(scores, Tensor) or scores.shape != shape:
            raise InputError(f"{GRAPH}: gives no scores of shape {shape}")
        return scores


class Value(str):
    """The name of a value that an earlier step gives, a weight, or the image."""


class Device:
    """Stands for the device of the images, wherever the graph was made."""


def decode_argument(item: Any) -> Any:
    """Turn JSON into the argument of an operation.

    Objects are what JSON has no form for: ``{"value": name}``, ``{"device": null}``, ``{"dtype": name}``,
    ``{"memory_format": name}``, ``{"layout": name}``, and ``{"options": {...}}`` for keyword arguments.

    Raises:
        ValueError: The object is none of these.
    """
    if isinstance(item, list):
        return [decode_argument(part) for part in item]
    if not isinstance(item, dict):
        return item
    ((kind, content),) = item.items()
    if kind == "options":
        return {str(name): decode_argument(part) for name, part in content.items()}
    if kind == "value":
        return Value(content)
    if kind == "device":
        return Device()
    types = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
    found = getattr(torch, str(content), None)
    if kind not in types or not isinstance(found, types[kind]):
        raise ValueError(f"{item} is no argument that a graph may use")
    return found


def find_values(item: Any) -> list[str]:
    """Return the names of the values in decoded arguments, in order."""
    if isinstance(item, Value):
        return [str(item)]
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return [name for part in parts for name in find_values(part)]


def _fill_in(item: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(item, Value):
        return values[item]
    if isinstance(item, Device):
        return device
    if isinstance(item, list):
        return [_fill_in(part, values, device) for part in item]
    if isinstance(item, dict):
        return {name: _fill_in(part, values, device) for name, part in item.items()}
    return item


def load_graph(folder: Path, spec: StudentSpec) -> GraphStudent | None:
    """Load the graph of a student, in eval mode; None if its folder has none, or that of another student.

    Args:
        folder: The student's folder, which also holds its weights.
        spec: What the student is.

    Raises:
        InputError: The file is damaged, or names an operation that is not allowed.
    """
    if not (folder / GRAPH).is_file():
        return None
    file = fetch_local_copy(folder / GRAPH)
    try:
        with safe_open(file, "pt") as opened:
            graph = json.loads(opened.metadata()["graph"])
        others, student, version = load_file(file), graph["student"], graph["format"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / GRAPH}: is damaged: {error}") from None
    if version != FORMAT or student != describe_student(spec):
        return None
    weights = load_tensors(folder / "student.safetensors")
    return GraphStudent(spec, graph, weights | others).eval()


def describe_student(spec: StudentSpec) -> str:
    """Return what a graph has to fit: the student's spec as JSON."""
    return json.dumps(asdict(spec))
