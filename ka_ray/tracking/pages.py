"""Addresses of MLflow's pages."""

VIEW = "?workflowType=machine_learning"
"""Opens a page as one of model training. Without it, MLflow 3.17 opens its other kind of pages, where a run
of training looks empty."""


def run_page(address: str, experiment_id: str, run_id: str) -> str:
    """Return the address of the page of a run.

    Args:
        address: The address of the server, such as ``http://localhost:5000``.
        experiment_id: The id of the run's experiment.
        run_id: The id of the run.

    Example:
        >>> run_page("http://localhost:5000/", "1", "abc")
        'http://localhost:5000/#/experiments/1/runs/abc?workflowType=machine_learning'
    """
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}{VIEW}"


def experiment_page(address: str) -> str:
    """Return the address of the list of experiments.

    Args:
        address: The address of the server.
    """
    return f"{address.rstrip('/')}/#/experiments{VIEW}"
