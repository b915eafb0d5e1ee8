"""Passes over images while processes are killed: each row exists once, or the pass fails after retries."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from self_killing import SelfKillingNetwork, SelfKillingReader

from ka_ray.config import FolderImages, ScoresConfig, TeacherConfig
from ka_ray.distributed.actors import PassMonitor, beside_driver
from ka_ray.distributed.evaluate import evaluate_images
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.failures import RestartsExhausted
from ka_ray.distributed.placement import standard_placement
from ka_ray.distributed.reduce import reduce_images
from ka_ray.distributed.resources import Pools, pools_of
from ka_ray.distributed.restarts import READING, WRITING
from ka_ray.distributed.retries import explain
from ka_ray.errors import ClusterError
from ka_ray.features.shard_recovery import recover_shards
from ka_ray.features.stack import SCORES
from ka_ray.features.store import SHARDS_KEY, Store, mark_folder_finished
from ka_ray.images import open_source
from ka_ray.images.split import ImageSet, split_images
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher
from ka_ray.teachers.reading import ReadSpec

pytestmark = pytest.mark.ray


@pytest.fixture
def create_kills_folder(tmp_path):
    """Return a function that creates the folder of :mod:`self_killing` for a number of kills."""

    def create(count: int) -> Path:
        folder = tmp_path / "kills"
        folder.mkdir()
        for i in range(count):
            (folder / str(i)).touch()
        return folder

    return create


def make_self_killing(config: TeacherConfig, kills_folder: Path, tmp_path: Path) -> TeacherConfig:
    """Replace the network of a teacher by one that kills its process."""
    network = SelfKillingNetwork(str(kills_folder), len(config.classes))
    checkpoint = tmp_path / "self_killing.pt"
    torch.save(network.state_dict(), checkpoint)
    arguments = {"kills_folder": str(kills_folder), "num_classes": len(config.classes)}
    name = f"{SelfKillingNetwork.__module__}:{SelfKillingNetwork.__qualname__}"
    return config.model_copy(update={"network": name, "arguments": arguments, "checkpoint": checkpoint})


READ_NOTHING = ReadSpec({}, {}, ScoresConfig())


@pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_killed_teacher_is_restarted_and_no_row_is_lost_or_doubled(
    cluster, load_config, tmp_path, create_kills_folder, count
):
    """Six kills are more than an actor's restarts: the first pass fails after it has written rows."""
    config = load_config("images.limit=150", "extract.batch_size=16")
    images = split_images(config)[0]
    teachers = [
        make_self_killing(config.teachers[0], create_kills_folder(count), tmp_path),
        config.teachers[1],
    ]
    work = Extraction(images, tmp_path / "out", 4 * 1024**2)
    summary = extract_features(
        work, teachers, pools_of(config, standard_placement(config.placement)), READ_NOTHING, lambda _: None
    )
    assert list((tmp_path / "kills").iterdir()) == []
    assert Store(tmp_path / "out").image_ids.tolist() == images.ids.tolist()
    assert (summary["images"], summary["duplicate_rows"]) == (len(images.ids), 0)


def test_complete_shards_of_an_unfinished_extraction_are_kept(cluster, load_config, tmp_path):
    config = load_config("images.limit=120", "extract.batch_size=8")
    images, folder, counted = split_images(config)[0], tmp_path / "out", []
    work = Extraction(images, folder, 8 * 1024**2)
    extract_features(
        work,
        config.teachers,
        pools_of(config, standard_placement(config.placement)),
        READ_NOTHING,
        counted.append,
    )
    complete = Store(folder).gather(["scores", "image"], np.arange(len(images.ids)))
    shards = sorted(folder.glob("*.arrow"))
    assert len(shards) > 5
    (folder / "done.json").unlink()  # as if the run had been killed before the end
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-100])
    stamps = {shard: shard.stat().st_mtime_ns for shard in (shards[1], *shards[3:])}

    summary = extract_features(
        work,
        config.teachers,
        pools_of(config, standard_placement(config.placement)),
        READ_NOTHING,
        counted.append,
    )
    resumed = Store(folder)
    assert resumed.image_ids.tolist() == images.ids.tolist()
    assert summary["images"] == len(images.ids)
    assert 0 < summary["resumed"] < len(images.ids)
    assert {shard: shard.stat().st_mtime_ns for shard in stamps} == stamps
    for name, column in resumed.gather(["scores", "image"], np.arange(len(images.ids))).items():
        np.testing.assert_array_equal(column, complete[name])


def test_shards_are_not_reused_if_the_list_of_images_has_changed(cluster, load_config, tmp_path):
    for name in "bcde":
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (ord(name), 0, 0)).save(path)
    config = FolderImages(source="folder", path=tmp_path / "photos", size=8, labelled=False)

    def extract() -> dict[int, int]:
        source, out = open_source(config), tmp_path / "out"
        work = Extraction(ImageSet(config, source, np.arange(source.num_images)), out, 1000)
        extract_features(work, [], Pools(), READ_NOTHING, lambda _: None)
        (out / "done.json").rename(tmp_path / "done.json")  # as if the run had been killed before the end
        store = recover_shards(out)
        mark_folder_finished(out, {SHARDS_KEY: store.shards})
        red = Store(out).gather(["image"], np.arange(len(store.ids)))["image"][:, 0, 0, 0]
        (out / "done.json").unlink()
        return dict(zip(store.ids.tolist(), red.tolist(), strict=True))

    assert extract() == {0: ord("b"), 1: ord("c"), 2: ord("d"), 3: ord("e")}
    Image.new("RGB", (8, 8), (ord("a"), 0, 0)).save(tmp_path / "photos" / "a.png")
    assert extract() == {0: ord("a"), 1: ord("b"), 2: ord("c"), 3: ord("d"), 4: ord("e")}


@pytest.mark.slow
def test_a_teacher_that_always_dies_ends_the_pass_with_the_key_to_lower(
    cluster, load_config, tmp_path, create_kills_folder
):
    config = load_config("images.limit=60", "ray.max_failures=1")
    images, kills_folder = split_images(config)[0], create_kills_folder(1000)
    teachers = [make_self_killing(config.teachers[0], kills_folder, tmp_path), config.teachers[1]]
    work = Extraction(images, tmp_path / "out", 1000)
    with pytest.raises(ClusterError, match=r"teacher low: its actor died .* lower extract.batch_size"):
        extract_features(
            work,
            teachers,
            pools_of(config, standard_placement(config.placement)),
            READ_NOTHING,
            lambda _: None,
        )
    assert 1000 - len(list(kills_folder.iterdir())) == 4  # two passes, each with two starts of the actor


@pytest.mark.parametrize("count", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_reading_tasks_are_retried_a_limited_number_of_times(
    cluster, load_config, tmp_path, create_kills_folder, count
):
    config = load_config("images.limit=60", "ray.max_failures=1")
    images, kills_folder = split_images(config)[0], create_kills_folder(count)
    source = replace(images.source, read=SelfKillingReader(images.source.read, kills_folder))
    work = Extraction(replace(images, source=source), tmp_path / "out", 1000)
    if count > 4:
        with pytest.raises(
            ClusterError, match=r"reading images: a task died 2 times \(.* lower extract.shard_mib"
        ):
            extract_features(
                work, [], pools_of(config, standard_placement(config.placement)), READ_NOTHING, lambda _: None
            )
    else:
        summary = extract_features(
            work, [], pools_of(config, standard_placement(config.placement)), READ_NOTHING, lambda _: None
        )
        assert summary["images"] == len(images.ids)
        assert list(kills_folder.iterdir()) == []


def test_the_error_names_the_task_that_ended_the_pass_also_if_another_one_died_too_often(cluster):
    monitor = beside_driver(PassMonitor, 0, 1)
    for process, unit in ((READING, "task 1"), (WRITING, "task 2")):
        for start in range(3):
            ray.get(monitor.count_start.remote(process, unit, f"{unit}, worker {start}"))
    for process, unit in ((READING, "task 1"), (WRITING, "task 2")):
        user_error = explain(RestartsExhausted(f"{process.what} died too often ({unit})"), monitor)
        assert str(user_error).startswith(f"{process.what} died 2 times (")
        assert process.remedy in str(user_error)
    other = explain(RestartsExhausted("reading images: a task died too often (task 3)"), monitor)
    assert str(other).startswith("workers were lost again and again: reading images")


@pytest.mark.slow  # as long as the one of sums
def test_an_evaluation_with_killed_teachers_counts_every_image_once(
    cluster, load_config, tmp_path, create_kills_folder
):
    config = load_config("images.limit=150", "extract.batch_size=16")
    images, plan = split_images(config)[0], make_plan(config, [build_teacher(t) for t in config.teachers])
    kills_folder = create_kills_folder(6)
    teachers = [make_self_killing(config.teachers[0], kills_folder, tmp_path), config.teachers[1]]
    work = Evaluation(
        images,
        plan.label_sets,
        teachers,
        {},
        pools=pools_of(config, standard_placement(config.placement)),
    )
    counts, summary = evaluate_images(work, lambda _: None)
    assert list(kills_folder.iterdir()) == []
    assert summary["images"] == counts[TEACHERS_ONLY].images == len(images.ids)


@pytest.mark.slow  # a reducer waits long for the features of killed teachers
def test_sums_with_killed_teachers_count_every_image_once(
    cluster, load_config, tmp_path, create_kills_folder
):
    config = load_config("images.limit=150", "extract.batch_size=16")
    images, kills_folder = split_images(config)[0], create_kills_folder(6)
    teachers = [make_self_killing(config.teachers[0], kills_folder, tmp_path), config.teachers[1]]
    scores = ReadSpec({t.name: {} for t in teachers}, {}, ScoresConfig())
    extraction = Extraction(images, tmp_path / "sums", 0)
    counted: list[int] = []
    sums, summary = reduce_images(extraction, teachers, Pools(), scores, ScoresMeter, 0, counted.append)
    assert list(kills_folder.iterdir()) == []
    assert sums[SCORES].count == summary["images"] == len(images.ids)


class ScoresMeter:
    """Sums up only the moments of the scores."""

    def __init__(self, *, device: torch.device) -> None:
        self._meter = MomentsMeter(10, device)

    def add(self, batch: Mapping[str, torch.Tensor]) -> None:
        self._meter.add(batch[SCORES])

    @property
    def total(self) -> dict[str, Moments]:
        return {SCORES: self._meter.total}
