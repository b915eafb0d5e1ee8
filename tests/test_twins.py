"""Test how benchmarks measure a rate and its twin."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def twins(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("twins", BENCHMARKS / "twins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ours_and_the_twin_take_turns_and_ratios_are_those_of_the_rounds(twins):
    calls, ours, bare = [], iter([90.0, 30.0, 200.0]), iter([100.0, 60.0, 100.0])

    def measure(name, rates):
        calls.append(name)
        return next(rates)

    pair = (lambda: measure("ours", ours)), (lambda: measure("bare", bare))
    [row] = twins.measure_in_turns({"case": pair}, rounds=3)
    assert calls == ["ours", "bare", "bare", "ours", "ours", "bare"]
    expected = {"case": "case", "ours": 90.0, "twin": 100.0, "ratio": 0.9, "lowest": 0.5, "highest": 2.0}
    assert row == expected


def test_the_table_has_the_ratio_of_the_time_before(twins, tmp_path):
    row = {"case": "a", "ours": 1234.5, "twin": 1000.0, "ratio": 1.2345, "lowest": 1.2, "highest": 1.3}
    rows = [row, row | {"case": "new"}]
    assert "| a | 1,234.5 | 1,000.0 | 1.23 (1.20 to 1.30) |" in twins.format_rows("images/s", rows)
    lines = twins.format_rows("images/s", rows, {"a": 1.1}).splitlines()
    assert lines[0] == "|  | ours, images/s | bare, images/s | ratio | ratio before |"
    assert lines[2].endswith("| 1.23 (1.20 to 1.30) | 1.10 |")
    assert lines[3].endswith("| 1.23 (1.20 to 1.30) | - |")
    twins.publish("name", "images/s", rows, tmp_path)
    stored = json.loads((tmp_path / "name.json").read_text())
    assert stored["rows"] == rows
    assert {"cpu", "torch", "commit", "date"} <= stored.keys()
