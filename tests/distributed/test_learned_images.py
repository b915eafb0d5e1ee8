"""Test that evaluation images which were learned from are counted, whatever they are called (on Ray)."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ka_ray.config.load import load_images
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import Evaluation
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.placement import standard_placement
from ka_ray.distributed.resources import pools_of
from ka_ray.features.store import FEATURES, Store
from ka_ray.images.pixel_digests import digest_pixels
from ka_ray.images.split import ImageSet, _list_images, split_images
from ka_ray.runs.learned_images import count_shared_places, read_learned_digests, warn_of_learned_images
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec


def test_digests_differ_exactly_where_pixels_do():
    images = np.random.default_rng(0).integers(0, 3, (500, 1, 2, 2), dtype=np.uint8)
    digests = digest_pixels(images)
    same = (images[:, None] == images[None]).all(axis=(2, 3, 4))
    np.testing.assert_array_equal(digests[:, None] == digests[None], same)
    assert same.sum() > 500  # some of these small images are equal


def test_paths_that_are_shared_are_counted(tmp_path):
    for i in range(20):
        path = tmp_path / "a" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    (tmp_path / "list.txt").write_text("\n".join(f"a/{i}.png" for i in range(15, 20)) + "\n/elsewhere/3.png")
    keys = {"size": 8, "labelled": False, "source": "folder"}
    training = _list_images(load_images({"path": str(tmp_path / "a"), **keys}), 0)
    listed = load_images({"source": "list", "path": str(tmp_path / "list.txt"), "size": 8})
    assert count_shared_places(training, _list_images(listed, 0)) == 5
    part = training.with_ids(np.arange(17))
    assert count_shared_places(part, training.with_ids(np.arange(17, 20))) == 0
    warned = warn_of_learned_images(training, _list_images(listed, 0))
    assert warned[0].startswith("5 of 6 evaluation images (83.3%) were learned from, by their paths")
    assert warn_of_learned_images(part, training.with_ids(np.arange(17, 20))) == []
    assert warn_of_learned_images(part, training.with_ids(np.arange(17, 20)), 2)[0].startswith("2 of 3 ")


@pytest.mark.ray
def test_evaluation_images_that_were_learned_from_are_counted_by_their_pixels(cluster, load_config, tmp_path):
    """The digits are built in; the evaluation images are files, of which every third was learned from."""
    config = load_config("images.limit=60", "images.split=train")
    training = split_images(config)[0]
    plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    pools = pools_of(config, standard_placement(config.placement))
    read_spec = ReadSpec({}, {}, config.scores)
    extract_features(Extraction(training, tmp_path / FEATURES, 1), config.teachers, pools, read_spec, print)
    stored = Store(tmp_path / FEATURES).gather(["image"], np.arange(9))["image"]

    known = {
        image.tobytes() for image in Store(tmp_path / FEATURES).gather(["image"], np.arange(54))["image"]
    }
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    others = [np.repeat(d[:, :, None], 3, axis=2) for d in digits]
    others = [image for image in others if image.transpose(2, 0, 1).tobytes() not in known][:18]
    (tmp_path / "judged").mkdir()
    for i, image in enumerate([*stored.transpose(0, 2, 3, 1), *others]):
        Image.fromarray(image).save(tmp_path / "judged" / f"{i}.bmp")
    images = load_images({"source": "folder", "path": str(tmp_path / "judged"), "labelled": False, "size": 8})
    judged: ImageSet = _list_images(images, 0)
    learned = read_learned_digests([tmp_path])
    assert learned is not None
    assert len(learned) == len(known)
    work = Evaluation(judged, plan.label_sets, config.teachers, {}, pools, learned=learned)
    summary = evaluate_images(work, print)[1]
    assert (summary["learned_images"], summary["images"]) == (9, 27)
