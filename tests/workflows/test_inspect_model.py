"""Test what `ka-ray inspect` finds out about models, against the networks that wrote the files."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from timm.models import save_for_hf

from ka_ray import cli
from ka_ray.errors import InputError
from ka_ray.student.cut import cut_into_stages
from ka_ray.workflows.inspect import inspect_model

PETS, BIRDS = ["beagle", "pug", "tabby"], ["jay", "owl"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of timm, a checkpoint with and one without class names, and the networks that wrote them."""
    folder = tmp_path_factory.mktemp("models")
    pets = timm.create_model("mobilenetv3_small_050", num_classes=len(PETS))
    save_for_hf(pets, str(folder / "pets"), model_config={"label_names": PETS}, safe_serialization=True)
    birds = torchvision.models.squeezenet1_1(num_classes=len(BIRDS))
    torch.save({"state_dict": birds.state_dict(), "classes": BIRDS}, folder / "birds.ckpt")
    torch.save(birds.state_dict(), folder / "weights.pth")
    return folder, pets, birds


def count_parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_folder_of_timm_is_shown(models):
    folder, pets, _ = models
    found = inspect_model(folder / "pets")
    assert (found.kind, found.network) == ("a model of timm", "timm/mobilenetv3_small_050")
    assert (found.num_classes, list(found.classes)) == (3, PETS)
    assert found.parameters == count_parameters(pets)
    config = timm.data.resolve_data_config({}, model=pets)
    assert found.preprocessing.crop == config["input_size"][1]
    assert found.preprocessing_source == "from config.json"
    assert (found.embedding_layer, found.embedding_size) == ("classifier", pets.get_classifier().in_features)
    cut_into_stages(pets, {f"tap{i}": path for i, path in enumerate(found.taps)})  # raises if one cannot be
    assert {"blocks.1", "blocks.4"} <= {*found.taps}


def test_a_checkpoint_is_shown_with_and_without_names_of_classes(models):
    folder, _, birds = models
    found = inspect_model(folder / "birds.ckpt")
    assert (found.kind, found.network, list(found.classes)) == ("a checkpoint", "squeezenet1_1", BIRDS)
    assert found.parameters == count_parameters(birds)
    assert found.preprocessing_source.startswith("assumed")
    assert "features.5" in found.taps
    assert found.embedding_size == 512
    unnamed = inspect_model(folder / "weights.pth", ["network=squeezenet1_1"])
    assert (unnamed.num_classes, unnamed.classes) == (2, ())
    assert "2: without names: a run needs `classes`" in unnamed.to_text()
    named = inspect_model(folder / "weights.pth", ["network=squeezenet1_1", "classes=[a, b]"])
    assert named.classes == ("a", "b")


def test_json_is_what_the_text_says_as_one_object(models, capsys):
    path = str(models[0] / "pets")
    for arguments in (["inspect", path], ["inspect", path, "--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    text, _, rest = capsys.readouterr().out.partition("{")
    found = json.loads("{" + rest)
    assert found["classes"] == {"count": 3, "names": PETS}
    assert f"{found['parameters']:,}" in text
    assert found["preprocessing"]["found"] == "from config.json"
    for shown in (found["kind"], found["network"], "3: beagle, pug, tabby", "1024 channels", "blocks.4"):
        assert shown in text
    assert len(found["taps"]) > 24
    assert "more inside" in text


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nowhere.pt", [], "nowhere.pt does not exist; accepted are"),
        (".", [], "holds neither student.json"),
        ("birds.ckpt", ["network=resnet18"], "birds.ckpt"),
        ("birds.ckpt", ["colour=red"], "colour: unknown key"),
    ],
)
def test_what_is_no_model_is_refused(models, name, overrides, message):
    with pytest.raises(InputError, match=message):
        inspect_model(models[0] / name, overrides)


def test_inspecting_imports_neither_ray_nor_mlflow(models):
    code = (
        "import sys; from ka_ray.workflows.inspect import inspect_model; "
        f"inspect_model({str(models[0] / 'pets')!r}); "
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
