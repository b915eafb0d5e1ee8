"""`ka-ray inspect`: show what a model is, as a run would find it out of a teacher in one line.

Nothing here imports Ray or MLflow, so that the answer takes only as long as reading the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from ka_ray.config import Preprocessing, TeacherConfig, load_tree
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.student.cut import find_valid_taps
from ka_ray.teachers import Teacher, build_teacher
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.networks import STUDENT_NETWORK
from ka_ray.teachers.sources.describe import describe_model
from ka_ray.teachers.sources.description import (
    UNNAMED,
    Description,
    describe_origin,
    describe_preprocessing,
)
from ka_ray.teachers.sources.recognise import count_classes
from ka_ray.teachers.state_dict import find_weights

ASSUMED_SIZE = 224
"""Height and width, in pixels, of the image on which a model is tried that names no size."""

SHOWN_CLASSES = 10
"""How many class names the text shows; JSON has all of them."""

SHOWN_TAPS = 24
"""How many taps the text shows; JSON has all of them."""

LINE_WIDTH = 100
"""Width of the text in characters."""


@dataclass(frozen=True)
class ModelDescription:
    """What was found out about a model.

    Attributes:
        model: The model as it was given.
        kind: What it is, such as ``a model of timm``.
        network: Name of its architecture, as in a config.
        parameters: Number of its parameters.
        num_classes: Number of its classes.
        classes: Their names in the order of the scores; empty if nothing names them.
        preprocessing: From the decoded image to the network's input.
        preprocessing_source: Where that was found, or that it is assumed.
        taps: Paths of the modules at which a student of this network can be cut.
        embedding_layer: Path of the last layer, whose input is the embedding; None if that is not clear.
        embedding_size: Number of channels of the embedding; None if that is not clear.
        notes: What else the user should know.
    """

    model: str
    kind: str
    network: str
    parameters: int
    num_classes: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    preprocessing_source: str
    taps: tuple[str, ...]
    embedding_layer: str | None
    embedding_size: int | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything in types of JSON."""
        pixels = self.preprocessing.model_dump(mode="json")
        return {
            "model": self.model,
            "kind": self.kind,
            "network": self.network,
            "parameters": self.parameters,
            "classes": {"count": self.num_classes, "names": list(self.classes) or None},
            "preprocessing": {**pixels, "found": self.preprocessing_source},
            "taps": list(self.taps),
            "embedding": {"size": self.embedding_size, "layer": self.embedding_layer},
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return everything for a terminal, one line or paragraph for each."""
        names = ", ".join(self.classes[:SHOWN_CLASSES]) or "without names: a run needs `classes`"
        more = len(self.classes) - SHOWN_CLASSES
        pixels = f"{describe_preprocessing(self.preprocessing)} ({self.preprocessing_source})"
        layer = self.embedding_layer
        rows = {
            "model": self.model,
            "kind": self.kind,
            "network": self.network,
            "parameters": f"{self.parameters:,}",
            "classes": f"{self.num_classes}: {names}" + (f" and {more} more" if more > 0 else ""),
            "pixels": pixels,
            "taps": _shorten_taps(self.taps),
            "embedding": "not clear" if layer is None else f"{self.embedding_size} channels, before {layer}",
        }
        lines = [_paragraph(key, text) for key, text in rows.items()]
        return "\n".join([*lines, *(_paragraph("note", note) for note in self.notes)])


def _shorten_taps(taps: Sequence[str]) -> str:
    """Return the taps for a terminal: of too many, those of the outer modules, such as whole blocks."""
    shown = list(taps)
    for depth in range(max((tap.count(".") for tap in taps), default=0), 0, -1):
        if len(shown) > SHOWN_TAPS:
            shown = [tap for tap in taps if tap.count(".") < depth] or shown
    more = len(taps) - len(shown[:SHOWN_TAPS])
    return (", ".join(shown[:SHOWN_TAPS]) or "none") + (f" and {more} more inside (--json)" if more else "")


def _paragraph(key: str, text: str) -> str:
    indent = " " * 12
    lines = wrap(text, LINE_WIDTH - len(indent), break_on_hyphens=False, break_long_words=False)
    return f"{key + ':':12}" + f"\n{indent}".join(lines)


def inspect_model(model: str | Path, overrides: Sequence[str] = ()) -> ModelDescription:
    """Find out what a model is.

    Args:
        model: A file, a folder, a URI, or the name of a published model: what a teacher in one line can be.
        overrides: Items ``key=value`` of the section of a teacher, such as ``network=resnet18``.

    Raises:
        InputError: The model cannot be read, or a key cannot work.
    """
    given = load_tree(TeacherConfig, {"from": str(model)}, overrides, f"model {model}")
    section, found = describe_model(given)
    names = () if section.classes == UNNAMED else section.classes
    section = section if names else _with_counted_classes(section)
    teacher, notes = build_teacher(section), list(found.notes)
    notes.append(f"checkpoint: {teacher.note}" if teacher.note else "")
    if found.preprocessing_problem:
        notes.append(f"its own preprocessing is not used: {found.preprocessing_problem}")
    taps, problem = _list_taps(teacher)
    embedding, failure = _find_embedding(teacher, section.preprocessing)
    return ModelDescription(
        model=str(model),
        kind=found.kind,
        network=_name_network(section),
        parameters=sum(parameter.numel() for parameter in teacher.network.parameters()),
        num_classes=len(section.classes),
        classes=names,
        preprocessing=section.preprocessing,
        preprocessing_source=_describe_origin(given, found),
        taps=taps,
        embedding_layer=embedding[0],
        embedding_size=embedding[1],
        notes=tuple(filter(None, [*notes, problem, failure])),
    )


def _describe_origin(given: TeacherConfig, found: Description) -> str:
    return describe_origin(given, found).replace("the config", "--set")


def _with_counted_classes(section: TeacherConfig) -> TeacherConfig:
    """Return the section of a model without class names with as many placeholders as it has classes."""
    assert section.checkpoint is not None
    weights = find_weights(read_checkpoint(section.checkpoint))
    count = count_classes(section.network, section.arguments, weights)
    if count is None or count < 2:
        raise InputError(
            f"model {section.from_}: classes: their number is not clear from the weights; give --set "
            "classes=FILE, or the network that fits, --set network=NAME"
        )
    return section.model_copy(update={"classes": tuple(f"output {i}" for i in range(count))})


def _name_network(section: TeacherConfig) -> str:
    """Return the name of the architecture; that of a student is in the arguments of its factory."""
    network, arguments = section.network, section.arguments
    while network == STUDENT_NETWORK:
        network, arguments = str(arguments["network"]), arguments["arguments"]
    return network


def _list_taps(teacher: Teacher) -> tuple[tuple[str, ...], str]:
    """Return the modules that work as taps, or why there are none."""
    try:
        return tuple(find_valid_taps(teacher.network)), ""
    except InputError as error:
        reason = str(error).removeprefix("student.network: ")
        return (), f"it can be a teacher, but no student can be cut from its network: {reason}"


def _find_embedding(
    teacher: Teacher, preprocessing: Preprocessing
) -> tuple[tuple[str | None, int | None], str]:
    """Return last layer and size of the embedding, or why they are not clear."""
    try:
        found = teacher.find_embedding(view_of(preprocessing.resolve(ASSUMED_SIZE, "crop")))
    except InputError as error:
        return (None, None), f"the embedding was not found: {error}"
    if found is None:
        return (None, None), "the last layer has not one output per class, so that no gate can look at it"
    return found, ""
