import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ka_ray import figures

CLASSES = [f"a class with a rather long name {i}" for i in range(4)]


def report(labelled: bool) -> dict[str, Any]:
    share = 0.75 if labelled else None
    pair = {"teacher": share, "student": share}
    code = {"width": 4, "stacked": 8, "relative_error": 0.2}
    return {
        "classes": CLASSES,
        "accuracy": {
            **{"union": share, "ensemble": share, "agreement": 0.5, "images": 9, "labelled": 9 * labelled},
            "per_teacher": {"low": pair, "high": pair},
        },
        "codes": {
            "conv1": code | {"optimal_relative_error": 0.1},
            "conv2": code | {"relative_error": 0.0, "optimal_relative_error": 1e-9},
        },
    }


def histories(epochs: int) -> dict[str, list[dict[str, Any]]]:
    many = {f"conv{i}": 1.0 + i for i in range(9)}
    return {
        "codes": [{"images": 100 * e, "losses": many} for e in range(1, epochs + 1)],
        "joint": [{"images": 100 * e, "losses": {"mse": 0.0}} for e in range(1, epochs + 1)],
    }


def check(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 150
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "an empty picture"


@pytest.mark.filterwarnings("error")
def test_all_figures_of_a_labelled_run(tmp_path: Path) -> None:
    confusion = np.diag([5, 3, 0, 1])
    paths = figures.draw_all(report(True), histories(3), confusion, tmp_path / "figures")
    names = ["accuracy", "losses", "reconstruction", "confusion"]
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    check(paths)


@pytest.mark.filterwarnings("error")
def test_without_labels_agreement_is_drawn_and_no_confusion(tmp_path: Path) -> None:
    paths = figures.draw_all(report(False), histories(1), None, tmp_path)
    assert [path.stem for path in paths] == ["accuracy", "losses", "reconstruction"]
    check(paths)


def test_nothing_to_show_draws_nothing(tmp_path: Path) -> None:
    empty = report(False)
    empty["accuracy"]["agreement"] = None
    assert figures.accuracy_bars(empty, tmp_path) == []
    assert figures.loss_curves({"codes": []}, tmp_path) == []
    assert figures.reconstruction_error(empty | {"codes": {}}, tmp_path) == []
    assert figures.confusion_matrix(np.zeros((4, 4), int), CLASSES, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_no_figure_starts_a_window_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    figures.accuracy_bars(report(True), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules
