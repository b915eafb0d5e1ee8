"""Test how a run learns gates from what it has stored: choice, resuming, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES, Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.gates.fit import TooFewOwners
from ka_ray.runs.gate_samples import Embedding
from ka_ray.runs.gates import NO_GATES, learn_gates, resolve_gate

EMBEDDINGS = {"low": Embedding("fc", 6), "high": Embedding("fc", 4)}


def store_images(folder, owners, embedding=True):
    """Store images of two teachers whose scores say nothing of the owner, while their embeddings do."""
    rng = np.random.default_rng(0)
    is_high = np.arange(len(owners)) % 2
    features = rng.normal(size=(len(owners), 10)) + 2 * is_high[:, None] * np.array([1, *[0] * 9])
    columns = {
        "image_id": np.arange(len(owners)),
        "scores": rng.normal(size=(len(owners), 10)).astype(np.float16),
        "owner": np.array(owners, dtype=object),
    }
    if embedding:
        columns["embedding"] = features.astype(np.float16)
    create_shard_folder(folder / IMAGES)
    write_shard(folder / IMAGES, columns)
    mark_folder_finished(folder / IMAGES, {})


@pytest.fixture
def make_run(load_config, tmp_path):
    def make(*overrides):
        config = load_config("images.owner=low", *overrides)
        label_sets = LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
        notes = []
        run = SimpleNamespace(
            config=config,
            folder=tmp_path,
            plan=SimpleNamespace(label_sets=label_sets),
            notify=lambda *lines: notes.extend(lines),
        )
        return run, notes

    return make


def every_second(known, count=200):
    return [("high" if i % 2 else "low") if i < known else "" for i in range(count)]


def test_a_gate_that_helps_is_used_and_kept_for_a_resumed_run(make_run, tmp_path):
    store_images(tmp_path, every_second(240, 400))
    run, notes = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert notes[0].endswith("240 have a known owner")
    assert "of 240 images of known owner it finds" in notes[1]
    assert notes[2] == "scores.gate: auto uses hints"
    assert gates.auto == "hints"
    assert gates.qualities["hints"].hints == {"low": 120, "high": 120}
    assert resolve_gate(run.config, gates).scores.gate == "hints"
    log_owners = Store(tmp_path / "gates/hints/owners").gather(["owners"], np.arange(400))["owners"]
    right = log_owners.argmax(axis=1) == np.arange(400) % 2
    assert right[:240].all()  # known owners are believed, the gate decides for the others
    assert 0.75 < right[240:].mean() < 1
    again = learn_gates(run, [run.config], EMBEDDINGS)
    assert torch.equal(again.by_name["hints"].weight, gates.by_name["hints"].weight)
    assert (again.auto, again.qualities) == (gates.auto, gates.qualities)


def test_few_known_owners_teach_a_gate_only_if_it_is_asked_for(make_run, tmp_path):
    store_images(tmp_path, every_second(120))
    for override, used in (("scores.gate=auto", "owners"), ("scores.gate=hints", "hints")):
        run, _ = make_run(override)
        gates = learn_gates(run, [run.config], EMBEDDINGS)
        assert gates.qualities["hints"].check.helps
        assert gates.auto == ("owners" if used == "owners" else "none")
        resolved = resolve_gate(run.config, gates).scores.gate
        assert resolved == used
        # The report names what the student learned from, not what `auto` would have chosen.
        assert gates.describe(resolved).used == used


def test_owners_at_random_teach_a_gate_that_auto_does_not_use(make_run, tmp_path):
    owners = np.random.default_rng(1).choice(["low", "high"], 200)
    store_images(tmp_path, list(owners))
    run, _ = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert gates.auto == "owners"  # what was told is believed, but nothing is concluded from it
    assert resolve_gate(run.config, gates).scores.gate == "owners"


def test_known_owners_need_no_embedding(make_run, tmp_path):
    store_images(tmp_path, every_second(100), embedding=False)
    run, notes = make_run()
    gates = learn_gates(run, [run.config], {})
    assert gates.auto == "owners"
    assert gates.qualities["owners"].hints == {"low": 50, "high": 50}
    assert notes[-1] == "scores.gate: auto uses owners"
    store = Store(tmp_path / IMAGES)
    scores = torch.from_numpy(store.gather(["scores"], np.arange(200))["scores"]).double()
    log_owners = Store(tmp_path / "gates/owners/owners").gather(["owners"], np.arange(200))["owners"]
    sums = torch.stack([part.exp().sum(dim=1) for part in scores.split(5, dim=1)], dim=1)
    shares = (sums / sums.sum(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(np.exp(log_owners[100:]), shares[100:], rtol=1e-4)
    changed = np.mean(shares[:100].argmax(axis=1) != np.arange(100) % 2) / 2
    assert gates.qualities["owners"].changed == pytest.approx(changed)


def test_too_few_owners_are_no_gate_or_an_error(make_run, tmp_path):
    store_images(tmp_path, ["low"] * 50 + [""] * 50)
    run, notes = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert resolve_gate(run.config, gates).scores.gate == "owners"
    assert "auto learns no gate" in notes[0]
    assert "teacher high" in notes[0]
    run, _ = make_run("scores.gate=hints")
    with pytest.raises(TooFewOwners, match="teacher high"):
        learn_gates(run, [run.config], EMBEDDINGS)


def test_an_owner_that_is_no_teacher_is_refused(make_run, tmp_path):
    store_images(tmp_path, ["low", "high", "wild"] * 20)
    run, _ = make_run()
    with pytest.raises(InputError, match="owner 'wild' is no teacher"):
        learn_gates(run, [run.config], EMBEDDINGS)


def test_images_that_were_stored_without_embeddings_are_refused(make_run, tmp_path):
    store_images(tmp_path, every_second(20), embedding=False)
    run, _ = make_run()
    with pytest.raises(InputError, match="stored without the teachers' embeddings"):
        learn_gates(run, [run.config], EMBEDDINGS)


def test_a_gate_that_teaches_itself_is_named_in_the_report(make_run, tmp_path):
    store_images(tmp_path, every_second(0))
    run, _ = make_run("scores.gate=self")
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    described = gates.describe(resolve_gate(run.config, gates).scores.gate)
    assert described.used == "self"
    assert described.gates["self"].check is None


def test_nothing_is_learned_without_a_gate(make_run):
    run, _ = make_run("scores.gate=none")
    gates = learn_gates(run, [run.config], {})
    assert gates is NO_GATES
    assert gates.describe("none") is None
