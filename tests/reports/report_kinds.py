"""Reports of several kinds of runs, for the tests of what is made of a report."""

from typing import Any

from test_gate_section import CHECK
from test_report import make_accuracies, make_content

from ka_ray.reports.report import Report

QUALITY = {"agreement": 0.75, "divergence": 0.5, "worst_divergence": 0.125, "images": 40}
HOSTILE = ["<script>alert(1)</script>", "$x$", '" onload="alert(1)', "</style><b>", "\\(y\\)", "a`b"]
ORIGIN = {
    "command": "ka-ray run run.yaml --output runs/run_again",
    "config": "name: run\nimages: {path: /data/<i>photos</i>}\n",
    "versions": {"ka_ray": "0.1.0", "torch": "2.11.0"},
    "commit": "0123abcd",
}


def _make_start() -> dict[str, Any]:
    names = ("average", "teacher low", "exact")
    return {
        "source": "teacher low",
        "random": ["fc.weight"],
        "candidates": [QUALITY | {"name": name, "seconds": 1.5} for name in names],
        "skipped": {"aligned": "the networks differ"},
        "accuracy": make_accuracies(union=0.5),
    }


def _make_gate() -> dict[str, Any]:
    quality = {"hints": {"low": 150, "nobody": 120}, "check": CHECK.model_dump(), "changed": 0.2}
    return {"used": "hints", "gates": {"hints": quality | {"left_out": 0.125, "seconds": 1.0}}}


GATE_ACCURACY = {
    "ensemble": 0.875,
    "changed": 0.25,
    "owner_accuracy": 0.9375,
    "ungated_owner_accuracy": 0.8125,
    "oracle": 1.0,
}

FAST = {"parameters": 1000, "macs": 2_500_000, "bytes": 4096}


def make_dispute(student: str, ours: float, ensemble: str, theirs: float, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "student": student,
        "student_probability": ours,
        "ensemble": ensemble,
        "ensemble_probability": theirs,
        "picture": "/9j/4AAQ",
    }


KINDS: dict[str, dict[str, Any]] = {
    "labelled": {},
    "unlabelled": {"accuracy": make_accuracies(labelled=False)},
    "baseline": {"method": "distill", "codes": {}, "layers": {}},
    "started": {
        "method": "start",
        "start": _make_start(),
        "choice": {
            "best": "epoch 1",
            "qualities": {"start": QUALITY, "epoch 1": QUALITY, "epoch 2": QUALITY},
        },
        "curve": [{"images": 25_000, "accuracy": make_accuracies(union=0.75)}],
    },
    "gate": {
        "gate": _make_gate(),
        "accuracy": make_accuracies(union=0.75) | {"ensemble": 0.75, "gate": GATE_ACCURACY},
    },
    "disputed": {
        "disputed": [
            make_dispute("cat", 0.875, "cow", 0.75, "cat"),
            make_dispute("dog", 0.5, "cow", 0.625, ""),
        ],
        "size": {
            "student": FAST | {"speed": {"latency_ms": 1.5, "images_per_s": 1234.0}},
            "teachers": FAST | {"speed": {"latency_ms": 3.25, "images_per_s": 617.0}},
            "per_teacher": {"low": FAST},
            "threads": 2,
        },
    },
    "bad": {
        "accuracy": make_accuracies(union=0.0) | {"agreement": 0.25, "constant_agreement": 0.25},
        "warnings": ["The student has learned nothing.", "The loss of `joint` did not fall."],
    },
    "earlier version": {"teacher_classes": {}, "origin": None},
    "hostile": {
        "classes": HOSTILE,
        "teacher_classes": {"low": HOSTILE[:3], HOSTILE[0]: HOSTILE[3:]},
        "overlap": {name: ["low", "high"] for name in HOSTILE},
        "warnings": [f"the class {name} was never predicted" for name in HOSTILE],
        "unreadable": HOSTILE,
        "disputed": [make_dispute(name, 1.0, name, 1.0, name) for name in HOSTILE],
        "kept_adapters": dict.fromkeys(HOSTILE, 3),
        "codes": {name: make_content()["codes"]["conv1"] for name in HOSTILE},
        "origin": ORIGIN | {"config": f"classes: {HOSTILE}", "command": HOSTILE[0]},
        "mlflow": {"tracking_uri": f"http://server/{HOSTILE[2]}", "run_id": HOSTILE[0]},
    },
}
"""Kind of a run -> what its report has besides that of a labelled run without a start."""


def make_report(kind: str) -> Report:
    """Return the report of a kind of run."""
    known = {"teacher_classes": {"low": ["cat", "dog"], "high": ["cow", "a|b"]}, "origin": ORIGIN}
    return Report.model_validate(make_content() | known | KINDS[kind])
