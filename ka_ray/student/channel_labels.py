"""Find out which channels of a network have one order, by union-find over the axes of its values and weights.

An axis is labelled by the sets of channels that lie on it, one after the other. Sets that turn out to have
one order are united; a set that turns out to consist of others is divided into them.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Segment(NamedTuple):
    """A part of an axis that holds one set of channels.

    Attributes:
        channels: Number of the set of channels.
        width: Number of channels in the set.
        repeat: Number of adjacent entries that belong to each channel, such as H * W in a flattened map.
    """

    channels: int
    width: int
    repeat: int

    @property
    def size(self) -> int:
        """Number of entries on the axis."""
        return self.width * self.repeat


Label = tuple[Segment, ...] | None
"""The sets of channels on an axis, in order; None if the order of the axis is given, as that of positions."""


class ChannelLabels:
    """Sets of channels, and what is known about them."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._widths: list[int] = []
        self._fixed: list[bool] = []
        self._operations: list[set[str]] = []
        self._parts: dict[int, tuple[Segment, ...]] = {}

    def new(self, width: int, fixed: bool = False) -> tuple[Segment, ...]:
        """Label an axis by a new set of channels.

        Args:
            width: Number of channels.
            fixed: Whether their order is given.
        """
        self._parents.append(len(self._parents))
        self._widths.append(width)
        self._fixed.append(fixed)
        self._operations.append(set())
        return (Segment(len(self._parents) - 1, width, 1),)

    def _find(self, channels: int) -> int:
        while self._parents[channels] != channels:
            channels = self._parents[channels]
        return channels

    def resolve(self, label: Label) -> tuple[Segment, ...]:
        """Return a label in terms of the sets that are neither united with others nor divided."""
        resolved = list[Segment]()
        for segment in label or ():
            root = self._find(segment.channels)
            if root in self._parts:
                parts = self.resolve(self._parts[root])
                resolved += [part._replace(repeat=part.repeat * segment.repeat) for part in parts]
            else:
                resolved.append(segment._replace(channels=root))
        return tuple(resolved)

    def fix(self, labels: Iterable[Label]) -> None:
        """State that the order of all channels on some axes is given."""
        for label in labels:
            for segment in self.resolve(label):
                self._fixed[segment.channels] = True

    def add_operation(self, labels: Iterable[Label], operation: str) -> None:
        """State that an operation acts on each channel of some axes by itself."""
        for label in labels:
            for segment in self.resolve(label):
                self._operations[segment.channels].add(operation)

    def is_fixed(self, channels: int) -> bool:
        """Return whether the order of a resolved set of channels is given."""
        return self._fixed[channels]

    def width(self, channels: int) -> int:
        """Return the number of channels of a set."""
        return self._widths[channels]

    def operations(self, channels: int) -> frozenset[str]:
        """Return the operations on a resolved set of channels."""
        return frozenset(self._operations[channels])

    def unify(self, first: Label, second: Label) -> Label:
        """State that two axes of one length have the same order, and return their label.

        Sets of channels are divided where only one of the labels has a border. Where this is impossible, all
        channels are fixed.
        """
        if first is None or second is None:
            self.fix((first, second))
            return None
        first, second = self.resolve(first), self.resolve(second)
        for one, other in zip(first, second, strict=False):
            if one[1:] == other[1:]:
                self._unite(self._find(one.channels), self._find(other.channels))
            elif self._divide(one, other):
                return self.unify(first, second)
            else:
                self.fix((first, second))
                break
        return self.resolve(first)

    def _unite(self, one: int, other: int) -> None:
        self._parents[other] = one
        self._fixed[one] |= self._fixed[other]
        self._operations[one] |= self._operations[other]

    def _divide(self, one: Segment, other: Segment) -> bool:
        """Divide a set so that two segments with one start get more alike; return whether it can be done."""
        if one.size == other.size:
            fine, coarse = sorted((one, other), key=lambda segment: segment.repeat)
            if coarse.repeat % fine.repeat:
                return False
            self._set_parts(fine.channels, (coarse._replace(repeat=coarse.repeat // fine.repeat),))
            return True
        shorter, longer = sorted((one, other), key=lambda segment: segment.size)
        return self._cut(longer, shorter.size)

    def _cut(self, segment: Segment, size: int) -> bool:
        """Divide the set of a segment behind a number of entries; return whether that is possible."""
        if size % segment.repeat:
            return False
        width = size // segment.repeat
        self._set_parts(segment.channels, self.new(width) + self.new(segment.width - width))
        return True

    def divide(self, label: Label, copies: int, width: int, repeat: int) -> Label:
        """Divide one set into blocks of adjacent entries, such as the heads of an attention layer.

        Args:
            label: Label of the axis, ``copies * width * repeat`` entries long.
            copies: How often the blocks occur, one after the other: 3 for queries, keys and values.
            width: Number of blocks of a copy.
            repeat: Number of entries of a block, which keep their order.

        Returns:
            The label of an axis of the blocks. If the axis holds anything but one undivided set, that set is
            fixed, and the label is None.
        """
        found = self.resolve(label)
        if len(found) != 1 or found[0].repeat > 1 or self._fixed[found[0].channels]:
            self.fix((label,))
            return None
        (blocks,) = self.new(width)
        self._set_parts(found[0].channels, (blocks._replace(repeat=repeat),) * copies)
        return (blocks,)

    def _set_parts(self, channels: int, parts: tuple[Segment, ...]) -> None:
        root = self._find(channels)
        self._parts[root] = parts
        for part in self.resolve(parts):
            self._fixed[part.channels] |= self._fixed[root]
            self._operations[part.channels] |= self._operations[root]

    def slice(self, label: Label, start: int, stop: int) -> Label:
        """Return the label of the entries from ``start`` to ``stop`` of an axis.

        A set of channels that has such a border inside is divided; if that is impossible, all are fixed.
        """
        if label is None:
            return None
        begin, kept = 0, list[Segment]()
        for segment in self.resolve(label):
            end = begin + segment.size
            for border in (start, stop):
                if begin < border < end:
                    if self._cut(segment, border - begin):
                        return self.slice(label, start, stop)
                    self.fix((label,))
                    return None
            if start <= begin and end <= stop:
                kept.append(segment)
            begin = end
        return tuple(kept)
