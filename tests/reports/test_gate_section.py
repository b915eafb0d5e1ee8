"""Test what a report says of gates, and of images that belong to nobody."""

from types import SimpleNamespace

from ka_ray.reports.gate_section import gate_section
from ka_ray.reports.gates import GateChoice, GateQuality, OwnerCheck
from ka_ray.runs.publish import _all_metrics

CHECK = OwnerCheck(
    images=300,
    penalty=0.01,
    per_class=False,
    log_loss=0.3,
    ungated_log_loss=0.5,
    owner_accuracy=0.9,
    ungated_owner_accuracy=0.8,
    standard_error=0.01,
    nobody_found=0.75,
    lost=0.02,
    helps=True,
    learning_curve={},
)


def make_report(**changes):
    quality = {"hints": {"low": 150, "nobody": 120}, "check": CHECK, "changed": 0.2, "left_out": 0.125}
    gates = {"hints": GateQuality(**quality | {"seconds": 1.0} | changes)}
    return SimpleNamespace(
        gate=GateChoice(used="hints", gates=gates), accuracy=SimpleNamespace(gate=None, per_teacher={})
    )


def test_the_section_tells_what_share_belongs_to_nobody():
    text = gate_section(make_report())
    assert "leaves out 0.125, which belong to nobody" in text
    assert "120 images of nobody" in text
    assert "leave out 0.750 of nobody's images, and 0.020 of the teachers'" in text
    known = gate_section(make_report(check=None))
    assert (
        "leaves out 0.125, which belong to nobody. Known are 150 images of low, 120 images of nobody" in known
    )
    unknown = CHECK.model_copy(update={"nobody_found": None, "lost": 0.0})
    assert "nobody" not in gate_section(make_report(left_out=0.0, hints={"low": 9}, check=unknown))


def test_the_section_names_the_run_whose_gate_is_reused():
    text = gate_section(make_report(check=None, hints={"third": 40}, left_out=0.0, extended="/runs/two"))
    assert "Among the teachers of `/runs/two`, it divides by the gate of that run" in text
    assert "Known are 40 images of third." in text
    text = gate_section(make_report(check=None, hints={}, left_out=0.0, extended="/runs/two"))
    assert "Known" not in text
    assert "taught itself" not in text


def test_the_share_that_is_left_out_is_a_metric(monkeypatch):
    monkeypatch.setattr("ka_ray.runs.publish.final_metrics", lambda accuracy, stage="": {})
    report = make_report()
    report.codes = report.layers = report.stages = {}
    report.start = None
    assert _all_metrics(report) == {"gate/left_out": 0.125}
    report.gate = report.gate.model_copy(update={"used": "none"})
    assert _all_metrics(report) == {}
