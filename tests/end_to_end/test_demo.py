"""The demo, a config that names images and teachers alone: it finds the best start of the student."""

import pytest

import ka_ray
from ka_ray.workflows.demo import demo_config

# test_digits.py is as long, and covers more.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]


def test_the_demo_finds_its_start_and_is_as_good_as_its_teachers_together(tmp_path):
    overrides = [f"output={tmp_path}/run", "tracking.backend=none"]
    report = ka_ray.amalgamate(ka_ray.Config.load(demo_config(), overrides))
    assert report.method == "start"
    assert report.warnings == []
    assert report.start is not None
    assert report.choice is not None
    # The teachers were trained from different weights: their mean is useless, and another start is found.
    judged = {candidate.name: candidate for candidate in report.start.candidates}
    assert judged.keys() >= {"average", "average, aligned", "exact", "teacher low, ridge head"}
    assert judged[report.start.source].agreement > judged["average"].agreement + 0.1
    assert list(report.choice.qualities) == ["start", "epoch 1", "epoch 2", "epoch 3"]
    assert report.accuracy.union is not None
    assert report.accuracy.ensemble is not None
    assert report.accuracy.union >= 0.97 * report.accuracy.ensemble
    for pair in report.accuracy.per_teacher.values():
        assert pair.student is not None
        assert pair.teacher is not None
        assert pair.student >= 0.97 * pair.teacher
    text = (tmp_path / "run" / "report.md").read_text()
    assert "## Which student is kept" in text
