"""Test that a solved student is solved from as many images as make it better, judged on held-out ones."""

import re
from dataclasses import replace

import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.stages import exact_source, run_stages
from ka_ray.stages.exact_source import TOGETHER, ExactSource, share_of_rank
from ka_ray.stages.free_memory import free_memory
from ka_ray.student.block_solver import BlockSolverSettings, solve_student
from ka_ray.teachers import load_teacher

NUM_IMAGES = 200
GIB = 1024**3
CPU = torch.device("cpu")


@pytest.fixture
def source(make_inputs, monkeypatch) -> ExactSource:
    inputs = make_inputs("student.start=exact")
    monkeypatch.setattr(exact_source, "free_memory", lambda device: 100 * GIB)
    return ExactSource(inputs.plan.spec, [load_teacher(teacher) for teacher in inputs.config.teachers])


@pytest.fixture
def images(source):
    pixels = torch.randint(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=torch.uint8)
    names = ["student", *(teacher.name for teacher in source.teachers)]
    return [dict.fromkeys(names, part) for part in pixels.split(25)]


def build(source, images, divergences, monkeypatch, limits=(50, 100, 200, 400)):
    """Build the start with a judge that gives these divergences; return it and the judged networks."""
    monkeypatch.setattr(exact_source, "IMAGES_TO_TRY", limits)
    judged, given, reports = [], iter(divergences), []

    def judge(network):
        judged.append(network)
        return next(given)

    start = source.build(lambda: iter(images), lambda *step: reports.append(step[0]), judge)
    return start, judged, list(dict.fromkeys(reports))


def solve_plainly(source, images, count):
    spec, teachers = source.spec, source.teachers
    network, preprocess = spec.build_network(), teachers[0].preprocess
    settings = replace(TOGETHER, images=count)
    return solve_student(network, preprocess, teachers, spec.unified_label_sets, images, settings=settings)[0]


@pytest.mark.parametrize(
    ("divergences", "tried", "kept"),
    [
        ((0.5, 0.49), [50, 100], 100),  # better, but not clearly: no more are tried
        ((0.5, 0.6), [50, 100], 50),
        ((0.5, 0.4, 0.45), [50, 100, 200], 100),
        ((0.5, 0.4, 0.3), [50, 100, 200], 200),  # there are no more images
        ((float("inf"), 0.4, 0.39), [50, 100, 200], 200),
    ],
)
def test_images_are_doubled_while_that_is_clearly_better(
    source, images, monkeypatch, divergences, tried, kept
):
    start, judged, steps = build(source, images, divergences, monkeypatch)
    assert steps == [f"start exact, at most {number} images" for number in tried]
    assert start.network is judged[tried.index(kept)]
    assert start.note.startswith(f"at most {kept} images, divergence")
    expected = solve_plainly(source, images, kept).state_dict()
    found = start.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_with_few_images_the_student_is_solved_once(source, images, monkeypatch):
    start, judged, _ = build(source, images, (0.5,), monkeypatch, limits=(NUM_IMAGES, 400))
    assert len(judged) == 1
    assert start.note == f"at most {NUM_IMAGES} images"


def test_no_more_images_than_the_largest_number(source, images, monkeypatch):
    _, judged, _ = build(source, images, (0.5, 0.3), monkeypatch, limits=(50, 100))
    assert len(judged) == 2


def test_a_student_that_is_never_finite_is_refused_when_it_is_judged(make_inputs, monkeypatch):
    inputs = make_inputs("student.start=exact", "joint.epochs=0")
    monkeypatch.setattr(exact_source, "IMAGES_TO_TRY", (50, 100))
    solve = exact_source.solve_student

    def solve_badly(*arguments):
        network, errors = solve(*arguments)
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))
        return network, errors

    monkeypatch.setattr(exact_source, "solve_student", solve_badly)
    with pytest.raises(InputError, match="the scores of exact are not finite"):
        run_stages(replace(inputs, report=lambda progress: None))


def test_the_solver_takes_a_share_of_the_memory_that_is_free(monkeypatch):
    default = BlockSolverSettings()
    assert share_of_rank(100 * GIB, CPU) == TOGETHER
    small = share_of_rank(2 * GIB, CPU)
    assert small.memory_gib == pytest.approx(0.6)
    assert small.samples.values / TOGETHER.samples.values == pytest.approx(0.1)
    monkeypatch.setattr(exact_source, "world_size", lambda: 2)
    # Two ranks were measured with the default, but for the number of images, which is chosen.
    assert replace(share_of_rank(100 * GIB, CPU), images=default.images) == default
    assert share_of_rank(2 * GIB, CPU).memory_gib == pytest.approx(0.3)
    assert share_of_rank(2 * GIB, torch.device("cuda")).memory_gib == pytest.approx(0.6)


def test_it_is_said_if_the_first_layers_are_solved_from_fewer_images(source, images, monkeypatch):
    monkeypatch.setattr(exact_source, "free_memory", lambda device: 3_000_000)
    start, _, _ = build(source, images, [0.5], monkeypatch, limits=(NUM_IMAGES,))
    found = re.search(r"the first layers from (\d+) in each process, which fit into its memory$", start.note)
    assert found is not None, start.note
    assert 0 < int(found[1]) < NUM_IMAGES


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves(tmp_path, version):
    limit, use = {
        1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }[version]
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("5000\n")
    (tmp_path / use).write_text("3000\n")
    assert free_memory(CPU, tmp_path) == 2000
    (tmp_path / limit).write_text("max\n")
    assert free_memory(CPU, tmp_path) > 10**7
