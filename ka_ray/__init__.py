"""Merge trained image classifiers into one network, without labels: knowledge amalgamation on Ray.

Example:
    >>> import ka_ray
    >>> config = ka_ray.Config.load("jobs/configs/digits.yaml", ["joint.epochs=5"])
    >>> config.joint.epochs
    5

    ``report = ka_ray.amalgamate(config)`` then runs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ka_ray.api import evaluate, load_student, predict
    from ka_ray.comparing import compare
    from ka_ray.comparison import Comparison
    from ka_ray.config import Config, TeachConfig
    from ka_ray.errors import InputError
    from ka_ray.measuring import measure_spectrum
    from ka_ray.pipeline import amalgamate
    from ka_ray.report import Report
    from ka_ray.searching import search_widths
    from ka_ray.spectrum import Spectrum
    from ka_ray.sweep import Sweep
    from ka_ray.teaching import teach

__version__ = "0.1.0"

_WHERE = {
    "Comparison": "ka_ray.comparison",
    "Config": "ka_ray.config",
    "InputError": "ka_ray.errors",
    "Report": "ka_ray.report",
    "Spectrum": "ka_ray.spectrum",
    "Sweep": "ka_ray.sweep",
    "TeachConfig": "ka_ray.config",
    "amalgamate": "ka_ray.pipeline",
    "compare": "ka_ray.comparing",
    "evaluate": "ka_ray.api",
    "load_student": "ka_ray.api",
    "measure_spectrum": "ka_ray.measuring",
    "predict": "ka_ray.api",
    "search_widths": "ka_ray.searching",
    "teach": "ka_ray.teaching",
}

__all__ = [
    "Comparison",
    "Config",
    "InputError",
    "Report",
    "Spectrum",
    "Sweep",
    "TeachConfig",
    "amalgamate",
    "compare",
    "evaluate",
    "load_student",
    "measure_spectrum",
    "predict",
    "search_widths",
    "teach",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and Ray take seconds, and ``ka-ray --help`` needs neither."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ka_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
