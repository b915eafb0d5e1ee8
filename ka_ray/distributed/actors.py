"""Small actors that the whole cluster talks to; they import Ray's core alone, so they start fast."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_driver(actor: Any, *arguments: Any) -> Any:
    """Start an actor on the driver's node: what only the driver needs must not die with another node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here).remote(*arguments)


@ray.remote(num_cpus=0)
class PassMonitor:
    """Remembers, for the whole cluster, which images were unreadable and where actors run."""

    def __init__(self, max_unreadable: int) -> None:
        self._max_unreadable = max_unreadable
        self._unreadable: dict[int, str] = {}
        self._left_out = set[int]()
        self._placements: list[dict[str, Any]] = []

    def unreadable(self, image_id: int, name: str) -> bool:
        """Note an unreadable image (once, however often it is tried); say whether that is one too many."""
        self._unreadable[image_id] = name
        return len(self._unreadable) > self._max_unreadable

    def left_out(self, image_ids: Sequence[int]) -> None:
        """Note images of which there will be no row: unreadable, or of no wanted class."""
        self._left_out.update(image_ids)

    def without_row(self) -> list[int]:
        """Give the ids of the images that were left out."""
        return sorted(self._left_out)

    def placed(self, placement: dict[str, Any]) -> None:
        """Note where an actor runs."""
        self._placements.append(placement)

    def starts(self, actor: str) -> list[str]:
        """Give the teacher's name once for every time that an actor was started."""
        return [place["teacher"] for place in self._placements if place["actor"] == actor]

    def summary(self) -> dict[str, Any]:
        """Give the names of unreadable images, and the actors' places."""
        places = [{k: v for k, v in place.items() if k != "actor"} for place in self._placements]
        return {"unreadable": sorted(self._unreadable.values()), "placements": places}


@ray.remote(num_cpus=0)
class ReportQueue:
    """Carries reports from rank 0 to the driver, as plain dicts."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Note one report."""
        self._entries.append(entry)

    def take(self) -> list[dict[str, Any]]:
        """Give what came since the last call."""
        entries, self._entries = self._entries, []
        return entries
