"""`ka-ray tune` and `ka-ray spectrum` on Ray: their results, and what a second call reuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

import ka_ray
from ka_ray.features.store import Store
from ka_ray.numerics.moments import Moments
from ka_ray.reports.tune import TuneResult, choose_trial, pareto_front
from ka_ray.student import load_student

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

SMALL = (
    "images.limit=400",
    "extract.batch_size=32",
    "joint={epochs: 2, batch_size: 32}",
    "tune.widths={conv1: [3, 6], conv2: [4, 10]}",
    "tune.trials=3",
)


def read_end_times(folder: Path) -> dict[str, int]:
    """Return a dict: key of a finished trial -> time of its end, in nanoseconds."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/trial.json")}


def measure_agreement(folder: Path, key: str) -> float:
    """Measure the agreement of a saved student on the held-out images, in this process."""
    held_out, student = Store(folder / "tune" / "held_out"), load_student(folder / "trials" / key)
    rows = held_out.gather(["image", "scores"], np.arange(len(held_out)))
    with torch.inference_mode():
        predicted = student(torch.from_numpy(rows["image"])).argmax(dim=1).numpy()
    return float((predicted == rows["scores"].argmax(axis=1)).mean())


def assert_consistent(result: TuneResult, folder: Path) -> None:
    """Check that trials, front and choice of a search are consistent with the files in its folder."""
    for trial in result.trials:
        assert trial.agreement == pytest.approx(measure_agreement(folder, trial.key), abs=1e-9)
        network = load_student(folder / "trials" / trial.key)
        assert trial.parameters == sum(p.numel() for p in network.parameters())
        assert network.spec.widths == trial.widths
    front = pareto_front(result.trials, result.cost)
    assert result.front == [trial.key for trial in front]
    best = choose_trial(front, result.cost, result.budget)
    assert result.chosen == (None if best is None else best.key)


def test_a_search_resumes_and_writes_a_config_of_the_chosen_student(load_config, tmp_path):
    config = load_config(*SMALL, f"output={tmp_path / 'out'}", "tracking.backend=mlflow")
    folder = config.output_dir
    first = ka_ray.search_widths(config)
    assert len(first.trials) == len({trial.key for trial in first.trials}) == 3
    assert first.failed == {}
    assert_consistent(first, folder)
    assert (folder / "figures" / "tune.png").exists()
    done = read_end_times(folder)

    repeated = first.trials[1].key  # simulates a driver that was killed before this trial ended
    (folder / "trials" / repeated / "trial.json").unlink()
    extended = load_config(*SMALL, "tune.trials=4", f"output={tmp_path / 'out'}", "tracking.backend=mlflow")
    second = ka_ray.search_widths(extended)
    ended = read_end_times(folder)
    assert {key for key in done if ended[key] == done[key]} == set(done) - {repeated}
    assert len(second.trials) == 4
    assert second.trial(repeated).agreement == first.trial(repeated).agreement
    assert_consistent(second, folder)

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ka_ray'")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.info.run_name.endswith("_tune"))
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert children.keys() == ended.keys()
    for trial in second.trials:
        assert children[trial.key].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert children[trial.key].data.metrics["tune/agreement"] == trial.agreement
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"tune.json", "tune.md", "tune.png", "best.yaml"} <= names

    best = ka_ray.Config.load(folder / "best.yaml")
    assert best.codes.widths == second.trial(second.chosen).widths
    assert (best.codes.solver, best.codes.basis, best.layers.solver) == ("exact", "channels", "least_squares")


def test_optuna_proposes_trials_with_joint_learning(load_config, tmp_path):
    config = load_config(
        *SMALL,
        f"output={tmp_path / 'out'}",
        "tracking.backend=none",
        "tune.algorithm=optuna",
        "tune.learning_rates=[0.001, 0.003]",
        "tune.cost=macs",
        "tune.trials=4",
    )
    result = ka_ray.search_widths(config)
    assert 1 <= len(result.trials) <= 4  # optuna may propose a trial twice; it runs only once
    assert_consistent(result, config.output_dir)
    assert {trial.learning_rate for trial in result.trials} <= {0.001, 0.003}
    assert all(trial.epochs in (1, 2) and trial.stopped == (trial.epochs == 1) for trial in result.trials)
    done = read_end_times(config.output_dir)
    again = ka_ray.search_widths(config)
    after = read_end_times(config.output_dir)
    assert {key: after[key] for key in done} == done
    assert len(again.trials) >= len(result.trials)


def test_the_spectrum_is_measured_once_and_sets_the_widths_of_a_run(load_config, tmp_path):
    overrides = (
        "images.limit=300",
        "codes={widths: {energy: 0.9}, solver: exact, positions_per_image: 64}",
        "layers={solver: least_squares}",
        "joint={epochs: 0}",
        f"output={tmp_path / 'out'}",
        "tracking.backend=none",
    )
    config = load_config(*overrides)
    spectrum = ka_ray.measure_spectrum(config)
    written = (config.output_dir / "moments" / "sums.safetensors").stat().st_mtime_ns
    report = ka_ray.amalgamate(config)
    assert (config.output_dir / "moments" / "sums.safetensors").stat().st_mtime_ns == written
    assert {tap: code.width for tap, code in report.codes.items()} == spectrum.widths(0.9)
    features = Store(config.output_dir / "features")
    for tap, measured in spectrum.taps.items():
        rows = torch.from_numpy(features.gather([tap], np.arange(len(features)))[tap])
        expected = Moments.of(rows).spectrum()
        np.testing.assert_allclose(measured.relative_errors, expected, atol=1e-9)
        assert report.codes[tap].relative_error == pytest.approx(
            float(expected[report.codes[tap].width]), abs=1e-6
        )
    assert json.loads((config.output_dir / "spectrum.json").read_text())["images"] == len(features)
    assert (config.output_dir / "figures" / "spectrum.png").exists()
