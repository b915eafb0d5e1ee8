"""Read shuffled batches from a store. The global batch is the same for any number of ranks.

Shapes: B images of a global batch, b images of it on one rank, S channels, P positions per image.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.features.store import Store
from ka_ray.numerics.memory_format import to_preferred_memory_format
from ka_ray.numerics.ranks import rank, world_size

HELD_OUT_SHARE = 0.1
"""Share of the stored images that is held out from training, to choose between students without labels."""

MAX_HELD_OUT = 1000
"""Maximum number of images that are held out: with so many, agreement is known to about 0.015."""


def count_held_out(num_rows: int) -> int:
    """Return how many rows :func:`hold_out_rows` holds out.

    Args:
        num_rows: Number of rows of the store.
    """
    return min(MAX_HELD_OUT, round(HELD_OUT_SHARE * num_rows))


def hold_out_rows(num_rows: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose rows of a store at random that are held out from training.

    Args:
        num_rows: Number of rows of the store.
        seed: Seed of the run.

    Returns:
        The numbers of the rows to train on and of those that are held out, both sorted.

    Raises:
        InputError: There are too few rows to hold any out.
    """
    num_held_out = count_held_out(num_rows)
    if num_held_out < 1:
        raise InputError(
            f"images: {num_rows} are too few to hold some out and choose between students on them; give "
            "more, or set student.start: random"
        )
    order = np.random.default_rng([seed, num_rows]).permutation(num_rows)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


class Batches:
    """Epochs of batches whose order and random numbers depend only on seed, epoch and step.

    Of each global batch, rank r of W ranks reads the rows ``r B / W`` to ``(r + 1) B / W``. So the global
    batches are the same for any number of ranks. If each rank multiplies its mean loss by ``loss_weight``,
    the averaged gradients are those of one process with the global batch. An incomplete last batch is left
    out; the next epoch shuffles the rows again.

    Args:
        store: Store to read from.
        columns: Names of the numeric columns to read.
        batch_size: Number of images in a global batch, B.
        seed: Seed of shuffling and random numbers.
        num_draws: How many uniform random numbers in [0, 1) to add per image, as column
            ``draws [b, num_draws]``; 0: no such column.
        positions_per_image: How many random positions of each map to read, P, as ``[b P, S]``; 0: whole maps.
        device: Device to move the batches to.
        targets: Class index per row of the store, ``[N]``, to be added as ``target [b]``. Rows with -1 are
            left out. None: no such column, and no row is left out.
        rows: Numbers of the rows to read, ``[n]``; None: all.
        trains: Whether epochs are read, in which every rank needs an image per batch. False: only single
            passes, in which some ranks may have none.

    Attributes:
        rows: Row numbers of the store that are read, ``[n]``.

    Raises:
        InputError: The batch is larger than the number of rows, or smaller than the number of ranks.
    """

    def __init__(
        self,
        store: Store,
        columns: Sequence[str],
        batch_size: int,
        seed: int,
        num_draws: int = 0,
        positions_per_image: int = 0,
        device: torch.device | str = "cpu",
        targets: npt.NDArray[np.int64] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
        trains: bool = True,
    ) -> None:
        self.rows = np.arange(len(store)) if rows is None else rows
        if targets is not None:
            self.rows = self.rows[targets[self.rows] >= 0]
        self.targets = targets
        if batch_size > len(self.rows):
            raise InputError(
                f"batch_size {batch_size} is larger than the {len(self.rows)} images to train on; set it to "
                f"at most {len(self.rows)}, or use more images"
            )
        if trains and batch_size < world_size():
            raise InputError(
                f"batch_size {batch_size} is smaller than the {world_size()} workers, but each worker needs "
                "at least one image per batch; raise it, or lower `ray.workers`"
            )
        self.store, self.columns, self.batch_size = store, list(columns), batch_size
        self.seed, self.num_draws, self.device = seed, num_draws, torch.device(device)
        self.positions_per_image = positions_per_image

    @property
    def rank_slice(self) -> slice:
        """Rows of a global batch that this rank reads."""
        # If B is not divisible by the number of ranks, some ranks read one row more than others.
        bounds = [r * self.batch_size // world_size() for r in (rank(), rank() + 1)]
        return slice(*bounds)

    @property
    def loss_weight(self) -> float:
        """Factor for this rank's mean losses: its number of rows divided by ``B / number of ranks``."""
        return len(range(self.batch_size)[self.rank_slice]) * world_size() / self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete global batches in one epoch."""
        return len(self.rows) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's rows of each global batch of one epoch, as column name -> tensor.

        Tensors are ``[b, ...]``, or ``[b P, S]`` if positions are sampled. Columns stored as float16 are
        converted to float32.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.rows)
        mine = self.rank_slice
        num_numbers = self.num_draws + self.positions_per_image
        for step in range(self.steps_per_epoch):
            # Each rank draws the numbers of the whole batch and keeps its own rows' numbers. So an image gets
            # the same numbers on whichever rank it is read.
            numbers = rng.random((self.batch_size, num_numbers), dtype=np.float32)[mine]
            rows = order[step * self.batch_size : (step + 1) * self.batch_size][mine]
            positions = numbers[:, self.num_draws :] if self.positions_per_image else None
            batch = self._read(rows, positions)
            if self.num_draws:
                batch["draws"] = self._move(torch.from_numpy(numbers[:, : self.num_draws]))
            yield batch

    def single_pass(self) -> Iterator[dict[str, Tensor]]:
        """Yield each row once over all ranks, in the order of the store, with whole maps.

        The last batch may be smaller. A row gets the same random numbers on whichever rank it is read, but
        they do not change from pass to pass.
        """
        share = max(1, self.batch_size // world_size())
        mine = slice(rank(), None, world_size())
        rng = np.random.default_rng(self.seed)
        rows, draws = self.rows[mine], rng.random((len(self.rows), self.num_draws), dtype=np.float32)[mine]
        for start in range(0, len(rows), share):
            part = slice(start, start + share)
            batch = self._read(rows[part])
            if self.num_draws:
                batch["draws"] = self._move(torch.from_numpy(draws[part]))
            yield batch

    def _read(
        self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.float32] | None = None
    ) -> dict[str, Tensor]:
        gathered = self.store.gather(self.columns, rows, positions)
        if self.targets is not None:
            gathered["target"] = self.targets[rows]
        tensors = {name: self._move(torch.from_numpy(column)) for name, column in gathered.items()}
        # Features move to the device as float16, half as many bytes, and are converted there.
        converted = {
            name: to_preferred_memory_format(tensor, torch.float32)
            for name, tensor in tensors.items()
            if tensor.dtype == torch.float16
        }
        return tensors | converted

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            # Only a copy from pinned memory runs in the background while the device computes.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
