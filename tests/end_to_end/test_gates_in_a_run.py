"""Test that a run learns gates from owners and hints, and that the student learns from the gated scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import ka_ray
from ka_ray.config import DigitsImages
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES, Store
from ka_ray.images import open_source, read_chunk
from ka_ray.runs.gate_samples import HINTS
from ka_ray.storage.files import read_json
from ka_ray.student import load_student
from ka_ray.teachers import load_teacher
from ka_ray.training.batches import count_held_out

pytestmark = pytest.mark.ray

LOW = [f"digit_{i}" for i in range(5)]
HIGH = [f"digit_{i}" for i in range(5, 10)]


def write_digits(folder):
    """Save the training images of the digits as files: hints, images of known owner, and others.

    Images of nobody are negatives of some of them; the owner of half of these is known.
    """
    config = DigitsImages(source="digits", split="train")
    source = open_source(config)
    for chunk in source.chunks:
        ids = np.arange(source.num_images)
        for part in read_chunk(config, source.read, chunk, ids, None, lambda *_: None):
            for image_id, pixels, label in zip(part["image_id"], part["image"], part["label"], strict=True):
                owner = "low" if label in LOW else "high"
                name = (
                    f"hints/{owner}" if image_id % 12 == 0 else f"known/{owner}" if image_id % 3 else "mixed"
                )
                (folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.moveaxis(pixels, 0, -1)).save(folder / name / f"{image_id}.png")
                if image_id % 6 == 1:
                    name = "known/nobody" if image_id % 12 == 1 else "mixed"
                    (folder / name).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(255 - np.moveaxis(pixels, 0, -1)).save(folder / name / f"n{image_id}.png")
    return folder


def describe_run(folder, **scores):
    def part(name, **keys):
        return {"source": "folder", "path": str(folder / name), "labelled": False, **keys}

    parts = [part(f"known/{owner}", owner=owner) for owner in ("low", "high", "nobody")]
    parts.append(part("mixed"))
    teacher = {
        "network": "plain",
        "arguments": {"widths": [8, 16]},
        "preprocessing": {"mean": [0.3] * 3, "std": [0.35] * 3},
    }
    return {
        "name": "gates",
        "output": str(folder / "run"),
        "images": {"source": "mixed", "size": 8, "parts": parts},
        "evaluation": {"images": {"source": "digits", "split": "test", "size": 8}},
        "teachers": [
            teacher | {"name": "low", "classes": LOW, "checkpoint": str(folder / "low.safetensors")},
            teacher | {"name": "high", "classes": HIGH, "checkpoint": str(folder / "high.safetensors")},
        ],
        "joint": {"epochs": 1},
        "scores": scores,
        "ray": {"workers": 0},
        "tracking": {"backend": "none"},
    }


def train(folder, networks=(("low", LOW), ("high", HIGH))):
    """Train a small network on some classes of the digits each, by a plain loop."""
    from safetensors.torch import save_file

    from ka_ray.teachers.plain import plain_conv_net

    config = DigitsImages(source="digits", split="train")
    source = open_source(config)
    ids = np.arange(source.num_images)
    read = [p for c in source.chunks for p in read_chunk(config, source.read, c, ids, None, lambda *_: None)]
    pixels = torch.from_numpy(np.concatenate([part["image"] for part in read])).float() / 255
    labels = np.concatenate([part["label"] for part in read])
    for name, classes in networks:
        own = np.isin(labels, classes)
        inputs = (pixels[own] - 0.3) / 0.35
        targets = torch.tensor([classes.index(label) for label in labels[own]])
        network = plain_conv_net(len(classes), widths=(8, 16))
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        save_file(network.state_dict(), folder / f"{name}.safetensors")


def read_gated_scores(folder, store):
    """Compute p(owner), p(nobody) and the gated scores in float64, from the gate's tensors, where unknown."""
    gate = {name: t.double() for name, t in load_file(folder / "gates/hints/gate.safetensors").items()}
    columns = store.gather(["scores", "embedding", "owner"], np.arange(len(store)))
    scores, features = (torch.from_numpy(columns[name]).double() for name in ("scores", "embedding"))
    logits = (
        torch.cat([scores, torch.zeros(len(scores), 1)], 1) * gate["score_scale"]
        + (features - gate["mean"]) * gate["scale"] @ gate["weight"]
        + gate["bias"]
    )
    pooled = torch.stack([logits[:, :5].logsumexp(1), logits[:, 5:10].logsumexp(1), logits[:, 10]], 1)
    owners, nobody = pooled[:, :2].log_softmax(1), pooled.softmax(1)[:, 2].numpy()
    nobody[columns["owner"] != ""] = (columns["owner"] == "nobody")[columns["owner"] != ""]
    for teacher, name in enumerate(("low", "high")):
        known = torch.from_numpy(columns["owner"] == name)
        owners[known] = torch.tensor([0.001, 0.001], dtype=torch.float64).log()
        owners[known, teacher] = np.log(0.999)
    own = [part.log_softmax(1) + owners[:, [t]] for t, part in enumerate(scores.split(5, dim=1))]
    return owners, nobody, torch.cat(own, 1)


def test_a_gate_is_learned_from_known_owners_and_hints(tmp_path):
    write_digits(tmp_path)
    train(tmp_path)
    hints = {name: str(tmp_path / "hints" / name) for name in ("low", "high")}
    report = ka_ray.amalgamate(ka_ray.Config.model_validate(describe_run(tmp_path, hints=hints)))
    assert report.gate is not None
    assert report.gate.used == "hints"
    found, run = report.gate.gates["hints"], tmp_path / "run"
    counts = {name: len([*tmp_path.glob(f"*/{name}/*.png")]) for name in ("low", "high", "nobody")}
    assert found.hints == counts
    assert found.check is not None
    assert found.check.owner_accuracy > found.check.ungated_owner_accuracy
    # The hints taught the gate alone: the student did not learn from them.
    files = {name: sum(1 for _ in (tmp_path / name).rglob("*.png")) for name in ("hints", "known", "mixed")}
    assert len(Store(run / HINTS)) == files["hints"]
    assert len(Store(run / IMAGES)) == files["known"] + files["mixed"]

    store = Store(run / IMAGES)
    owners, nobody, gated = read_gated_scores(run, store)
    stored = Store(run / "gates/hints/owners").gather(["owners", "p_nobody"], np.arange(len(store)))
    np.testing.assert_allclose(stored["owners"], owners.numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(stored["p_nobody"], nobody, rtol=1e-3, atol=1e-3)
    # The student did not learn from nobody's images: half of the negatives are told, others are found.
    kept = nobody <= 0.5
    negatives = sum(1 for _ in tmp_path.rglob("n*.png"))
    assert counts["nobody"] < 0.9 * negatives < (~kept).sum() < 1.1 * negatives
    assert found.left_out == pytest.approx((~kept).mean())
    (epoch,) = read_json(run / "stages/joint.json")["history"]
    batch_size = ka_ray.Config.model_validate(read_json(run / "config.json")).joint.batch_size
    assert epoch["images"] == (kept.sum() - count_held_out(kept.sum())) // batch_size * batch_size
    # The student follows the gated ensemble more closely than the ensemble without a gate.
    student = load_student(run)
    pixels = torch.from_numpy(store.gather(["image"], np.arange(len(store)))["image"])
    with torch.no_grad():
        predicted = student(pixels).argmax(1)[kept]
    scores = torch.from_numpy(store.gather(["scores"], np.arange(len(store)))["scores"])
    ungated = scores[kept].float().argmax(1)
    agreement = [(predicted == other).double().mean().item() for other in (gated[kept].argmax(1), ungated)]
    assert agreement[0] > agreement[1]
    text = (run / "report.md").read_text()
    assert "which belong to nobody" in text
    assert "## Whose image is it?" in text


def embed(folder, name, num_classes, size, pixels):
    """Compute embeddings by a plain loop: Pillow, then the network without its last layer."""
    from ka_ray.teachers.plain import plain_conv_net

    network = plain_conv_net(num_classes, widths=(8, 16)).eval()
    network.load_state_dict(load_file(folder / f"{name}.safetensors"))
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    assert "." not in last
    setattr(network, last, nn.Identity())
    rows = []
    for image in pixels:
        resized = Image.fromarray(np.moveaxis(image, 0, -1)).resize((size, size), Image.Resampling.BICUBIC)
        one = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            rows.append(network((one[None] - 0.3) / 0.35)[0].numpy())
    return np.stack(rows)


def read_test_digits():
    config = DigitsImages(source="digits", split="test", size=8)
    source = open_source(config)
    ids = np.arange(source.num_images)
    read = [p for c in source.chunks for p in read_chunk(config, source.read, c, ids, None, lambda *_: None)]
    return [np.concatenate([part[column] for part in read]) for column in ("image", "label")]


@pytest.mark.slow
def test_a_descriptive_network_joins_the_gate(tmp_path):
    write_digits(tmp_path)
    train(tmp_path, (("low", LOW), ("high", HIGH), ("describes", LOW + HIGH)))
    descriptive = {
        "network": "plain",
        "arguments": {"widths": [8, 16]},
        "checkpoint": str(tmp_path / "describes.safetensors"),
        "preprocessing": {
            "size": 12,
            "resize": "squash",
            "interpolation": "bicubic",
            "mean": [0.3] * 3,
            "std": [0.35] * 3,
        },
    }
    tree = describe_run(tmp_path, gate="self", descriptive=descriptive)
    tree |= {"student": {"start": "average"}, "joint": {"epochs": 0}}
    report = ka_ray.amalgamate(ka_ray.Config.model_validate(tree))
    run = tmp_path / "run"
    store = Store(run / IMAGES)
    stored = store.gather(["image", "scores", "embedding"], np.arange(len(store)))
    assert stored["image"].shape[1:] == (3, 8, 8)  # the pixels of its view are not stored
    assert set(store.column_names).isdisjoint({"image@1", "embedding@descriptive"})
    sources = (("low", 5, 8), ("high", 5, 8), ("describes", 10, 12))
    expected = np.concatenate([embed(tmp_path, *source, stored["image"]) for source in sources], axis=1)
    np.testing.assert_allclose(stored["embedding"], expected, rtol=2e-3, atol=2e-3)

    # The evaluation computes the same from images that are not stored: here in float64 from the saved gate.
    gate = {name: t.double().numpy() for name, t in load_file(run / "gates/self/gate.safetensors").items()}
    pixels, labels = read_test_digits()
    scores = []
    for name in ("low", "high"):
        teacher = [t for t in ka_ray.Config.model_validate(tree).teachers if t.name == name]
        scores.append(load_teacher(teacher[0]).scores(torch.from_numpy(pixels)).double().numpy())
    features = np.concatenate([embed(tmp_path, *source, pixels) for source in sources], axis=1)
    features = features.astype(np.float16).astype(np.float64)
    logits = np.concatenate(scores, 1) * gate["score_scale"] + gate["bias"]
    logits += (features - gate["mean"]) * gate["scale"] @ gate["weight"]
    energies = np.stack([np.log(np.exp(part).sum(1)) for part in np.split(logits, 2, axis=1)], 1)
    own = [part - np.log(np.exp(part).sum(1, keepdims=True)) for part in scores]
    gated = np.concatenate([energies[:, [t]] + own[t] for t in range(2)], 1).argmax(1)
    right = np.array(LOW + HIGH)[gated] == labels
    assert report.accuracy.gate is not None
    assert report.accuracy.gate.ensemble == pytest.approx(right.mean(), abs=1.5 / len(labels))
    actors = {placement.teacher for placement in report.placements}
    assert actors == {"low", "high", "descriptive"}

    # What is stored came from these weights: a run with others is refused.
    train(tmp_path, (("describes", LOW + HIGH),))
    with pytest.raises(InputError, match=r"scores\.descriptive\.checkpoint: the file has changed"):
        ka_ray.amalgamate(ka_ray.Config.model_validate(tree))
