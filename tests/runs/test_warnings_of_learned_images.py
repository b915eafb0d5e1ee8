"""Test that evaluation images that were learned from are said when a run begins and in its report."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ka_ray.images.pixel_digests import DIGEST
from ka_ray.images.split import split_images
from ka_ray.metrics import Counts
from ka_ray.reports.comparison import Comparison, make_ensemble_rows
from ka_ray.reports.sections import Accuracy
from ka_ray.reports.summaries import Confusion, EvaluationSummary
from ka_ray.runs.learned_images import read_learned_digests
from ka_ray.runs.publish import _list_warnings
from ka_ray.runs.setup import plan_run

ACCURACY = {
    "union": 0.9,
    "ensemble": 0.9,
    "ensemble_over_views": None,
    "agreement": 0.9,
    "constant_agreement": 0.2,
    "per_teacher": {},
    "images": 10,
    "labelled": 10,
}


@pytest.fixture
def config(load_config, config_tree, tmp_path):
    """The config of a run whose evaluation images are a folder in that of its training images."""
    for i in range(30):
        path = tmp_path / "photos" / ("all" if i < 20 else "some") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    folder = {"source": "folder", "path": str(tmp_path / "photos"), "labelled": False, "size": 8}
    config_tree["images"] = folder
    config_tree["evaluation"] = {"images": {**folder, "path": str(tmp_path / "photos/some")}}
    return load_config("joint.batch_size=8", "codes.batch_size=8", "layers.batch_size=8")


def test_shared_paths_are_said_before_a_run_begins(config):
    notes = plan_run(config, students=[()]).notes
    assert [note for note in notes if note.startswith("10 of 10 evaluation images (100.0%) were")]


def test_a_held_out_share_shares_no_path(load_config):
    assert not [note for note in plan_run(load_config()).notes if "were learned from" in note]


@pytest.mark.parametrize(("learned", "expected"), [(0, "10 of 10"), (3, "10 of 10")])
def test_the_report_says_it(config, learned, expected):
    training, evaluation = split_images(config)
    run = SimpleNamespace(config=config, training_images=training, evaluation_images=evaluation)
    accuracy = Accuracy.model_validate(ACCURACY)
    evaluated = EvaluationSummary(
        accuracy=accuracy,
        confusion=Confusion(true=[], predicted=[], images=[]),
        curve=[],
        images=10,
        seconds=1,
        unreadable=[],
        placements=[],
        learned_images=learned,
    )
    assert _list_warnings(run, evaluated, {})[0].startswith(f"{expected} evaluation images (100.0%)")
    run.evaluation_images = evaluation.with_ids(evaluation.ids[:0])
    assert _list_warnings(run, evaluated.model_copy(update={"learned_images": 0}), {}) == []


def test_a_comparison_says_it_in_its_table():
    rows = make_ensemble_rows({"": Counts.zeros(2, 1)}, ["one"], 1)
    keys = {"name": "run", "seeds": [0], "rows": rows, "shared_seconds": 1.0}
    assert "Warning" not in Comparison(**keys).to_markdown()
    assert Comparison(**keys, warnings=["Bad."]).to_markdown().startswith("> **Warning:** Bad.\n\n# run")


def test_digests_are_read_of_every_finished_part_and_extended_run(make_store, tmp_path):
    def store(folder, *digests, name=DIGEST):
        values = np.array(digests, np.int64)
        make_store({"image_id": np.arange(len(digests)), name: values}, shards=2, folder=folder)

    store("new/features", 1, 2)
    store("new/images", 3, 4)
    store("old/teachers/images", 4, 5)
    store("old/hints", 6, 7)
    store("old/tune/images", 8, 9)  # trials judge no student on evaluation images
    found = read_learned_digests([tmp_path / "new", tmp_path / "old", tmp_path / "nothing"])
    assert found.tolist() == [1, 2, 3, 4, 5, 6, 7]
    store("earlier/features", 1, 2, name="scores")  # a version of ka_ray that stored no digests
    assert read_learned_digests([tmp_path / "earlier"]) is None
