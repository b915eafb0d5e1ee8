"""Run the trials of a search for widths with Ray Tune, in parallel.

All trials compute their students from the same moments, which are put into Ray's object store once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ka_ray.config import Resources, TuneConfig
from ka_ray.distributed.capacity import ray_resources
from ka_ray.distributed.device import actor_device
from ka_ray.distributed.failures import last_line, lost
from ka_ray.distributed.process_state import environment_restored, set_missing
from ka_ray.distributed.ray_storage import storage_arguments
from ka_ray.errors import InputError
from ka_ray.storage.files import cache_folder, exists, is_remote, read_text, remove_tree, write_text

JOURNAL = "optuna.log"
"""File in the output folder in which Optuna records its trials (``JournalFileBackend``)."""

QUIET_TUNE = {
    # No CSV, JSON and TensorBoard files per trial: the results are stored in the run's own folder.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's new output prints its tables even with verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment variables that stop Ray Tune from writing and printing what this project does not use."""

EPOCHS, AGREEMENT = "epochs", "agreement"
"""Keys of a trial's result."""

Point = Mapping[str, float | int]
"""What one trial tries: ``width.TAP`` for every tap, and possibly ``ridge`` and ``learning_rate``."""

OnTrial = Callable[[Point, dict[str, Any]], None]
"""Called with the point and the last result of a trial that has ended."""

RunPoint = Callable[[Point, torch.device, Callable[[dict[str, Any]], None], Any], None]
"""Runs a trial: called with a point, a device, a callback for results, and what all trials share."""


@dataclass(frozen=True)
class Search:
    """A search for widths.

    Attributes:
        config: The ``tune`` section of the config.
        share: The resources of each trial.
        max_failures: How often trials that lost their worker or node are started again.
        points: The points to try; None lets Optuna propose them from ``space``.
        space: Key of a point -> its values.
        num_trials: The number of trials to run.
        epochs: The epochs of joint learning per trial; with more than one, poor trials are stopped early.
        seed: The seed of Optuna.
        folder: The output folder; Ray Tune and Optuna keep their records there.
    """

    config: TuneConfig
    share: Resources
    max_failures: int
    points: Sequence[Point] | None
    space: Mapping[str, Sequence[float | int]]
    num_trials: int
    epochs: int
    seed: int
    folder: Path


class TrialReporter(Callback):
    """Reports every trial to the driver as soon as it has ended.

    Args:
        on_trial: Called with the point and the last result of the trial.
    """

    def __init__(self, on_trial: OnTrial) -> None:
        self._on_trial = on_trial

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks, to restore an experiment later. `on_trial` works only on the driver.
        return TrialReporter, (_ignore_result,)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report the last result of a trial that has ended; called by Ray Tune.

        Args:
            iteration: Unused.
            trials: Unused.
            trial: The trial.
            info: Unused.
        """
        self._on_trial(_point(trial.config), trial.last_result)


def _ignore_result(point: Point, result: dict[str, Any]) -> None:
    """Do nothing: the `on_trial` of an unpickled :class:`TrialReporter`."""


def _point(config: dict[str, Any]) -> Point:
    """Return the point of a Tune config: given points are under a key, Optuna's values are not."""
    point: Point = config.get("point", config)
    return point


def search(
    work: Search,
    run_point: RunPoint,
    shared: Any,
    on_trial: OnTrial,
) -> dict[str, str]:
    """Run trials in parallel, as many as fit on the cluster.

    Args:
        work: What to try, and with which resources.
        run_point: Runs one trial in a worker; reports ``agreement``, ``epochs``, and the cost under the name
            that ``tune.cost`` gives (``parameters`` or ``macs``).
        shared: An object that all trials need; it is put into the object store once.
        on_trial: Called on the driver with each point and its last result.

    Returns:
        The point of each failed trial, as text -> its error message.
    """
    trainable = tune.with_parameters(_in_trial, shared=shared, run_point=run_point, share=work.share)
    failed = dict[str, str]()
    # Not by Tune's `FailureConfig(max_failures=...)`: it would also repeat trials whose own code failed.
    for retries_left in range(work.max_failures, -1, -1):
        errors = _run_all(work, trainable, on_trial)
        to_repeat = [point for point, error in errors if retries_left and lost(error)]
        failed |= {str(point): last_line(str(error)) for point, error in errors if point not in to_repeat}
        if not to_repeat:
            break
        points = None if work.points is None else to_repeat
        work = replace(work, points=points, num_trials=len(to_repeat))
    return failed


def _run_all(work: Search, trainable: Any, on_trial: OnTrial) -> list[tuple[Point, Exception]]:
    """Run trials in parallel, and return the points and errors of those that failed."""
    config, label = work.config, work.share.label
    grid = None if work.points is None else {"point": tune.grid_search([dict(p) for p in work.points])}
    journal = None if grid else _local_journal(work.folder)
    placement: dict[str, Any] = {"bundle_label_selector": [dict(label)]} if label else {}
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([ray_resources(work.share)], **placement)),
        param_space=grid or {},
        tune_config=tune.TuneConfig(
            num_samples=1 if grid else work.num_trials,
            search_alg=None if journal is None else _optuna_search(work, journal),
            scheduler=_scheduler(work.epochs),
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
        ),
        run_config=_tune_run_config(
            work.folder / "ray", _with_journal_upload(on_trial, journal, work.folder)
        ),
    )
    with environment_restored(lambda: set_missing(QUIET_TUNE)):
        result_grid = tuner.fit()
    results = [result_grid[index] for index in range(len(result_grid))]
    return [(_point(result.config or {}), result.error) for result in results if result.error]


def _in_trial(config: dict[str, Any], shared: Any, run_point: RunPoint, share: Resources) -> None:
    """Run one trial: the function that Ray Tune calls in a worker."""
    run_point(_point(config), actor_device(share), tune.report, shared)


def _tune_run_config(folder: Path, on_trial: OnTrial) -> tune.RunConfig:
    """Configure a new Ray Tune experiment, and delete that of an earlier attempt."""
    # Not `Tuner.restore`: it would run the code that the earlier attempt pickled, with its old arguments. The
    # caller knows the finished trials from the output folder, and Optuna from its journal there.
    remove_tree(folder / "tune")
    storage = storage_arguments(folder)
    return tune.RunConfig(name="tune", **storage, callbacks=[TrialReporter(on_trial)], verbose=0)


def _scheduler(epochs: int) -> TrialScheduler:
    if epochs < 2:  # there is no earlier epoch after which a trial could be stopped
        return FIFOScheduler()
    return ASHAScheduler(time_attr=EPOCHS, metric=AGREEMENT, mode="max", max_t=epochs, grace_period=1)


def _local_journal(folder: Path) -> Path:
    """Return a local file for Optuna's journal, because Optuna appends to it; for a remote folder, a copy."""
    if not is_remote(folder):
        return folder / JOURNAL
    journal = Path(mkdtemp(dir=cache_folder())) / JOURNAL
    if exists(folder / JOURNAL):
        journal.write_text(read_text(folder / JOURNAL), encoding="utf-8")
    return journal


def _with_journal_upload(on_trial: OnTrial, journal: Path | None, folder: Path) -> OnTrial:
    """Return a callback that also uploads the local copy of the journal to a remote output folder."""
    if journal is None or not is_remote(folder):
        return on_trial

    def on_trial_and_upload(point: Point, result: dict[str, Any]) -> None:
        on_trial(point, result)
        write_text(folder / JOURNAL, journal.read_text(encoding="utf-8"))

    return on_trial_and_upload


def _optuna_search(work: Search, journal: Path) -> Searcher:
    """Build a search for high agreement and low cost with Optuna's TPE sampler.

    The journal holds the trials of earlier attempts, so that the search continues with what they showed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise InputError("tune.algorithm: optuna is not installed; pip install 'ka_ray[optuna]'") from None
    space: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.CategoricalDistribution(list(values)) for key, values in work.space.items()
    }
    # TPE needs some results before it can learn from them, so a quarter of the trials are random.
    num_random = max(4, work.num_trials // 4)
    searcher: Searcher = OptunaSearch(
        space,
        metric=[AGREEMENT, work.config.cost],
        mode=["max", "min"],
        sampler=optuna.samplers.TPESampler(seed=work.seed, n_startup_trials=num_random),
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="tune",
    )
    return searcher
