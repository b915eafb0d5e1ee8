"""Read a checkpoint file without running any code from it.

A torch file is a pickle, and a pickle can run code when it is read. So torch reads it with its weights-only
unpickler, which builds tensors, containers and the few other types that are listed here, and nothing else.
"""

import argparse
import importlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copy

ADVICE = {
    "module": "It is a whole pickled network",
    "ultralytics": "It is a checkpoint of ultralytics",
    "torchscript": "It is a TorchScript program",
    "onnx": "It is an ONNX graph",
}
"""Kind of file that is refused -> how the error begins."""

CONVERSIONS = {
    "module": (
        "import torch",
        "network = torch.load({path!r}, map_location='cpu', weights_only=False)  # only if you trust it",
        "torch.save(network.state_dict(), {target!r})",
    ),
    "ultralytics": (
        "import torch, ultralytics",
        "network = ultralytics.YOLO({path!r}).model  # only if you trust it",
        "torch.save(network.state_dict(), {target!r})",
    ),
    "torchscript": (
        "import torch",
        "network = torch.jit.load({path!r}, map_location='cpu')  # only if you trust it",
        "torch.save(network.state_dict(), {target!r})",
    ),
    "onnx": (
        "import onnx2torch, torch  # pip install onnx2torch",
        "network = onnx2torch.convert({path!r})",
        "torch.save(network.state_dict(), {target!r})",
    ),
}
"""Kind of file that is refused -> the Python lines that turn it into a state dict."""


def read_checkpoint(path: Path) -> Any:
    """Read whatever a checkpoint file contains, without unpickling code.

    Args:
        path: Checkpoint, local or remote. With the suffix ``.safetensors`` it is read as safetensors, with
            any other suffix as a torch file.

    Returns:
        The content: of a safetensors file, a dict of names -> tensors; of a torch file, whatever was saved.
        Tensors are on the CPU.

    Raises:
        InputError: The file cannot be read, or contains objects of other types than weights-only loading and
            :func:`allowed_types` know. For networks that were saved as a whole, TorchScript, ONNX and
            ultralytics files, the message has the lines of Python that convert them.
    """
    try:
        # safetensors and torch read local files only, so a remote checkpoint is copied to this node first.
        local = fetch_local_copy(path)
        if path.suffix == ".safetensors":
            return load_file(local)
        _refuse_programs(path, local)
        with torch.serialization.safe_globals(list(allowed_types())):
            return torch.load(local, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {_first_line(error)}") from None
    except Exception as error:
        # Weights-only loading raises pickle.UnpicklingError for code, a damaged pickle nearly any exception.
        raise _unpickling_error(path, local, error) from None


def allowed_types() -> Iterator[Any]:
    """Yield the types that training scripts save beside weights, and that cannot run code when unpickled.

    These are ``argparse.Namespace``, in which the scripts of torchvision and timm keep their arguments, and
    numpy's scalars, as which they keep a best accuracy.

    Yields:
        A type or function, or a pair of one and the name under which older files refer to it.
    """
    yield argparse.Namespace
    # numpy 2 renamed the module of this function; a file has the name of the numpy that wrote it.
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        scalar = _find("numpy._core.multiarray", "scalar") or _find("numpy.core.multiarray", "scalar")
        yield scalar, f"{module}.scalar"
    yield np.dtype
    yield from {type(np.dtype(code)) for code in "?bBhHiIlLqQefdg"}
    # Pickle protocol 2 stores the bytes of a scalar as text, which this function turns into bytes again.
    yield _find("_codecs", "encode"), "_codecs.encode"


def _find(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def _refuse_programs(path: Path, local: Path) -> None:
    """Refuse files that hold a program instead of weights, before torch fails on them with its own words."""
    if path.suffix == ".onnx":
        raise _refusal(path, "onnx")
    if zipfile.is_zipfile(local):
        with zipfile.ZipFile(local) as archive:
            if any(name.partition("/")[2].startswith("code/") for name in archive.namelist()):
                raise _refusal(path, "torchscript")


def _unpickling_error(path: Path, local: Path, error: Exception) -> InputError:
    """Return the error about a type that is not allowed: its name, and what the user can do."""
    unknown = _unknown_types(local) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    if any(name.startswith("ultralytics.") for name in unknown):
        return _refusal(path, "ultralytics")
    if any(name.startswith(("torch.nn.modules.", "torch.fx.")) for name in unknown):
        return _refusal(path, "module")
    # torch's own message is several paragraphs of advice; the reason stands behind this word.
    reason = _first_line(Exception(str(error).rpartition("WeightsUnpickler error: ")[2]))
    if unknown:
        reason = f"it has objects of the type {', '.join(unknown[:3])}"
    return InputError(
        f"checkpoint {path} contains more than weights ({reason}) and is not unpickled, because that could "
        "run any code. Save "
        f"only the weights: torch.save(network.state_dict(), {_target(path)!r}), or convert the file to "
        "safetensors"
    )


def _unknown_types(local: Path) -> list[str]:
    """Return the names of the types in a file that are not allowed; reading them runs no code."""
    try:
        found: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(local)
    except Exception:  # a legacy file, which torch cannot list, or a damaged one
        return []
    return sorted(found)


def _refusal(path: Path, kind: str) -> InputError:
    lines = [line.format(path=str(path), target=_target(path)) for line in CONVERSIONS[kind]]
    return InputError(
        f"checkpoint {path} cannot be loaded. {ADVICE[kind]}, not a state dict. These lines turn it into "
        "one; name the network in the config:\n    " + "\n    ".join(lines)
    )


def _target(path: Path) -> str:
    return f"{path.stem}_state_dict.pt"


def _first_line(error: Exception) -> str:
    # torch colours some messages with escape sequences.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return plain.splitlines()[0] if plain else repr(error)
