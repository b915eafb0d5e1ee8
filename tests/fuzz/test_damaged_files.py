"""Test that damaged files end in a result or in one message, whatever is wrong with them."""

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from damage import damage
from outcomes import BUG, MESSAGE, RESULT, Outcome, describe_bugs, run_case
from valid_files import Kind, make_kinds


@pytest.fixture
def kinds(tmp_path, config_tree, make_store, make_spec) -> dict[str, Kind]:
    return make_kinds(tmp_path, config_tree, make_store, make_spec)


def read_damaged_files(
    number: int, seed: int, kinds: dict[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Outcome]:
    """Damage one file after the other, each in a copy of its folder, and return how reading each ended."""
    choices, outcomes = random.Random(seed), []
    valid = [path for kind in kinds.values() for path in sorted(kind.folder.rglob("*")) if path.is_file()]
    others = [path.read_bytes() for path in valid]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for case in range(number):
        name = sorted(kinds)[case % len(kinds)]
        folder = tmp_path / "damaged" / f"{case:04}" / name
        shutil.copytree(kinds[name].folder, folder)
        for beside in kinds[name].folder.parent.glob("*.yaml"):
            shutil.copy(beside, folder.parent)
        path = choices.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
        how = damage(path, others, choices)
        outcomes.append(run_case(f"{case} {name}: {how}", lambda: kinds[name].read(folder), tmp_path))  # noqa: B023
    return outcomes


def test_every_kind_of_files_can_be_read_undamaged(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cases = [(name, lambda kind=kind: kind.read(kind.folder)) for name, kind in kinds.items()]
    outcomes = [run_case(name, read, tmp_path) for name, read in cases]
    assert {outcome.kind for outcome in outcomes} == {RESULT}, outcomes


def test_damaged_files_end_in_a_result_or_in_one_message(kinds, tmp_path, monkeypatch):
    outcomes = read_damaged_files(48, 3, kinds, tmp_path, monkeypatch)
    assert BUG not in [outcome.kind for outcome in outcomes], describe_bugs(outcomes)
    assert [outcome.kind for outcome in outcomes].count(MESSAGE) >= 15  # most of the damage is seen


@pytest.mark.slow
def test_500_damaged_files_end_in_a_result_or_in_one_message(kinds, tmp_path, monkeypatch):
    outcomes = read_damaged_files(500, 23, kinds, tmp_path, monkeypatch)
    assert not [outcome for outcome in outcomes if outcome.kind == BUG], describe_bugs(outcomes)
