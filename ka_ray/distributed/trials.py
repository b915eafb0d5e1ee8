"""Trials by Ray Tune: many students from the sums of one pass, which the object store holds once."""

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
from ka_ray.distributed.capacity import needs
from ka_ray.distributed.device import actor_device
from ka_ray.distributed.failures import last_line, lost
from ka_ray.distributed.process_state import environment_restored, set_missing
from ka_ray.distributed.ray_storage import storage
from ka_ray.errors import InputError
from ka_ray.storage.files import cache_folder, exists, is_remote, read_text, remove_tree, write_text

JOURNAL = "optuna.log"
QUIET_TUNE = {
    # The files that Tune writes of each trial: what trials leave is in the run's own folder.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's new output prints its tables even with verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
}
EPOCHS, AGREEMENT = "epochs", "agreement"

Point = Mapping[str, float | int]
OnTrial = Callable[[Point, dict[str, Any]], None]
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
        # Tune pickles its configuration, to restore it; the listener stays in the driver.
        return TrialReporter, (_nobody,)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report the last result of a trial that has ended; called by Ray Tune.

        Args:
            iteration: Unused.
            trials: Unused.
            trial: The trial.
            info: Unused.
        """
        self._on_trial(_point(trial.config), trial.last_result)


def _nobody(point: Point, result: dict[str, Any]) -> None:
    """Ignore a trial; used where the configuration is unpickled."""


def _point(config: dict[str, Any]) -> Point:
    point: Point = config.get("point", config)
    return point


def search(
    work: Search,
    run_point: RunPoint,
    shared: Any,
    on_trial: OnTrial,
) -> dict[str, str]:
    """Run trials, as many at once as fit on the cluster.

    Args:
        work: The search.
        run_point: Runs one trial in a worker; reports ``agreement``, ``epochs`` and the cost.
        shared: What all trials need; it is put into the object store once.
        on_trial: Called on the driver with each point and its last result.

    Returns:
        Point as text -> error, for the trials that failed.
    """
    trainable = tune.with_parameters(_in_trial, shared=shared, run_point=run_point, share=work.share)
    failed = dict[str, str]()
    # Not by Tune's `FailureConfig(max_failures=...)`: it would also repeat trials that failed by a mistake.
    for left in range(work.max_failures, -1, -1):
        ended = _run_all(work, trainable, on_trial)
        gone = [point for point, error in ended if left and lost(error)]
        failed |= {str(point): last_line(str(error)) for point, error in ended if point not in gone}
        if not gone:
            break
        work = replace(work, points=None if work.points is None else gone, num_trials=len(gone))
    return failed


def _run_all(work: Search, trainable: Any, on_trial: OnTrial) -> list[tuple[Point, Exception]]:
    """Run trials side by side; give those that failed."""
    config, label = work.config, work.share.label
    grid = None if work.points is None else {"point": tune.grid_search([dict(p) for p in work.points])}
    queue = None if grid else _local_journal(work.folder)
    where: dict[str, Any] = {"bundle_label_selector": [dict(label)]} if label else {}
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([needs(work.share)], **where)),
        param_space=grid or {},
        tune_config=tune.TuneConfig(
            num_samples=1 if grid else work.num_trials,
            search_alg=None if queue is None else _optuna(work, queue),
            scheduler=_scheduler(work.epochs),
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
        ),
        run_config=_keeping_nothing(work.folder / "ray", _and_keep(queue, work.folder, on_trial)),
    )
    with environment_restored(lambda: set_missing(QUIET_TUNE)):
        result = tuner.fit()
    ended = [result[place] for place in range(len(result))]
    return [(_point(one.config or {}), one.error) for one in ended if one.error]


def _in_trial(config: dict[str, Any], shared: Any, run_point: RunPoint, share: Resources) -> None:
    run_point(_point(config), actor_device(share), tune.report, shared)


def _keeping_nothing(folder: Path, on_trial: OnTrial) -> tune.RunConfig:
    """Let Ray Tune start anew: what trials leave lies in the run's folder, not in Tune's."""
    # Not `Tuner.restore`: it runs the code that an earlier attempt has pickled, and repeats what it was told.
    # Which trials are done the caller knows from the run's folder; Optuna remembers its own in a file there.
    remove_tree(folder / "tune")
    return tune.RunConfig(name="tune", **storage(folder), callbacks=[TrialReporter(on_trial)], verbose=0)


def _scheduler(epochs: int) -> TrialScheduler:
    if epochs < 2:
        return FIFOScheduler()
    return ASHAScheduler(time_attr=EPOCHS, metric=AGREEMENT, mode="max", max_t=epochs, grace_period=1)


def _local_journal(folder: Path) -> Path:
    """Return a local file for Optuna's journal, to which it appends; for a remote folder, a copy."""
    if not is_remote(folder):
        return folder / JOURNAL
    queue = Path(mkdtemp(dir=cache_folder())) / JOURNAL
    if exists(folder / JOURNAL):
        queue.write_text(read_text(folder / JOURNAL))
    return queue


def _and_keep(queue: Path | None, folder: Path, on_trial: OnTrial) -> OnTrial:
    """Upload the copy of a remote folder's journal after every trial."""
    if queue is None or not is_remote(folder):
        return on_trial

    def on_trial_and_upload(point: Point, result: dict[str, Any]) -> None:
        on_trial(point, result)
        write_text(folder / JOURNAL, queue.read_text())

    return on_trial_and_upload


def _optuna(work: Search, queue: Path) -> Searcher:
    """Search by TPE for agreement and cost at once; earlier attempts' trials are remembered in a file."""
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
    searcher: Searcher = OptunaSearch(
        space,
        metric=[AGREEMENT, work.config.cost],
        mode=["max", "min"],
        sampler=optuna.samplers.TPESampler(seed=work.seed, n_startup_trials=max(4, work.num_trials // 4)),
        storage=JournalStorage(JournalFileBackend(str(queue))),
        study_name="tune",
    )
    return searcher
