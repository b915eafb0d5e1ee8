"""The notebook of the docs runs in Jupyter's kernel, and shows what its files say."""

import html
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ka_ray.reports.report import Report
from ka_ray.reports.verdict import judge

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
TIMEOUT_S = 600


def test_the_notebook_is_kept_without_output():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.ray
@pytest.mark.slow
def test_every_cell_runs_and_the_report_is_shown(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, merged, predicted, scored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]

    report = Report.load(tmp_path / "digits" / "merged")
    assert report.accuracy.labelled == 359
    assert report.accuracy.union >= 0.95 * report.accuracy.ensemble > 0.8
    shown = merged[-1].data["text/html"]
    assert html.escape(judge(report.accuracy).sentence) in shown
    progress = "".join(output.text for output in merged if output.output_type == "stream")
    assert "joint epoch=" in progress
    assert "Traceback" not in progress

    lines = predicted[0].text.splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines].count("7") >= 4
    assert scored[0].data["text/plain"] == "torch.Size([2, 10])"
