"""Test that the tests which docs/faults.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"(tests/[\w/]+\.py)|::(\w+)")


def test_every_test_that_the_page_of_faults_names_exists():
    path, named = None, 0
    for match in NAME.finditer((ROOT / "docs" / "faults.md").read_text()):
        path = match[1] or path
        assert path is not None
        text = (ROOT / path).read_text()
        if match[2]:
            assert f"def {match[2]}(" in text, f"{path} has no test {match[2]}"
            named += 1
    assert named > 100
