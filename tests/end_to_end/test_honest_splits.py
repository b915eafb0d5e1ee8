"""A whole run says that evaluation images were learned from, and resumes with no other images (on Ray)."""

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

import ka_ray
from ka_ray.errors import InputError
from ka_ray.storage.files import read_json

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]


def test_learned_images_are_said_and_changed_lists_refused(load_config, config_tree, tmp_path):
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        copies = ["photos", *(["judged"] if i % 6 == 0 else [])]
        for folder, suffix in zip(copies, ("png", "bmp"), strict=False):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder} {i}.{suffix}")
    for i in range(10):
        Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(tmp_path / f"judged/new {i}.png")
    images = {"source": "folder", "labelled": False, "size": 8}
    config_tree["images"] = {**images, "path": str(tmp_path / "photos")}
    config_tree["evaluation"] = {"images": {**images, "path": str(tmp_path / "judged")}}
    quick = ("joint={epochs: 1, batch_size: 16}", "placement.teachers.cpu=0.25", f"output={tmp_path / 'out'}")
    config = load_config(*quick, "tracking.backend=mlflow")
    report = ka_ray.amalgamate(config)
    expected = "10 of 20 evaluation images (50.0%) were learned from"
    assert report.warnings[0].startswith(expected)
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'ka_ray'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert any(expected in value for value in run.data.tags.values())

    compared = ka_ray.compare(load_config(*quick, "tracking.backend=mlflow"), ["distill"])
    assert [warning[:52] for warning in compared.warnings] == [expected]
    assert expected in (tmp_path / "out/compare.md").read_text()

    before = read_json(tmp_path / "out/report.json")
    (tmp_path / "out/stages/evaluate.json").unlink()  # as if the run had been stopped before its evaluation
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/another.png")
    with pytest.raises(InputError, match=r"images: the list of images has changed .* 1 image added"):
        ka_ray.amalgamate(config)
    (tmp_path / "photos/another.png").unlink()
    assert ka_ray.amalgamate(config).warnings == before["warnings"]
