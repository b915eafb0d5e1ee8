"""Each network of a run gets the pixels of its own transform, through every door that images come in by."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
import yaml
from PIL import Image
from safetensors.torch import save_file

import ka_ray
from ka_ray.config import FolderImages
from ka_ray.features.store import FEATURES, Store
from ka_ray.images import open_source
from ka_ray.images.split import split_images
from ka_ray.teachers.plain import plain_conv_net

pytestmark = pytest.mark.ray

CLASSES = {"fine": ("cat", "dog"), "coarse": ("gull", "wren")}

TRANSFORMS = {
    "fine": tv.Compose(
        [
            tv.Resize(20, tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(16),
            tv.ToTensor(),
            tv.Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        ]
    ),
    # BGR, of pixels in 0 ... 255.
    "coarse": tv.Compose(
        [
            tv.Resize((12, 12)),
            tv.PILToTensor(),
            tv.Lambda(lambda pixels: pixels.flip(0).float() - 120),
        ]
    ),
}
PREPROCESSING = {
    "fine": {
        "resize": "shorter",
        "size": 20,
        "crop": 16,
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
    },
    "coarse": {
        "resize": "squash",
        "size": 12,
        "channel_order": "bgr",
        "rescale": 1,
        "mean": [120, 120, 120],
        "std": [1, 1, 1],
    },
}


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        name = [*CLASSES["fine"], *CLASSES["coarse"]][number % 4]
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(13, 60, 2)
        coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((int(width), int(height))).save(folder / name / f"{number}.png")


def apply_transform(name: str, paths: list[str]) -> torch.Tensor:
    """The plain loop: what the network's own pipeline would give it."""
    return torch.stack([TRANSFORMS[name](Image.open(path).convert("RGB")) for path in paths])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its folder, config, report and the teachers' networks."""
    folder, teachers, networks = tmp_path_factory.mktemp("own_pixels"), [], {}
    write_photos(folder / "photos")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        torch.manual_seed(seed)
        networks[name] = plain_conv_net(2, widths=(4, 6)).eval()
        save_file(networks[name].state_dict(), folder / f"{name}.safetensors")
        teachers.append(
            {
                "name": name,
                "network": "plain",
                "arguments": {"widths": [4, 6]},
                "classes": list(classes),
                "checkpoint": str(folder / f"{name}.safetensors"),
                "preprocessing": PREPROCESSING[name],
            }
        )
    quick = {"epochs": 1, "batch_size": 8}
    tree = {
        "name": "own_pixels",
        "output": str(folder / "run"),
        "images": {"source": "folder", "path": str(folder / "photos"), "size": 8},
        "teachers": teachers,
        "codes": quick,
        "layers": quick,
        # The teachers score flipped images while the student learns, each of its own view.
        "joint": quick | {"augment": {"flip": True}},
        "evaluation": {"holdout": 0.25},
        "ray": {"workers": 0},
        "tracking": {"backend": "none"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config = ka_ray.Config.load(folder / "run.yaml")
    return folder, config, ka_ray.amalgamate(config), networks


def paths_of(config, ids) -> list[str]:
    listed = [path for chunk in open_source(config.images).chunks for path, _ in chunk.payload]
    return [listed[i] for i in ids]


def test_the_teachers_scores_equal_a_plain_loop_with_their_own_transforms(run):
    folder, config, _, networks = run
    store = Store(folder / "run" / FEATURES)
    columns = store.gather(["image", "image@1", "scores"], np.arange(len(store)))
    paths = paths_of(config, store.image_ids)
    with torch.inference_mode():
        expected = [network(apply_transform(name, paths)) for name, network in networks.items()]
    np.testing.assert_allclose(columns["scores"], torch.cat(expected, dim=1), rtol=2e-3, atol=2e-3)
    for column, steps in {
        "image": TRANSFORMS["fine"].transforms[:2],
        "image@1": [tv.Resize((12, 12))],
    }.items():
        pixels = tv.Compose([*steps, tv.PILToTensor()])
        own = torch.stack([pixels(Image.open(path).convert("RGB")) for path in paths])
        np.testing.assert_array_equal(columns[column], own)


def test_the_teachers_accuracies_equal_those_of_a_plain_loop(run):
    _, config, report, networks = run
    held_out = split_images(config)[1]
    for name, network in networks.items():
        paths = [p for p in paths_of(config, held_out.ids) if Path(p).parent.name in CLASSES[name]]
        with torch.inference_mode():
            best = network(apply_transform(name, paths)).argmax(dim=1)
        right = [CLASSES[name][i] == Path(path).parent.name for i, path in zip(best, paths, strict=True)]
        assert report.accuracy.per_teacher[name].teacher == pytest.approx(np.mean(right))


def score_plainly(folder: Path, paths: list[str]) -> torch.Tensor:
    """Score images by the student's stages, with the transform of the first teacher, which it takes over."""
    student = ka_ray.load_student(folder / "run")
    features = apply_transform("fine", paths)
    with torch.inference_mode():
        for stage in student.stages.values():
            features = stage(features)
    return features


def test_predict_evaluate_and_the_report_see_the_pixels_of_the_students_transform(run):
    folder, config, report, _ = run
    paths = sorted(map(str, (folder / "photos").glob("*/*.png")))
    scores = score_plainly(folder, paths)
    names = [*CLASSES["fine"], *CLASSES["coarse"]]
    predictions = ka_ray.predict(folder / "run", paths)
    assert [prediction.class_name for prediction in predictions] == [names[i] for i in scores.argmax(dim=1)]
    probabilities = scores.softmax(dim=1).amax(dim=1).tolist()
    assert [prediction.probability for prediction in predictions] == pytest.approx(probabilities, abs=1e-5)

    right = {
        path: names[i] == Path(path).parent.name for i, path in zip(scores.argmax(1), paths, strict=True)
    }
    images = FolderImages(source="folder", path=folder / "photos", size=8)
    assert ka_ray.evaluate(folder / "run", images).union == pytest.approx(np.mean(list(right.values())))
    held_out = paths_of(config, split_images(config)[1].ids)
    assert report.accuracy.union == pytest.approx(np.mean([right[path] for path in held_out]))
