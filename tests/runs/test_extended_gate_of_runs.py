"""Test how a run that adds a teacher reuses the gate of the finished run: choice, resuming, refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES, Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.gates import GateSample
from ka_ray.gates.fit import GateProblem
from ka_ray.runs.gate_samples import Embedding, find_embeddings
from ka_ray.runs.gates import NO_GATES, learn_gates, resolve_gate
from ka_ray.runs.setup import plan_run
from ka_ray.runs.timeline import Timeline
from ka_ray.storage.files import remove_tree, write_json
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher
from ka_ray.teachers.checkpoint import checkpoint_digest
from ka_ray.teachers.descriptive import digest_descriptive
from ka_ray.teachers.plain import plain_conv_net

SIZES = {"low": 6, "high": 4, "third": 3}
"""Teacher -> channels of its embedding."""

EMBEDDINGS = {name: Embedding("fc", channels) for name, channels in SIZES.items()}


def store_images(folder, owners):
    """Store what the three teachers say of images."""
    rng, count = np.random.default_rng(1), len(owners)
    features = rng.normal(size=(count, sum(SIZES.values())))
    scores = rng.normal(size=(count, 5 * len(SIZES)))
    columns = {
        "image_id": np.arange(count),
        "scores": scores.astype(np.float16),
        "embedding": features.astype(np.float16),
        "owner": np.array(owners, dtype=object),
    }
    create_shard_folder(folder / IMAGES)
    write_shard(folder / IMAGES, columns)
    mark_folder_finished(folder / IMAGES, {})


def describe(config, folder):
    """Return what learning gates needs of a run, without Ray, and the list that gets its notes."""
    notes, label_sets = [], LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
    plan = SimpleNamespace(label_sets=label_sets)
    parts = {"config": config, "folder": folder, "plan": plan, "timeline": Timeline()}
    return SimpleNamespace(**parts, notify=lambda *n: notes.extend(n)), notes


@pytest.fixture
def finish_run(load_config, tmp_path):
    """Return a function that writes the files of a finished run with two teachers and a gate."""

    def finish(used="hints", descriptive=None):
        network = [] if descriptive is None else [f"scores.descriptive={json.dumps(descriptive)}"]
        hints = f"scores.hints={{high: {tmp_path}}}"
        folder = tmp_path / "two"
        config = load_config("images.owner=low", "scores.gate=hints", hints, *network)
        generator = torch.Generator().manual_seed(0)
        features = {name: torch.randn(240, SIZES[name], generator=generator) for name in ("low", "high")}
        owners = torch.arange(240) % 2
        features["low"][:, 0] += 3 * owners
        if descriptive is not None:
            features["descriptive"] = torch.randn(240, 6, generator=generator)
        sample = GateSample(features, torch.randn(240, 10, generator=generator))
        label_sets = LabelSets({teacher.name: teacher.classes for teacher in config.teachers})
        gate = GateProblem.build(sample, owners, label_sets).fit(0.001, True)
        (folder / "gates/hints").mkdir(parents=True)
        save_file(gate.to_state(), folder / "gates/hints/gate.safetensors")
        write_json(folder / "gates/hints/gate.json", gate.describe())
        write_json(folder / "report.json", {"gate": {"used": used}})
        write_json(folder / "config.json", config.model_dump(mode="json"))
        digests = {teacher.name: checkpoint_digest(teacher.checkpoint) for teacher in config.teachers}
        if descriptive is not None:
            digests["descriptive"] = digest_descriptive(config.scores.descriptive)
        write_json(folder / "teachers.json", digests)
        digests.pop("descriptive", None)
        links = {"reused": 0, "trained": 1, "seconds": [1.0]}
        codes = {"teachers": digests, "shapes": {}, "links": links, "taps": {}, "history": [], "seconds": 1.0}
        (folder / "stages").mkdir()
        write_json(folder / "stages/codes.json", codes)
        return gate

    return finish


@pytest.fixture
def make_run(load_config, config_tree, tmp_path):
    """Return a function that describes a run with three teachers that extends the finished one."""

    def make(*overrides, owners=("",) * 300, extend=True):
        if len(config_tree["teachers"]) == 2:
            checkpoint = tmp_path / "third.safetensors"
            save_file(plain_conv_net(5, [4, 6]).state_dict(), checkpoint)
            third = {"name": "third", "classes": list("abcde"), "checkpoint": str(checkpoint)}
            config_tree["teachers"].append(config_tree["teachers"][0] | third)
        extended = [f"extend={tmp_path / 'two'}"] if extend else []
        folder = tmp_path / "three"
        config = load_config(*extended, f"output={folder}", *overrides)
        remove_tree(folder)
        store_images(folder, owners)
        return describe(config, folder)

    return make


def read_owners(folder):
    return Store(folder / "gates/extended/owners").gather(["owners"], np.arange(300))["owners"]


def expect_owners(gate, folder):
    """Compute p(owner) in float64 from the tensors of the finished run's gate."""
    columns = Store(folder / IMAGES).gather(["scores", "embedding"], np.arange(300))
    scores, features = (torch.from_numpy(columns[name]).double() for name in ("scores", "embedding"))
    sums = scores.view(300, 3, 5).exp().sum(dim=2)
    inputs = (features[:, :10] - gate.scaling.mean.double()) * gate.scaling.scale.double()
    corrected = scores[:, :10] * gate.score_scale + inputs @ gate.weight.double() + gate.bias
    parts = corrected.view(300, 2, 5).exp().sum(dim=2)
    first = parts / parts.sum(dim=1, keepdim=True) * sums[:, :2].sum(dim=1, keepdim=True)
    return (torch.cat([first, sums[:, 2:]], dim=1) / sums.sum(dim=1, keepdim=True)).numpy()


def test_auto_reuses_the_gate_of_the_finished_run_also_when_resumed(finish_run, make_run, tmp_path):
    learned = finish_run()
    run, notes = make_run()
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert gates.auto == "extended"
    assert notes[-1] == "scores.gate: auto uses extended"
    assert f"among the teachers of {tmp_path / 'two'}, its gate is reused" in notes[0]
    resolved = resolve_gate(run.config, gates)
    assert resolved.scores.gate == "extended"
    assert resolved.scores.gated
    quality = gates.describe("extended").gates["extended"]
    assert (quality.extended, quality.check, quality.hints) == (str(tmp_path / "two"), None, {})
    assert quality.left_out == 0
    expected = expect_owners(learned, run.folder)
    np.testing.assert_allclose(np.exp(read_owners(run.folder)), expected, atol=1e-3)
    sums = torch.from_numpy(Store(run.folder / IMAGES).gather(["scores"], np.arange(300))["scores"]).double()
    before = sums.view(300, 3, 5).exp().sum(dim=2).argmax(dim=1).numpy()
    assert quality.changed == pytest.approx(np.mean(before != expected.argmax(axis=1)), abs=0.01)
    remove_tree(run.folder / "gates/extended/owners")
    again = learn_gates(run, [run.config], EMBEDDINGS)
    assert (again.auto, again.qualities) == (gates.auto, gates.qualities)
    np.testing.assert_allclose(np.exp(read_owners(run.folder)), expected, atol=1e-3)


def test_the_owners_of_an_added_teacher_are_believed_beside_the_reused_gate(finish_run, make_run):
    learned = finish_run()
    run, notes = make_run("images.owner=third", owners=["third"] * 50 + [""] * 250)
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert gates.auto == "extended"
    assert any("auto learns no gate" in note and "teacher low" in note for note in notes)
    assert gates.qualities["extended"].hints == {"third": 50}
    found = np.exp(read_owners(run.folder))
    np.testing.assert_allclose(found[:50], np.tile([0.0005, 0.0005, 0.999], (50, 1)), rtol=1e-4)
    np.testing.assert_allclose(found[50:], expect_owners(learned, run.folder)[50:], atol=1e-3)


@pytest.mark.parametrize(("known", "used"), [(300, "owners"), (60, "extended")])
def test_enough_owners_of_every_teacher_judge_a_gate_of_its_own(finish_run, make_run, known, used):
    finish_run()
    owners = np.random.default_rng(2).permutation([*SIZES] * 100)  # at random: no gate helps
    run, _ = make_run("images.owner=third", owners=[*owners[:known], *[""] * (300 - known)])
    gates = learn_gates(run, [run.config], EMBEDDINGS)
    assert not gates.qualities["hints"].check.helps
    assert gates.auto == used


def test_only_the_embeddings_of_the_earlier_teachers_are_needed(finish_run, make_run, monkeypatch):
    finish_run()
    run, notes = make_run()
    plan = make_plan(run.config, [build_teacher(teacher) for teacher in run.config.teachers])
    run = SimpleNamespace(config=run.config, plan=plan, notify=run.notify)
    assert [*find_embeddings(run, [run.config])] == [*SIZES]

    def without(unclear):
        def load(section):
            found = None if section.name == unclear else ("fc", SIZES[section.name])
            return SimpleNamespace(find_embedding=lambda view: found)

        monkeypatch.setattr("ka_ray.runs.gate_samples.load_teacher", load)

    without("third")
    assert [*find_embeddings(run, [run.config])] == ["low", "high"]
    assert notes == []
    owned = run.config.model_copy(update={"images": run.config.images.model_copy(update={"owner": "low"})})
    assert [*find_embeddings(run, [owned])] == ["low", "high"]
    assert "last layer of teacher third" in notes[0]
    without(None)
    (run.config.extend / "report.json").unlink()
    assert find_embeddings(run, [run.config]) == {}


def test_without_the_embedding_of_an_added_teacher_only_the_reused_gate_is_used(finish_run, make_run):
    learned = finish_run()
    run, _ = make_run("images.owner=low", owners=[*SIZES] * 100)
    store = Store(run.folder / IMAGES)
    columns = store.gather(["image_id", "scores", "embedding"], np.arange(300))
    remove_tree(run.folder / IMAGES)
    create_shard_folder(run.folder / IMAGES)
    write_shard(run.folder / IMAGES, columns | {"embedding": columns["embedding"][:, :10]})
    mark_folder_finished(run.folder / IMAGES, {})
    gates = learn_gates(run, [run.config], {name: EMBEDDINGS[name] for name in ("low", "high")})
    assert [*gates.by_name] == ["owners", "extended"]
    np.testing.assert_allclose(np.exp(read_owners(run.folder)), expect_owners(learned, run.folder), atol=1e-3)


@pytest.mark.parametrize("used", ["none", "owners"])
def test_a_finished_run_without_a_learned_gate_changes_nothing(finish_run, make_run, used):
    finish_run(used)
    run, _ = make_run()
    assert learn_gates(run, [run.config], EMBEDDINGS) is NO_GATES
    assert "auto reuses no gate: the student of" in "\n".join(plan_run(run.config, [()]).notes)
    named = run.config.model_copy(
        update={"scores": run.config.scores.model_copy(update={"gate": "extended"})}
    )
    with pytest.raises(InputError, match=r"scores\.gate: extended: the student of .* no gate that could"):
        plan_run(named, [()])


@pytest.mark.parametrize(
    ("file", "message"),
    [("report.json", "holds no report.json"), ("gates/hints/gate.safetensors", "is missing")],
)
def test_a_finished_run_whose_files_are_missing_is_refused(finish_run, make_run, tmp_path, file, message):
    finish_run()
    (tmp_path / "two" / file).unlink()
    run, _ = make_run("scores.gate=extended")
    with pytest.raises(InputError, match=rf"scores\.gate: extended: .*{message}"):
        plan_run(run.config, [()])


def test_scores_that_are_centred_only_now_are_refused_or_left_out(finish_run, make_run):
    finish_run()
    run, _ = make_run("scores.center=true", "scores.gate=extended")
    with pytest.raises(InputError, match="centring"):
        plan_run(run.config, [()])
    run, _ = make_run("scores.center=true")
    assert any(
        "auto reuses no gate" in note and "centring" in note for note in plan_run(run.config, [()]).notes
    )
    assert learn_gates(run, [run.config], EMBEDDINGS) is NO_GATES


def test_changed_teachers_are_refused_before_anything_starts(finish_run, make_run, load_config, config_tree):
    finish_run()
    run, _ = make_run("scores.gate=extended")
    assert not any("gate" in note for note in plan_run(run.config, [()]).notes)
    # A comparison of baselines alone reuses no auto-encoders; the gate is checked all the same.
    baseline = ["baseline=distill", "extend=null"]
    assert plan_run(run.config, [baseline]).students[0].gates == ("extended",)
    low, high, third = config_tree["teachers"]
    other_weights = low | {"checkpoint": high["checkpoint"]}
    for changed in ([high, low, third], [other_weights, high, third]):
        config_tree["teachers"] = changed
        config = load_config(f"extend={run.config.extend}", "scores.gate=extended")
        for students in ([()], [baseline]):
            with pytest.raises(InputError, match=r"must list them first|order|is not the file"):
                plan_run(config, students)


def test_a_gate_that_looks_at_a_descriptive_network_needs_the_same_one(finish_run, make_run, tmp_path):
    for name in ("describes", "other"):
        save_file(plain_conv_net(3, [4, 6]).state_dict(), tmp_path / f"{name}.safetensors")
    section = {"network": "plain", "arguments": {"widths": [4, 6]}}
    section["checkpoint"] = str(tmp_path / "describes.safetensors")
    finish_run(descriptive=section)
    run, _ = make_run(f"scores.descriptive={json.dumps(section)}")
    planned = plan_run(run.config, [()])
    assert planned.config.scores.descriptive is not None
    assert not any("reuses no gate" in note for note in planned.notes)
    run = SimpleNamespace(config=planned.config, plan=planned.plan, notify=None)
    assert [*find_embeddings(run, planned.students)] == [*SIZES, "descriptive"]
    others = [
        section | {"checkpoint": str(tmp_path / "other.safetensors")},
        section | {"preprocessing": {"size": 16}},
        None,
    ]
    for other in others:
        given = [] if other is None else [f"scores.descriptive={json.dumps(other)}"]
        with pytest.raises(InputError, match=r"looks at scores\.descriptive, which must be the same"):
            plan_run(make_run("scores.gate=extended", *given)[0].config, [()])
        assert any("reuses no gate" in note for note in plan_run(make_run(*given)[0].config, [()]).notes)


def test_a_descriptive_network_that_the_reused_gate_does_not_look_at_is_not_loaded(
    finish_run, make_run, tmp_path
):
    finish_run()
    section = {
        "network": "plain",
        "arguments": {"widths": [4, 6]},
        "checkpoint": str(tmp_path / "low.safetensors"),
    }
    planned = plan_run(make_run(f"scores.descriptive={json.dumps(section)}")[0].config, [()])
    assert planned.config.scores.descriptive is None


def test_without_extend_there_is_no_gate_to_ask_for(make_run):
    run, _ = make_run("scores.gate=extended", extend=False)
    with pytest.raises(InputError, match=r"scores\.gate: extended: .* name that run's output folder in"):
        plan_run(run.config, [()])


def test_a_run_with_a_rule_reuses_no_gate_unless_it_asks(finish_run, make_run, load_config):
    finish_run()
    run, _ = make_run("scores.rule=concatenate")
    assert run.config.gates == ()
    assert make_run()[0].config.gates == ("extended",)
    assert make_run("images.owner=third")[0].config.gates == ("owners", "hints", "extended")
    with pytest.raises(InputError, match=r"scores\.rule: concatenate; leave it out"):
        make_run("scores.rule=concatenate", "scores.gate=extended")
