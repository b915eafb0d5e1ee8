"""Test that stored scores are gated by log p(owner | image), and that images of nobody have no rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.stages.gated_store import GatedStore, count_left_out
from ka_ray.stages.held_out import split_feature_rows
from ka_ray.stages.inputs import StageInputs
from ka_ray.training.batches import hold_out_rows

LABEL_SETS = LabelSets({"a": ("x", "y"), "b": ("y", "z", "w")}, "sum")


IDS = np.array([3, 5, 8, 9, 11, 12, 20])


def write_owners(folder, log_owners, nobody):
    create_shard_folder(folder)
    columns = {"image_id": IDS, "owners": log_owners, "p_nobody": np.asarray(nobody, np.float32)}
    for rows in (slice(4, 7), slice(0, 4)):
        write_shard(folder, {name: column[rows] for name, column in columns.items()})
    mark_folder_finished(folder, {})


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 5)).astype(np.float16)
    logits = rng.normal(size=(7, 2))
    log_owners = (logits - np.logaddexp(*logits.T)[:, None]).astype(np.float32)
    for name, rows in (("features", slice(0, 3)), ("images", slice(3, 7))):
        create_shard_folder(tmp_path / name)
        write_shard(tmp_path / name, {"image_id": IDS[rows], "scores": scores[rows]})
        mark_folder_finished(tmp_path / name, {})
    write_owners(tmp_path / "owners", log_owners, np.zeros(7))
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


def test_exactly_the_images_of_nobody_have_no_rows(folders):
    folder, scores, log_owners = folders
    nobody = [0.6, 0.5, 0.0, 1.0, 0.49, 0.51, 0.2]  # a half is not more than a half
    write_owners(folder / "gates/owners/owners", log_owners.astype(np.float32), nobody)
    owners, parts = folder / "gates/owners/owners", [folder / "features", folder / "images"]
    store = GatedStore(parts, owners, LABEL_SETS)
    kept = [1, 2, 4, 6]
    assert store.image_ids.tolist() == [5, 8, 11, 20]
    assert len(store) == 4
    found = store.gather(["image_id", "scores", "owners"], np.array([3, 0, 2, 1]))
    order = [6, 1, 4, 2]
    assert found["image_id"].tolist() == IDS[order].tolist()
    np.testing.assert_allclose(found["owners"], log_owners[order], rtol=1e-6)
    within = scores[order, :2] - np.logaddexp(*scores[order, :2].T)[:, None]
    np.testing.assert_allclose(found["scores"][:, :2], within + log_owners[order, :1], rtol=1e-4, atol=1e-4)
    # Without scores, too, such as for codes.
    np.testing.assert_array_equal(store.gather(["image_id"], np.arange(4))["image_id"], IDS[kept])
    assert [count_left_out(part, owners) for part in parts] == [1, 2]


def test_stages_split_and_count_only_the_images_that_are_kept(tmp_path, load_config):
    ids, nobody = np.arange(60), np.arange(60) % 3 == 0
    for name, rows in (("features", slice(0, 30)), ("images", slice(30, 60))):
        create_shard_folder(tmp_path / name)
        write_shard(tmp_path / name, {"image_id": ids[rows], "scores": np.zeros((30, 10), np.float16)})
        mark_folder_finished(tmp_path / name, {"images": 30})
    create_shard_folder(tmp_path / "gates/owners/owners")
    columns = {"owners": np.zeros((60, 2), np.float32), "p_nobody": nobody.astype(np.float32)}
    write_shard(tmp_path / "gates/owners/owners", {"image_id": ids} | columns)
    mark_folder_finished(tmp_path / "gates/owners/owners", {})
    config = load_config("images.owner=low", "scores.gate=owners")
    label_sets = LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
    plan = SimpleNamespace(label_sets=label_sets)
    inputs = StageInputs(config, plan, tmp_path, tmp_path, torch.device("cpu"), lambda progress: None)
    both, features = inputs.store("features", "images"), inputs.store("features")
    assert both.image_ids.tolist() == ids[~nobody].tolist()
    learned, judged = split_feature_rows(inputs)
    all_learned, all_judged = hold_out_rows(40, config.seed)
    in_features = set(features.image_ids.tolist())
    for rows, every in ((learned, all_learned), (judged, all_judged)):
        expected = in_features.intersection(both.image_ids[every].tolist())
        assert set(features.image_ids[rows].tolist()) == expected
    assert len(learned) + len(judged) == 20


def test_a_store_of_nobodys_images_alone_is_refused(folders):
    folder, _, log_owners = folders
    write_owners(folder / "all", log_owners.astype(np.float32), [1, 1, 1, 0, 0, 0, 0])
    with pytest.raises(InputError, match=r"all 3 in .*features belong to nobody"):
        GatedStore([folder / "features"], folder / "all", LABEL_SETS)


def test_images_without_owners_are_refused(folders):
    folder, *_ = folders
    create_shard_folder(folder / "few")
    write_shard(folder / "few", {"image_id": np.array([3]), "owners": np.zeros((1, 2), np.float32)})
    mark_folder_finished(folder / "few", {})
    with pytest.raises(InputError, match="lacks some of the stored images"):
        GatedStore([folder / "features"], folder / "few", LABEL_SETS)
