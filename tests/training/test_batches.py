"""Test that global batches and random numbers do not depend on the number of ranks."""

import itertools

import numpy as np
import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.training import Batches
from ka_ray.training import batches as batches_module

NUM_ROWS = 22
COLUMNS = ["image", "tap"]


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Return columns in the order of their ids. The pixels of an image are its row number."""
    rng = np.random.default_rng(0)
    rows = np.arange(NUM_ROWS)
    return {
        "image_id": 10 * rows,
        "image": np.broadcast_to(rows[:, None], (NUM_ROWS, 3)).astype(np.uint8),
        "tap": rng.normal(size=(NUM_ROWS, 4, 2, 3)).astype(np.float16),
    }


@pytest.fixture
def store(make_store, arrays):
    return make_store(arrays)


def set_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(batches_module, "rank", lambda: rank)
    monkeypatch.setattr(batches_module, "world_size", lambda: world_size)


def read_on_all_ranks(monkeypatch, world_size: int, read) -> list[list[dict[str, torch.Tensor]]]:
    """Return the batches of each rank."""
    parts = []
    for rank in range(world_size):
        set_rank(monkeypatch, rank, world_size)
        parts.append(list(read()))
    return parts


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"num_draws": 3}, {"positions_per_image": 5}, {"num_draws": 2, "positions_per_image": 3}]
)
def test_joined_batches_of_all_ranks_equal_the_batch_of_one_process(store, monkeypatch, world_size, options):
    expected = list(Batches(store, COLUMNS, 8, 3, **options).epoch(2))
    batches_by_rank = read_on_all_ranks(
        monkeypatch, world_size, lambda: Batches(store, COLUMNS, 8, 3, **options).epoch(2)
    )
    assert len(expected) == NUM_ROWS // 8
    for step, batch in enumerate(expected):
        for name, column in batch.items():
            parts = [rank_batches[step][name] for rank_batches in batches_by_rank]
            assert torch.equal(torch.cat(parts), column), name
            assert len({len(part) for part in parts}) == 1


def test_all_columns_of_a_batch_belong_to_the_same_rows(store, arrays):
    for batch in Batches(store, COLUMNS, 8, 0).epoch(1):
        rows = batch["image"][:, 0].numpy()
        np.testing.assert_array_equal(batch["tap"], arrays["tap"][rows].astype(np.float32))
        assert batch["tap"].dtype == torch.float32
        assert batch["image"].dtype == torch.uint8


def test_sampled_positions_belong_to_their_image(store, arrays):
    for batch in Batches(store, ["tap"], 8, 0, positions_per_image=5).epoch(1):
        assert batch["tap"].shape == (40, 4)
        known = {
            tuple(arrays["tap"][row, :, y, x].tolist())
            for row, y, x in itertools.product(range(NUM_ROWS), range(2), range(3))
        }
        assert all(tuple(position) in known for position in batch["tap"].tolist())


def test_an_epoch_repeats_no_row_and_drops_the_incomplete_batch(store):
    for epoch in (1, 2, 3):
        rows = torch.cat([batch["image"][:, 0] for batch in Batches(store, COLUMNS, 8, 0).epoch(epoch)])
        assert len(rows) == len(set(rows.tolist())) == 16


def test_every_row_is_read_within_a_few_epochs(store):
    batches = Batches(store, ["image"], 8, 0)
    read_rows = {
        row
        for epoch in range(1, 9)
        for batch in batches.epoch(epoch)
        for row in batch["image"][:, 0].tolist()
    }
    assert read_rows == set(range(NUM_ROWS))


@pytest.mark.parametrize(("seed", "epoch", "same"), [(0, 1, True), (0, 2, False), (1, 1, False)])
def test_order_and_draws_depend_on_seed_and_epoch(store, seed, epoch, same):
    first = list(Batches(store, ["image"], 8, 0, num_draws=3).epoch(1))
    other = list(Batches(store, ["image"], 8, seed, num_draws=3).epoch(epoch))
    for name in ("image", "draws"):
        equal = all(torch.equal(a[name], b[name]) for a, b in zip(first, other, strict=True))
        assert equal == same


def test_draws_are_uniform_and_differ_between_images_and_steps(store):
    batches = Batches(store, ["image"], 8, 0, num_draws=3)
    draws = torch.cat([batch["draws"] for epoch in range(100) for batch in batches.epoch(epoch)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(draws.unique()) > 0.99 * draws.numel()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 20])
def test_a_single_pass_reads_every_row_exactly_once(store, arrays, monkeypatch, world_size, batch_size):
    parts = read_on_all_ranks(
        monkeypatch, world_size, lambda: Batches(store, COLUMNS, batch_size, 0, 3, 5).single_pass()
    )
    batches = [batch for part in parts for batch in part]
    rows = torch.cat([batch["image"][:, 0] for batch in batches]).numpy()
    assert sorted(rows.tolist()) == list(range(NUM_ROWS))
    taps = torch.cat([batch["tap"] for batch in batches])
    np.testing.assert_array_equal(taps, arrays["tap"][rows].astype(np.float32))
    assert max(len(batch["image"]) for batch in batches) <= batch_size // world_size


def test_draws_of_a_single_pass_depend_only_on_the_row_and_not_on_the_rank(store, monkeypatch):
    def draws_by_row(batch_size: int, world_size: int) -> dict[int, list[float]]:
        parts = read_on_all_ranks(
            monkeypatch, world_size, lambda: Batches(store, ["image"], batch_size, 3, 2).single_pass()
        )
        batches = [batch for part in parts for batch in part]
        rows = torch.cat([batch["image"][:, 0] for batch in batches]).tolist()
        return dict(zip(rows, torch.cat([batch["draws"] for batch in batches]).tolist(), strict=True))

    expected = draws_by_row(8, 1)
    assert len({number for numbers in expected.values() for number in numbers}) == 2 * NUM_ROWS
    assert expected == draws_by_row(4, 2) == draws_by_row(20, 4)


def test_a_batch_larger_than_the_store_is_refused(store):
    with pytest.raises(InputError, match="batch_size 23 is larger than the 22 images"):
        Batches(store, COLUMNS, NUM_ROWS + 1, 0)
    assert Batches(store, COLUMNS, NUM_ROWS, 0).steps_per_epoch == 1


def test_a_batch_smaller_than_the_number_of_ranks_is_refused(store, monkeypatch):
    set_rank(monkeypatch, 0, 9)
    with pytest.raises(InputError, match="batch_size 8 is smaller than the 9 workers"):
        Batches(store, COLUMNS, 8, 0)


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 3), (7, 2), (5, 5), (20, 7)])
def test_weighted_means_of_uneven_ranks_average_to_the_batch_mean(store, monkeypatch, batch_size, world_size):
    (expected,) = read_on_all_ranks(monkeypatch, 1, lambda: Batches(store, ["tap"], batch_size, 0).epoch(1))
    parts = read_on_all_ranks(
        monkeypatch, world_size, lambda: Batches(store, ["tap"], batch_size, 0).epoch(1)
    )
    joined = torch.cat([part[0]["tap"] for part in parts])
    torch.testing.assert_close(joined, expected[0]["tap"], rtol=0, atol=0)
    means = []
    for number, part in enumerate(parts):
        set_rank(monkeypatch, number, world_size)
        means.append(part[0]["tap"].mean() * Batches(store, ["tap"], batch_size, 0).loss_weight)
    torch.testing.assert_close(torch.stack(means).mean(), expected[0]["tap"].mean())


@pytest.fixture
def targets() -> np.ndarray:
    """Return the class index of each row; every third row has none."""
    rows = np.arange(NUM_ROWS)
    return np.where(rows % 3 == 0, -1, rows % 5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_targets_belong_to_their_rows_and_rows_without_a_target_are_left_out(
    store, monkeypatch, targets, world_size
):
    def read():
        batches = Batches(store, ["image"], 4, 0, targets=targets)
        assert batches.steps_per_epoch == (targets >= 0).sum() // 4
        yield from batches.epoch(1)
        yield from batches.single_pass()

    for batch in (batch for part in read_on_all_ranks(monkeypatch, world_size, read) for batch in part):
        rows = batch["image"][:, 0].numpy()
        assert (targets[rows] >= 0).all()
        np.testing.assert_array_equal(batch["target"], targets[rows])


def test_a_single_pass_reads_every_row_with_a_target(store, targets):
    rows = [
        row
        for batch in Batches(store, ["image"], 4, 0, targets=targets).single_pass()
        for row in batch["image"][:, 0].tolist()
    ]
    assert sorted(rows) == np.flatnonzero(targets >= 0).tolist()


def test_a_batch_larger_than_the_rows_with_a_target_is_refused(store, targets):
    with pytest.raises(InputError, match="batch_size 16 is larger than the 14 images"):
        Batches(store, ["image"], 16, 0, targets=targets)
