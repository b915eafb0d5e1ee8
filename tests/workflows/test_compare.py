"""`ka-ray compare`: which students are planned for each method, and how their table is put together."""

import json
import statistics
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ka_ray.errors import InputError
from ka_ray.metrics import Counts
from ka_ray.reports.comparison import Comparison
from ka_ray.reports.summaries import ExtractionSummary
from ka_ray.runs import setup
from ka_ray.runs.context import RunContext
from ka_ray.runs.variants import expand_variants
from ka_ray.stages import list_stages
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.summaries import SUMMARIES, LinkSummary, StageSummary
from ka_ray.storage.files import write_json
from ka_ray.student import Student, save_student
from ka_ray.terminal.progress import Display
from ka_ray.tracking.null import NullTracker
from ka_ray.training.fit import Progress
from ka_ray.workflows import compare as comparing
from ka_ray.workflows.compare import compare, count_student_images


def counts_of(right: int, images: int = 10, **changed: Any) -> Counts:
    """The counts of a student that is right on some images of class 0 and takes the others for class 1."""
    student = np.array([[right, images - right], [0, 0]])
    nothing = np.zeros((2, 2), np.int64)
    known = {
        "images": images,
        "agreed": right // 2,
        "compared": images,
        "student": student,
        "ensemble": np.array([[8, 2], [0, 0]]),
        "over_views": nothing,
        "teacher_images": np.array([4, 5]),
        "teacher_correct": np.array([3, 4]),
        "student_correct": np.array([right // 2, 5]),
    }
    return Counts(**known | changed)


def test_methods_and_baselines_are_overrides_of_the_config():
    assert expand_variants(["direct", "incremental", "common_features", "distill", "scratch"]) == {
        "direct": ["codes.method=direct", "baseline=null"],
        "incremental": ["codes.method=incremental", "baseline=null"],
        "common_features": ["codes.method=common_features", "baseline=null"],
        "distill": ["baseline=distill", "extend=null"],  # a baseline has no auto-encoders to use again
        "scratch": ["baseline=scratch", "extend=null"],
    }


def test_the_ensemble_is_no_student():
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
    ("methods", "vary", "said"),
    [
        ([], [], ["--methods: none given", "direct, incremental, common_features, distill, scratch"]),
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
def test_what_cannot_be_compared_is_refused(methods, vary, said):
    with pytest.raises(InputError) as caught:
        expand_variants(methods, vary)
    for part in said:
        assert part in str(caught.value)


PASS = ExtractionSummary(
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


def store_of(folder: Path, **images: int) -> None:
    for part, count in images.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        write_json(folder / part / "done.json", PASS | {"images": count})


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
def test_a_student_sees_whole_batches_of_its_stages(load_config, tmp_path, stored, overrides, expected):
    config = load_config(
        "layers={epochs: 3, batch_size: 10}", "joint={epochs: 2, batch_size: 64}", *overrides
    )
    store_of(tmp_path / "run", **stored)
    assert count_student_images(config, tmp_path / "run") == expected


def summary_of(stage: str, images: int, seconds: float) -> StageSummary:
    history = [Progress(stage, 1, 1, 1, 1, images, seconds, {})]
    links = LinkSummary(reused=0, trained=1, seconds=[seconds])
    own = {"codes": {"taps": {}, "shapes": {}, "links": links, "teachers": {}}, "layers": {"taps": {}}}
    return SUMMARIES[stage](history=history, seconds=seconds, **own.get(stage, {}))


class Stopped(Exception):
    """Raised by a stage, to look at what it was given."""


class Watched(NullTracker):
    """Remembers what it was told, and the runs below it."""

    def __init__(self) -> None:
        self.children: dict[str, Watched] = {}
        self.params: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.artifacts: list[str] = []
        self.failed: bool | None = None

    def child(self, name, run_id):
        self.children[name] = Watched()
        return self.children[name]

    def log_params(self, params):
        self.params = dict(params)

    def log_metrics(self, metrics, step=0):
        self.metrics |= metrics

    def log_artifact(self, path, folder=None):
        self.artifacts.append(path.name)

    def finish(self, failed):
        self.failed = failed


class Bench:
    """`compare` with stages that learn and judge nothing, so that no Ray is needed."""

    def __init__(self, monkeypatch) -> None:
        self.tracker, self.student_jobs = Watched(), list[comparing.StudentJob]()
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
            comparing,
            "extract",
            self.extract,
        )
        monkeypatch.setattr(comparing, "learn", self.learn)
        monkeypatch.setattr(comparing, "evaluate_students", self.evaluate_students)

    def extract(self, run, joint) -> None:
        self.joint = joint
        store_of(run.folder, features=100, images=56)

    def learn(self, run, student_jobs) -> None:
        self.student_jobs = list(student_jobs)
        if self.fail:
            raise Stopped
        for one in student_jobs:
            for number, stage in enumerate(list_stages(one.config), start=1):
                path = stage_summary_path(one.folder, stage)
                path.parent.mkdir(parents=True, exist_ok=True)
                summary_of(stage, images=1000 * number, seconds=10.0 * number + one.config.seed).save(path)
            save_student(Student(one.plan.spec), one.folder)

    def evaluate_students(self, run, label_sets, students):
        nothing, self.judged = counts_of(0, student=np.zeros((2, 2), np.int64)), dict(students)
        counts = {name: counts_of(number) for number, name in enumerate(students, start=4)}
        return counts or {"teachers": nothing}, {}

    def by_name(self) -> dict[str, Any]:
        return {one.name: one for one in self.student_jobs}


@pytest.fixture
def bench(monkeypatch, tmp_path) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch)


STAGES = ("layers={epochs: 3, batch_size: 10}", "joint={epochs: 2, batch_size: 64}")
BUDGET = 3 * 100 + 2 * 128


@pytest.mark.parametrize(
    ("vary", "joint"), [([], False), (["joint.epochs=0,2"], True), (["codes.epochs=1,2"], False)]
)
def test_scores_of_all_images_are_read_if_any_student_learns_jointly(bench, load_config, vary, joint):
    compare(load_config(*STAGES, "joint.epochs=0"), ["direct"], vary=vary)
    assert bench.joint == joint


def test_every_method_and_seed_is_one_student_in_a_folder_of_its_own(bench, load_config):
    config = load_config(*STAGES, "seed=5")
    compare(config, ["direct", "scratch", "ensemble"], num_seeds=2)
    methods = config.output_dir / "methods"
    assert {name: one.folder for name, one in bench.by_name().items()} == {
        f"{method} seed {seed}": methods / method / f"seed_{seed}"
        for method in ("direct", "scratch")
        for seed in (5, 6)
    }
    assert [one.config.seed for one in bench.student_jobs] == [5, 6, 5, 6]
    assert bench.judged == {name: one.folder for name, one in bench.by_name().items()}


def test_varied_keys_land_in_config_and_plan(bench, load_config):
    compare(load_config(*STAGES), ["direct"], vary=["codes.widths.conv1=3,5", "joint.loss=kl"])
    narrow, wide = bench.student_jobs
    assert (narrow.plan.spec.widths["conv1"], wide.plan.spec.widths["conv1"]) == (3, 5)
    assert narrow.config.joint.loss == wide.config.joint.loss == "kl"
    assert narrow.folder != wide.folder


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_sees_as_many_images_as_the_amalgamation(bench, load_config, baseline):
    compare(load_config(*STAGES), ["direct", baseline])
    learned = bench.by_name()
    assert learned["direct seed 0"].config.joint.images is None
    alone = learned[f"{baseline} seed 0"].config
    assert alone.baseline == baseline
    assert alone.joint == learned["direct seed 0"].config.joint.model_copy(update={"images": BUDGET})


def test_a_baseline_may_have_a_section_of_its_own_but_not_its_own_budget(bench, load_config):
    own = "baselines.distill={learning_rate: 0.5, loss: kl}"
    compare(load_config(*STAGES, "joint.temperature=7", own), ["distill", "scratch"])
    distill, scratch = (one.config.joint for one in bench.student_jobs)
    assert (distill.learning_rate, distill.loss, distill.images) == (0.5, "kl", BUDGET)
    assert (scratch.learning_rate, scratch.loss, scratch.images) == (1e-3, "mse", BUDGET)
    assert distill.temperature == scratch.temperature == 7  # what a baseline does not name is as in `joint`


def test_one_key_of_a_baseline_is_varied_without_touching_the_others(bench, load_config):
    given = load_config(*STAGES, "joint.loss=kl")
    compare(given, ["direct", "distill"], vary=["baselines.distill.learning_rate=0.003,0.004"])
    assert [
        (one.name, one.config.joint.learning_rate, one.config.joint.loss) for one in bench.student_jobs
    ] == [
        ("direct seed 0", 1e-3, "kl"),
        ("distill baselines.distill.learning_rate=0.003 seed 0", 0.003, "kl"),
        ("distill baselines.distill.learning_rate=0.004 seed 0", 0.004, "kl"),
    ]


def test_values_with_commas_are_varied_as_yaml():
    assert expand_variants(["direct"], ["codes.widths={conv1: 8, conv2: 16},{like: low}"]).keys() == {
        'direct codes.widths={"conv1": 8, "conv2": 16}',
        'direct codes.widths={"like": "low"}',
    }


def test_a_key_that_reaches_no_method_is_refused():
    with pytest.raises(InputError, match=r"codes\.epochs=1,2.* changes nothing in ensemble, distill"):
        expand_variants(["ensemble", "distill"], ["codes.epochs=1,2"])


def test_a_varied_budget_is_the_baselines_too(bench, load_config):
    compare(load_config(*STAGES), ["direct", "distill"], vary=["layers.epochs=1,4"])
    budgets = {one.name: one.config.joint.images for one in bench.student_jobs if one.config.baseline}
    assert budgets == {
        "distill layers.epochs=1 seed 0": 1 * 100 + 2 * 128,
        "distill layers.epochs=4 seed 0": 4 * 100 + 2 * 128,
    }


def test_the_table_is_put_together_from_the_stages_and_the_counts(bench, load_config):
    config = load_config(*STAGES)
    result = compare(config, ["direct", "distill"], num_seeds=2)
    assert result.seeds == [0, 1]
    assert [one.label for one in result.rows] == ["ensemble", "direct", "distill"]
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
    assert bench.tracker.artifacts == ["compare.json", "compare.md", "compare.png"]


def test_rules_that_are_compared_have_an_ensemble_each(bench, load_config):
    config = load_config(*STAGES, "teachers.1.classes.0=digit_3")
    result = compare(config, ["direct"], vary=["scores.rule=mean,max"])
    assert [one.label for one in result.rows[:2]] == ["ensemble (mean)", "ensemble (max)"]


def test_the_ensemble_alone_needs_no_student(bench, load_config):
    result = compare(load_config(*STAGES), ["ensemble"])
    assert [one.label for one in result.rows] == ["ensemble"]
    assert result.rows[0].union.values == [0.8]
    assert bench.student_jobs == []


def test_every_student_has_a_tracked_run_of_its_own(bench, load_config):
    compare(load_config(*STAGES), ["direct", "distill"])
    children = bench.tracker.children
    assert set(children) == {"direct seed 0", "distill seed 0"}
    assert children["distill seed 0"].params["joint.images"] == BUDGET
    metrics = {name: child.metrics["evaluate/union"] for name, child in children.items()}
    assert metrics == {"direct seed 0": 0.4, "distill seed 0": 0.5}
    assert [child.failed for child in children.values()] == [False, False]


def test_all_tracked_runs_end_as_failed_if_a_stage_fails(bench, load_config):
    bench.fail = True
    with pytest.raises(Stopped):
        compare(load_config(*STAGES), ["direct", "distill"])
    assert [child.failed for child in bench.tracker.children.values()] == [True, True]


def test_spreads_are_over_seeds_not_over_images(bench, load_config):
    result = compare(load_config(*STAGES), ["direct"], num_seeds=3)
    assert result.row("direct").union.deviation == pytest.approx(statistics.stdev([0.4, 0.5, 0.6]))
