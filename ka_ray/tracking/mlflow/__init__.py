"""Tracking with MLflow; the only part of the package that imports it."""

import os

# Before the import of MLflow, which reads both variables.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from ka_ray.tracking.mlflow.tracker import MlflowTracker

__all__ = ["MlflowTracker"]
