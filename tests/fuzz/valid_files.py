"""Folders with valid files of every kind that the product reads, and how each is read."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import ka_ray
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.config import Config, load_images
from ka_ray.features.shard_recovery import recover_shards
from ka_ray.features.store import (
    IMAGES,
    Store,
    create_shard_folder,
    mark_folder_finished,
    write_shard,
)
from ka_ray.gates.gate import Gate
from ka_ray.images import open_source
from ka_ray.images.identity import find_changes, identify
from ka_ray.images.pixel_digests import DIGEST
from ka_ray.images.split import ImageSet, read_sample
from ka_ray.numerics.moments import MomentsMeter
from ka_ray.numerics.named_moments import load_moments, save_moments
from ka_ray.reports.report import Report
from ka_ray.runs.extended_gate import load_finished_gate
from ka_ray.runs.extension import check_extended_teachers
from ka_ray.runs.learned_images import read_learned_digests
from ka_ray.runs.listings import load_listings, save_listings
from ka_ray.runs.output_folder import load_run_id, prepare_output_dir, save_run_id
from ka_ray.stages.inputs import load_stage, save_stage
from ka_ray.stages.kept import CHOICE, KeptStudent
from ka_ray.stages.summaries import SUMMARIES
from ka_ray.storage.files import write_json
from ka_ray.student import Student, load_student, save_student
from ka_ray.student.exported_graph import save_graph
from ka_ray.student.graph_student import load_graph
from ka_ray.teachers.checkpoint import checkpoint_digest, load_checkpoint
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.training.checkpoint import load_training_state, save_training_state

SIZE = {"parameters": 1, "macs": 1, "bytes": 1}
PAIR = {"teacher": 0.5, "student": None}
ACCURACY: dict[str, Any] = {
    **dict.fromkeys(("union", "ensemble", "ensemble_over_views", "agreement", "constant_agreement"), 0.5),
    **{"per_teacher": {"low": PAIR, "high": PAIR}, "images": 4, "labelled": 4},
}
REPORT: dict[str, Any] = {
    **{"name": "run", "classes": ["a", "b"], "method": "start", "rule": "mean", "centered": False},
    **{"overlap": {}, "accuracy": ACCURACY, "start": None, "curve": [], "choice": None, "warnings": []},
    "size": {"student": SIZE, "teachers": SIZE, "per_teacher": {"low": SIZE, "high": SIZE}},
    **{"kept_adapters": {}, "codes": {}, "extension": None, "layers": {}},
    "stages": {"joint": {"seconds": 1.5, "images_per_s": 10.0}},
    **{"ray": {"nodes": 1, "cpus": 2, "gpus": 0}, "placements": [], "unreadable": ["a.png (truncated)"]},
    "mlflow": {"tracking_uri": "sqlite:////tmp/mlflow.db", "run_id": "abc"},
    "gate": {"used": "hints", "gates": {}},
}
EPOCH = {
    **{"stage": "joint", "epoch": 1, "epochs": 1, "step": 2, "steps": 2, "images": 8, "seconds": 1.0},
    "losses": {"loss": 0.5},
}
JOINT = {
    "history": [EPOCH],
    "seconds": 1.0,
    "choice": {"best": "start", "qualities": {}},
}

Read = Callable[[Path], Any]


class Kind:
    """A kind of files: a folder with valid ones, and how the product reads it."""

    def __init__(self, folder: Path, read: Read) -> None:
        self.folder, self.read = folder, read
        folder.mkdir(parents=True)


def make_kinds(
    tmp_path: Path, config_tree: dict[str, Any], make_store: Any, make_spec: Any
) -> dict[str, Kind]:
    """Return each kind of files by its name, in a folder of its own with valid files."""
    made: dict[str, Kind] = {}

    def add(name: str, read: Read) -> Path:
        made[name] = Kind(tmp_path / "valid" / name, read)
        return made[name].folder

    student = Student(make_spec("plain", {"conv1": 3, "conv2": 4}, widths=[3, 4])).eval()
    for name in ("student", "image"):
        save_student(student, add(name, load_student if name == "student" else predict_images))
    write_images(made["image"].folder)
    add_teachers(add)
    add_sources(add)
    add_stages(add, student)
    columns = {
        "image_id": np.arange(8),
        "image": np.zeros((8, 3, 8, 8), np.uint8),
        "conv1": np.ones((8, 6, 4, 4), np.float16),
        "label": np.array(["a", "b"] * 4, dtype=object),
    }
    add("shards", read_store)
    make_store(columns, folder="valid/shards")
    add_finished_run(add, config_tree, student)
    add_listings(add)
    add_graph(add, student)
    return made


def predict_images(folder: Path) -> None:
    ka_ray.predict(folder, sorted(folder.glob("image.*")))


def write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "jp2"):
        Image.fromarray(pixels).save(folder / f"image.{suffix}")


def read_store(folder: Path) -> None:
    store = Store(folder)
    store.gather(store.column_names, np.arange(len(store)))
    recover_shards(folder)


def add_teachers(add: Callable[[str, Read], Path]) -> None:
    network = plain_conv_net(2, (3, 4))
    state = network.state_dict()

    def read(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            load_checkpoint(plain_conv_net(2, (3, 4)), path, 2)

    save_file(state, add("safetensors", read) / "teacher.safetensors")
    folder = add("checkpoint", read)
    torch.save({"state_dict": state, "epoch": 3, "best": 0.5}, folder / "new.pt")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)


def add_sources(add: Callable[[str, Read], Path]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()

    def read(tree: dict[str, Any], name: str) -> Read:
        def read_source(folder: Path) -> None:
            config = load_images({"size": 8, "path": str(folder / name), **tree})
            source = open_source(config)
            read_sample(ImageSet(config, source, np.arange(source.num_images)))

        return read_source

    table = pa.table({"image": [content] * 8, "label": ["a", "b"] * 4, "owner": ["low", None] * 4})
    labels = {"source": "parquet", "label_column": "label", "owner_column": "owner"}
    pq.write_table(table, add("parquet", read(labels, "images.parquet")) / "images.parquet")
    folder = add("list", read({"source": "list", "label_column": "label"}, "list.csv"))
    (folder / "0.png").write_bytes(content)
    (folder / "list.csv").write_text("path,label\n" + "0.png,a\n" * 4, encoding="utf-8")
    folder = add("names", read({"source": "list", "label_column": "label"}, "list.parquet"))
    (folder / "0.png").write_bytes(content)
    pq.write_table(pa.table({"path": ["0.png"] * 4, "label": ["a", "b"] * 2}), folder / "list.parquet")
    folder = add("webdataset", read({"source": "webdataset", "label_key": "cls"}, "images.tar"))
    with tarfile.open(folder / "images.tar", "w") as tar:
        for number in range(3):
            for suffix, data in (("png", content), ("cls", b"cat")):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def add_stages(add: Callable[[str, Read], Path], student: Student) -> None:
    def load_joint(folder: Path) -> None:
        SUMMARIES["joint"].load(folder / "stages/joint.json")
        load_stage(folder, "joint", Student(student.spec))

    save_stage(add("stage", load_joint), "joint", student, JOINT)

    def load_state(folder: Path) -> None:
        load_training_state(folder / "joint.epoch", {"learner": Student(student.spec)})

    save_training_state(add("epoch", load_state) / "joint.epoch", {"learner": student}, 3, [])

    def load_kept(folder: Path) -> None:
        KeptStudent(folder, None).load_best(Student(student.spec))  # type: ignore[arg-type]  # judges none

    kept = add("kept", load_kept) / "stages"
    kept.mkdir()
    quality = {"agreement": 0.5, "divergence": 0.25, "worst_divergence": 0.5, "images": 9}
    choice = json.dumps({"best": "start", "qualities": {"start": quality}})
    save_file(dict(student.state_dict()), kept / "joint_kept.epoch", metadata={CHOICE: choice})
    meter = MomentsMeter(3)
    meter.add(torch.rand(9, 3))
    save_moments(
        {"conv1": meter.total}, add("moments", lambda f: load_moments(f / "m.safetensors")) / "m.safetensors"
    )


def add_listings(add: Callable[[str, Read], Path]) -> None:
    """Add the list of images that an output folder keeps, and pixel digests beside stored images."""
    listed = identify((f"photos/{i}.png", "cat", 100 + i) for i in range(6))

    def read(folder: Path) -> None:
        for listing in load_listings(folder).values():
            find_changes(listing, listed)
        read_learned_digests([folder])

    folder = add("listings", read)
    save_listings(folder, {"images": listed})
    create_shard_folder(folder / IMAGES)
    write_shard(folder / IMAGES, {"image_id": np.arange(6), DIGEST: np.arange(6)})
    mark_folder_finished(folder / IMAGES, {})


def add_graph(add: Callable[[str, Read], Path], student: Student) -> None:
    """Add a student's graph, which is computed instead of a function that is not trusted."""

    def read(folder: Path) -> None:
        graph = load_graph(folder, student.spec)
        if graph is not None:
            graph(torch.zeros(2, *student.spec.view.shape, dtype=torch.uint8))

    folder = add("graph", read)
    save_student(student, folder)
    save_graph(student, folder)


def add_finished_run(add: Callable[[str, Read], Path], tree: dict[str, Any], student: Student) -> None:
    """Add the output folder of a run that another run extends, and that is called again."""
    tree = tree | {"codes": {"method": "incremental", "solver": "sgd"}, "tracking": {"backend": "none"}}
    third = {**tree["teachers"][0], "name": "third", "classes": [f"more_{i}" for i in range(5)]}

    def read(folder: Path) -> None:
        report = Report.load(folder)
        report.to_markdown()
        load_run_id(folder)
        prepare_output_dir(Config.load(folder.parent / "run.yaml", [f"output={folder}"]))
        extending = Config.model_validate(
            tree | {"teachers": [*tree["teachers"], third], "extend": str(folder)}
        )
        check_extended_teachers(extending)
        label_sets = LabelSets({teacher.name: teacher.classes for teacher in extending.teachers})
        load_finished_gate(extending, SimpleNamespace(label_sets=label_sets))  # type: ignore[arg-type]

    folder = add("run", read)
    (folder.parent / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = Config.load(folder.parent / "run.yaml", [f"output={folder}"])
    prepare_output_dir(config)
    Report.model_validate(REPORT).save(folder)
    save_run_id(folder, "0123")
    digests = {teacher.name: checkpoint_digest(teacher.checkpoint) for teacher in config.teachers}  # type: ignore[arg-type]
    codes = {"taps": {}, "shapes": {}, "links": {"reused": 0, "trained": 1, "seconds": [1.0]}}
    (folder / "stages").mkdir()
    write_json(folder / "stages/codes.json", {**codes, "history": [], "seconds": 1.0, "teachers": digests})
    gate = Gate.of_scores(LabelSets({teacher.name: teacher.classes for teacher in config.teachers}))
    (folder / "gates/hints").mkdir(parents=True)
    write_json(folder / "gates/hints/gate.json", gate.describe())
    save_file(gate.to_state(), folder / "gates/hints/gate.safetensors")
