"""Load of the machine with the driver, as MLflow's system metrics."""

from typing import Any

from mlflow.system_metrics import system_metrics_monitor

SAMPLING_S = 10
"""Seconds between two measurements. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides it."""


class SystemMetrics:
    """Logs the use of CPUs, memory, disk, network and GPUs to a run, in a thread, until it is closed.

    Args:
        uri: The tracking URI.
        run_id: The id of the run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        untyped: Any = system_metrics_monitor
        self._monitor = untyped.SystemMetricsMonitor(
            run_id, sampling_interval=SAMPLING_S, resume_logging=True, tracking_uri=uri
        )
        self._monitor.start()

    def close(self) -> None:
        """Stop, and log what was measured last."""
        self._monitor.finish()
