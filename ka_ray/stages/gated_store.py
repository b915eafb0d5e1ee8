"""Stored rows as a gate changes them: the teachers' scores by the probability of each teacher as the owner.

Images that belong to nobody have no rows there. So every stage that opens its images here sees only the
others, and numbers, splits and counts them without these.

Shapes: n images, N teachers, K_t classes of teacher t.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.amalgamation.gated_scores import gate_scores
from ka_ray.errors import InputError
from ka_ray.features.stack import OWNERS, P_NOBODY, SCORES
from ka_ray.features.store import Columns, Store
from ka_ray.gates.gate import NOBODY_THRESHOLD


class GatedStore(Store):
    """A store whose column ``scores`` holds ``log p(owner) + log p(class | owner)``, in float32.

    It also has the column ``owners [n, N]``, log p(owner | image), for teachers that score images anew.
    Images that belong to nobody are left out.

    Args:
        folders: Finished folders of shards, with the teachers' scores.
        owners: Finished folder of shards with the columns ``owners`` and ``p_nobody`` of the same images.
        label_sets: The teachers' classes.

    Raises:
        InputError: An image has no owners, or all images are left out.
    """

    def __init__(self, folders: Sequence[Path], owners: Path, label_sets: LabelSets) -> None:
        super().__init__(*folders)
        self._owners, self._label_sets = Store(owners), label_sets
        known = self._owners.image_ids
        owner_rows = np.minimum(np.searchsorted(known, self.image_ids), len(known) - 1)
        if not np.array_equal(known[owner_rows], self.image_ids):
            raise InputError(f"{owners} lacks some of the stored images; delete it to compute the gate again")
        kept = ~find_nobodys(self._owners, owner_rows)
        if not kept.any():
            raise InputError(
                f"images: all {len(kept)} in {', '.join(map(str, folders))} belong to nobody, so that none "
                "is left to learn from"
            )
        self._keep(kept)
        self._owner_rows = owner_rows[kept]

    def gather(
        self,
        columns: Sequence[str],
        rows: npt.NDArray[np.int64],
        draws: npt.NDArray[np.float32] | None = None,
    ) -> Columns:
        """Copy rows out of the shards, see :meth:`ka_ray.features.store.Store.gather`."""
        found = super().gather([column for column in columns if column != OWNERS], rows, draws)
        if SCORES in columns or OWNERS in columns:
            log_owners = self._owners.gather([OWNERS], self._owner_rows[rows])[OWNERS]
            if OWNERS in columns:
                found[OWNERS] = log_owners
            if SCORES in columns:
                parts = torch.from_numpy(found[SCORES]), torch.from_numpy(log_owners)
                found[SCORES] = gate_scores(self._label_sets, *parts).numpy()
        return found


def find_nobodys(owners: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which images belong to nobody, so that they are left out, `[n]`.

    Args:
        owners: What a gate says of all stored images.
        rows: Numbers of its rows.
    """
    found: npt.NDArray[np.bool_] = owners.gather([P_NOBODY], rows)[P_NOBODY] > NOBODY_THRESHOLD
    return found


def count_left_out(folder: Path, owners: Path) -> int:
    """Count the images of a folder of shards that belong to nobody.

    Args:
        folder: Finished folder of stored images.
        owners: Finished folder with what a gate says of all stored images.
    """
    said = Store(owners)
    nobodys = said.image_ids[find_nobodys(said, np.arange(len(said)))]
    return int(np.isin(Store(folder).image_ids, nobodys).sum())
