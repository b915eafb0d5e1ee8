"""Test which figures are drawn from which data, and that they are not empty."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from PIL import Image

from ka_ray.reports import figures
from ka_ray.reports.comparison import Comparison
from ka_ray.sparse_counts import SparseCounts

CLASSES = [f"a class with a rather long name {i}" for i in range(4)]


def make_report(labelled: bool) -> dict[str, Any]:
    accuracy = 0.75 if labelled else None
    pair = {"teacher": accuracy, "student": accuracy}
    code = {"width": 4, "stacked": 8, "relative_error": 0.2}
    return {
        "classes": CLASSES,
        "accuracy": {
            **{
                "union": accuracy,
                "ensemble": accuracy,
                "agreement": 0.5,
                "images": 9,
                "labelled": 9 * labelled,
            },
            "per_teacher": {"low": pair, "high": pair},
        },
        "codes": {
            "conv1": code | {"optimal_relative_error": 0.1},
            "conv2": code | {"relative_error": 0.0, "optimal_relative_error": 1e-9},
        },
    }


def test_names_are_text_and_never_formulas(tmp_path):
    names = [r"$\frac{", "5 $ or 6 $", "$$", r"\$a$ $b$"]
    assert not any(is_math_text(figures.drawing.shorten(name)) for name in names)
    report = make_report(True) | {"classes": names}
    report["accuracy"]["per_teacher"] = {names[0]: {"teacher": 0.5, "student": 0.5}}
    report["codes"] = {names[1]: report["codes"]["conv1"]}
    confusion = SparseCounts.from_dense(np.eye(4, dtype=int))
    drawn = figures.draw_run_figures(report, make_histories(2), confusion, tmp_path)
    assert_pngs_are_not_empty(drawn)


def make_histories(epochs: int) -> dict[str, list[dict[str, Any]]]:
    losses = {f"conv{i}": 1.0 + i for i in range(9)}
    return {
        "codes": [{"images": 100 * e, "losses": losses} for e in range(1, epochs + 1)],
        "joint": [{"images": 100 * e, "losses": {"mse": 0.0}} for e in range(1, epochs + 1)],
    }


def make_curve(unions: list[float | None], ensemble: float | None = 0.9) -> dict[str, Any]:
    """Return the part of a report from which the curve is drawn.

    Args:
        unions: Accuracy of the student after each epoch; None if it was not measured.
        ensemble: Accuracy of the ensemble, with and without views; None if it was not measured.
    """
    points = []
    for number, union in enumerate(unions, 1):
        measured_ensemble = ensemble if union is not None else None
        measured = {"union": union, "ensemble": measured_ensemble, "agreement": 0.5}
        measured["ensemble_over_views"] = measured_ensemble
        points.append({"images": 60_000 * number, "accuracy": {**measured, "per_teacher": {}}})
    return {"curve": points}


def make_comparison_row(
    label: str, union: list[float | None], agreement: list[float | None]
) -> dict[str, Any]:
    measured = {"union": {"values": union}, "agreement": {"values": agreement}}
    unused = {"per_teacher": {}, "seconds": {"values": [None]}, "images": 0, "parameters": 1}
    return {"label": label, **measured, **unused}


def make_comparison(*rows: dict[str, Any], seeds: int = 1) -> dict[str, Any]:
    return {"name": "digits", "seeds": list(range(seeds)), "rows": list(rows)}


def read_png_size(paths: list[Path]) -> tuple[int, int]:
    assert_pngs_are_not_empty(paths)
    (path,) = paths
    with Image.open(path) as image:
        return image.size


def assert_pngs_are_not_empty(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 150
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "the picture is empty"


@pytest.mark.filterwarnings("error")
def test_a_labelled_run_draws_all_figures(tmp_path: Path) -> None:
    confusion = SparseCounts.from_dense(np.diag([5, 3, 0, 1]))
    paths = figures.draw_run_figures(make_report(True), make_histories(3), confusion, tmp_path / "figures")
    names = ["accuracy", "losses", "reconstruction", "confusion"]
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    assert_pngs_are_not_empty(paths)


@pytest.mark.filterwarnings("error")
def test_an_unlabelled_run_draws_no_confusion_matrix(tmp_path: Path) -> None:
    paths = figures.draw_run_figures(make_report(False), make_histories(1), None, tmp_path)
    assert [path.stem for path in paths] == ["accuracy", "losses", "reconstruction"]
    assert_pngs_are_not_empty(paths)


def test_figures_without_data_are_not_drawn(tmp_path: Path) -> None:
    empty = make_report(False)
    empty["accuracy"]["agreement"] = None
    assert figures.draw_accuracy_bars(empty, tmp_path) == []
    assert figures.draw_loss_curves({"codes": []}, tmp_path) == []
    assert figures.draw_reconstruction_error(empty | {"codes": {}}, tmp_path) == []
    assert figures.draw_confusion_matrix(SparseCounts.zeros(4, 4), CLASSES, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_drawing_does_not_import_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    figures.draw_accuracy_bars(make_report(True), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.filterwarnings("error")
def test_a_run_with_a_curve_draws_the_epoch_curve(tmp_path: Path) -> None:
    paths = figures.draw_run_figures(
        make_report(True) | make_curve([0.5, 0.8]), make_histories(1), None, tmp_path
    )
    assert [path.stem for path in paths] == ["accuracy", "losses", "epoch_curve", "reconstruction"]
    assert_pngs_are_not_empty(paths)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(make_curve([0.7]), id="one epoch"),
        pytest.param(make_curve([0.5 + 0.02 * epoch for epoch in range(15)]), id="15 epochs"),
        pytest.param(make_curve([0.5, None, 0.8, None]), id="some epochs not measured"),
        pytest.param(make_curve([None, None]), id="no labels"),
        pytest.param(make_curve([0.5, 0.6], ensemble=None), id="no ensemble"),
        pytest.param(make_curve([0.0], ensemble=0.0), id="no image right"),
        pytest.param(make_curve([1.0], ensemble=1.0), id="every image right"),
    ],
)
def test_the_epoch_curve_is_drawn(tmp_path: Path, given: dict[str, Any]) -> None:
    assert read_png_size(figures.draw_epoch_curve(given, tmp_path)) == (1200, 630)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_curve.png"]


def test_an_epoch_curve_without_measurements_is_not_drawn(tmp_path: Path) -> None:
    unmeasured = make_curve([None])
    unmeasured["curve"][0]["accuracy"]["agreement"] = None
    assert figures.draw_epoch_curve(unmeasured, tmp_path) == []
    assert figures.draw_epoch_curve({"curve": []}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_the_comparison_figure_grows_in_height_only_with_the_methods(tmp_path: Path) -> None:
    ensembles = [
        make_comparison_row(f"ensemble (rule {i}), over views", [0.9 + i / 100], [None]) for i in range(2)
    ]
    methods = [
        make_comparison_row(f"a method with a long name, number {i}", [0.8, 0.7, None], [0.9] * 3)
        for i in range(12)
    ]
    small = read_png_size(figures.draw_comparison(make_comparison(*ensembles, methods[0], seeds=3), tmp_path))
    large = read_png_size(figures.draw_comparison(make_comparison(*ensembles, *methods, seeds=3), tmp_path))
    assert small[0] == large[0]
    assert large[1] - small[1] == pytest.approx(11 * 0.45 * 150, abs=2)  # 0.45 inches per method, 150 dpi
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]


@pytest.mark.filterwarnings("error")
def test_a_comparison_panel_without_measurements_is_left_out(tmp_path: Path) -> None:
    both = make_comparison(
        make_comparison_row("ensemble", [0.9], [None]),
        make_comparison_row("a", [0.8], [0.7]),
        make_comparison_row("b", [None], [None]),
    )
    unlabelled = make_comparison(
        make_comparison_row("ensemble", [None], [None]), make_comparison_row("a", [None], [0.7])
    )
    no_teachers = make_comparison(
        make_comparison_row("ensemble", [0.9], [None]), make_comparison_row("a", [1.0], [None])
    )
    widths = [read_png_size(figures.draw_comparison(c, tmp_path))[0] for c in (both, unlabelled, no_teachers)]
    assert widths == [1650, 1125, 1125]  # pixels: two panels, one, one


@pytest.mark.parametrize(
    "rows", [[], [make_comparison_row("ensemble", [0.9], [None])], [make_comparison_row("a", [None], [None])]]
)
def test_a_comparison_without_measurements_is_not_drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert figures.draw_comparison(make_comparison(*rows), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_comparison_loaded_from_its_dump_is_drawn(tmp_path: Path) -> None:
    given = Comparison.model_validate(
        make_comparison(make_comparison_row("a", [0.8], [0.7])) | {"shared_seconds": 1.0}
    )
    assert_pngs_are_not_empty(figures.draw_comparison(given.model_dump(), tmp_path))


def test_lines_in_the_confusion_matrix_separate_the_classes_of_teachers(tmp_path: Path) -> None:
    confusion = SparseCounts.from_dense(np.eye(4, dtype=int))
    teachers = {"low": CLASSES[:1], "high": [CLASSES[0], *CLASSES[1:]]}
    orange = np.array([0xD5, 0x5E, 0x00])

    def find_lines(**options: Any) -> tuple[list[int], list[int]]:
        """Return the rows and columns of pixels that are orange over at least a third of the figure."""
        (path,) = figures.draw_confusion_matrix(confusion, CLASSES, tmp_path, **options)
        lit = (np.asarray(Image.open(path).convert("RGB")) == orange).all(2)
        return tuple(np.flatnonzero(lit.mean(axis) > 1 / 3).tolist() for axis in (1, 0))  # type: ignore[return-value]

    assert find_lines() == find_lines(teachers={"low": CLASSES}) == ([], [])
    rows, columns = find_lines(teachers=teachers)
    # One line of a few pixels in each direction, in the first half: behind one of four classes.
    assert 1 <= max(rows) - min(rows) + 1 <= 4
    assert 1 <= max(columns) - min(columns) + 1 <= 4
    # Of more borders than can be seen, none is drawn.
    many = [f"c{i}" for i in range(100)]
    taking_turns = {"low": many[::2], "high": many[1::2]}
    confusion = SparseCounts.from_dense(np.eye(100, dtype=int))
    (path,) = figures.draw_confusion_matrix(confusion, many, tmp_path, taking_turns)
    assert not (np.asarray(Image.open(path).convert("RGB")) == orange).all(2).any()
