"""Measure rates and those of their bare twins in turns; print them as a table, and store them as JSON.

Shared by the benchmarks of speed: decode.py, extract.py and train.py.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Rate = Callable[[], float]
"""Does some work and returns how much it did in a second."""

Row = dict[str, Any]


def measure_in_turns(pairs: Mapping[str, tuple[Rate, Rate]], rounds: int) -> list[Row]:
    """Measure pairs of ours and a twin; in every second round the twin comes first.

    Args:
        pairs: What is measured -> ours, and its bare twin.
        rounds: Number of measurements of each.

    Returns:
        For each pair the medians, and the median, lowest and highest of the ratios of the rounds.
    """
    rows = []
    for label, (ours, twin) in pairs.items():
        found: list[tuple[float, float]] = []
        for number in range(rounds):
            if number % 2:
                second = twin()
                found.append((ours(), second))
            else:
                first = ours()
                found.append((first, twin()))
            print(f"{label}: {found[-1][0]:.1f} and {found[-1][1]:.1f}", flush=True)
        ratios = [one / other for one, other in found]
        rows.append(
            {
                "case": label,
                "ours": statistics.median(one for one, _ in found),
                "twin": statistics.median(other for _, other in found),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def describe_machine() -> dict[str, Any]:
    """Return where and with what the figures were measured."""
    cpu = [line.partition(":")[2].strip() for line in _read_cpu_info() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS, capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": f"{len(cpu)} x {cpu[0]}" if cpu else platform.processor(),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _read_cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def format_rows(unit: str, rows: list[Row], before: Mapping[str, float] | None = None) -> str:
    """Return a Markdown table; the ratio has its lowest and highest value in brackets.

    Args:
        unit: What the rates count.
        rows: The rows of :func:`measure_in_turns`.
        before: Case -> its ratio of the time before; None: no such column.
    """
    old = [] if before is None else ["ratio before"]
    header = ["", f"ours, {unit}", f"bare, {unit}", "ratio", *old]
    lines = [f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        was = [] if before is None else [f"{before[row['case']]:.2f}" if row["case"] in before else "-"]
        cells = [row["case"], f"{row['ours']:,.1f}", f"{row['twin']:,.1f}", ratio, *was]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def publish(name: str, unit: str, rows: list[Row], folder: Path) -> None:
    """Print the table, and write it to ``NAME.json``.

    Args:
        name: Name of the benchmark.
        unit: What the rates count.
        rows: The rows of :func:`measure_in_turns`.
        folder: Gets the file.
    """
    print(f"\n{format_rows(unit, rows)}")
    folder.mkdir(parents=True, exist_ok=True)
    content = describe_machine() | {"unit": unit, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_arguments(description: str) -> argparse.Namespace:
    """Return the options that all these benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all cases, and more images")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the figures, as JSON")
    return parser.parse_args()
