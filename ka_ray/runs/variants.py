"""What `ka-ray compare` runs: methods, baselines, and the values of varied keys."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from ka_ray.config import CodesConfig, Config, with_overrides
from ka_ray.config.spelling import nearest, suggest
from ka_ray.config.yaml_text import parse_yaml
from ka_ray.errors import InputError
from ka_ray.reports.comparison import ENSEMBLE

BASELINES = ("distill", "scratch")
PARTS = {
    "start": ["baseline=distill", "joint.epochs=0", "joint.images=null"],
    "start+layers": ["baseline=null", "layers.behind_start=true", "joint.epochs=0", "joint.images=null"],
    "start+joint": ["baseline=distill"],
    "start+layers+joint": ["baseline=null", "layers.behind_start=true"],
}
"""Parts of a run from the config's start -> their overrides; what is left out is not learned."""

METHODS: tuple[str, ...] = get_args(CodesConfig.model_fields["method"].annotation)
"""The values of `codes.method`; read from the config, because importing :mod:`ka_ray.amalgamation` takes
seconds, and a wrong method is refused before that."""

COMPARED = (*METHODS, *PARTS, *BASELINES, ENSEMBLE)
"""What can be compared. The ensemble of the teachers is always part of the table."""

VARIABLE_KEYS = (
    *("student.start", "student.head", "student.widths"),
    *("scores.rule", "scores.center", "scores.gate"),
    *("codes.", "layers.", "joint.", "baselines."),
)
"""Keys that may be varied, or their prefixes; not those of `extract`: all variants share one extraction."""


def default_methods(config: Config) -> list[str]:
    """Return what is compared if the user does not say it: the parts of the run, or the run and a baseline.

    Args:
        config: Config of the run.
    """
    if config.student.start == "random":
        return ["direct", "distill"]
    return [part for part in PARTS if config.learns_layers or "layers" not in part]


def with_one_start(config: Config) -> Config:
    """Return the config without its baseline: each method sets its own, and all have the same start.

    Args:
        config: Config of the run.
    """
    start = config.model_dump(mode="json", include={"student": {"start"}})["student"]["start"]
    return with_overrides(config, ["baseline=null", f"student.start={json.dumps(start)}"])


MAX_FOLDER_BYTES = 100
"""Largest number of bytes of a variant's label in the name of its folder; file systems take 255."""


def expand_variants(methods: Sequence[str], vary: Sequence[str] = ()) -> dict[str, list[str]]:
    """Combine methods with the values of all varied keys.

    Args:
        methods: Names from :data:`COMPARED`.
        vary: Items ``dotted.key=value,value,...``.

    Returns:
        The label of each variant -> its overrides of the config.

    Raises:
        InputError: A method is unknown, or a key may not be varied, has no values, or changes no method.

    Example:
        >>> list(expand_variants(["direct", "ensemble"], ["scores.rule=mean,max"]))
        ['direct scores.rule=mean', 'direct scores.rule=max']
    """
    unknown = [method for method in methods if method not in COMPARED]
    if unknown or not methods:
        meant = "".join(suggest(method, COMPARED) for method in unknown if nearest(method, COMPARED))
        told = f"{', '.join(unknown) or 'none given'}; there are {', '.join(COMPARED)}{meant}"
        raise InputError(f"--methods: {told}")
    variants = {method: _method_overrides(method) for method in methods if method != ENSEMBLE}
    for item in vary:
        key, values = _parse(item)
        if not any(_is_used(overrides, key) for overrides in variants.values()):
            raise InputError(f"--vary {item!r}: changes nothing in {', '.join(methods)}")
        _check_random_start(item, key, values, methods)
        settings = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
        expanded: dict[str, list[str]] = {}
        for label, overrides in variants.items():
            if _is_used(overrides, key):
                expanded |= {f"{label} {setting}": [*overrides, setting] for setting in settings}
            else:
                expanded[label] = overrides
        variants = expanded
    return variants


def check_variants(config: Config, methods: Sequence[str], vary: Sequence[str]) -> None:
    """Refuse methods and varied values that cannot work; takes no time, so that nothing is loaded before it.

    Args:
        config: Config of the run.
        methods: Names from :data:`COMPARED`; empty: the default ones.
        vary: Items ``dotted.key=value,value,...``.

    Raises:
        InputError: A method is unknown, a key may not be varied, or a value cannot work.
    """
    config = with_one_start(config)
    for overrides in expand_variants(methods or default_methods(config), vary).values():
        with_overrides(config, overrides)


def name_folders(labels: Sequence[str]) -> dict[str, str]:
    """Return the name of the folder of each variant, which every file system takes.

    Args:
        labels: The labels of the variants, each once.

    Returns:
        Label -> the label in the characters of file names. If it is too long, or two labels have the same
        characters, it ends in a digest of the label.

    Example:
        >>> name_folders(["direct scores.rule=mean"])
        {'direct scores.rule=mean': 'direct_scores.rule=mean'}
    """
    plain = {label: re.sub(r"[^\w.=\-]", "_", label) for label in labels}
    names = Counter(plain.values())
    for label, name in plain.items():
        if len(name.encode()) > MAX_FOLDER_BYTES or names[name] > 1:
            digest = hashlib.sha256(label.encode()).hexdigest()[:12]
            short = name.encode()[:MAX_FOLDER_BYTES].decode(errors="ignore")
            plain[label] = f"{short}-{digest}"
    return plain


def _check_random_start(item: str, key: str, values: Sequence[Any], methods: Sequence[str]) -> None:
    if key == "student.start" and "random" in values and {"start", "start+layers"} & {*methods}:
        raise InputError(
            f"--vary {item!r}: random has no start to show; leave it out, or give --methods start+joint"
        )


def _method_overrides(method: str) -> list[str]:
    """Return the overrides that select a method; :func:`_is_used` reads the first one."""
    if method in PARTS:
        return PARTS[method]
    if method in METHODS:
        return [f"codes.method={method}", "baseline=null", "layers.behind_start=true"]
    return [f"baseline={method}", "extend=null"]  # a baseline has no auto-encoders to extend


def _parse(item: str) -> tuple[str, list[Any]]:
    """Split ``key=value,value`` into its key and its values, which are YAML."""
    key, _, text = item.partition("=")
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError:
        values = []
    if any(isinstance(value, dict) and "energy" in value for value in values):
        raise InputError(
            f"--vary {item!r}: the widths for an energy (share of the variance) are measured only "
            "once for all variants, so they cannot be varied; give widths as TAP: channels"
        )
    if not values or not key.startswith(VARIABLE_KEYS):
        best = nearest(key, VARIABLE_KEYS)
        raise InputError(
            f"--vary {item!r}: must read key=value,value,... with a key of {', '.join(VARIABLE_KEYS)}..."
            + (f"; did you mean {best}?" if best and best != key else "")
        )
    return key, values


def _is_used(overrides: Sequence[str], key: str) -> bool:
    """Return whether a key changes a variant."""
    if "joint.epochs=0" in overrides and key.startswith(("joint.", "baselines.")):
        return False  # a part without joint learning
    baseline = overrides[0].removeprefix("baseline=")
    if baseline in BASELINES:
        # A baseline trains on as many images as the amalgamated student, which depends on `layers.epochs`.
        return key.startswith(("student.", "scores.", "joint.", "layers.epochs", f"baselines.{baseline}."))
    return not key.startswith("baselines.")
