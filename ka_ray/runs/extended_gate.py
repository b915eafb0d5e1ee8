"""Reuse the gate of a finished run to which teachers are added, and check at the start that it fits."""

from collections.abc import Sequence
from pathlib import Path

from ka_ray.amalgamation import LabelSets
from ka_ray.config import DESCRIPTIVE, Config
from ka_ray.errors import InputError
from ka_ray.gates import ExtendedGate
from ka_ray.gates.extended import EXTENDS
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.runs.extension import check_extended_teachers
from ka_ray.runs.gate_choice import EXTENDED
from ka_ray.runs.output_folder import DIGESTS, read_output_config
from ka_ray.storage.files import read_json
from ka_ray.student.plan import Plan
from ka_ray.teachers.descriptive import digest_descriptive

REPORT = "report.json"
"""The file in which a finished run says from which gate its student learned."""

LEARNED = ("hints", "self", EXTENDED)
"""Names of the gates that are learned, and not in the scores already."""

GATE_FILE, DESCRIPTION_FILE = "gate.safetensors", "gate.json"
"""The files of a gate in its folder, ``gates/NAME`` in the output folder of a run."""


class NoGateToReuse(InputError):
    """There is no gate of a finished run that fits."""


def load_finished_gate(config: Config, plan: Plan) -> ExtendedGate:
    """Load the gate that the student of the finished run learned from, and add the new teachers to it.

    Args:
        config: The config of the run, whose ``extend`` names the finished one.
        plan: Its networks; their classes count.

    Raises:
        NoGateToReuse: The finished run has used no gate that was learned, or one of other classes or
            networks.
    """
    folder = find_gate(config)
    label_sets = LabelSets(plan.label_sets.by_teacher, center=config.scores.center)
    try:
        tensors = load_tensors(folder / GATE_FILE)
        gate = ExtendedGate.from_state(tensors, read_json(folder / DESCRIPTION_FILE), label_sets)
    except InputError as error:
        raise NoGateToReuse(f"{folder}: {error}") from None
    if DESCRIPTIVE in gate.sources and not _has_same_descriptive(config):
        raise NoGateToReuse(f"{folder} looks at scores.descriptive, which must be the same here as there")
    return gate


def find_gate(config: Config) -> Path:
    """Return the folder of the gate that the student of the finished run learned from.

    Args:
        config: The config of the run, whose ``extend`` names the finished one.

    Raises:
        NoGateToReuse: It has used no gate that was learned.
    """
    folder = config.extend
    if folder is None:
        raise NoGateToReuse("it reuses the gate of a finished run; name that run's output folder in `extend`")
    if not (folder / REPORT).exists():
        raise NoGateToReuse(f"{folder} holds no {REPORT}; give the folder of a finished run")
    gate_section = read_json(folder / REPORT).get("gate")
    used = gate_section.get("used") if isinstance(gate_section, dict) else None
    if used not in LEARNED:
        raise NoGateToReuse(f"the student of {folder} learned from no gate that could be reused")
    gate: Path = folder / "gates" / used
    for name in (GATE_FILE, DESCRIPTION_FILE):
        if not (gate / name).exists():
            raise NoGateToReuse(f"{gate / name} is missing")
    return gate


def _has_same_descriptive(config: Config) -> bool:
    section, folder = config.scores.descriptive, config.extend
    if section is None or folder is None:
        return False
    scores, new = read_output_config(folder, Config).get("scores"), section.model_dump(mode="json")
    old = scores.get(DESCRIPTIVE) if isinstance(scores, dict) else None
    keys = ("network", "arguments", "preprocessing")
    described = isinstance(old, dict) and all(old.get(key) == new[key] for key in keys)
    return described and read_json(folder / DIGESTS).get(DESCRIPTIVE) == digest_descriptive(section)


def sees_descriptive(config: Config) -> bool:
    """Return whether a run extends one whose gate looks at a network that is nobody's teacher.

    Args:
        config: The config of the run.
    """
    try:
        description = read_json(find_gate(config) / DESCRIPTION_FILE)
    except NoGateToReuse:
        return False
    learned = description.get(EXTENDS, description)
    return isinstance(learned, dict) and DESCRIPTIVE in (learned.get("sources") or ())


def has_finished_gate(config: Config, plan: Plan) -> bool:
    """Return whether the run extends one whose gate it can reuse.

    Args:
        config: The config of the run.
        plan: Its networks.
    """
    try:
        load_finished_gate(config, plan)
    except NoGateToReuse:
        return False
    return True


def check_finished_gate(config: Config, students: Sequence[Config], plan: Plan) -> str | None:
    """Check that students find the gate that they reuse.

    Args:
        config: The config of the run.
        students: The configs of its students.
        plan: Its networks.

    Returns:
        A sentence for the user if ``scores.gate: auto`` finds none; otherwise None.

    Raises:
        InputError: A student asks for it by name, and there is none; or a teacher has changed.
    """
    if not any(EXTENDED in student.gates for student in students):
        return None
    try:
        load_finished_gate(config, plan)
    except NoGateToReuse as error:
        if any(student.scores.gate == EXTENDED for student in students):
            raise InputError(f"scores.gate: {EXTENDED}: {error}") from None
        return f"scores.gate: auto reuses no gate: {error}"
    check_extended_teachers(config)
    return None
