"""Shuffled batches out of a store, the same global batch however many ranks share it.

Shapes: B images of a global batch, b of one rank's share.
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


class Batches:
    """Epochs of batches. Order and random numbers follow from (seed, epoch, step) alone.

    Rank r of W gets rows ``r B / W`` to ``(r + 1) B / W`` of every global batch, so that any number of
    workers sees the same global batches; with means weighted by ``weight`` averaged gradients are those of
    one process. An incomplete last batch is left out (the next epoch shuffles anew).

    Args:
        store: Where the rows are.
        columns: Numeric columns to read.
        batch_size: B.
        seed: Of shuffling and draws.
        num_draws: Uniform random numbers for every image, in column ``draws [b, num_draws]``.
        positions_per_image: P > 0 reads P random positions of each map, ``[b P, S]``, not the whole map.
        device: Where the tensors go.
        targets: Class index of every stored row, read as ``target [b]``; rows with -1 are left out.

    Raises:
        InputError: The batch is larger than the store, or smaller than the number of ranks.
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
    ) -> None:
        self.rows = np.arange(len(store)) if targets is None else np.flatnonzero(targets >= 0)
        self.targets = targets
        if batch_size > len(self.rows):
            raise InputError(f"batch_size {batch_size} is larger than the {len(self.rows)} images there are")
        if batch_size < world_size():
            raise InputError(f"batch_size {batch_size} is smaller than the {world_size()} workers")
        self.store, self.columns, self.batch_size = store, list(columns), batch_size
        self.seed, self.num_draws, self.device = seed, num_draws, torch.device(device)
        self.positions_per_image = positions_per_image

    @property
    def share(self) -> slice:
        """This rank's rows of a global batch."""
        bounds = [place * self.batch_size // world_size() for place in (rank(), rank() + 1)]
        return slice(*bounds)

    @property
    def weight(self) -> float:
        """This rank's share of a global batch, in units of an even share: what its means count."""
        return len(range(self.batch_size)[self.share]) * world_size() / self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one epoch."""
        return len(self.rows) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of every global batch of one epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.rows)
        mine = self.share
        num_numbers = self.num_draws + self.positions_per_image
        for step in range(self.steps_per_epoch):
            numbers = rng.random((self.batch_size, num_numbers), dtype=np.float32)[mine]
            rows = order[step * self.batch_size : (step + 1) * self.batch_size][mine]
            positions = numbers[:, self.num_draws :] if self.positions_per_image else None
            batch = self._read(rows, positions)
            if self.num_draws:
                batch["draws"] = self._move(torch.from_numpy(numbers[:, : self.num_draws]))
            yield batch

    def single_pass(self) -> Iterator[dict[str, Tensor]]:
        """Yield every row of the store once over all ranks, whole and in order.

        A row's draws are the same on whatever rank it is read.
        """
        share = self.batch_size // world_size()
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
        halves = {
            n: to_preferred_memory_format(t, torch.float32)
            for n, t in tensors.items()
            if t.dtype == torch.float16
        }
        return tensors | halves

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
