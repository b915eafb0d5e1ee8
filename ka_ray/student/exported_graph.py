"""Export a student as a graph of operations, and write it into the student's folder."""

import inspect
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx

from ka_ray.errors import InputError
from ka_ray.storage.files import atomic_file, make_folder
from ka_ray.student.graph_operations import ON_NUMBERS, find_operation
from ka_ray.student.graph_student import (
    FORMAT,
    GRAPH,
    GraphStudent,
    decode_argument,
    describe_student,
    find_values,
)
from ka_ray.student.network import Student

MAX_DIFFERENCE = 1e-5
"""Largest difference between the scores of a graph and of its network, relative to the largest score."""

CHECKED_BATCHES = (1, 3, 8)
"""Numbers of images with which a graph is compared with its network. It was traced with two images."""

_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "_assert_async")


def save_graph(student: Student, folder: Path) -> None:
    """Export a student as a graph and write it, so that the student can be used without its function.

    The graph is that of ``torch.export`` for any number of images, with only those operations that
    :data:`ka_ray.student.graph_operations.OPERATIONS` allows. Weights are not repeated: it names those of
    ``student.safetensors``. Before it is written, its scores are compared with the network's.

    Args:
        student: The student, on the CPU.
        folder: Its folder, local or remote.

    Raises:
        InputError: The network cannot be exported; the message says why.
    """
    training = student.training
    try:
        graph, tensors = _export(student.eval())
        weights = student.state_dict()
        exported = GraphStudent(student.spec, graph, weights | tensors)
        _check_scores(student, exported)
    finally:
        student.train(training)
    make_folder(folder)
    content = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_file(folder / GRAPH) as part:
        save_file(content, part, metadata={"graph": json.dumps(graph)})


def _export(student: Student) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the content of the file: the graph, and the tensors that are no weights of the student."""
    images = torch.randint(0, 256, (2, *student.spec.view.shape), dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(
                student, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False
            ).run_decompositions({})
    except Exception as error:  # user code can raise anything when it is traced
        raise InputError(f"torch.export cannot trace it: {_first_line(error)}") from None
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    weights, found = student.state_dict(), program.state_dict | program.constants
    (image,) = signature.user_inputs
    (scores,) = signature.user_outputs
    steps = _list_steps(program.graph, str(scores))
    used = {value for _, _, args, options in steps for value in find_values(decode_argument([args, options]))}
    names = {name: key for name, key in names.items() if name in used}
    graph = {
        "format": FORMAT,
        "student": describe_student(student.spec),
        "image": str(image),
        "scores": str(scores),
        "tensors": names,
        "steps": steps,
    }
    return graph, {key: found[key] for key in names.values() if key not in weights}


def _list_steps(graph: fx.Graph, scores: str) -> list[tuple[str, str, Any, Any]]:
    """Return name, operation, arguments and keyword arguments of each step that the scores depend on."""
    steps, needed = [], {scores}
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.name not in needed:
            continue
        if node.target.__name__.partition(".")[0] in _CHECKS:
            continue
        steps.append((node.name, _name_of(node), _encode(node.args), _encode(dict(node.kwargs))))
        needed |= {used.name for used in node.all_input_nodes}
    return steps[::-1]


def _name_of(node: fx.Node) -> str:
    """Return the name of a node's operation, as :func:`find_operation` takes it."""
    target: Any = node.target
    is_aten = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    name = str(target).removeprefix("aten.") if is_aten else target.__name__
    try:
        is_on_numbers = name in ON_NUMBERS and target is getattr(operator, name)
        known = find_operation(name) if is_aten or is_on_numbers else None
    except ValueError:
        known = None
    if known is None:
        raise InputError(f"it uses the operation {target}, which a graph cannot hold")
    return name


def _encode(item: Any) -> Any:
    """Turn an argument of an operation into JSON; the opposite of :func:`decode_argument`."""
    if isinstance(item, fx.Node):
        return {"value": item.name}
    if isinstance(item, list | tuple):
        return [_encode(part) for part in item]
    if isinstance(item, Mapping):
        return {"options": {name: _encode(part) for name, part in item.items()}}
    if item is None or isinstance(item, bool | int | float | str):
        return item
    if isinstance(item, torch.device):
        return {"device": None}
    for kind in ("dtype", "memory_format", "layout"):
        if isinstance(item, getattr(torch, kind)):
            return {kind: str(item).removeprefix("torch.")}
    raise InputError(f"it uses {type(item).__name__} as an argument, which a graph cannot hold")


def _check_scores(student: Student, exported: GraphStudent) -> None:
    """Compare the graph with the network on random images, with other numbers of them than it was traced."""
    generator = torch.Generator().manual_seed(0)
    for count in CHECKED_BATCHES:
        shape = (count, *student.spec.view.shape)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            expected, found = student(images), exported(images)
        largest = float(expected.abs().max())
        if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=0, atol=MAX_DIFFERENCE * max(1.0, largest)
        ):
            raise InputError(f"the exported graph gives other scores for a batch of {count} images")


def _first_line(error: Exception) -> str:
    return inspect.cleandoc(str(error)).partition("\n")[0][:300] or type(error).__name__
