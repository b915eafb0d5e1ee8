"""Test the stage `start`: the student begins as the mean of its teachers or as one of them, then learns."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES
from ka_ray.stages import kept, list_stages, run_stages, start
from ka_ray.stages.describe_start import describe_start
from ka_ray.stages.held_out import Quality, held_out_batches, joint_rows, measure_quality
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.start import start_student_folder
from ka_ray.stages.start_list import list_sources
from ka_ray.student import Student, load_student
from ka_ray.student.start import build_start
from ka_ray.teachers import build_network, load_teacher


def weights_of(inputs, stage):
    return load_file(stage_summary_path(inputs.folder, stage).with_suffix(".safetensors"))


def test_the_average_is_where_joint_learning_begins(make_inputs):
    inputs = make_inputs("student.start=average", "student.head=teachers", "joint.epochs=0")
    run_stages(inputs)
    assert list_stages(inputs.config) == ("start", "joint")
    began, joint = weights_of(inputs, "start"), weights_of(inputs, "joint")
    assert began.keys() == joint.keys()
    assert all(torch.equal(began[key], joint[key]) for key in began)
    saved = load_student(start_student_folder(inputs.folder)).state_dict()
    assert all(torch.equal(saved[key], began[key]) for key in began)

    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    states = [teacher.network.state_dict() for teacher in teachers]
    mean = build_start(inputs.plan.spec, states, teachers).network
    # As torch's own loop would measure the batch norms (torch.optim.swa_utils.update_bn), in the same order.
    preprocess = Student(inputs.plan.spec).preprocess
    batches = list(
        inputs.batches("joint", inputs.store(FEATURES), ["image"], rows=joint_rows(inputs)).epoch(0)
    )
    torch.optim.swa_utils.update_bn([preprocess(batch["image"]) for batch in batches], mean)
    pixels = batches[0]["image"]
    with torch.no_grad():
        expected = mean.eval()(preprocess(pixels))
        found = load_student(start_student_folder(inputs.folder))(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_joint_learning_goes_on_from_the_start(make_inputs):
    inputs = make_inputs("student.start={teacher: high}", "joint.epochs=2", "joint.keep=last")
    run_stages(inputs)
    history = json.loads(stage_summary_path(inputs.folder, "joint").read_text())["history"]
    assert history[-1]["losses"]["loss"] < history[0]["losses"]["loss"]
    began, joint = weights_of(inputs, "start"), weights_of(inputs, "joint")
    assert not torch.equal(began["stages.conv1.0.weight"], joint["stages.conv1.0.weight"])


def test_a_baseline_has_the_same_start(make_inputs):
    inputs = make_inputs("student.start=average", "baseline=distill")
    assert list_stages(inputs.config) == ("start", "joint")
    assert list_stages(make_inputs("baseline=distill").config) == ("joint",)
    assert list_stages(make_inputs().config) == ("codes", "layers", "joint")


def describe(inputs):
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    return describe_start(inputs.config, inputs.plan.spec, teachers)


def test_teachers_of_different_origin_are_noticed(make_inputs):
    note = describe(make_inputs("student.start=average"))
    assert "start average: 14 of 14 weights" in note
    assert "their mean as they are is probably useless" in note


def test_a_checkpoint_that_fits_in_part_is_said(make_inputs, tmp_path):
    state = build_network("plain", {"widths": [4, 7]}, 3).state_dict()
    save_file(state, tmp_path / "wider.safetensors")
    inputs = make_inputs(f"student.start={{checkpoint: {tmp_path}/wider.safetensors}}")
    assert "random are conv2.weight, norm2.weight" in describe(inputs)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no weight before the head fits"):
        describe(make_inputs(f"student.start={{checkpoint: {tmp_path}/other.safetensors}}"))


def test_teachers_of_two_architectures_are_not_averaged(make_inputs):
    inputs = make_inputs()
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    teachers[1].network = build_network("plain", {"widths": [4, 6, 8]}, 5)
    config = make_inputs("student.start=average").config
    with pytest.raises(InputError, match="low and high differ in 6 weights, such as conv3"):
        describe_start(config, inputs.plan.spec, teachers)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.start=best"], "student.start.*'random', 'average' or 'exact'"),
        (["student.start={teacher: owl}"], "student.start.teacher: no teacher 'owl'; there are"),
        (["student.start={}"], "give either `teacher` or `checkpoint`"),
        (["student.start={checkpoint: /nowhere.pt}"], "/nowhere.pt does not exist"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(*overrides)
    assert isinstance(load_config(), Config)


def summary_of(inputs, stage):
    return json.loads(stage_summary_path(inputs.folder, stage).read_text())


def test_auto_keeps_the_start_whose_worst_followed_teacher_is_followed_best(make_inputs):
    inputs = make_inputs("student.start=auto", "joint.epochs=0")
    run_stages(inputs)
    summary = summary_of(inputs, "start")
    judged = {candidate["name"]: candidate for candidate in summary["candidates"]}
    assert {"average", "teacher low", "teacher low, ridge head", "teacher high, ridge head"} <= judged.keys()
    # Candidates within a hundredth of a nat follow it equally well.
    best = min(judged.values(), key=lambda c: (round(c["worst_divergence"], 2), round(c["divergence"], 6)))
    assert summary["chosen"] == best["name"]
    assert best["worst_divergence"] < judged["average"]["worst_divergence"]

    # Agreement and divergence by a plain loop over the rows that training leaves out.
    learned, held_out = joint_rows(inputs).tolist(), held_out_batches(inputs).rows.tolist()
    assert sorted([*learned, *held_out]) == list(range(len(inputs.store(FEATURES))))
    store = inputs.store(FEATURES).gather(["image", "scores"], np.array(held_out))
    student = load_student(start_student_folder(inputs.folder))
    with torch.no_grad():
        scores = student(torch.from_numpy(store["image"])).double()
    target = torch.from_numpy(store["scores"]).double()
    assert best["agreement"] == pytest.approx((scores.argmax(1) == target.argmax(1)).double().mean().item())
    p, q = target.softmax(1), scores.softmax(1)
    assert best["divergence"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3)
    parts = [(target[:, part].softmax(1), scores[:, part].softmax(1)) for part in (slice(5), slice(5, None))]
    divergences = [(p * (p / q).log()).sum(1).mean().item() for p, q in parts]
    assert best["worst_divergence"] == pytest.approx(max(divergences), rel=1e-3)
    assert best["images"] == len(held_out)


def test_auto_skips_what_does_not_apply_and_says_why(make_inputs, monkeypatch):
    inputs = make_inputs("student.start=auto", "joint.epochs=0")
    teachers = {t.name: load_teacher(t) for t in inputs.config.teachers}
    teachers["high"].network = build_network("plain", {"widths": [4, 6, 8]}, 5).eval()
    monkeypatch.setattr(start, "load_teacher", lambda section: teachers[section.name])
    run_stages(inputs)
    summary = summary_of(inputs, "start")
    assert {candidate["name"] for candidate in summary["candidates"]} >= {"teacher low"}
    assert "average needs teachers of one architecture" in summary["skipped"]["average"]


def test_teachers_of_one_origin_are_neither_aligned_nor_solved(make_inputs):
    inputs = make_inputs("student.start=auto")
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    names = ["average", "average, aligned", "exact", "teacher low", "teacher high"]
    assert list(list_sources(inputs.config, inputs.plan.spec, teachers)) == names
    state = teachers[0].network.state_dict()
    own = {key: state[key] + 0.01 if key.startswith("conv") else value
           for key, value in teachers[1].network.state_dict().items()}  # fmt: skip
    teachers[1].network.load_state_dict(own)
    assert list(list_sources(inputs.config, inputs.plan.spec, teachers)) == [names[0], *names[3:]]


def test_joint_learning_keeps_the_best_student_and_learns_from_the_other_images(make_inputs):
    inputs = make_inputs("student.start={teacher: high}", "joint.epochs=3", "joint.learning_rate=0.01")
    run_stages(inputs)
    summary = summary_of(inputs, "joint")
    qualities = summary["choice"]["qualities"]
    assert list(qualities) == ["start", "epoch 1", "epoch 2", "epoch 3"]
    best = min(qualities, key=lambda name: qualities[name]["divergence"])
    assert summary["choice"]["best"] == best
    student = Student(inputs.plan.spec)
    student.load_state_dict(weights_of(inputs, "joint"))
    found = measure_quality(student.eval(), held_out_batches(inputs), inputs.plan.label_sets)
    assert found.to_json() == qualities[best]
    learned = len(joint_rows(inputs)) // 32 * 32
    assert summary["history"][-1]["images"] == 3 * learned
    assert not list((inputs.folder / "stages").glob("*.epoch"))


def test_joint_learning_that_only_harms_keeps_the_start(make_inputs):
    inputs = make_inputs("student.start=auto", "joint.epochs=1", "joint.learning_rate=10")
    run_stages(inputs)
    assert summary_of(inputs, "joint")["choice"]["best"] == "start"
    began, joint = weights_of(inputs, "start"), weights_of(inputs, "joint")
    assert all(torch.equal(began[key], joint[key]) for key in began)


def test_an_interrupted_stage_keeps_the_best_student_so_far(make_inputs):
    whole = make_inputs("student.start={teacher: high}", "joint.epochs=3", "joint.learning_rate=0.01")
    run_stages(whole)
    expected, choice = weights_of(whole, "joint"), summary_of(whole, "joint")["choice"]
    for path in (whole.folder / "stages").glob("joint*"):
        path.unlink()

    def stop(progress):
        if progress.stage == "joint" and progress.epoch == 2 and progress.epoch_ended:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(dataclasses.replace(whole, report=stop))
    assert len(list((whole.folder / "stages").glob("joint*.epoch"))) == 2
    run_stages(whole)
    assert summary_of(whole, "joint")["choice"] == choice
    assert all(torch.equal(expected[key], value) for key, value in weights_of(whole, "joint").items())


def test_other_pixels_and_unused_sections_are_said(make_inputs):
    assert "another preprocessing" not in describe(make_inputs("student.start=auto"))
    note = describe(make_inputs("student.start=auto", "teachers.1.preprocessing.mean=[0.5,0.5,0.5]"))
    assert "high: another preprocessing than the student's, for the same weights" in note
    assert "codes, layers are not used: layers.behind_start is false" in note
    assert "not used" not in describe(make_inputs("student.start=auto", "layers.behind_start=true"))


def test_a_start_from_one_teacher_needs_no_pixels_of_the_others(make_inputs):
    inputs = make_inputs("student.start={teacher: low}", "teachers.1.preprocessing.size=6", "joint.epochs=0")
    run_stages(inputs)
    assert summary_of(inputs, "start")["chosen"].startswith("teacher low")


def test_counters_alone_are_no_start(make_inputs):
    inputs = make_inputs("student.start={teacher: low}")
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    wider = {key: torch.cat([value, value]) if value.dim() else value
             for key, value in teachers[0].network.state_dict().items()}  # fmt: skip
    with pytest.raises(InputError, match="no weight before the head fits"):
        build_start(inputs.plan.spec, [wider], teachers)


def test_a_teacher_of_which_little_fits_is_not_tried_without_being_named(make_inputs, monkeypatch):
    inputs = make_inputs("student.start=auto", "joint.epochs=0")
    teachers = {t.name: load_teacher(t) for t in inputs.config.teachers}
    teachers["high"].network = build_network("plain", {"widths": [4, 7]}, 5).eval()
    monkeypatch.setattr(start, "load_teacher", lambda section: teachers[section.name])
    run_stages(inputs)
    assert "of its weights fit the student" in summary_of(inputs, "start")["skipped"]["teacher high"]


def test_a_repeated_epoch_that_ends_worse_does_not_replace_the_better_one(make_inputs, tmp_path, monkeypatch):
    qualities = iter([0.2, 0.1, 0.5])
    monkeypatch.setattr(kept, "measure_quality", lambda *_: Quality(0.5, next(qualities), 1.0, 10))
    inputs = make_inputs()
    student = Student(inputs.plan.spec)
    chosen = kept.KeptStudent(tmp_path / "other", held_out_batches(inputs))
    for name in ("start", "epoch 1", "epoch 1"):
        chosen.offer(name, student)
    assert (chosen.best, chosen.qualities["epoch 1"].divergence) == ("epoch 1", 0.1)


def test_layers_behind_a_start_do_not_ask_for_a_random_one(make_inputs):
    config = make_inputs("layers.behind_start=true").config
    assert (config.student.start, config.joint.keep, config.learns_layers) == ("auto", "best", True)


def test_an_exact_start_of_an_unsupported_network_is_refused_before_the_run(make_inputs, tmp_path):
    (tmp_path / "prelu_net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Flatten(), nn.Linear(144, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    inputs = make_inputs("student.start=exact")
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        import prelu_net

        for teacher in teachers:
            teacher.network = prelu_net.build(5).eval()
        spec = dataclasses.replace(
            inputs.plan.spec, network="prelu_net:build", arguments={"num_classes": 10}, paths={}, widths={}
        )
        with pytest.raises(InputError, match=r"least squares cannot solve the weight '1.weight'"):
            describe_start(inputs.config, spec, teachers)
