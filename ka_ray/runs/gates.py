"""Learn gates from what a run has stored, apply them to all stored images, and choose between them.

Shapes: n images, N teachers, K_t classes of teacher t, D_t channels of its embedding.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors.torch import save_file

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, Store
from ka_ray.gates import ExtendedGate, Gate, GateSample, OwnerGate
from ka_ray.gates.cross_validation import choose_gate, measure_learning_curve
from ka_ray.gates.fit import MIN_HINTS, GateProblem, TooFewOwners
from ka_ray.gates.gate import measure_owner_changes
from ka_ray.gates.self_taught import fit_self_gate
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.reports.gates import GateChoice, GateQuality, OwnerCheck
from ka_ray.reports.summaries import read_model
from ka_ray.runs.context import Run
from ka_ray.runs.descriptive import score_by_name
from ka_ray.runs.execution import is_stored
from ka_ray.runs.extended_gate import DESCRIPTION_FILE, GATE_FILE, has_finished_gate, load_finished_gate
from ka_ray.runs.gate_choice import EXTENDED, MIN_SURE_HINTS, OWNERS, choose_gate_for_auto, describe_gate
from ka_ray.runs.gate_samples import (
    HINTS,
    LEFT_OUT,
    Embedding,
    count_owners,
    open_stored,
    read_owners,
    read_sample,
    store_owners,
)
from ka_ray.stages.inputs import owners_folder
from ka_ray.storage.files import atomic_file, make_folder, read_json, write_json
from ka_ray.student.plan import make_plan
from ka_ray.teachers.on_demand import TeachersOnDemand

MAX_SAMPLE = 20_000
"""Largest number of images that a gate learns from."""

CURVE_COUNTS = (5, 10, 20, 30, 50, 100, 200, 500)
"""Numbers of hints per teacher of the learning curve."""

QUALITY_FILE = "quality.json"
"""The file, beside those of a gate, with what was found out about it; it says that the gate is finished."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """The gates of a run.

    Attributes:
        by_name: Name, as `scores.gate` has it -> gate.
        last_layers: Teacher, or descriptive network -> path of its last layer, whose input the gates see.
        auto: What `scores.gate: auto` stands for: the name of a gate, or none.
        qualities: Name -> what the report says of the gate.
        of_students: Student -> the gate of the scores that it learned from; see :meth:`used_by`.
    """

    by_name: Mapping[str, OwnerGate]
    last_layers: Mapping[str, str]
    auto: str = "none"
    qualities: Mapping[str, GateQuality] = dataclasses.field(default_factory=dict)
    of_students: Mapping[str, OwnerGate] = dataclasses.field(default_factory=dict)

    def describe(self, used: str) -> GateChoice | None:
        """Return what the report of a run says of its gates; None if none was learned.

        Args:
            used: The run's `scores.gate`, resolved: what the student learned from.
        """
        return GateChoice(used=used, gates=dict(self.qualities)) if self.qualities else None

    def used_by(self, students: Mapping[str, str]) -> "Gates":
        """Return the gates together with who uses which, and what these see.

        Args:
            students: Name of a student -> its `scores.gate`; students without a gate are left out.
        """
        used = {student: self.by_name[name] for student, name in students.items() if name in self.by_name}
        seen = {source for gate in used.values() for source in gate.sources}
        last_layers = {source: path for source, path in self.last_layers.items() if source in seen}
        return dataclasses.replace(self, of_students=used, last_layers=last_layers)


NO_GATES = Gates({}, {})


def learn_gates(run: Run, students: Sequence[Config], embeddings: Mapping[str, Embedding]) -> Gates:
    """Learn or reuse the gates that students ask for, and store log p(owner | image) of all stored images.

    Args:
        run: The run, whose images are stored with embeddings and scores.
        students: The configs of its students.
        embeddings: Teacher -> its embedding.

    Raises:
        InputError: A gate has nothing to learn from.
    """
    names = list(dict.fromkeys(name for student in students for name in student.gates))
    names = [name for name in names if _has_inputs(run, name, embeddings)]
    if not names:
        return NO_GATES
    gates, found = dict[str, OwnerGate](), dict[str, GateQuality]()
    only_auto = all(student.scores.gate == "auto" for student in students)
    least = MIN_SURE_HINTS if only_auto else MIN_HINTS
    with run.timeline.step("learning gates"):
        for name in names:
            try:
                gates[name], found[name] = _learn_or_load(run, name, embeddings, least)
            except TooFewOwners as error:
                if any(student.scores.gate == name for student in students):
                    raise
                run.notify(f"scores.gate: auto learns no gate: {error}")
    auto = choose_gate_for_auto(found)
    run.notify(*(describe_gate(name, quality) for name, quality in found.items()))
    if only_auto and found:
        run.notify(f"scores.gate: auto uses {auto}")
    return Gates(gates, {teacher: e.path for teacher, e in embeddings.items()}, auto, found)


def _has_inputs(run: Run, name: str, embeddings: Mapping[str, Embedding]) -> bool:
    """Return whether there is what a gate needs: every teacher's embedding, or an earlier gate."""
    if name == EXTENDED:
        return has_finished_gate(run.config, run.plan)
    return name == OWNERS or all(teacher in embeddings for teacher in run.plan.label_sets.by_teacher)


def _learn_or_load(
    run: Run, name: str, embeddings: Mapping[str, Embedding], min_nobody: int
) -> tuple[OwnerGate, GateQuality]:
    """Return a gate and its quality, and store what it says of all stored images."""
    folder, said = run.folder / "gates" / name, owners_folder(run.folder, name)
    embeddings = {} if name == OWNERS else embeddings
    store = open_stored(run.folder, embedded=name != OWNERS)
    if (folder / QUALITY_FILE).exists():
        state = load_tensors(folder / GATE_FILE)
        kind = ExtendedGate if name == EXTENDED else Gate
        gate: OwnerGate = kind.from_state(
            state, read_json(folder / DESCRIPTION_FILE), _ungated_label_sets(run)
        )
        store_owners(gate, store, embeddings, said)
        return gate, read_model(GateQuality, folder / QUALITY_FILE)
    began = time.perf_counter()
    sample, owners = _read_pool(run, store, embeddings, name)
    gate, check = _fit(name, sample, owners, run, min_nobody)
    seconds = time.perf_counter() - began
    make_folder(folder)
    with atomic_file(folder / GATE_FILE) as part:
        save_file(gate.to_state(), part)
    write_json(folder / DESCRIPTION_FILE, gate.describe())
    store_owners(gate, store, embeddings, said)
    done = read_json(said / DONE, images=int)
    quality = GateQuality(
        hints=count_owners(owners, list(run.plan.label_sets.by_teacher)) if name != "self" else {},
        check=check,
        changed=measure_owner_changes(gate, sample, owners),
        left_out=done[LEFT_OUT] / done["images"],
        seconds=seconds,
        extended=str(run.config.extend) if name == EXTENDED else None,
    )
    # Written last, because it says that the gate is finished.
    write_json(folder / QUALITY_FILE, quality.model_dump(mode="json"))
    return gate, quality


def _read_pool(
    run: Run, store: Store, embeddings: Mapping[str, Embedding], name: str
) -> tuple[GateSample, torch.Tensor]:
    """Read a sample of the stored images, and behind them those that teach a gate; and all owners, `[n]`."""
    rows = np.sort(np.random.default_rng(run.config.seed).permutation(len(store))[:MAX_SAMPLE])
    teachers = list(run.plan.label_sets.by_teacher)
    sample, owners = read_sample(store, embeddings, rows), read_owners(store, teachers, rows)
    if name == "hints" and is_stored(run.folder / HINTS):
        hints = Store(run.folder / HINTS)
        every = np.arange(len(hints))
        sample = sample.join(read_sample(hints, embeddings, every))
        owners = torch.cat([owners, read_owners(hints, teachers, every)])
    sample, note = score_by_name(run.config, sample, _ungated_label_sets(run), owners)
    run.notify(*([note] if note else []))
    return sample, owners


def _fit(
    name: str, sample: GateSample, owners: torch.Tensor, run: Run, min_nobody: int
) -> tuple[OwnerGate, OwnerCheck | None]:
    if name == EXTENDED:
        return load_finished_gate(run.config, run.plan), None
    label_sets, seed = _ungated_label_sets(run), run.config.seed
    if name == OWNERS:
        return Gate.of_scores(label_sets), None
    if name == "self":
        given = run.config.scores.shares
        shares = torch.tensor([given[teacher] for teacher in label_sets.by_teacher]) if given else None
        claimed = sample.take(owners != len(label_sets.by_teacher))  # nobody's images are no teacher's claim
        return fit_self_gate(claimed, label_sets, shares=shares), None
    problem = GateProblem.build(sample, owners, label_sets, min_nobody=min_nobody)
    check = choose_gate(problem, seed=seed)
    settings = check.penalty, check.per_class
    curve = measure_learning_curve(problem, CURVE_COUNTS, settings, seed=seed)
    checked = OwnerCheck(**dataclasses.asdict(check), helps=check.helps, learning_curve=curve)
    return problem.fit(*settings), checked


def _ungated_label_sets(run: Run) -> LabelSets:
    return LabelSets(run.plan.label_sets.by_teacher, center=run.config.scores.center)


def resolve_gate(config: Config, gates: Gates) -> Config:
    """Return a student's config with the gate that `scores.gate: auto` stands for.

    Args:
        config: Config of the student.
        gates: The gates, and the choice.

    Raises:
        InputError: The gate leaves no image to learn from.
    """
    name = gates.auto if config.scores.gate == "auto" else config.scores.gate
    if name in gates.qualities and gates.qualities[name].left_out == 1:
        raise InputError(
            f"images: all of them belong to nobody, as the gate {name!r} has it, so that none is left to "
            "learn from; correct the owners and hints, or set scores.gate: none"
        )
    if config.scores.gate == name:
        return config
    return config.model_copy(update={"scores": config.scores.model_copy(update={"gate": name})})


def with_gate(run: Run, gates: Gates) -> Run:
    """Return a run whose config and plan have the gate that `scores.gate: auto` stands for.

    Args:
        run: The run.
        gates: The gates, and the choice.
    """
    config = resolve_gate(run.config, gates)
    if config is run.config:
        return run
    plan = make_plan(config, TeachersOnDemand(config.teachers))
    return dataclasses.replace(run, config=config, plan=plan)
