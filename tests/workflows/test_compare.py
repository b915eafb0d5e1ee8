"""Test `ka-ray compare`: which students it plans for each method, and its table of results."""

import json
import statistics
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ka_ray.errors import InputError
from ka_ray.features.store import create_shard_folder, mark_folder_finished, write_shard
from ka_ray.metrics import Counts
from ka_ray.reports.comparison import Comparison
from ka_ray.reports.summaries import ExtractionSummary
from ka_ray.runs import setup
from ka_ray.runs.context import RunContext
from ka_ray.runs.variants import expand_variants
from ka_ray.sparse_counts import SparseCounts
from ka_ray.stages import list_stages
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.summaries import SUMMARIES, LinkSummary, StageSummary
from ka_ray.storage.files import write_json
from ka_ray.student import Student, save_student
from ka_ray.terminal.progress import Display
from ka_ray.tracking.null import NullTracker
from ka_ray.training.fit import Progress
from ka_ray.workflows import compare as compare_module
from ka_ray.workflows.compare import compare, count_student_images


def make_counts(num_correct: int, images: int = 10, **changes: Any) -> Counts:
    """Return the counts for images of class 0, of which a student predicts only the first ones correctly.

    Args:
        num_correct: Number of images for which the student predicts class 0, and not class 1.
        images: Number of images, all of class 0.
        changes: Fields of the counts that replace the default ones.
    """
    student = SparseCounts.from_dense([[num_correct, images - num_correct], [0, 0]])
    no_images = SparseCounts.zeros(2, 2)
    defaults = {
        "images": images,
        "agreed": num_correct // 2,
        "compared": images,
        "student": student,
        "ensemble": SparseCounts.from_dense([[8, 2], [0, 0]]),
        "over_views": no_images,
        "predicted": SparseCounts.from_dense([8, 2]),
        "teacher_images": np.array([4, 5]),
        "teacher_correct": np.array([3, 4]),
        "student_correct": np.array([num_correct // 2, 5]),
        "gated": no_images,
        "owners": np.zeros(4, np.int64),
    }
    return Counts(**defaults | changes)


def test_methods_and_baselines_are_overrides_of_the_config():
    assert expand_variants(["direct", "incremental", "common_features", "distill", "scratch"]) == {
        "direct": ["codes.method=direct", "baseline=null", "layers.behind_start=true"],
        "incremental": ["codes.method=incremental", "baseline=null", "layers.behind_start=true"],
        "common_features": ["codes.method=common_features", "baseline=null", "layers.behind_start=true"],
        "distill": ["baseline=distill", "extend=null"],  # a baseline has no auto-encoders to reuse
        "scratch": ["baseline=scratch", "extend=null"],
    }


def test_the_method_ensemble_adds_no_student():
    assert expand_variants(["ensemble"]) == {}
    assert list(expand_variants(["ensemble", "direct"])) == ["direct"]


def test_every_method_is_combined_with_every_varied_value():
    found = expand_variants(["direct", "distill"], ["joint.epochs=1,2", "scores.rule=mean,max"])
    assert list(found) == [
        f"{method} joint.epochs={epochs} scores.rule={rule}"
        for method in ("direct", "distill")
        for epochs in (1, 2)
        for rule in ("mean", "max")
    ]
    assert found["distill joint.epochs=2 scores.rule=mean"] == [
        *("baseline=distill", "extend=null", "joint.epochs=2", "scores.rule=mean")
    ]


@pytest.mark.parametrize(
    ("methods", "vary", "message_parts"),
    [
        ([], [], ["--methods: none given", "direct, incremental, common_features, start, start+layers"]),
        ([""], [], ["--methods: none given"]),
        (["direct", "best", "worst"], [], ["--methods: best, worst; there are direct", "ensemble"]),
        (["direct"], ["scores.rule"], ["--vary 'scores.rule'", "key=value,value"]),
        (["direct"], ["scores.rule="], ["--vary 'scores.rule='"]),
        (["direct"], ["=mean"], ["--vary '=mean'"]),
        (["direct"], ["seed=1,2"], ["--vary 'seed=1,2'", "scores.rule", "joint.", "baselines."]),
        (["direct"], ["scores.views=flip"], ["--vary 'scores.views=flip'"]),
        (["direct"], ["extract.images=1,2"], ["--vary 'extract.images=1,2'"]),
        (["ensemble"], ["seed=1,2"], ["--vary 'seed=1,2'"]),
    ],
)
def test_unknown_methods_and_invalid_vary_options_are_refused(methods, vary, message_parts):
    with pytest.raises(InputError) as caught:
        expand_variants(methods, vary)
    for part in message_parts:
        assert part in str(caught.value)


EXTRACTION_SUMMARY = ExtractionSummary(
    images=0,
    seconds=4.0,
    unreadable=[],
    placements=[],
    bytes=0,
    passes=1,
    resumed=0,
    duplicate_rows=0,
    damaged=[],
    shards=[],
).model_dump()


def write_extraction_summaries(folder: Path, **images: int) -> None:
    for part, count in images.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        write_json(folder / part / "done.json", EXTRACTION_SUMMARY | {"images": count})


@pytest.mark.parametrize(
    ("stored", "overrides", "expected"),
    [
        # layers: 3 epochs of 10 x 10 of 103 images; joint: 2 epochs of 8 x 64 of 103 + 450
        ({"features": 103, "images": 450}, [], 3 * 100 + 2 * 512),
        ({"features": 103}, [], 3 * 100 + 2 * 64),
        ({"features": 103, "images": 450}, ["joint.images=77"], 3 * 100 + 77),
        ({"features": 103, "images": 450}, ["layers.solver=least_squares"], 103 + 2 * 512),
        ({"features": 103, "images": 450}, ["layers.solver=least_squares", "joint.epochs=0"], 103),
        ({"features": 100, "images": 28}, ["layers.batch_size=100", "joint.epochs=1"], 3 * 100 + 128),
    ],
)
def test_count_student_images_counts_whole_batches_of_all_stages(
    load_config, tmp_path, stored, overrides, expected
):
    config = load_config(
        "layers={epochs: 3, batch_size: 10}", "joint={epochs: 2, batch_size: 64}", *overrides
    )
    write_extraction_summaries(tmp_path / "run", **stored)
    assert count_student_images(config, tmp_path / "run") == expected


def test_count_student_images_does_not_count_what_the_gate_leaves_out(load_config, tmp_path):
    folder = tmp_path / "run"
    write_extraction_summaries(folder, features=103, images=450)
    nobody = np.arange(553) % 7 == 0  # 15 of the first 103 images, 64 of the others
    for part, ids in (("features", np.arange(103)), ("images", np.arange(103, 553))):
        write_shard(folder / part, {"image_id": ids})
        names = [path.name for path in (folder / part).glob("*.arrow")]
        write_json(folder / part / "done.json", EXTRACTION_SUMMARY | {"images": len(ids), "shards": names})
    create_shard_folder(folder / "gates/owners/owners")
    write_shard(
        folder / "gates/owners/owners",
        {"image_id": np.arange(553), "p_nobody": nobody.astype(np.float32)},
    )
    mark_folder_finished(folder / "gates/owners/owners", {})
    overrides = [
        "layers={epochs: 3, batch_size: 10}",
        "joint={epochs: 2, batch_size: 64}",
        "images.owner=low",
    ]
    with_gate = load_config(*overrides, "scores.gate=owners")
    assert count_student_images(with_gate, folder) == 3 * 80 + 2 * 7 * 64  # of 88 and 474 images
    without = load_config(*overrides, "scores.gate=none")
    assert count_student_images(without, folder) == 3 * 100 + 2 * 512


def make_stage_summary(stage: str, images: int, seconds: float) -> StageSummary:
    history = [Progress(stage, 1, 1, 1, 1, images, seconds, {})]
    links = LinkSummary(reused=0, trained=1, seconds=[seconds])
    own = {"codes": {"taps": {}, "shapes": {}, "links": links, "teachers": {}}, "layers": {"taps": {}}}
    return SUMMARIES[stage](history=history, seconds=seconds, **own.get(stage, {}))


class StageFailed(Exception):
    """Raised by a fake stage."""


class RecordingTracker(NullTracker):
    """A tracker that records what is logged, and its child runs."""

    def __init__(self) -> None:
        self.children: dict[str, RecordingTracker] = {}
        self.params: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.artifacts: list[str] = []
        self.failed: bool | None = None

    def child(self, name, run_id):
        self.children[name] = RecordingTracker()
        return self.children[name]

    def log_params(self, params):
        self.params = dict(params)

    def log_metrics(self, metrics, step=0):
        self.metrics |= metrics

    def log_artifact(self, path, folder=None):
        self.artifacts.append(path.name)

    def finish(self, failed):
        self.failed = failed


class FakeStages:
    """Replaces the stages of `compare` by fakes that do not train or evaluate, so that Ray is not needed.

    Attributes:
        tracker: Records what `compare` logs.
        student_jobs: The students that `compare` was to train.
        fail: Whether training fails.
        joint: Whether the scores of all images were to be extracted for joint learning.
        evaluated: Folder of each student that was to be evaluated.
    """

    def __init__(self, monkeypatch) -> None:
        self.tracker, self.student_jobs = RecordingTracker(), list[compare_module.StudentJob]()
        self.fail = False

        @contextmanager
        def open_context(config, folder, *names):
            yield RunContext(
                config=config,
                folder=folder,
                cluster=None,
                resources=None,
                tracker=self.tracker,
                display=Display(),
            )

        monkeypatch.setattr(setup, "open_context", open_context)
        monkeypatch.setattr(setup, "teach_missing", lambda run: run)
        monkeypatch.setattr(
            compare_module,
            "extract",
            self.extract,
        )
        monkeypatch.setattr(compare_module, "learn", self.learn)
        monkeypatch.setattr(compare_module, "evaluate_students", self.evaluate_students)

    def extract(self, run, students) -> dict:
        self.joint = any(student.joint.any_steps for student in students)
        write_extraction_summaries(run.folder, features=100, images=56)
        return {}

    def learn(self, run, student_jobs) -> None:
        self.student_jobs = list(student_jobs)
        if self.fail:
            raise StageFailed
        for job in student_jobs:
            for number, stage in enumerate(list_stages(job.config), start=1):
                path = stage_summary_path(job.folder, stage)
                path.parent.mkdir(parents=True, exist_ok=True)
                make_stage_summary(stage, images=1000 * number, seconds=10.0 * number + job.config.seed).save(
                    path
                )
            save_student(Student(job.plan.spec), job.folder)

    def evaluate_students(self, run, label_sets, students, gates):
        no_student = make_counts(0, student=SparseCounts.zeros(2, 2))
        self.evaluated = dict(students)
        counts = {name: make_counts(number) for number, name in enumerate(students, start=4)}
        labels = {"digit_1": 3, "digit-2": 2, "": 1}
        return counts or {"teachers": no_student}, {"labels": labels, "learned_images": 0}

    def jobs_by_name(self) -> dict[str, Any]:
        return {job.name: job for job in self.student_jobs}


@pytest.fixture
def fake_stages(monkeypatch, tmp_path) -> FakeStages:
    monkeypatch.chdir(tmp_path)
    return FakeStages(monkeypatch)


STAGES = ("layers={epochs: 3, batch_size: 10}", "joint={epochs: 2, batch_size: 64}")
BUDGET = 3 * 100 + 2 * 128


@pytest.mark.parametrize(
    ("vary", "joint"), [([], False), (["joint.epochs=0,2"], True), (["codes.epochs=1,2"], False)]
)
def test_scores_of_all_images_are_read_if_any_student_learns_jointly(fake_stages, load_config, vary, joint):
    compare(load_config(*STAGES, "joint.epochs=0"), ["direct"], vary=vary)
    assert fake_stages.joint == joint


def test_every_method_and_seed_is_one_student_in_its_own_folder(fake_stages, load_config):
    config = load_config(*STAGES, "seed=5")
    compare(config, ["direct", "scratch", "ensemble"], num_seeds=2)
    methods = config.output_dir / "methods"
    assert {name: job.folder for name, job in fake_stages.jobs_by_name().items()} == {
        f"{method} seed {seed}": methods / method / f"seed_{seed}"
        for method in ("direct", "scratch")
        for seed in (5, 6)
    }
    assert [job.config.seed for job in fake_stages.student_jobs] == [5, 6, 5, 6]
    assert fake_stages.evaluated == {name: job.folder for name, job in fake_stages.jobs_by_name().items()}


def test_varied_keys_change_the_config_and_the_plan(fake_stages, load_config):
    compare(load_config(*STAGES), ["direct"], vary=["codes.widths.conv1=3,5", "joint.loss=kl"])
    narrow, wide = fake_stages.student_jobs
    assert (narrow.plan.spec.widths["conv1"], wide.plan.spec.widths["conv1"]) == (3, 5)
    assert narrow.config.joint.loss == wide.config.joint.loss == "kl"
    assert narrow.folder != wide.folder


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_processes_as_many_images_as_the_amalgamation(fake_stages, load_config, baseline):
    compare(load_config(*STAGES), ["direct", baseline])
    learned = fake_stages.jobs_by_name()
    assert learned["direct seed 0"].config.joint.images is None
    baseline_config = learned[f"{baseline} seed 0"].config
    assert baseline_config.baseline == baseline
    assert baseline_config.joint == learned["direct seed 0"].config.joint.model_copy(
        update={"images": BUDGET}
    )


def test_a_baseline_can_have_its_own_section_but_not_its_own_budget(fake_stages, load_config):
    own = "baselines.distill={learning_rate: 0.5, loss: kl}"
    compare(load_config(*STAGES, "joint.temperature=7", own), ["distill", "scratch"])
    distill, scratch = (job.config.joint for job in fake_stages.student_jobs)
    assert (distill.learning_rate, distill.loss, distill.images) == (0.5, "kl", BUDGET)
    assert (scratch.learning_rate, scratch.loss, scratch.images) == (1e-3, "mse", BUDGET)
    # Keys that are not in the section of a baseline are those of `joint`.
    assert distill.temperature == scratch.temperature == 7


def test_varying_a_key_of_a_baseline_does_not_change_the_other_methods(fake_stages, load_config):
    given = load_config(*STAGES, "joint.loss=kl")
    compare(given, ["direct", "distill"], vary=["baselines.distill.learning_rate=0.003,0.004"])
    assert [
        (job.name, job.config.joint.learning_rate, job.config.joint.loss) for job in fake_stages.student_jobs
    ] == [
        ("direct seed 0", 1e-3, "kl"),
        ("distill baselines.distill.learning_rate=0.003 seed 0", 0.003, "kl"),
        ("distill baselines.distill.learning_rate=0.004 seed 0", 0.004, "kl"),
    ]


def test_varied_values_may_be_yaml_mappings_with_commas():
    assert expand_variants(["direct"], ["codes.widths={conv1: 8, conv2: 16},{like: low}"]).keys() == {
        'direct codes.widths={"conv1": 8, "conv2": 16}',
        'direct codes.widths={"like": "low"}',
    }


def test_varying_a_key_that_no_method_uses_is_refused():
    with pytest.raises(InputError, match=r"codes\.epochs=1,2.* changes nothing in ensemble, distill"):
        expand_variants(["ensemble", "distill"], ["codes.epochs=1,2"])


def test_baselines_have_the_budget_that_follows_from_the_varied_key(fake_stages, load_config):
    compare(load_config(*STAGES), ["direct", "distill"], vary=["layers.epochs=1,4"])
    budgets = {job.name: job.config.joint.images for job in fake_stages.student_jobs if job.config.baseline}
    assert budgets == {
        "distill layers.epochs=1 seed 0": 1 * 100 + 2 * 128,
        "distill layers.epochs=4 seed 0": 4 * 100 + 2 * 128,
    }


def test_the_table_has_the_values_of_the_stage_summaries_and_the_counts(fake_stages, load_config):
    config = load_config(*STAGES)
    result = compare(config, ["direct", "distill"], num_seeds=2)
    assert result.seeds == [0, 1]
    assert [row.label for row in result.rows] == ["ensemble", "direct", "distill"]
    direct, distill = result.row("direct"), result.row("distill")
    assert direct.union.values == pytest.approx([0.4, 0.5])
    assert distill.union.values == pytest.approx([0.6, 0.7])
    assert direct.seconds.values == [10 + 20 + 30, 60 + 3]
    assert distill.seconds.values == [10, 11]
    assert (direct.images, distill.images) == (2000 + 3000, 1000)
    student = 3 * 4 * 9 + 4 + 4 * 6 * 9 + 6 + 6 * 10 + 10
    teachers = 2 * (3 * 4 * 9 + 2 * 4 + 4 * 6 * 9 + 2 * 6 + 6 * 5 + 5)
    assert direct.parameters == distill.parameters == student
    assert result.row("ensemble").parameters == teachers
    assert result.shared_seconds == 4.0 + 4.0
    written = json.loads((config.output_dir / "compare.json").read_text())
    assert Comparison.model_validate(written) == result
    assert fake_stages.tracker.artifacts == ["compare.json", "compare.md", "compare.png"]


def test_every_compared_score_rule_has_its_own_ensemble(fake_stages, load_config):
    config = load_config(*STAGES, "teachers.1.classes.0=digit_3")
    result = compare(config, ["direct"], vary=["scores.rule=mean,max"])
    assert [row.label for row in result.rows[:2]] == ["ensemble (mean)", "ensemble (max)"]


def test_comparing_only_the_ensemble_trains_no_student(fake_stages, load_config):
    result = compare(load_config(*STAGES), ["ensemble"])
    assert [row.label for row in result.rows] == ["ensemble"]
    assert result.rows[0].union.values == [0.8]
    assert fake_stages.student_jobs == []


def test_every_student_has_its_own_tracked_run(fake_stages, load_config):
    compare(load_config(*STAGES), ["direct", "distill"])
    children = fake_stages.tracker.children
    assert set(children) == {"direct seed 0", "distill seed 0"}
    assert children["distill seed 0"].params["joint.images"] == BUDGET
    metrics = {name: child.metrics["evaluate/union"] for name, child in children.items()}
    assert metrics == {"direct seed 0": 0.4, "distill seed 0": 0.5}
    assert [child.failed for child in children.values()] == [False, False]


def test_all_tracked_runs_end_as_failed_if_a_stage_fails(fake_stages, load_config):
    fake_stages.fail = True
    with pytest.raises(StageFailed):
        compare(load_config(*STAGES), ["direct", "distill"])
    assert [child.failed for child in fake_stages.tracker.children.values()] == [True, True]


def test_labels_that_are_no_classes_are_named_above_the_table(load_config, fake_stages):
    result = compare(load_config(*STAGES), ["direct"])
    warning, other = result.warnings
    assert other.startswith("direct: 1 of 1 students agree with their teachers no more often than ")
    assert warning.startswith("2 of 6 images are left out, because their labels are no classes of the ")
    assert "'digit-2' (2; is it 'digit_2'?)" in result.to_markdown().splitlines()[0]


def test_deviations_are_those_over_seeds(fake_stages, load_config):
    result = compare(load_config(*STAGES), ["direct"], num_seeds=3)
    assert result.row("direct").union.deviation == pytest.approx(statistics.stdev([0.4, 0.5, 0.6]))


def test_the_start_alone_is_never_trained():
    variants = expand_variants(["start", "start+joint"], ["joint.epochs=1,2"])
    assert list(variants) == ["start", "start+joint joint.epochs=1", "start+joint joint.epochs=2"]
    assert {"joint.epochs=0", "joint.images=null"} <= set(variants["start"])


def test_a_random_start_alone_is_refused():
    with pytest.raises(InputError, match="random has no start to show"):
        expand_variants(["start"], ["student.start=random,average"])


def test_gates_can_be_varied_and_auto_without_owners_is_none(load_config):
    variants = expand_variants(["start+joint"], ["scores.gate=none,self"])
    assert list(variants) == ["start+joint scores.gate=none", "start+joint scores.gate=self"]
    assert [load_config(*change).gates for change in variants.values()] == [(), ("self",)]
    assert load_config().scores.gate == "auto"
    assert load_config().gates == ()
    assert load_config("images.owner=low").gates == ("owners", "hints")
    assert load_config("images.owner=low", "scores.gate=none").gates == ()
