"""Test that widths by a share of the variance are measured on the stored images."""

import json

import numpy as np
import pytest
import torch

from ka_ray.features.store import FEATURES, Store
from ka_ray.stages.held_out import joint_rows
from ka_ray.stages.student_widths import layer_widths_path, measure_layer_widths
from ka_ray.teachers import load_teacher


def expected_width(inputs, path: str, share: float) -> int:
    """Return the number of components of a layer's stacked features, from all positions, in float64."""
    pixels = Store(inputs.data / FEATURES).gather(["image"], joint_rows(inputs))["image"]
    rows = []
    for section in inputs.config.teachers:
        teacher, outputs = load_teacher(section), []
        teacher.network.get_submodule(path).register_forward_hook(lambda *args, o=outputs: o.append(args[2]))
        with torch.no_grad():
            teacher.scores(torch.from_numpy(pixels))
        rows.append(outputs[0].movedim(1, -1).flatten(0, 2).double().numpy())
    variances = np.linalg.eigvalsh(np.cov(np.concatenate(rows, axis=1).T))[::-1]
    return 1 + int((np.cumsum(variances) / variances.sum() < share).sum())


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_each_layer_is_as_wide_as_the_components_that_hold_the_share(make_inputs, share, monkeypatch):
    monkeypatch.setattr("ka_ray.student.width_spectra.POSITIONS_PER_IMAGE", 10**6)
    inputs = make_inputs(f"student.widths={{energy: {share}}}", "student.start=exact", "joint.batch_size=10")
    measure_layer_widths(inputs)
    found = json.loads(layer_widths_path(inputs.folder).read_text())
    # The batch norms are norm1 and norm2; at least two channels are kept.
    assert found == {f"conv{i}": max(2, expected_width(inputs, f"norm{i}", share)) for i in (1, 2)}
