"""Find the layout of a module's output, before a run starts.

A wrong guess would not fail: rows of a map would be learned as channels. So a layout follows from what the
network says or from shapes that allow only one answer; otherwise the config must say it.

Shapes: B images, C channels, N tokens of an image.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.features.layouts import Layout, parse_tap_path
from ka_ray.features.taps import Taps

CLASS_TOKENS = {"cls_token", "class_token", "class_embedding"}
"""Names of the parameters that hold a class token, in timm, torchvision and transformers."""

PREFIX_TOKENS = CLASS_TOKENS | {"dist_token", "distillation_token", "register_tokens", "reg_token"}
"""Names of the parameters that hold any prefix tokens."""

COMMON_PREFIXES = (0, 1, 2, 5)
"""Numbers of prefix tokens that are tried if the network does not say its own: none, a class token, a class
and a distillation token, a class and four register tokens."""


def resolve_tap_paths(network: nn.Module, paths: Mapping[str, str], inputs: Tensor) -> dict[str, str]:
    """Make the layout of every tap explicit in its path: ``blocks.5`` becomes ``blocks.5:prefix=1``.

    Args:
        network: The network in eval mode, on the device of the inputs.
        paths: Tap name -> path of the tap.
        inputs: Preprocessed square images, ``[B, 3, H, W]``.

    Returns:
        Tap name -> path. It is unchanged if the output is a map ``[B, C, height, width]`` or a vector, and if
        the forward pass does not call the module.

    Raises:
        InputError: The network has no module at a path, or the layout of its output is not clear.
    """
    parsed = {tap: parse_tap_path(tap, path) for tap, path in paths.items()}
    modules = {tap: path for tap, (path, _) in parsed.items()}
    outputs = _read_outputs(network, modules, inputs)
    resolved = dict(paths)
    for tap, output in outputs.items():
        path, given = parsed[tap]
        layout = find_layout(network, tap, path, output, inputs, given)
        resolved[tap] = path + layout.rule if given is None else paths[tap]
    return resolved


def find_layout(
    network: nn.Module, tap: str, path: str, output: Tensor, inputs: Tensor, given: Layout | None = None
) -> Layout:
    """Find the layout of a module's output.

    Args:
        network: The network in eval mode.
        tap: Name of the tap, for error messages.
        path: Path of the module.
        output: Output of the module for the inputs.
        inputs: Preprocessed square images, ``[B, 3, H, W]``.
        given: The layout that the config asks for; None: find it.

    Raises:
        InputError: The layout is not clear, the output does not have the layout that was asked for, or it is
            no feature map, vector or sequence of tokens per image.
    """
    what = f"taps.{tap}: {path!r} of the {type(network).__name__} outputs the shape {list(output.shape)}"
    if output.dim() not in (2, 3, 4) or len(output) != len(inputs):
        raise InputError(
            f"{what} for {len(inputs)} image(s), but a tap needs a map [B, C, height, width], a vector "
            "[B, C] or tokens [B, N, C]; choose another module"
        )
    if given is not None:
        _check_given(what, path, network, output, given)
        return given
    if output.dim() == 2:
        return Layout()
    if output.dim() == 3:
        return Layout("patches", _find_prefix(what, path, network, output.shape[1]))
    return _find_map_layout(what, path, network, output, inputs)


def _read_outputs(network: nn.Module, paths: Mapping[str, str], inputs: Tensor) -> dict[str, Tensor]:
    with Taps(network, paths) as taps:
        network(inputs)
    return taps.features


def _check_given(what: str, path: str, network: nn.Module, output: Tensor, given: Layout) -> None:
    """Refuse a layout that the output cannot have."""
    tokens = given.kind in ("patches", "cls")
    if tokens != (output.dim() == 3) or (given.kind == "nhwc" and output.dim() != 4):
        needed = "tokens [B, N, C]" if tokens else "a map of 4 dimensions"
        raise InputError(f"{what}, but {given.rule or ':nchw'!r} needs {needed}; remove it")
    if given.kind == "patches" and not _is_square(output.shape[1] - given.prefix):
        raise InputError(
            f"{what}: {output.shape[1]} tokens without {given.prefix} prefix tokens are no square of patches"
        )
    if given.kind == "cls" and _lacks_class_token(path, network, output.shape[1]):
        raise InputError(f"{what}, which include no class token; read its patch tokens: {path}")


def _find_prefix(what: str, path: str, network: nn.Module, num_tokens: int) -> int:
    """Return the number of prefix tokens, if all other tokens form a square for one number only."""
    if any(hasattr(module, "reroll") for module in _modules_around(network, path)):
        raise InputError(
            f"{what}, but the tokens of a {type(network).__name__} are not in rows; choose another module"
        )
    possible = _possible_prefixes(path, network, num_tokens)
    if len(possible) != 1:
        options = " or ".join(f"{path}:prefix={number}" for number in possible or ("NUMBER",))
        raise InputError(
            f"{what}. {num_tokens} tokens are a square of patches behind {possible or 'no usual number of'} "
            f"prefix tokens. Say how many there are ({options}), or take the class token: {path}:cls"
        )
    return possible[0]


def _possible_prefixes(path: str, network: nn.Module, num_tokens: int) -> list[int]:
    declared = _declared_prefix(network, path)
    # A module in front of the one that adds the prefix tokens has none, whatever the network declares.
    candidates = COMMON_PREFIXES if declared is None else sorted({0, declared})
    grids = list(_patch_grids(network))
    return [
        number
        for number in candidates
        if _is_square(num_tokens - number) and (not grids or num_tokens - number in grids)
    ]


def _patch_grids(network: nn.Module) -> Iterator[int]:
    """Yield the numbers of patches that a network of timm can have: its first grid, halved per stage."""
    for module in network.modules():
        grid = getattr(module, "grid_size", None)
        if isinstance(grid, tuple) and len(grid) == 2 and all(isinstance(side, int) for side in grid):
            height, width = grid
            while height > 0 and width > 0:
                yield height * width
                height, width = height // 2, width // 2
            return


def _declared_prefix(network: nn.Module, path: str) -> int | None:
    """Return the number of prefix tokens of the innermost module around a path that says it, or None."""
    for module in _modules_around(network, path):
        declared = getattr(module, "num_prefix_tokens", None)  # timm
        if isinstance(declared, int):
            return declared
        if tokens := _parameters_named(module, PREFIX_TOKENS):
            return sum(token.numel() // token.shape[-1] for token in tokens)
    return None


def _lacks_class_token(path: str, network: nn.Module, num_tokens: int) -> bool:
    """Return whether there is surely no class token: only patches, or only other prefix tokens."""
    if _possible_prefixes(path, network, num_tokens) == [0]:
        return True
    known = _declared_prefix(network, path) is not None
    return known and not _parameters_named(network, CLASS_TOKENS)


def _parameters_named(module: nn.Module, names: set[str]) -> list[nn.Parameter]:
    return [value for name, value in module.named_parameters() if name.rpartition(".")[2] in names]


def _modules_around(network: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yield the modules that contain the module at a path, from the innermost to the network itself."""
    while path:
        path = path.rpartition(".")[0]
        yield network.get_submodule(path)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _find_map_layout(what: str, path: str, network: nn.Module, output: Tensor, inputs: Tensor) -> Layout:
    """Find out whether the channels of a map come first or last; the first rule that knows it decides."""
    rules: list[Callable[[], bool | None]] = [
        lambda: _channels_last_by_class(network.get_submodule(path)),
        lambda: _channels_last_by_shape(output),
        lambda: _channels_last_by_image_size(network, path, output, inputs),
        lambda: _channels_last_as_declared(network, path),
    ]
    for rule in rules:
        channels_last = rule()
        if channels_last is not None:
            return Layout("nhwc") if channels_last else Layout()
    raise InputError(
        f"{what}, and it is not clear whether its channels are first or last. Write {path}:nchw if the shape "
        f"is [B, C, height, width], and {path}:nhwc if it is [B, height, width, C]"
    )


def _channels_last_by_class(module: nn.Module) -> bool | None:
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        return False
    # Exact types, because the LayerNorm2d of torchvision and of timm is a LayerNorm with the channels first.
    norm = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
    return True if type(module) is nn.Linear or norm else None


def _channels_last_by_shape(output: Tensor) -> bool | None:
    """All views of images are square, so maps are, too, and the dimension of another size is the channels."""
    first, middle, last = output.shape[1:]
    return None if (first == middle) == (middle == last) else first == middle


def _channels_last_by_image_size(
    network: nn.Module, path: str, output: Tensor, inputs: Tensor
) -> bool | None:
    """Run larger images, if the network accepts them: height and width grow, the channels do not."""
    larger = inputs[:1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    try:
        shape = _read_outputs(network, {"tap": path}, larger)["tap"].shape
    except Exception:  # most transformers refuse other sizes than their own, with various exceptions
        return None
    same = [i for i in (1, 2, 3) if shape[i] == output.shape[i]]
    return None if same not in ([1], [3]) else same == [3]


def _channels_last_as_declared(network: nn.Module, path: str) -> bool | None:
    """Read timm's ``output_fmt`` of the network's parts."""
    for module in _modules_around(network, path):
        declared = str(getattr(module, "output_fmt", "")).rpartition(".")[2].upper()
        if declared in ("NCHW", "NHWC"):
            return declared == "NHWC"
    return None
