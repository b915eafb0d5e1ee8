"""The ways in which `ka-ray compare` makes the student: methods, baselines, values of varied keys."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

from ka_ray.amalgamation import METHODS
from ka_ray.errors import InputError
from ka_ray.reports.comparison import ENSEMBLE

BASELINES = ("distill", "scratch")
COMPARED = (*METHODS, *BASELINES, ENSEMBLE)
"""What can be compared; the ensemble always is."""

VARIABLE = ("scores.rule", "scores.center", "codes.", "layers.", "joint.", "baselines.")
"""Keys that may be varied: those behind the extraction, which all share."""


def expand_variants(methods: Sequence[str], vary: Sequence[str] = ()) -> dict[str, list[str]]:
    """Combine methods with the values of all varied keys: label -> overrides of the config.

    Raises:
        InputError: A method is unknown, a key is not among those that may be varied, or it has no values.

    Example:
        >>> list(expand_variants(["direct", "ensemble"], ["scores.rule=mean,max"]))
        ['direct scores.rule=mean', 'direct scores.rule=max']
    """
    unknown = [method for method in methods if method not in COMPARED]
    if unknown or not methods:
        raise InputError(f"--methods: {', '.join(unknown) or 'none given'}; there are {', '.join(COMPARED)}")
    found = {
        method: [f"codes.method={method}", "baseline=null"]
        if method in METHODS
        else [f"baseline={method}", "extend=null"]
        for method in methods
        if method != ENSEMBLE
    }
    for one in vary:
        key, values = _varied(one)
        if not any(_reaches(change, key) for change in found.values()):
            raise InputError(f"--vary {one!r}: changes nothing in {', '.join(methods)}")
        parts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
        wider: dict[str, list[str]] = {}
        for label, change in found.items():
            if _reaches(change, key):
                wider |= {f"{label} {part}": [*change, part] for part in parts}
            else:
                wider[label] = change
        found = wider
    return found


def _varied(one: str) -> tuple[str, list[Any]]:
    key, _, text = one.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        values = []
    if any(isinstance(value, dict) and "energy" in value for value in values):
        raise InputError(f"--vary {one!r}: energy is measured once for all; name the widths")
    if not values or not key.startswith(VARIABLE):
        raise InputError(
            f"--vary {one!r}: must read key=value,value,... with a key of {', '.join(VARIABLE)}..."
        )
    return key, values


def _reaches(change: Sequence[str], key: str) -> bool:
    """Whether a key has a say in a method; of the layers a baseline takes the number of images alone."""
    baseline = change[0].removeprefix("baseline=")
    if baseline in BASELINES:
        return key.startswith(("scores.", "joint.", "layers.epochs", f"baselines.{baseline}."))
    return not key.startswith("baselines.")
