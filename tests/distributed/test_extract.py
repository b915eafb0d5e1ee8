"""Extraction and evaluation on Ray, compared with a plain loop over the teachers."""

import pickle
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from ka_ray.config import Config, FolderImages, Resources, ScoresConfig
from ka_ray.disputes import MAX_DISPUTES, find_disputes
from ka_ray.distributed.actors import PassMonitor, beside_driver
from ka_ray.distributed.error_log import log_errors
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation, Evaluator
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.images import read_images
from ka_ray.distributed.placement import standard_placement
from ka_ray.distributed.resources import Pools, pools_of, remote_options
from ka_ray.distributed.shard_writer import ShardWriter
from ka_ray.distributed.teachers import run_teachers
from ka_ray.errors import InputError, ReadError
from ka_ray.features.resize import resize_features
from ka_ray.features.store import Store
from ka_ray.images import open_source, read_chunk
from ka_ray.images.split import ImageSet, split_images
from ka_ray.metrics import Counts, compute_accuracies, count_batch
from ka_ray.student import Student, save_student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.teachers.reading import ReadSpec

pytestmark = pytest.mark.ray


def decode_all(images: ImageSet) -> dict[str, np.ndarray]:
    """Decode all images of a set without Ray."""
    parts = [
        part
        for chunk in images.source.chunks
        for part in read_chunk(images.config, images.source.read, chunk, images.ids, None, pytest.fail)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def build_plan(config: Config) -> Plan:
    return make_plan(config, [load_teacher(teacher) for teacher in config.teachers])


@pytest.mark.parametrize("actors_per_teacher", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stacked_features_and_scores_equal_those_of_a_plain_loop(
    cluster, load_config, tmp_path, actors_per_teacher
):
    config = load_config(
        f"extract.actors_per_teacher={actors_per_teacher}",
        f"placement.teachers={{gpu: {1 / actors_per_teacher}, cpu: 0.2}}",
        "images.limit=150",
        "extract.batch_size=16",
    )
    images, plan, counted = split_images(config)[0], build_plan(config), []
    work = Extraction(images, tmp_path / "features", 1_000_000)
    read_spec = ReadSpec(plan.paths, plan.spaces, config.scores)
    summary = extract_features(
        work,
        config.teachers,
        pools_of(config, standard_placement(config.placement)),
        read_spec,
        counted.append,
    )
    store = Store(tmp_path / "features")
    expected = decode_all(images)
    assert summary["images"] == sum(counted) == len(store) == len(images.ids) == 135
    assert store.image_ids.tolist() == images.ids.tolist()
    rows = np.arange(len(store))
    stored = store.gather(["image", "label", "scores", *plan.shapes], rows)
    np.testing.assert_array_equal(stored["image"], expected["image"])
    assert stored["label"].tolist() == expected["label"].tolist()

    pixels, per_teacher = torch.from_numpy(expected["image"]), []
    for teacher in map(load_teacher, config.teachers):
        per_teacher.append(teacher.features(pixels, plan.paths[teacher.name]))
    for tap in plan.shapes:
        stacked = torch.cat([features[tap] for features, _ in per_teacher], dim=1)
        assert stored[tap].dtype == np.float16
        np.testing.assert_allclose(stored[tap], stacked.numpy(), rtol=2e-3, atol=2e-3)
    scores = torch.cat([scores for _, scores in per_teacher], dim=1)
    np.testing.assert_allclose(stored["scores"], scores.numpy(), rtol=2e-3, atol=2e-3)

    kinds = {f"{verb} {teacher}" for verb in ("load", "run") for teacher in ("low", "high")}
    assert summary["work"].keys() == {"decode images", "write shards", *kinds}
    processes = 2 * 2 + 4  # more than ever worked side by side
    assert 0 < sum(summary["work"].values()) < processes * summary["seconds"]

    placements = {
        name: [p for p in summary["placements"] if p["teacher"] == name] for name in ("low", "high")
    }
    # Ray Data starts before all actors of a pool have started, so one of them may have done all the work.
    for actors in placements.values():
        assert 1 <= len({actor["pid"] for actor in actors}) == len(actors) <= actors_per_teacher
    if actors_per_teacher == 1:  # each teacher has its own logical GPU
        assert placements["low"][0]["gpus"] != placements["high"][0]["gpus"]
        assert sorted(placements["low"][0]["gpus"] + placements["high"][0]["gpus"]) == [0, 1]


def compute_average_over_views(teacher: Teacher, pixels: np.ndarray, step: int) -> np.ndarray:
    """Average a teacher's scores over ten views: mirrored or not, not shifted or by ``step`` to a side."""
    parts = []
    for side in (pixels, pixels[..., ::-1]):
        padded = np.pad(side, ((0, 0), (0, 0), (step, step), (step, step)), mode="edge")
        for row, column in ((step, step), (0, step), (2 * step, step), (step, 0), (step, 2 * step)):
            view = padded[:, :, row : row + pixels.shape[-2], column : column + pixels.shape[-1]]
            parts.append(teacher.scores(torch.from_numpy(view.copy())).numpy())
    assert len(parts) == 10
    return np.mean(parts, axis=0)


VIEWS = "scores={views: [flip, shift], shift: 1}"


def test_features_are_resized_to_those_of_the_student_and_scores_averaged_over_views(
    cluster, load_config, tmp_path
):
    config = load_config("teachers.1.preprocessing.size=16", "images.limit=60", VIEWS)
    images, plan = split_images(config)[0], build_plan(config)
    assert plan.spaces == {"conv1": (8, 8), "conv2": (4, 4)}
    views = plan.views
    work = Extraction(images.with_views(views.columns), tmp_path / "features", 1_000_000)
    read_spec = ReadSpec(
        plan.paths, plan.spaces, config.scores, views.teacher_columns, stored_images=views.other_columns
    )
    extract_features(
        work,
        config.teachers,
        pools_of(config, standard_placement(config.placement)),
        read_spec,
        lambda _: None,
    )
    store = Store(tmp_path / "features")
    columns = {"image_id", "image", "image@1", "label", "digest", "scores", "conv1", "conv2"}
    assert set(store.column_names) == columns
    stored = store.gather(["image", "image@1", "scores", *plan.shapes], np.arange(len(store)))

    low, high = map(load_teacher, config.teachers)
    pixels = [torch.from_numpy(stored[name]) for name in ("image", "image@1")]
    assert [images.shape[-1] for images in pixels] == [8, 16]
    features = [
        teacher.features(images, plan.paths[teacher.name])[0]
        for teacher, images in zip((low, high), pixels, strict=True)
    ]
    for tap, space in plan.spaces.items():
        assert features[1][tap].shape[2:] == (2 * space[0], 2 * space[1])
        resized = torch.cat([resize_features(feature[tap], space) for feature in features], dim=1).numpy()
        windows = features[1][tap].numpy().reshape(len(store), -1, space[0], 2, space[1], 2).mean((3, 5))
        np.testing.assert_allclose(resized[:, -windows.shape[1] :], windows, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stored[tap], resized, rtol=2e-3, atol=2e-3)
    # One pixel of the student's images is two of the second teacher's.
    scores = [
        compute_average_over_views(low, stored["image"], 1),
        compute_average_over_views(high, stored["image@1"], 2),
    ]
    np.testing.assert_allclose(stored["scores"], np.concatenate(scores, axis=1), rtol=2e-3, atol=2e-3)
    single_pass = np.concatenate([low.scores(pixels[0]).numpy(), high.scores(pixels[1]).numpy()], axis=1)
    assert np.abs(stored["scores"] - single_pass).max() > 0.02


@pytest.fixture
def folder_with_a_broken_file(tmp_path):
    """A folder of six files, one of which is not an image."""
    for i in range(6):
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (40 * i, 10, 10)).save(path)
    (tmp_path / "photos" / "cat" / "3.png").write_bytes(b"no image")
    return tmp_path / "photos"


def extract_folder(folder, target, max_unreadable):
    config = FolderImages(source="folder", path=folder, size=8, max_unreadable=max_unreadable)
    source = open_source(config)
    work = Extraction(ImageSet(config, source, np.arange(source.num_images)), target, 200)
    return extract_features(work, [], Pools(), ReadSpec({}, {}, ScoresConfig()), lambda _: None)


def test_an_unreadable_image_is_an_error_that_names_the_file(cluster, folder_with_a_broken_file, tmp_path):
    with pytest.raises(
        InputError,
        match=r"^image \S*cat/3\.png \(not an image file\) cannot be read; images.max_unreadable = 0",
    ):
        extract_folder(folder_with_a_broken_file, tmp_path / "out", max_unreadable=0)
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "out")  # the folder does not count as finished


def test_of_a_failed_pass_the_terminal_gets_only_the_message_and_the_log_the_rest(
    cluster, folder_with_a_broken_file, tmp_path, capfd
):
    log = tmp_path / "errors.log"
    with pytest.raises(InputError) as error, log_errors(log):
        extract_folder(folder_with_a_broken_file, tmp_path / "out", max_unreadable=0)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert error.value.__notes__ == [f"log: {log}"]
    text = log.read_text()
    assert "ERROR ray.data" in text
    assert "Traceback" in text
    assert "read_chunk" in text  # the frame of the worker that raised it


def test_unreadable_images_within_the_limit_are_counted_and_named(
    cluster, folder_with_a_broken_file, tmp_path
):
    summary = extract_folder(folder_with_a_broken_file, tmp_path / "out", max_unreadable=1)
    assert summary["images"] == 5
    assert len(summary["unreadable"]) == 1
    assert "cat/3.png" in summary["unreadable"][0]
    assert len(Store(tmp_path / "out")) == 5


def test_where_all_images_are_unreadable_the_message_names_one(cluster, tmp_path, load_config):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    config = FolderImages(source="folder", path=tmp_path, labelled=False, size=8, max_unreadable=2)
    source = open_source(config)
    images = ImageSet(config, source, np.arange(2))
    work = Extraction(images, tmp_path / "out", 200)
    summary = extract_features(work, [], Pools(), ReadSpec({}, {}, ScoresConfig()), lambda _: None)
    assert summary["images"] == 0
    with pytest.raises(InputError, match=r"none of the images could be read, for example \S*a\.png"):
        Store(tmp_path / "out")
    run = load_config()
    plan = make_plan(run, [load_teacher(teacher) for teacher in run.teachers])
    with pytest.raises(InputError, match=r"images: none of 2 images can be read, for example \S*a\.png"):
        evaluate_images(Evaluation(images, plan.label_sets, run.teachers, {}), lambda _: None)


def test_a_disk_that_fails_ends_the_pass_with_its_own_words(cluster, folder_with_a_broken_file, tmp_path):
    # The memory of a process is a file that opens, and whose first byte cannot be read (EIO).
    (folder_with_a_broken_file / "cat" / "9.png").symlink_to("/proc/self/mem")
    with pytest.raises(
        ReadError, match=r"^\S*cat/9\.png cannot be read, after 3 attempts: .*input/output error"
    ):
        extract_folder(folder_with_a_broken_file, tmp_path / "out", max_unreadable=99)
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "out")


def test_decoding_is_fused_neither_with_teachers_nor_with_writing(cluster, load_config, tmp_path):
    """Ray Data fuses stages with equal arguments; then one task would read the images of a whole shard."""
    config = load_config("images.limit=60", "placement.teachers.cpu=0.25")
    images, pools = split_images(config)[0], pools_of(config, standard_placement(config.placement))
    monitor = beside_driver(PassMonitor, 0, 0)
    scores = ReadSpec({}, {}, config.scores)
    for teachers in ([], config.teachers[:1]):
        rows = read_images(images, monitor, pools)
        rows = run_teachers(rows, teachers, pools, scores, monitor)
        write = ShardWriter(tmp_path, [], [teacher.name for teacher in teachers], monitor)
        rows = rows.map_batches(
            write, batch_size=60, **remote_options(pools.placement.decoding)
        ).materialize()
        stages = re.findall(r"Operator \d+ (\S+):", rows.stats())
        assert len([stage for stage in stages if stage.startswith("MapBatches")]) == 2 + len(teachers), stages
        assert not any("->" in stage for stage in stages), stages


def make_evaluation(config: Config, images: ImageSet, plan: Plan, students: dict[str, Path]) -> Evaluation:
    return Evaluation(
        images=images,
        label_sets=plan.label_sets,
        teachers=config.teachers,
        students=students,
        pools=pools_of(config, standard_placement(config.placement)),
        scores=config.scores,
    )


@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_any_number_of_evaluators_has_the_counts_of_a_plain_loop(cluster, load_config, tmp_path, actors):
    # The teachers take both logical GPUs; the student must not wait for a third one.
    config = load_config(
        "images.limit=200",
        f"extract={{batch_size: 16, actors_per_teacher: {actors}}}",
        f"placement.teachers={{gpu: {1 / actors}, cpu: 0.2}}",
    )
    images, plan = split_images(config)[0], build_plan(config)
    student = Student(plan.spec)
    save_student(student, tmp_path)
    work = replace(make_evaluation(config, images, plan, {"student": tmp_path}), disputed="student")
    assert work.pools.evaluators(num_teachers=2) == (actors, Resources(cpu=0.2, gpu=0))
    by_student, summary = evaluate_images(work, lambda _: None)
    assert [*by_student] == ["student"]
    counts = by_student["student"]
    assert summary["images"] == counts.images == len(images.ids)

    decoded = decode_all(images)
    pixels = torch.from_numpy(decoded["image"])
    index = {name: i for i, name in enumerate(plan.spec.classes)}
    targets = np.array([index[label] for label in decoded["label"]])
    teacher_scores = [load_teacher(teacher).scores(pixels).numpy() for teacher in config.teachers]
    with torch.inference_mode():
        student_scores = student.eval()(pixels).numpy()
    ensemble = np.concatenate(teacher_scores, axis=1)
    accuracy = compute_accuracies(counts, ["low", "high"])
    assert accuracy["union"] == pytest.approx((student_scores.argmax(1) == targets).mean())
    assert accuracy["ensemble"] == pytest.approx((ensemble.argmax(1) == targets).mean())
    assert accuracy["agreement"] == pytest.approx((student_scores.argmax(1) == ensemble.argmax(1)).mean())
    for first, scores, name in ((0, teacher_scores[0], "low"), (5, teacher_scores[1], "high")):
        has_own_class = (targets >= first) & (targets < first + 5)
        pair = accuracy["per_teacher"][name]
        assert pair["teacher"] == pytest.approx(
            (scores[has_own_class].argmax(1) == targets[has_own_class] - first).mean()
        )
        predicted = student_scores[has_own_class][:, first : first + 5].argmax(1)
        assert pair["student"] == pytest.approx((predicted == targets[has_own_class] - first).mean())
    columns = [list(range(5)), list(range(5, 10))]
    assert_same_counts(counts, count_batch(targets, student_scores, ensemble, teacher_scores, columns))
    shown = decoded["image_id"], decoded["label"], decoded["image"]
    disputes = find_disputes(*shown, student_scores, ensemble, plan.spec.classes)
    assert len(summary["disputes"]) == len(disputes) == MAX_DISPUTES
    for one, expected in zip(summary["disputes"], disputes, strict=True):
        assert one.certainty == pytest.approx(expected.certainty, abs=1e-4)
        assert (one.label, one.student, one.ensemble) == (expected.label, expected.student, expected.ensemble)
        assert one.picture == expected.picture


def assert_same_counts(found: Counts, expected: Counts) -> None:
    for field in fields(Counts):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name), err_msg=field.name
        )


@pytest.mark.slow
def test_students_evaluated_in_one_pass_have_the_same_counts_as_one_by_one(cluster, load_config, tmp_path):
    # Teacher `high` knows digit_0 in place of digit_5: the label sets overlap, and some labels are unknown.
    config = load_config("images.limit=80", "teachers.1.classes.0=digit_0", VIEWS)
    images, plan = split_images(config)[0], build_plan(config)
    students = {}
    for rule in ("mean", "max", "conditional"):
        students[rule] = tmp_path / rule
        save_student(Student(replace(plan.spec, rule=rule)), students[rule])
    seen: list[int] = []
    together, summary = evaluate_images(make_evaluation(config, images, plan, students), seen.append)
    assert [*together] == [*students]
    assert summary["images"] == sum(seen) == len(images.ids)
    for name in students:
        alone, _ = evaluate_images(
            make_evaluation(config, images, plan, {name: students[name]}), lambda _: None
        )
        assert_same_counts(together[name], alone[name])
    assert any(together[name].student != together["mean"].student for name in ("max", "conditional"))
    assert any(together[name].ensemble != together["mean"].ensemble for name in ("max", "conditional"))


def test_the_ensemble_is_counted_with_the_score_centering_of_each_student(load_config, tmp_path):
    config = load_config("images.limit=80")
    images, plan = split_images(config)[0], build_plan(config)
    students = {}
    for name in ("raw", "centered"):
        students[name] = tmp_path / name
        save_student(Student(replace(plan.spec, center=name == "centered")), students[name])
    evaluator = Evaluator(make_evaluation(config, images, plan, students), Resources())
    batch = {
        "image_id": np.arange(2),
        "image": np.zeros((2, 3, 8, 8), np.uint8),
        "label": np.array(["digit_0", "digit_5"]),
        # `low` gives all its classes high scores; only `high` tells one of its own from the others.
        "scores@low": np.tile(np.float32([10, 9, 9, 9, 9]), (2, 1)),
        "scores@high": np.tile(np.float32([0, -9, -9, -9, -9]), (2, 1)),
    }
    (counts,) = map(pickle.loads, evaluator(batch)["counts"])
    for name, predicted in {"raw": 0, "centered": 5}.items():
        expected = np.zeros((10, 10), np.int64)
        expected[[0, 5], predicted] = 1
        np.testing.assert_array_equal(counts[name].ensemble.to_dense(), expected)


def test_without_students_only_the_teachers_are_counted_with_and_without_views(cluster, load_config):
    config = load_config("images.limit=80", VIEWS)
    images, plan = split_images(config)[0], build_plan(config)
    by_student, _ = evaluate_images(make_evaluation(config, images, plan, {}), lambda _: None)
    assert [*by_student] == [TEACHERS_ONLY]

    decoded = decode_all(images)
    index = {name: i for i, name in enumerate(plan.spec.classes)}
    targets = np.array([index[label] for label in decoded["label"]])
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    teacher_scores = [teacher.scores(torch.from_numpy(decoded["image"])).numpy() for teacher in teachers]
    averaged_scores = [compute_average_over_views(teacher, decoded["image"], 1) for teacher in teachers]
    columns = [list(range(5)), list(range(5, 10))]
    ensemble, over_views = np.concatenate(teacher_scores, axis=1), np.concatenate(averaged_scores, axis=1)
    assert_same_counts(
        by_student[TEACHERS_ONLY], count_batch(targets, None, ensemble, teacher_scores, columns, over_views)
    )


def test_ray_is_still_running_after_the_passes(cluster):
    assert ray.is_initialized()
    assert cluster.size == {"nodes": 1, "cpus": 2, "gpus": 2}
