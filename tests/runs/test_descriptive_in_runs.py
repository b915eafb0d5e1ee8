"""Test how a run plans, uses and recognises a network that is nobody's teacher; without Ray."""

import pickle
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Resources
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation, Evaluator
from ka_ray.distributed.resource_plan import plan_resources
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.runs import descriptive
from ka_ray.runs.evaluation import evaluate_students
from ka_ray.runs.gate_samples import Embedding, find_embeddings, open_stored, read_sample
from ka_ray.runs.gates import Gates, learn_gates
from ka_ray.runs.setup import plan_run
from ka_ray.runs.teachers import teach_missing
from ka_ray.runs.timeline import Timeline
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.workflows.tune import search_widths

PIXELS = {"size": 12, "resize": "squash", "mean": [0.3] * 3, "std": [0.35] * 3}
WIDTHS = {"low": 6, "high": 4, "descriptive": 5}
EMBEDDINGS = {source: Embedding("fc", width) for source, width in WIDTHS.items()}


@pytest.fixture
def load_described(load_config, config_tree, tmp_path):
    """Return a function that loads the config of a run with a descriptive network of 3 classes."""

    def load(*overrides):
        checkpoint = tmp_path / "describes.safetensors"
        if not checkpoint.exists():
            save_file(plain_conv_net(3, (4, 5)).state_dict(), checkpoint)
        config_tree["scores"] = {
            "descriptive": {
                "network": "plain",
                "arguments": {"widths": [4, 5]},
                "checkpoint": str(checkpoint),
                "preprocessing": PIXELS,
            }
        }
        return load_config("images.limit=60", *overrides)

    return load


def test_a_run_that_learns_a_gate_plans_the_network_with_a_view_of_its_own(load_described):
    planned = plan_run(load_described("scores.gate=self", "joint.batch_size=8"), students=[()])
    view = planned.plan.views.descriptive
    assert (view.resize, view.crop) == ("squash", 12)
    assert planned.training_images.views["image@1"] == view
    assert planned.plan.views.read_columns == {"low": "image", "high": "image", "descriptive": "image@1"}
    [shown] = [note for note in planned.notes if "a gate sees" in note]
    assert shown.startswith("scores.descriptive: plain: a gate sees the input of its layer")
    assert shown.endswith(", 5 numbers per image")
    run = SimpleNamespace(config=planned.config, plan=planned.plan, notify=None)
    found = find_embeddings(run, planned.students)
    assert {source: embedding.channels for source, embedding in found.items()} == {
        "low": 6,
        "high": 6,
        "descriptive": 5,
    }


@pytest.mark.parametrize("overrides", [["scores.gate=none"], ["scores.gate=auto"]])
def test_without_a_learned_gate_it_is_not_loaded_and_that_is_said(load_described, tmp_path, overrides):
    config = load_described("joint.batch_size=8", *overrides)
    (tmp_path / "describes.safetensors").write_bytes(b"no checkpoint")
    planned = plan_run(config, students=[()])
    assert planned.plan.views.descriptive is None
    assert planned.config.scores.descriptive is None
    assert "scores.descriptive: is not loaded, because no gate is learned (hints or self)" in planned.notes


def test_one_variant_of_a_comparison_that_learns_a_gate_is_enough(load_described):
    config = load_described("scores.gate=none", "joint.batch_size=8")
    planned = plan_run(config, students=[["scores.gate=none"], ["scores.gate=self"]])
    assert planned.plan.views.descriptive is not None
    assert planned.students[1].scores.descriptive == planned.config.scores.descriptive


def test_embeddings_that_say_nothing_are_refused_before_anything_starts(load_described, tmp_path):
    config = load_described("scores.gate=self", "joint.batch_size=8")
    dead = {name: torch.zeros_like(value) for name, value in plain_conv_net(3, (4, 5)).state_dict().items()}
    save_file(dead, tmp_path / "describes.safetensors")
    with pytest.raises(InputError, match=r"scores\.descriptive: gives the same embedding for all of"):
        plan_run(config, students=[()])


def test_a_search_refuses_what_it_does_not_use(load_described):
    with pytest.raises(InputError, match=r"scores\.descriptive: a search learns no gate"):
        search_widths(load_described())


def test_its_actors_are_counted_among_those_that_must_fit(load_described, load_config):
    cluster = Cluster((Host("here", {"CPU": 2.5}),))
    assert plan_resources(load_config("placement.teachers.cpu=0.8"), cluster)
    with pytest.raises(InputError, match=r"3 networks \(teachers and scores.descriptive\) x 1 actors"):
        plan_resources(load_described("placement.teachers.cpu=0.8"), cluster)


@dataclass
class StartedRun:
    config: Any
    folder: Any
    plan: Any = None
    training_images: Any = None


def test_a_checkpoint_that_has_changed_is_refused(load_described, tmp_path):
    run = StartedRun(load_described("scores.gate=self"), tmp_path / "out")
    run.folder.mkdir()
    teach_missing(run)
    teach_missing(run)
    save_file(plain_conv_net(3, (4, 5)).state_dict(), tmp_path / "describes.safetensors")
    with pytest.raises(InputError, match=r"scores\.descriptive\.checkpoint: the file has changed since"):
        teach_missing(run)


def store_images(folder, *, loudness):
    """Store images whose owners only the descriptive network's features tell well."""
    rng, count = np.random.default_rng(0), 400
    is_high = np.arange(count) % 2
    features = rng.normal(size=(count, 15))
    features[:, 10] += 3 * is_high
    scores = rng.normal(size=(count, 10))
    scores[:, 5:] += loudness * is_high[:, None]
    scores[:, :5] += loudness * (1 - is_high[:, None])
    columns = {
        "image_id": np.arange(count),
        "scores": scores.astype(np.float16),
        "embedding": features.astype(np.float16),
        "owner": np.array(["high" if high else "low" for high in is_high], dtype=object),
    }
    create_shard_folder(folder)
    write_shard(folder, columns)
    mark_folder_finished(folder, {})


@pytest.fixture
def gated_run(load_described, tmp_path):
    """A run with stored images."""
    store_images(tmp_path / "out" / IMAGES, loudness=1.5)

    def make(gate):
        hints = f"scores.hints={{high: {tmp_path}}}"
        config = load_described(f"scores.gate={gate}", "images.owner=low", hints)
        label_sets = LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
        plan = SimpleNamespace(label_sets=label_sets)
        folder, notify = tmp_path / "out", lambda *_: None
        return SimpleNamespace(config=config, folder=folder, plan=plan, notify=notify, timeline=Timeline())

    return make


def test_gates_see_all_sources(gated_run):
    run = gated_run("hints")
    hints = learn_gates(run, [run.config], EMBEDDINGS).by_name["hints"]
    assert hints.scaling.sources == ("low", "high", "descriptive")
    strength = hints.weight.abs().mean(dim=1)
    assert strength[10] > 2 * strength[:10].max()
    run = gated_run("self")
    gates = learn_gates(run, [run.config], EMBEDDINGS).used_by({"student": "self"})
    assert gates.by_name["self"].scaling.sources == ("low", "high", "descriptive")
    assert gates.last_layers == dict.fromkeys(WIDTHS, "fc")


def test_names_of_classes_teach_a_gate_that_has_no_owners(gated_run, monkeypatch):
    class Named(nn.Module):
        def score_classes(self, embeddings, classes):
            assert classes == [f"digit_{i}" for i in range(10)]
            high = (embeddings[:, :1] - 1.5) * 4  # the feature that tells the owner
            return torch.cat([-high.expand(-1, 5), high.expand(-1, 5)], dim=1)

    def measure(network):
        run = gated_run("self")
        shutil.rmtree(run.folder)
        store_images(run.folder / IMAGES, loudness=0)
        run.notify = lambda *notes: said.extend(filter(None, notes))
        monkeypatch.setattr(descriptive, "load_descriptive", lambda _: SimpleNamespace(network=network))
        gate = learn_gates(run, [run.config], EMBEDDINGS).by_name["self"]
        store = open_stored(run.folder, embedded=True)
        sample = read_sample(store, EMBEDDINGS, np.arange(400))
        return float((gate.log_owners(sample).argmax(1) == torch.arange(400) % 2).float().mean())

    said = []
    without = measure(nn.Identity())
    assert not [note for note in said if "names" in note]
    assert without < 0.6
    assert measure(Named()) > 0.9
    [note] = [note for note in said if "by the names of classes" in note]
    assert "of known owners" in note


def test_the_evaluation_counts_what_the_gate_says_in_double_precision(gated_run):
    run = gated_run("hints")
    gate = learn_gates(run, [run.config], EMBEDDINGS).by_name["hints"]
    rng, label_sets = np.random.default_rng(1), run.plan.label_sets
    batch = {"image": np.zeros((64, 3, 8, 8), np.uint8), "image_id": np.arange(64)}
    batch |= {
        f"embedding@{s}": rng.normal(size=(64, width)).astype(np.float16) for s, width in WIDTHS.items()
    }
    batch |= {f"scores@{t}": rng.normal(size=(64, 5)).astype(np.float32) for t in ("low", "high")}
    batch["label"] = np.array([label_sets.classes[i % 10] for i in range(64)], dtype=object)
    work = Evaluation(None, label_sets, run.config.teachers, {}, gates={TEACHERS_ONLY: gate})
    row = Evaluator(work, Resources(cpu=1))(batch)
    counted = pickle.loads(row["counts"][0])[TEACHERS_ONLY].gated

    inputs = np.concatenate([batch[f"embedding@{source}"] for source in WIDTHS], axis=1).astype(np.float64)
    scores = np.concatenate([batch["scores@low"], batch["scores@high"]], axis=1).astype(np.float64)
    mean, scale, weight, bias, factor = (tensor.double().numpy() for tensor in gate.to_state().values())
    logits = scores * factor + (inputs - mean) * scale @ weight + bias
    owners = [np.exp(logits[:, own]).sum(1) for own in (slice(5), slice(5, 10))]
    own = [
        scores[:, own] - np.log(np.exp(scores[:, own]).sum(1))[:, None] for own in (slice(5), slice(5, 10))
    ]
    best = np.concatenate([np.log(p)[:, None] + q for p, q in zip(owners, own, strict=True)], 1).argmax(1)
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (np.arange(64) % 10, best), 1)
    np.testing.assert_array_equal(counted.to_dense(), expected)


def test_an_evaluation_whose_gate_does_not_use_it_makes_no_pixels_for_it(
    load_described, monkeypatch, tmp_path
):
    planned = plan_run(load_described("scores.gate=self", "joint.batch_size=8"), students=[()])
    seen = []
    monkeypatch.setattr("ka_ray.runs.evaluation.pools_of", lambda *_: None)
    monkeypatch.setattr("ka_ray.runs.evaluation.evaluate_images", lambda work, _: seen.append(work))
    run = SimpleNamespace(
        config=planned.config,
        folder=tmp_path,
        plan=planned.plan,
        evaluation_images=planned.evaluation_images,
        resources=SimpleNamespace(placement=None),
        track_images=lambda *_: nullcontext(),
        notify=lambda *_: None,
    )
    gates = Gates({}, {"descriptive": "fc"})
    for used in (gates, replace(gates, of_students={"student": None})):
        evaluate_students(run, planned.plan.label_sets, {}, used)
    assert [list(work.images.views) for work in seen] == [["image"], ["image", "image@1"]]
    assert [dict(work.last_layers) for work in seen] == [{}, {"descriptive": "fc"}]
