"""Run the quick forms of the benchmarks of speed, and write their tables into RESULTS.md: `make bench`.

    .venv/bin/python benchmarks/bench.py

Each table has the ratio of the time before, from the JSON files that the benchmarks have left in results/.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from twins import RESULTS, format_rows

FOLDER = Path(__file__).parent
PAGE = FOLDER / "RESULTS.md"
BEGIN, END = "<!-- make bench: begin -->\n", "<!-- make bench: end -->\n"

BENCHMARKS = {
    "decode": "Reading and decoding files, on one core",
    "train": "Joint learning from stored scores",
    "extract": "The pass that stores teachers' scores, the start of processes apart",
}
"""Script, without its ending -> the title of its table."""


def load(name: str) -> dict[str, Any] | None:
    """Return what a benchmark has stored; None if it never ran."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def describe(name: str, before: dict[str, Any] | None) -> str:
    """Return the section of a benchmark, with the ratios of the time before."""
    now = load(name)
    assert now is not None
    old = {row["case"]: row["ratio"] for row in before["rows"]} if before else {}
    machine = f"{now['cpu']}, torch {now['torch']}, {now['date']}, commit {now['commit']}"
    table = format_rows(now["unit"], now["rows"], old)
    return f"### {BENCHMARKS[name]}\n\n`python benchmarks/{name}.py`, {machine}.\n\n{table}\n"


def main() -> None:
    """Run all benchmarks, and write the page."""
    sections = []
    for name in BENCHMARKS:
        before = load(name)
        subprocess.run([sys.executable, FOLDER / f"{name}.py"], check=True)
        sections.append(describe(name, before))
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(head + BEGIN + "\n" + "\n".join(sections) + "\n" + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
