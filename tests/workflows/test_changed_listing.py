"""Test that no command continues in an output folder whose images are listed differently now."""

import numpy as np
import pytest
from PIL import Image

import ka_ray
from ka_ray.config import TeachConfig
from ka_ray.errors import InputError
from ka_ray.features.store import create_shard_folder, mark_folder_finished
from ka_ray.images.split import split_images
from ka_ray.runs import setup
from ka_ray.runs.listings import LISTINGS, check_listings, list_sources
from ka_ray.storage.files import write_json, write_text
from ka_ray.storage.uris import to_path
from ka_ray.workflows import teach


class Stopped(Exception):
    """Raised in place of a connection to Ray."""


@pytest.fixture
def photos(tmp_path):
    """A folder with 60 images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "photos" / ("digit_0" if i % 2 else "digit_5") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def finish_start(folder):
    """Leave a result of an earlier attempt in an output folder; before there is one, nothing is reused."""
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    write_text(folder / "stages" / "start.json", "{}")


def test_before_anything_is_finished_other_images_are_listed_again(load_run, photos, tmp_path):
    config = load_run()
    with pytest.raises(Stopped):
        ka_ray.amalgamate(config)
    (photos / "digit_0/01.png").unlink()  # it was damaged, say
    with pytest.raises(Stopped):
        ka_ray.amalgamate(config)
    finish_start(tmp_path / "out")
    with pytest.raises(Stopped):
        ka_ray.amalgamate(config)
    add_images(photos)
    with pytest.raises(InputError, match=r"40 images added, 0 removed.*59 then, 99 now"):
        ka_ray.amalgamate(config)


def add_images(photos, count=40):
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(photos / "digit_0" / f"0{i}_new.png")


@pytest.fixture
def load_run(load_config, config_tree, photos, tmp_path, monkeypatch):
    """Return a function that loads the config of a run on the photos; no run gets further than its folder."""
    config_tree["images"] = {"source": "folder", "path": str(photos), "size": 8}

    def stop(*arguments):
        raise Stopped

    for module in (setup, teach):
        monkeypatch.setattr(module, "open_context", stop)
    return lambda *overrides: load_config(
        f"output={tmp_path / 'out'}", "tracking.backend=none", *("joint.batch_size=8",), *overrides
    )


RUN_COMMANDS = {
    "run": ka_ray.amalgamate,
    "compare": ka_ray.compare,
    "tune": ka_ray.search_widths,
    "spectrum": ka_ray.measure_spectrum,
}


@pytest.mark.parametrize("first", RUN_COMMANDS)
def test_added_images_are_refused_by_every_command(load_run, photos, tmp_path, first):
    config = load_run("codes.batch_size=8", "layers.batch_size=8", "tune={trials: 2}")
    with pytest.raises(Stopped):
        RUN_COMMANDS[first](config)
    with pytest.raises(Stopped):  # the same images
        RUN_COMMANDS[first](config)
    finish_start(tmp_path / "out")
    add_images(photos)
    for command in RUN_COMMANDS.values():
        with pytest.raises(InputError, match=r"40 images added, 0 removed, 0 changed.*Give another --output"):
            command(config)


def test_added_images_are_refused_by_teach(load_run, config_tree, photos, tmp_path):
    load_run()
    section = config_tree["teachers"][0] | {"classes": ["digit_0", "digit_5"], "training": {"epochs": 1}}
    del section["checkpoint"], section["name"]
    tree = {
        "name": "one",
        "output": str(tmp_path / "taught"),
        "images": config_tree["images"],
        "teacher": {"name": "one", **section},
        "tracking": {"backend": "none"},
    }
    config = TeachConfig.model_validate(tree)
    for _ in range(2):
        with pytest.raises(Stopped):
            teach.teach(config)
    finish_start(tmp_path / "taught")
    add_images(photos)
    with pytest.raises(InputError, match="40 images added"):
        teach.teach(config)


def test_removed_and_replaced_images_are_refused(load_run, photos, tmp_path):
    config = load_run()
    with pytest.raises(Stopped):
        ka_ray.measure_spectrum(config)
    finish_start(tmp_path / "out")
    (photos / "digit_0/01.png").unlink()
    Image.new("RGB", (9, 9)).save(photos / "digit_0/03.png")
    with pytest.raises(InputError, match=r"0 images added, 1 removed, 1 changed.*60 then, 59 now"):
        ka_ray.measure_spectrum(config)


def test_images_of_a_source_of_their_own_are_refused_under_its_key(load_run, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "a.png")
    config = load_run(f"evaluation.images={{source: folder, path: {other}, labelled: false, size: 8}}")
    training, evaluation = split_images(config)
    folder = tmp_path / "out"
    folder.mkdir()
    check_listings(folder, list_sources(training, evaluation))
    finish_start(folder)
    Image.new("RGB", (8, 8)).save(other / "b.png")
    with pytest.raises(InputError, match=r"evaluation\.images: .*1 image added.*ka-ray evaluate"):
        check_listings(folder, list_sources(*split_images(config)))


@pytest.mark.parametrize("part", ["features", "images", "teachers/images", "tune/images"])
def test_a_folder_of_an_earlier_version_is_judged_by_the_digest_beside_its_features(
    load_run, photos, tmp_path, part
):
    config, folder = load_run(), tmp_path / "out"
    sources = list_sources(*split_images(config))
    create_shard_folder(folder / part)
    write_json(folder / part / "listing.json", {"sha256": sources["images"].source.digest})
    mark_folder_finished(folder / part, {})
    check_listings(folder, sources)
    assert (folder / LISTINGS).exists()  # from now on, changes are counted

    (folder / LISTINGS).unlink()
    add_images(photos)
    with pytest.raises(InputError, match="holds images of another list"):
        check_listings(folder, list_sources(*split_images(config)))


def test_changed_hints_are_refused(load_run, photos, tmp_path):
    hints = tmp_path / "hints"
    hints.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(hints / f"{i}.png")
    config = load_run(f"scores.hints={{low: {hints}, high: {photos / 'digit_5'}}}", "scores.gate=hints")
    with pytest.raises(Stopped):
        ka_ray.amalgamate(config)
    finish_start(tmp_path / "out")
    Image.new("RGB", (8, 8), (9, 0, 0)).save(hints / "9.png")
    with pytest.raises(InputError, match=r"scores\.hints: .*1 image added.*learned from the hints of then"):
        ka_ray.amalgamate(config)


def test_the_list_is_kept_in_an_output_folder_at_a_uri(s3, load_run, photos):
    folder, config = to_path(f"{s3}/out"), load_run()
    check_listings(folder, list_sources(*split_images(config)))
    check_listings(folder, list_sources(*split_images(config)))
    write_text(folder / "stages" / "start.json", "{}")
    add_images(photos, 2)
    with pytest.raises(InputError, match="2 images added"):
        check_listings(folder, list_sources(*split_images(config)))
