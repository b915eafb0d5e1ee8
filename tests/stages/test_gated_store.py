"""Test that stored scores are gated by log p(owner | image), also where label sets overlap."""

import numpy as np
import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.stages.gated_store import GatedStore

LABEL_SETS = LabelSets({"a": ("x", "y"), "b": ("y", "z", "w")}, "sum")


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 5)).astype(np.float16)
    logits = rng.normal(size=(7, 2))
    log_owners = (logits - np.logaddexp(*logits.T)[:, None]).astype(np.float32)
    ids = np.array([3, 5, 8, 9, 11, 12, 20])
    for name, rows in (("features", slice(0, 3)), ("images", slice(3, 7))):
        create_shard_folder(tmp_path / name)
        write_shard(tmp_path / name, {"image_id": ids[rows], "scores": scores[rows]})
        mark_folder_finished(tmp_path / name, {})
    create_shard_folder(tmp_path / "owners")
    for rows in (slice(4, 7), slice(0, 4)):
        write_shard(tmp_path / "owners", {"image_id": ids[rows], "owners": log_owners[rows]})
    mark_folder_finished(tmp_path / "owners", {})
    return tmp_path, scores.astype(np.float64), log_owners.astype(np.float64)


def test_the_amalgamated_scores_are_the_sum_over_owners(folders):
    folder, scores, log_owners = folders
    store = GatedStore([folder / "features", folder / "images"], folder / "owners", LABEL_SETS)
    rows = np.array([6, 0, 3])
    found = store.gather(["scores", "owners"], rows)
    np.testing.assert_allclose(found["owners"], log_owners[rows], rtol=1e-6)
    probability = np.zeros((3, 4))  # x, y, z, w
    for row, image in enumerate(rows):
        for teacher, (columns, known) in enumerate(((slice(0, 2), [0, 1]), (slice(2, 5), [1, 2, 3]))):
            within = np.exp(scores[image, columns]) / np.exp(scores[image, columns]).sum()
            probability[row, known] += np.exp(log_owners[image, teacher]) * within
    amalgamated = LABEL_SETS.amalgamate(torch.from_numpy(found["scores"]))
    np.testing.assert_allclose(amalgamated.exp().numpy(), probability, rtol=1e-5)
    np.testing.assert_allclose(probability.sum(axis=1), 1)


def test_other_columns_and_random_positions_stay_as_they_are(folders):
    folder, *_ = folders
    gated, plain = GatedStore([folder / "images"], folder / "owners", LABEL_SETS), Store(folder / "images")
    rows, draws = np.array([2, 0]), np.full((2, 3), 0.5, np.float32)
    np.testing.assert_array_equal(gated.gather(["image_id"], rows)["image_id"], plain.image_ids[rows])
    np.testing.assert_array_equal(
        gated.gather(["scores"], rows, draws)["scores"], gated.gather(["scores"], rows)["scores"]
    )


def test_images_without_owners_are_refused(folders):
    folder, *_ = folders
    create_shard_folder(folder / "few")
    write_shard(folder / "few", {"image_id": np.array([3]), "owners": np.zeros((1, 2), np.float32)})
    mark_folder_finished(folder / "few", {})
    with pytest.raises(InputError, match="lacks some of the stored images"):
        GatedStore([folder / "features"], folder / "few", LABEL_SETS)
