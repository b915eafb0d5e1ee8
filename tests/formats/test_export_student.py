"""Test that a student is the same in other formats, by their own programs, or else is not written."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

import ka_ray
from ka_ray.config import load_images
from ka_ray.errors import InputError
from ka_ray.formats.job import ExportFormat
from ka_ray.formats.registry import FORMATS
from ka_ray.images import open_source
from ka_ray.images.sources import read_chunk
from ka_ray.runs.steps import export_graph
from ka_ray.student import Student, StudentSpec, save_student

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr("ka_ray.formats.compare.TIMED_CALLS", 3)


def read_digits(split):
    """Return the pixels and labels of scikit-learn's digits, `[N, 3, 8, 8]` and `[N]`."""
    config = load_images({"source": "digits", "split": split})
    source = open_source(config)
    parts = [
        part
        for chunk in source.chunks
        for part in read_chunk(config, source.read, chunk, np.arange(source.num_images), None, print)
    ]
    pixels = torch.from_numpy(np.concatenate([part["image"] for part in parts]))
    labels = [int(label.removeprefix("digit_")) for part in parts for label in part["label"]]
    return pixels, torch.tensor(labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output folder of a run with a student that tells digits apart, as a run would leave it."""
    torch.manual_seed(0)
    names = tuple(f"digit_{i}" for i in range(10))
    colours = {"mean": [0.3, 0.4, 0.3], "std": [0.4, 0.4, 0.3]}
    spec = StudentSpec(
        network="plain",
        arguments={"widths": [8, 16]},
        paths={"conv1": "conv1"},
        widths={"conv1": 8},
        label_sets={"low": names[:5], "high": names[5:]},
        rule=None,
        preprocessing={"resize": "none", "size": 8, "crop": 8, **colours},
        decoding={},
    )
    student = Student(spec)
    pixels, labels = read_digits("train")
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    for _ in range(60):
        rows = torch.randint(len(pixels), (256,))
        optimizer.zero_grad()
        functional.cross_entropy(student(pixels[rows]), labels[rows]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("runs") / "digits"
    save_student(student, folder)
    (folder / "config.json").write_text(json.dumps({"images": {"source": "digits", "split": "test"}}))
    return folder


@pytest.fixture(scope="module")
def test_digits():
    return read_digits("test")


def scores_of(run, pixels):
    with torch.inference_mode():
        return ka_ray.load_student(run)(pixels).numpy()


def normalise(pixels):
    """The student's normalisation, computed by hand."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in ([0.3, 0.4, 0.3], [0.4, 0.4, 0.3]))
    return (pixels.numpy().astype(np.float32) / 255 - mean) / std


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_onnx_gives_the_scores_of_the_student_for_any_number_of_images(run, tmp_path, test_digits):
    import onnxruntime

    result = ka_ray.export(run, "onnx", tmp_path / "onnx", preprocessing=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "student.onnx"))
    pixels = test_digits[0]
    for count in (1, 2, 37):
        (found,) = session.run(None, {"images": pixels[:count].numpy()})
        assert_same(found, scores_of(run, pixels[:count]))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == [f"digit_{i}" for i in range(10)]
    assert json.loads(metadata["input"])["kind"] == "pixels"
    assert json.loads(metadata["preprocessing"])["mean"] == [0.3, 0.4, 0.3]
    card = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert card["classes"] == json.loads(metadata["classes"])
    assert str(tmp_path) not in json.dumps(card)
    assert b".py" not in (tmp_path / "onnx" / "student.onnx").read_bytes()  # no paths of this machine
    assert (result.deviation.images, result.deviation.agreement) == (256, 1.0)
    assert result.images == "the run's images"
    assert result.files["student.onnx"] == (tmp_path / "onnx" / "student.onnx").stat().st_size
    assert min(result.student_ms, result.export_ms) > 0


def test_int8_agrees_on_images_that_it_was_not_calibrated_on(run, tmp_path, test_digits):
    import onnx
    import onnxruntime

    result = ka_ray.export(run, "onnx", tmp_path / "int8", quantize="int8", min_agreement=0.9)
    model = onnx.load(str(tmp_path / "int8" / "student.onnx"))
    int8 = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(len(tensor.dims) > 1 for tensor in int8) == 3  # two convs and the last layer
    assert "classes" in {prop.key for prop in model.metadata_props}
    session = onnxruntime.InferenceSession(str(tmp_path / "int8" / "student.onnx"))
    pixels = test_digits[0]
    (found,) = session.run(None, {"images": normalise(pixels)})
    agreement = (found.argmax(1) == scores_of(run, pixels).argmax(1)).mean()
    assert agreement > 0.95
    assert result.deviation.images == 128
    assert result.deviation.agreement == pytest.approx(agreement, abs=0.05)
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == ["export.json", "student.onnx"]


@pytest.mark.parametrize("preprocessing", [True, False])
def test_programs_of_torch_give_the_scores_of_the_student(run, tmp_path, test_digits, preprocessing):
    pixels = test_digits[0][:5]
    inputs = pixels if preprocessing else torch.from_numpy(normalise(pixels))
    for format, file in (("pt2", "student.pt2"), ("torchscript", "student.ts")):
        ka_ray.export(run, format, tmp_path / format, preprocessing=preprocessing)
        found = {"export.json": ""}
        if format == "pt2":
            loaded = torch.export.load(tmp_path / format / file, extra_files=found).module()
        else:
            loaded = torch.jit.load(tmp_path / format / file, _extra_files=found)
        assert_same(loaded(inputs).detach().numpy(), scores_of(run, pixels))
        assert json.loads(found["export.json"])["classes"][3] == "digit_3"


def test_openvino_gives_the_scores_of_the_student(run, tmp_path, test_digits):
    import openvino

    ka_ray.export(run, "openvino", tmp_path / "openvino", preprocessing=True)
    model = openvino.Core().read_model(tmp_path / "openvino" / "student.xml")
    assert json.loads(model.get_rt_info(["ka_ray", "classes"]).value)[9] == "digit_9"
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_same(compiled(test_digits[0][:5].numpy())[0], scores_of(run, test_digits[0][:5]))


def test_safetensors_have_the_names_of_the_library_of_the_network(tmp_path, make_spec, randomised):
    import torchvision

    student = Student(make_spec("shufflenet_v2_x0_5", {}, image_size=32))
    save_student(randomised(student), tmp_path / "run")
    result = ka_ray.export(tmp_path / "run", "safetensors")
    file = tmp_path / "run" / "export" / "safetensors" / "model.safetensors"
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    network.load_state_dict(load_file(file))
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert_same(network.eval()(student.preprocess(pixels)).numpy(), student.eval()(pixels).numpy())
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["network"])["name"] == "shufflenet_v2_x0_5"
    assert result.images.startswith("random pixels")


def test_safetensors_of_a_student_that_no_library_builds_can_be_loaded_by_ka_ray(run, tmp_path, test_digits):
    ka_ray.export(run, "safetensors", tmp_path / "weights")
    assert_same(scores_of(tmp_path / "weights", test_digits[0][:5]), scores_of(run, test_digits[0][:5]))


FACTORY = """
from torch import nn

def build(num_classes):
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)]
    return nn.Sequential(*layers)
"""


def test_a_student_whose_function_may_not_run_is_exported_from_its_graph(tmp_path, monkeypatch, make_spec):
    (tmp_path / "strange_nets.py").write_text(FACTORY)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        spec = make_spec("strange_nets:build", {}, num_classes=4)
        student = Student(spec).eval()
        assert export_graph(student, tmp_path / "run") is None
        save_student(student, tmp_path / "run")
    sys.modules.pop("strange_nets")
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    for preprocessing, inputs in ((True, pixels), (False, student.preprocess(pixels))):
        ka_ray.export(tmp_path / "run", "pt2", tmp_path / "pt2", preprocessing=preprocessing)
        loaded = torch.export.load(tmp_path / "pt2" / "student.pt2").module()
        with torch.inference_mode():
            assert_same(loaded(inputs).numpy(), student(pixels).numpy())
    assert "strange_nets" not in sys.modules
    for format in ("safetensors", "torchscript"):
        with pytest.raises(InputError, match=f"--format {format}: .* may not run without --trust"):
            ka_ray.export(tmp_path / "run", format, tmp_path / format)
        assert not (tmp_path / format).exists()


def make_wrong_format(change):
    """A format whose files give other scores than the student."""

    def write(job, folder):
        (folder / "student.bin").write_bytes(b"scores")

    return ExportFormat("wrong", write, lambda job, folder: lambda x: change(job.network(x)), takes_int8=True)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s + 1e-2 * s.abs().max(), {}, r"largest difference 0\.01 of .*allowed: at most 1e-04"),
        (lambda s: torch.cat([s[:1], -s[1:]]), {}, "the same class for "),
        (lambda s: s[:, :9], {}, r"scores of shape \(1, 9\)"),
        (lambda s: s * float("nan"), {}, "NaN"),
        (lambda s: s[:2], {}, r"for 3 images, and the student \(3, 10\)"),
        (lambda s: -s, {"quantize": "int8"}, r"allowed: at least 98.00%"),
    ],
)
def test_an_export_with_other_scores_is_refused_and_leaves_nothing(
    run, tmp_path, monkeypatch, change, options, message
):
    monkeypatch.setitem(FORMATS, "wrong", make_wrong_format(change))
    with pytest.raises(InputError, match=message):
        ka_ray.export(run, "wrong", tmp_path / "out" / "wrong", **options)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_older_export_is_replaced_only_by_one_that_is_right(run, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    monkeypatch.setitem(FORMATS, "wrong", make_wrong_format(lambda s: s))
    ka_ray.export(run, "wrong", folder)
    (folder / "old").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "wrong", make_wrong_format(lambda s: -s))
        with pytest.raises(InputError):
            ka_ray.export(run, "wrong", folder)
    assert (folder / "old").exists()
    ka_ray.export(run, "wrong", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "student.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_not_replaced(run, tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"is not empty, and has no export\.json"):
        ka_ray.export(run, "safetensors", tmp_path)
    assert (tmp_path / "photo.jpg").exists()


@pytest.mark.parametrize(
    ("format", "module", "extra"),
    [
        ("onnx", "onnxscript", "export"),
        ("onnx", "onnxruntime", "export"),
        ("openvino", "openvino", "openvino"),
        ("timm", "timm", "timm"),
        ("huggingface", "transformers", "hf"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    run, tmp_path, monkeypatch, format, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'needs the package {module}; pip install "ka_ray\[{extra}\]"'):
        ka_ray.export(run, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gguf"}, "there are onnx, pt2, torchscript, safetensors, timm, huggingface, openvino"),
        ({"format": "timm", "preprocessing": True}, "with the normalisation inside there are onnx, pt2"),
        ({"format": "pt2", "quantize": "int8"}, "works with --format onnx, not with pt2"),
        ({"format": "onnx", "quantize": "int4"}, "there is int8"),
        ({"format": "onnx", "min_agreement": 0.5}, "is for --quantize int8"),
        ({"format": "onnx", "quantize": "int8", "samples": 8}, "needs at least 16 images"),
        ({"format": "pt2", "images": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ka_ray.export(run, output=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
