"""Say which labels of images are no classes, so that accuracies are not taken for those of all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ka_ray.errors import InputError
from ka_ray.storage.file_names import join_names

MAX_NAMES = 10
"""Number of labels and of classes that a message names."""


@dataclass(frozen=True)
class LabelMatch:
    """Which labels of some images are classes of a network.

    Attributes:
        images: Number of images.
        matched: Number of images whose label is a class.
        unmatched: Label that is no class -> its number of images, the most frequent first.
        missing: The classes of which no image has the label.
    """

    images: int
    matched: int
    unmatched: dict[str, int]
    missing: list[str]

    @property
    def left_out(self) -> int:
        """Number of images whose label is no class."""
        return sum(self.unmatched.values())


def match_labels(counts: Mapping[str, int], classes: Sequence[str]) -> LabelMatch:
    """Compare labels with the classes of a network.

    Args:
        counts: Label -> its number of images; the empty label is that of images without one.
        classes: The classes.
    """
    known = {*classes}
    unmatched = {label: count for label, count in counts.items() if label and label not in known}
    return LabelMatch(
        images=sum(counts.values()),
        matched=sum(count for label, count in counts.items() if label in known),
        unmatched=dict(sorted(unmatched.items(), key=lambda item: (-item[1], item[0]))),
        missing=[name for name in classes if not counts.get(name)],
    )


def describe_unmatched(match: LabelMatch, whose: str) -> str:
    """Return which images are left out because their labels are no classes; empty if none are.

    Args:
        match: The labels and classes.
        whose: Whose classes they are, such as ``the student``.

    Example:
        >>> describe_unmatched(match_labels({"cat": 8, "Dog": 2}, ["cat", "dog"]), "the student")
        "2 of 10 images are left out, because their labels are no classes of the student: 'Dog' (2; is it \
'dog'?). No image is labelled 'dog'."
    """
    if not match.unmatched:
        return ""
    shown = [
        f"{label!r} ({count:,}{_guess(label, match.missing)})"
        for label, count in list(match.unmatched.items())[:MAX_NAMES]
    ]
    more = len(match.unmatched) - len(shown)
    others = f" and {more:,} more labels" if more else ""
    missing = f" No image is labelled {join_names(match.missing, MAX_NAMES)}." if match.missing else ""
    return (
        f"{match.left_out:,} of {match.images:,} images are left out, because their labels are no classes of "
        f"{whose}: {', '.join(shown)}{others}.{missing}"
    )


def _guess(label: str, missing: Sequence[str]) -> str:
    """Return the class that a label probably means: one without an image whose name looks like it."""
    names = {name.casefold(): name for name in missing}
    close = get_close_matches(label.casefold(), names, n=1, cutoff=0.75)
    return f"; is it {names[close[0]]!r}?" if close else ""


def require_match(match: LabelMatch, classes: Sequence[str], whose: str, advice: str) -> None:
    """Refuse images of which no label is a class.

    Args:
        match: The labels and classes.
        classes: The classes.
        whose: Whose classes they are, such as ``the student``.
        advice: What the user may do about it, besides renaming.

    Raises:
        InputError: There are labels, and none of them is a class.
    """
    if match.matched or not match.unmatched:
        return
    raise InputError(
        f"none of the labels of {match.left_out:,} images is a class of {whose}: the labels are "
        f"{join_names(list(match.unmatched), MAX_NAMES)}; the classes are {join_names(classes, MAX_NAMES)}. "
        f"Labels, or names of class folders, must be spelled like the classes; {advice}"
    )
