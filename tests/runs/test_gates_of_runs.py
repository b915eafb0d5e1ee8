"""Test how a run learns gates from what it has stored: choice, resuming, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES, Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.gates.fit import TooFewOwners
from ka_ray.reports.gates import GateQuality, OwnerCheck
from ka_ray.runs.gate_choice import choose_gate_for_auto
from ka_ray.runs.gate_samples import Embedding
from ka_ray.runs.gates import NO_GATES, learn_gates, resolve_gate
from ka_ray.runs.timeline import Timeline
from ka_ray.storage.files import remove_tree

EMBEDDINGS = {"low": Embedding("fc", 6), "high": Embedding("fc", 4)}


def store_images(folder, owners, embedding=True, nobody=()):
    """Store images of two teachers whose scores say nothing of the owner, while their embeddings do.

    Those of which `nobody [n]` is true differ from both teachers' in other features.
    """
    rng = np.random.default_rng(0)
    is_high = np.arange(len(owners)) % 2
    features = rng.normal(size=(len(owners), 10)) + 2 * is_high[:, None] * np.array([1, *[0] * 9])
    if len(nobody):
        features[:, 3] += 6 * nobody
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
        config = load_config("images.owner=low", f"scores.hints={{high: {tmp_path}}}", *overrides)
        label_sets = LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
        notes = []
        run = SimpleNamespace(
            config=config,
            folder=tmp_path,
            plan=SimpleNamespace(label_sets=label_sets),
            notify=lambda *lines: notes.extend(lines),
            timeline=Timeline(),
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


@pytest.mark.parametrize(("known", "expected"), [(40, "owners"), (120, "hints")])
def test_few_known_owners_teach_a_gate_only_if_it_helps_a_lot(make_run, tmp_path, known, expected):
    store_images(tmp_path, every_second(known))
    for override, used in (("scores.gate=auto", expected), ("scores.gate=hints", "hints")):
        run, _ = make_run(override)
        gates = learn_gates(run, [run.config], EMBEDDINGS)
        resolved = resolve_gate(run.config, gates).scores.gate
        assert resolved == used
        # The report names what the student learned from, not what `auto` would have chosen.
        assert gates.describe(resolved).used == used


@pytest.mark.parametrize(
    ("fewest", "errors", "used"),
    [(29, 9, "owners"), (30, 2.1, "hints"), (99, 1.9, "owners"), (100, 1.1, "hints"), (100, 0.9, "owners")],
)
def test_the_fewer_owners_are_known_the_more_a_gate_must_help(fewest, errors, used):
    figures = {"images": 300, "penalty": 0.1, "per_class": False, "log_loss": 0.5, "owner_accuracy": 0.9}
    figures |= {"ungated_log_loss": 0.5 + 0.1 * errors, "standard_error": 0.1, "ungated_owner_accuracy": 0.8}
    check = OwnerCheck(**figures, helps=errors > 1, learning_curve={}, nobody_found=None, lost=0.0)
    quality = {"changed": 0.1, "left_out": 0.0, "seconds": 1.0, "extended": None}
    hints = GateQuality(hints={"low": fewest, "high": 200, "nobody": 3}, check=check, **quality)
    owners = GateQuality(hints={"low": 1}, check=None, **quality)
    assert choose_gate_for_auto({"owners": owners, "hints": hints}) == used


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


def tell_nobody(known, count, known_nobody):
    """Every fourth image is nobody's; the owners of the first images are known, and fewer of nobody's."""
    nobody = np.arange(count) % 4 == 0
    owners = np.array(every_second(known, count), dtype=object)
    owners[nobody] = np.where(nobody.cumsum()[nobody] <= known_nobody, "nobody", "")
    return list(owners), nobody


def read_left_out(folder, gate):
    store = Store(folder / "gates" / gate / "owners")
    return store.gather(["p_nobody"], np.arange(len(store)))["p_nobody"] > 0.5


def test_known_images_of_nobody_are_left_out_without_a_learned_gate(make_run, tmp_path):
    owners, _ = tell_nobody(60, 200, known_nobody=30)
    store_images(tmp_path, owners, embedding=False)
    run, notes = make_run("scores.gate=owners")
    gates = learn_gates(run, [run.config], {})
    assert read_left_out(tmp_path, "owners").tolist() == [owner == "nobody" for owner in owners]
    quality = gates.qualities["owners"]
    assert quality.left_out == 30 / 200
    assert quality.hints == {"low": 15, "high": 30, "nobody": 30}
    assert "15.0% belong to nobody and are left out" in notes[0]


def test_a_gate_from_images_of_nobody_leaves_out_others_of_them(make_run, tmp_path):
    owners, nobody = tell_nobody(800, 1200, known_nobody=150)
    store_images(tmp_path, owners, nobody=nobody)
    run, notes = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert gates.auto == "hints"
    quality, left_out = gates.qualities["hints"], read_left_out(tmp_path, "hints")
    known = np.array([owner != "" for owner in owners])
    assert (left_out == nobody)[known].all()  # what is known is believed
    found, lost = left_out[nobody & ~known].mean(), left_out[~nobody & ~known].mean()
    assert found > 0.9
    assert lost < 0.05
    assert quality.left_out == left_out.mean()
    assert quality.check.nobody_found == pytest.approx(found, abs=0.08)
    assert quality.check.lost == pytest.approx(lost, abs=0.05)
    assert "of nobody's images" in notes[1]
    assert learn_gates(run, [run.config], EMBEDDINGS).qualities == gates.qualities


def test_auto_finds_no_others_by_few_images_of_nobody_but_hints_does(make_run, tmp_path):
    owners, nobody = tell_nobody(800, 1200, known_nobody=20)
    store_images(tmp_path, owners, nobody=nobody)
    run, notes = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert gates.auto == "hints"
    assert gates.qualities["hints"].check.nobody_found is None
    assert read_left_out(tmp_path, "hints").sum() == 20
    assert "20 images of nobody are too few to find others by" in notes[1]
    remove_tree(tmp_path / "gates")
    run, _ = make_run("scores.gate=hints")
    assert learn_gates(run, [run.config], EMBEDDINGS).qualities["hints"].check.nobody_found > 0.3
    assert read_left_out(tmp_path, "hints").sum() > 100


def test_nothing_is_claimed_of_nobodys_images_and_a_run_of_them_alone_is_refused(make_run, tmp_path):
    owners, nobody = tell_nobody(0, 400, known_nobody=400)
    store_images(tmp_path, owners, nobody=nobody)
    run, _ = make_run("scores.gate=self")
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    rows = np.flatnonzero(~nobody)
    means = Store(tmp_path / IMAGES).gather(["embedding"], rows)["embedding"].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(gates.by_name["self"].scaling.mean.numpy(), means, atol=1e-4)
    assert gates.qualities["self"].left_out == 0.25
    remove_tree(tmp_path / IMAGES)
    store_images(tmp_path, ["nobody"] * 50, embedding=False)
    run, _ = make_run()
    gates = learn_gates(run, [run.config], {})
    with pytest.raises(InputError, match="all of them belong to nobody, as the gate 'owners' has it"):
        resolve_gate(run.config, gates)
    assert resolve_gate(make_run("scores.gate=none")[0].config, gates).scores.gate == "none"


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
