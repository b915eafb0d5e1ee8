"""Test students as graphs of operations: they score as their networks do, and run nothing else."""

import json
import operator
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ka_ray.errors import InputError
from ka_ray.storage.uris import to_path
from ka_ray.student import Student, load_student, save_student
from ka_ray.student.exported_graph import save_graph
from ka_ray.student.graph_operations import OPERATIONS, find_operation
from ka_ray.student.graph_student import GRAPH, GraphStudent, load_graph

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1, 2), "num_heads": (1, 2, 2)}
FACTORY = '''
from pathlib import Path
from torch import nn

Path(__file__).with_name("has_run").touch()

class Network(nn.Module):
    """Works on parts of the image, and holds a constant that is no weight."""
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Linear(12, num_classes)
        self.table = nn.Parameter(nn.init.normal_(__import__("torch").empty(1, 6, 1, 1)))

    def forward(self, images):
        maps = self.stem(images) * self.table.sigmoid()
        batch, channels, height, width = maps.shape
        left, right = maps.chunk(2, dim=3)
        pooled = left.reshape(batch, channels, -1).amax(2), right.reshape(batch, channels, -1).mean(2)
        return self.head(__import__("torch").cat(pooled, dim=1))

def build(num_classes):
    return Network(num_classes)

def build_data_dependent(num_classes):
    class Other(Network):
        def forward(self, images):
            return super().forward(images)
    other = Other(num_classes)
    other.stem.append(_Picky())
    return other

class _Picky(nn.Module):
    def forward(self, maps):
        return maps * 2 if maps.mean().item() > 0 else maps
'''


@pytest.fixture
def factory(tmp_path, monkeypatch) -> Path:
    """The folder of somebody else's module `their_networks`; it holds `has_run` once its code has run."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "their_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "their_networks", raising=False)
    return folder


def forget(factory: Path) -> None:
    """Start again without the module being imported."""
    sys.modules.pop("their_networks", None)
    (factory / "has_run").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("network", "taps", "size", "arguments"),
    [
        ("plain", {"conv1": 5, "conv2": 7}, 8, {"widths": [4, 6]}),
        ("resnet18", {"layer2": 128}, 32, {}),
        pytest.param("mobilenet_v3_small", {}, 32, {}, marks=pytest.mark.slow),
        ("timm/resnet10t", {"layer1": 64}, 32, {}),
        ("timm/vit_tiny_patch16_224", {}, 32, VIT),
        pytest.param("timm/swin_tiny_patch4_window7_224", {}, 32, SWIN, marks=pytest.mark.slow),
        ("their_networks:build", {"stem": 6}, 8, {"num_classes": 4}),
    ],
)
def test_scores_equal_those_of_the_network(
    tmp_path, make_spec, randomised, factory, network, taps, size, arguments
):
    if network.startswith("timm/"):
        pytest.importorskip("timm")
    student = randomised(Student(make_spec(network, taps, image_size=size, **arguments)))
    save_graph(student, tmp_path / "run")
    save_student(student, tmp_path / "run")
    graph = load_graph(tmp_path / "run", student.spec)
    assert isinstance(graph, GraphStudent)
    for count in (1, 2, 5, 16):
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        with torch.inference_mode():
            torch.testing.assert_close(graph(images), student(images), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(graph(images.float()), student(images), rtol=1e-5, atol=1e-5)


@pytest.fixture
def foreign(tmp_path, make_spec, randomised, factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder with a student of somebody else's function and its graph, images, and its scores for them."""
    student = randomised(Student(make_spec("their_networks:build", {"stem": 6}, num_classes=4)))
    save_graph(student, tmp_path / "run")
    save_student(student, tmp_path / "run")
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    scores = student(images).detach()
    forget(factory)
    return tmp_path / "run", images, scores


def test_without_trust_the_graph_is_used_and_no_function_runs(foreign, factory, caplog):
    folder, images, scores = foreign
    student = load_student(folder)
    assert not (factory / "has_run").exists()
    assert "using the exported graph; the function 'their_networks:build' was not run" in caplog.text
    assert not student.training
    torch.testing.assert_close(student(images), scores, rtol=1e-5, atol=1e-5)


def test_with_trust_the_network_itself_is_built(foreign, factory):
    folder, images, scores = foreign
    student = load_student(folder, trust=True)
    assert isinstance(student, Student)
    assert (factory / "has_run").exists()
    torch.testing.assert_close(student(images), scores)


def test_a_folder_without_a_graph_is_refused_without_trust(foreign):
    folder = foreign[0]
    (folder / GRAPH).unlink()
    with pytest.raises(InputError, match=f"which would run, and there is no {re.escape(GRAPH)}"):
        load_student(folder)


def test_the_graph_of_another_student_is_not_used(foreign):
    content = json.loads((foreign[0] / "student.json").read_text())
    content["preprocessing"]["mean"] = [0.1, 0.1, 0.1]
    (foreign[0] / "student.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="which would run"):
        load_student(foreign[0])


def test_the_graph_uses_the_weights_of_the_folder(foreign):
    folder, images, scores = foreign
    weights = load_file(folder / "student.safetensors")
    save_file({name: weight * 0 for name, weight in weights.items()}, folder / "student.safetensors")
    assert float(load_student(folder)(images).abs().max()) == 0 < float(scores.abs().max())


def change_steps(folder: Path, change) -> None:
    """Rewrite the graph of a folder: `change` gets its content."""
    with safe_open(folder / GRAPH, "pt") as file:
        graph = json.loads(file.metadata()["graph"])
    others = load_file(folder / GRAPH)
    change(graph)
    save_file(others, folder / GRAPH, metadata={"graph": json.dumps(graph)})


@pytest.mark.parametrize(
    "target",
    [
        "from_file.default",
        "add_.Tensor",
        "add.out",
        "set_.source_Tensor",
        "as_strided.default",
        "_native_batch_norm_legit_no_training.out",
        "resize_.default",
        "save.default",
        "__class__.default",
        "conv2d.__init__",
        "getattr",
        "eval",
        "",
    ],
)
def test_other_operations_are_refused(foreign, target):
    change_steps(foreign[0], lambda graph: graph["steps"][0].__setitem__(1, target))
    with pytest.raises(InputError, match="is no operation that a graph may use"):
        load_student(foreign[0])


@pytest.mark.parametrize(
    "argument",
    [
        {"dtype": "load"},
        {"module": "os"},
        {"dtype": "float32", "layout": "strided"},
        {},
        {"layout": "float32"},
    ],
)
def test_other_arguments_are_refused(foreign, argument):
    change_steps(foreign[0], lambda graph: graph["steps"][0].__setitem__(2, [argument]))
    with pytest.raises(InputError, match="damaged or not complete"):
        load_student(foreign[0])


def test_no_operation_of_the_list_writes_into_its_inputs():
    for name in OPERATIONS:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            if getattr(packet, overload)._schema.is_mutable:
                with pytest.raises(ValueError, match="no operation"):
                    find_operation(f"{name}.{overload}")


def test_weights_that_do_not_fit_are_a_message_and_read_no_other_memory(foreign):
    """ATen's own batch norm would read behind a running mean that is too short."""
    folder, images, _ = foreign
    weights = load_file(folder / "student.safetensors")
    (mean,) = (name for name in weights if name.endswith("running_mean"))
    save_file(weights | {mean: torch.zeros(1)}, folder / "student.safetensors")
    with pytest.raises(InputError, match="running_mean should contain 6 elements not 1"):
        load_student(folder)(images)


def attend(**sizes):
    shapes = {"query": (2, 3, 4, 8), "key": (2, 3, 5, 8), "value": (2, 3, 5, 8)} | sizes
    mask = shapes.pop("mask", None)
    function = find_operation("scaled_dot_product_attention.default")
    return function(*map(torch.rand, shapes.values()), *([] if mask is None else [torch.rand(mask)]))


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    query, key, value = torch.rand(2, 3, 4, 8), torch.rand(2, 3, 5, 8), torch.rand(2, 3, 5, 8)
    function = find_operation("scaled_dot_product_attention.default")
    expected = (query @ key.transpose(-1, -2) * 0.5).softmax(-1) @ value
    torch.testing.assert_close(function(query, key, value, scale=0.5), expected)
    assert attend(mask=(4, 5)).shape == (2, 3, 4, 8)


@pytest.mark.parametrize(
    "sizes",
    [
        {"value": (2, 3, 64, 8)},  # ATen's own operation would read behind the keys
        {"value": (2, 1, 5, 8)},
        {"key": (2, 3, 5, 4)},
        {"key": (1, 3, 5, 8), "value": (1, 3, 5, 8)},
        {"key": (2, 1, 5, 8), "value": (2, 1, 5, 8)},
        {"query": (8,)},
        {"mask": (4, 4)},
    ],
)
def test_attention_whose_inputs_do_not_fit_is_refused(sizes):
    with pytest.raises((TypeError, RuntimeError)):
        attend(**sizes)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pow", [9, 9**9]),
        ("pow", [2**63, 2]),
        ("mul", [[1], 3_000_000_000]),
        ("mul", ["a", 9]),
        ("mod", ["%999999999d", 5]),
    ],
)
def test_numbers_stay_numbers_of_a_size(name, arguments):
    with pytest.raises(TypeError):
        find_operation(name)(*arguments)
    assert find_operation(name)(7, 3) == getattr(operator, name)(7, 3)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_a_damaged_graph_is_a_message(foreign, content):
    (foreign[0] / GRAPH).write_bytes(content)
    with pytest.raises(InputError, match=rf"{GRAPH}: is damaged"):
        load_student(foreign[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [("tensors", ["a"]), ("tensors", 3), ("steps", {"a": 1}), ("steps", [["a"]]), ("scores", "b")],
)
def test_a_graph_of_another_form_is_a_message(foreign, key, value):
    change_steps(foreign[0], lambda graph: graph.__setitem__(key, value))
    with pytest.raises(InputError, match=GRAPH):
        load_student(foreign[0])(foreign[1])


def test_a_graph_that_gives_something_else_than_scores_is_a_message(foreign):
    """Its last step is left out."""
    change_steps(foreign[0], lambda graph: graph.__setitem__("scores", graph["steps"][0][0]))
    with pytest.raises(InputError, match=r"gives no scores of shape \(3, 4\)"):
        load_student(foreign[0])(foreign[1])


def test_a_folder_at_a_uri_has_a_graph_too(foreign, tmp_path, monkeypatch):
    folder, images, scores = foreign
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    found = load_student(f"file://{folder}")
    assert isinstance(found, GraphStudent)
    save_graph(load_student(folder, trust=True), to_path(f"file://{folder}"))
    torch.testing.assert_close(load_student(f"file://{folder}")(images), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["steps", "image", "scores", "tensors", "student", "format"])
def test_a_graph_with_a_missing_part_is_a_message(foreign, key):
    change_steps(foreign[0], lambda graph: graph.pop(key))
    with pytest.raises(InputError, match=GRAPH):
        load_student(foreign[0])(foreign[1])


def test_a_network_that_cannot_be_exported_says_why(tmp_path, make_spec, factory):
    student = Student(make_spec("their_networks:build_data_dependent", {}, num_classes=4))
    with pytest.raises(InputError, match=r"torch\.export cannot trace it: "):
        save_graph(student, tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []
    assert student.training


def test_an_operation_outside_of_the_list_is_named(tmp_path, make_spec, factory, monkeypatch):
    monkeypatch.setattr("ka_ray.student.graph_operations.OPERATIONS", OPERATIONS - {"sigmoid"})
    student = Student(make_spec("their_networks:build", {"stem": 6}, num_classes=4))
    with pytest.raises(InputError, match=r"operation aten\.sigmoid\.default, which a graph cannot hold"):
        save_graph(student, tmp_path)


def test_a_graph_that_scores_differently_is_not_written(tmp_path, make_spec, factory, monkeypatch):
    student = Student(make_spec("their_networks:build", {"stem": 6}, num_classes=4))
    right = GraphStudent.forward
    monkeypatch.setattr(GraphStudent, "forward", lambda self, images: right(self, images) + 1e-3)
    with pytest.raises(InputError, match="other scores for a batch of 1 images"):
        save_graph(student, tmp_path)
    assert not (tmp_path / GRAPH).exists()


def test_a_student_of_students_of_a_function_has_a_graph_too(tmp_path, make_spec, randomised, factory):
    from dataclasses import asdict

    from ka_ray.teachers.networks import STUDENT_NETWORK

    inner = make_spec("their_networks:build", {"stem": 6}, num_classes=4)
    spec = replace(inner, network=STUDENT_NETWORK, arguments=asdict(inner), paths={}, widths={})
    student = randomised(Student(spec))
    save_graph(student, tmp_path / "run")
    save_student(student, tmp_path / "run")
    forget(factory)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(load_student(tmp_path / "run")(images), student(images), rtol=1e-5, atol=1e-5)
    assert not (factory / "has_run").exists()
