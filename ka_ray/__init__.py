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
    from ka_ray.config import Config, TeachConfig
    from ka_ray.errors import InputError
    from ka_ray.reports.comparison import Comparison
    from ka_ray.reports.report import Report
    from ka_ray.reports.spectrum import Spectrum
    from ka_ray.reports.tune import TuneResult
    from ka_ray.student import load_student
    from ka_ray.workflows.amalgamate import amalgamate
    from ka_ray.workflows.compare import compare
    from ka_ray.workflows.evaluate import evaluate
    from ka_ray.workflows.export import export
    from ka_ray.workflows.merge import merge
    from ka_ray.workflows.predict import predict, stream_predictions
    from ka_ray.workflows.spectrum import measure_spectrum
    from ka_ray.workflows.teach import teach
    from ka_ray.workflows.tune import search_widths

__version__ = "0.1.0"

_WHERE = {
    "Comparison": "ka_ray.reports.comparison",
    "Config": "ka_ray.config",
    "InputError": "ka_ray.errors",
    "Report": "ka_ray.reports.report",
    "Spectrum": "ka_ray.reports.spectrum",
    "TuneResult": "ka_ray.reports.tune",
    "TeachConfig": "ka_ray.config",
    "amalgamate": "ka_ray.workflows.amalgamate",
    "compare": "ka_ray.workflows.compare",
    "evaluate": "ka_ray.workflows.evaluate",
    "export": "ka_ray.workflows.export",
    "load_student": "ka_ray.student",
    "measure_spectrum": "ka_ray.workflows.spectrum",
    "merge": "ka_ray.workflows.merge",
    "predict": "ka_ray.workflows.predict",
    "search_widths": "ka_ray.workflows.tune",
    "stream_predictions": "ka_ray.workflows.predict",
    "teach": "ka_ray.workflows.teach",
}

__all__ = [
    "Comparison",
    "Config",
    "InputError",
    "Report",
    "Spectrum",
    "TeachConfig",
    "TuneResult",
    "amalgamate",
    "compare",
    "evaluate",
    "export",
    "load_student",
    "measure_spectrum",
    "merge",
    "predict",
    "search_widths",
    "stream_predictions",
    "teach",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and Ray take seconds, and ``ka-ray --help`` needs neither."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ka_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
