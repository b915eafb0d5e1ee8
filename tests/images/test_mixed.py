"""Mixed sources have the images of their parts, one part after another, with new ids."""

import io
import json
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ka_ray.config import MixedImages, flatten
from ka_ray.config.load import load_images
from ka_ray.errors import InputError
from ka_ray.images import digits, listed_files, open_source, read_chunk, sample_ids
from ka_ray.images.split import split_images

SIZE = 6
DIGITS = {"source": "digits", "split": "test"}
NUM_DIGITS = 359
COLUMNS = ("image_id", "image", "label")


def make_png(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def part_configs(tmp_path, monkeypatch) -> dict[str, dict[str, Any]]:
    """The config of a part of every type, each with several chunks: 359 digits, 7 files, 5 rows."""
    monkeypatch.setattr(digits, "CHUNK_IMAGES", 100)
    monkeypatch.setattr(listed_files, "CHUNK_IMAGES", 3)
    rng = np.random.default_rng(0)
    for i, label in enumerate(["cat", "dog", "digit_3", "cat", "dog", "dog", "cat"]):
        path = tmp_path / "photos" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_png(rng))
    table = pa.table({"image": [make_png(rng) for _ in range(5)], "label": [1, 0, 1, 2, 0]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    return {
        "digits": DIGITS,
        "folder": {"source": "folder", "path": str(tmp_path / "photos")},
        "parquet": {
            "source": "parquet",
            "path": str(tmp_path / "rows.parquet"),
            "label_column": "label",
            "classes": ["bird", "cat", "fish"],
        },
    }


def make_mixture(*parts: dict[str, Any], **keys: Any) -> MixedImages:
    config = load_images({"source": "mixed", "size": SIZE, "parts": list(parts), **keys})
    assert isinstance(config, MixedImages)
    return config


def read(config: Any, ids: np.ndarray | None = None, only=None, unreadable=None) -> dict[str, np.ndarray]:
    """Read all chunks, each pickled as for a worker, into one set of columns."""
    source = open_source(config)
    ids = np.arange(source.num_images) if ids is None else np.asarray(ids)

    def on_unreadable(image_id: int, name: str) -> None:
        assert unreadable is not None, name
        unreadable.append((image_id, name))

    batches = []
    for chunk in source.chunks:
        reader, chunk = pickle.loads(pickle.dumps((source.read, chunk)))
        batches += read_chunk(config, reader, chunk, ids, only, on_unreadable)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in COLUMNS}


def expected_mixture(config: MixedImages) -> dict[str, np.ndarray]:
    """Read every part by itself, select the rows of its limit, and put the parts one after another."""
    parts = []
    for part in config.parts:
        columns = read(part)
        rows = sample_ids(len(columns["label"]), part.limit, seed=0)
        parts.append({name: column[rows] for name, column in columns.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    return whole | {"image_id": np.arange(len(whole["label"]))}


def assert_same(columns: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(columns[name], expected[name])


LIMITS = [
    {},
    {"digits": 3, "folder": 2, "parquet": 1},
    {"digits": 150, "parquet": 3},
    {"digits": 9999, "folder": 7, "parquet": 5},
]


@pytest.fixture(params=LIMITS, ids=str)
def mixture(request, part_configs) -> MixedImages:
    return make_mixture(*({**part, "limit": request.param.get(name)} for name, part in part_configs.items()))


class TestMixture:
    """Requirements for every mixture, with and without limits of its parts."""

    def test_images_are_those_of_the_parts_in_order(self, mixture):
        assert_same(read(mixture), expected_mixture(mixture))

    def test_chunks_have_no_gaps_and_none_is_empty(self, mixture):
        source = open_source(mixture)
        counts = [chunk.num_images for chunk in source.chunks]
        assert min(counts) > 0
        assert [chunk.first_id for chunk in source.chunks] == [0, *np.cumsum(counts)[:-1]]
        assert source.num_images == len(expected_mixture(mixture)["label"])

    def test_wanted_ids_select_rows_of_the_whole(self, mixture):
        whole = expected_mixture(mixture)
        ids = sample_ids(len(whole["label"]), len(whole["label"]) // 2, seed=5)
        assert_same(read(mixture, ids), {name: column[ids] for name, column in whole.items()})

    def test_the_first_and_last_id_of_every_chunk_can_be_read(self, mixture):
        whole = expected_mixture(mixture)
        for chunk in open_source(mixture).chunks:
            for image_id in {chunk.first_id, chunk.first_id + chunk.num_images - 1}:
                selected = read(mixture, [image_id])
                assert_same(selected, {name: column[[image_id]] for name, column in whole.items()})

    def test_only_classes_selects_by_label(self, mixture):
        whole = expected_mixture(mixture)
        label = whole["label"][-1]
        selected = read(mixture, only=frozenset([label]))
        np.testing.assert_array_equal(selected["image_id"], np.flatnonzero(whole["label"] == label))


def test_all_parts_have_the_size_and_resize_of_the_mixture(part_configs):
    config = make_mixture(*part_configs.values(), size=12, resize="crop", max_unreadable=2)
    assert {(p.size, p.resize, p.max_unreadable) for p in config.parts} == {(12, "crop", 2)}
    assert read(config)["image"].shape == (NUM_DIGITS + 7 + 5, 3, 12, 12)


def test_the_same_source_twice_is_two_parts(part_configs):
    config = make_mixture(part_configs["folder"], {**part_configs["folder"], "limit": 2})
    assert open_source(config).num_images == 9
    assert_same(read(config), expected_mixture(config))


def test_a_label_that_two_parts_share_is_one_class(part_configs):
    config = make_mixture(part_configs["folder"], part_configs["parquet"], part_configs["digits"])
    others = tuple(f"digit_{i}" for i in range(10) if i != 3)
    assert open_source(config).class_names == ("cat", "digit_3", "dog", "bird", "fish", *others)
    assert np.sum(read(config)["label"] == "cat") == 3 + 2


@pytest.mark.parametrize(
    ("name", "unlabelled"), [("folder", {"labelled": False}), ("parquet", {"label_column": None})]
)
def test_class_names_are_unknown_if_one_part_is_unlabelled(part_configs, name, unlabelled):
    config = make_mixture(part_configs["digits"], {**part_configs[name], **unlabelled})
    assert open_source(config).class_names is None
    assert set(read(config)["label"][NUM_DIGITS:]) == {""}


def test_an_unreadable_file_of_a_part_is_reported_with_its_id_in_the_mixture(part_configs, tmp_path):
    bad = tmp_path / "photos" / "dog" / "4.png"  # the sixth file: cat 0 3 6, digit_3 2, dog 1 4 5
    bad.write_bytes(b"no image")
    unreadable: list[tuple[int, str]] = []
    config = make_mixture(*(part_configs[name] for name in ("digits", "folder", "parquet")))
    columns = read(config, unreadable=unreadable)
    assert unreadable == [(NUM_DIGITS + 5, f"{bad} (not an image file)")]
    assert NUM_DIGITS + 5 not in columns["image_id"]
    assert len(columns["image_id"]) == NUM_DIGITS + 7 + 5 - 1


def test_errors_of_a_part_name_the_part(part_configs, tmp_path):
    with pytest.raises(InputError, match=r"^images\.parts\.1: images\.label_column: .*no column 'kind'"):
        open_source(make_mixture(DIGITS, {**part_configs["parquet"], "label_column": "kind"}))
    with pytest.raises(InputError, match=r"^images\.parts\.1: images\.classes: label 2 found"):
        read(make_mixture(DIGITS, {**part_configs["parquet"], "classes": ["bird", "cat"]}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^images\.parts\.0: images\.path .*empty: no image files"):
        open_source(make_mixture({"source": "folder", "path": str(tmp_path / "empty")}, DIGITS))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "one part": ({"parts": [DIGITS]}, "parts: at least two sources are needed to mix, there are 1"),
    "mixed in mixed": (
        {"parts": [DIGITS, {"source": "mixed", "parts": [DIGITS, DIGITS]}]},
        "parts.1.source: must be one of ",
    ),
    "unknown source": ({"parts": [{"source": "webcam"}, DIGITS]}, "parts.0.source: must be one of "),
    "a part that is not a section": ({"parts": [DIGITS, 3]}, "parts.1: "),
    "a part with another size": (
        {"parts": [DIGITS, {**DIGITS, "size": 9}]},
        "parts.1: size = 9 differs from 6, the mixture's; set size only on the mixture",
    ),
    "a part with another resize": (
        {"parts": [{**DIGITS, "resize": "squash"}, DIGITS]},
        "parts.0: resize = squash differs",
    ),
    "missing path": ({"parts": [DIGITS, {"source": "folder"}]}, "parts.1.path: Field required"),
    "a path that does not exist": (
        {"parts": [DIGITS, {"source": "folder", "path": "/nowhere"}]},
        "parts.1.path: /nowhere does not exist",
    ),
    "unknown key": ({"parts": [{**DIGITS, "colour": 3}, DIGITS]}, "parts.0.colour: unknown key"),
    "limit of zero": ({"parts": [{**DIGITS, "limit": 0}, DIGITS]}, "parts.0.limit: "),
    "size that is too small": ({"size": 2, "parts": [DIGITS, {"source": "folder", "path": "/"}]}, "size: "),
    "size that is null": ({"size": None, "parts": [DIGITS, {**DIGITS, "size": 9}]}, "size: "),
}


@pytest.mark.parametrize(("keys", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_config_mistake_is_one_message_that_names_its_key(keys, message):
    tree = {"source": "mixed", "size": SIZE, **keys}
    with pytest.raises(InputError, match="1 problem") as caught:
        load_images(tree)
    assert f"\n  {message}" in str(caught.value)


def test_a_mistake_in_a_run_config_is_named_by_its_full_key(config_tree, load_config):
    config_tree["images"] = {"source": "mixed", "size": 8, "parts": [DIGITS, dict(DIGITS)]}
    with pytest.raises(InputError, match=r"images\.parts\.1\.split: .*'dev'"):
        load_config("images.parts.1.split=dev")
    assert load_config("images.parts.1.limit=5").images.parts[1].limit == 5


def test_a_validated_source_can_be_a_part(part_configs):
    part = load_images({**part_configs["folder"], "size": SIZE, "limit": 3})
    config = MixedImages(source="mixed", size=SIZE, parts=(load_images(DIGITS), part))
    assert config == make_mixture(DIGITS, {**part_configs["folder"], "limit": 3})


def test_a_dumped_config_loads_again(mixture):
    dumped = mixture.model_dump(mode="json")
    assert load_images(dumped) == mixture
    flat = [f"{key}={json.dumps(value)}" for key, value in flatten(mixture).items()]
    assert load_images({"parts": [{}, {}, {}]}, flat) == mixture


def test_a_run_on_a_mixture_is_split_by_its_limit_and_seed(config_tree, load_config, part_configs):
    config_tree["images"] = {"source": "mixed", "size": 8, "limit": 50, "parts": list(part_configs.values())}
    config_tree["evaluation"] = {"holdout": 0.2}
    training_images, held_out_images = split_images(load_config())
    assert (len(training_images.ids), len(held_out_images.ids)) == (40, 10)
    ids = np.sort(np.concatenate([training_images.ids, held_out_images.ids]))
    np.testing.assert_array_equal(ids, sample_ids(NUM_DIGITS + 7 + 5, 50, seed=0))
    whole = expected_mixture(training_images.config)
    for part in (training_images, held_out_images):
        assert_same(read(part.config, part.ids), {name: column[part.ids] for name, column in whole.items()})
    assert split_images(load_config("seed=1"))[0].ids.tolist() != training_images.ids.tolist()
