"""Test which functions a config may name as a network factory."""

import inspect
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.teachers import factories
from ka_ray.teachers.factories import find_factory
from ka_ray.teachers.plain import plain_conv_net


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "numpy:load",
        "sympy:sympify",
        "torch:load",
        "torch.hub:load",
        "mlflow.pytorch:load_model",
        "ray.cloudpickle:loads",
        "ka_ray.storage.files:remove_tree",
    ],
)
def test_other_packages_are_refused_before_they_are_imported(monkeypatch, name):
    def fail_if_imported(module: str) -> None:
        pytest.fail(f"{module} was imported")

    monkeypatch.setattr("ka_ray.teachers.factories.importlib.import_module", fail_if_imported)
    with pytest.raises(InputError, match="is not an allowed source of networks"):
        find_factory(name)


def test_modules_beside_the_config_and_in_the_current_folder_are_found(tmp_path, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "configs"
    for folder, module in ((here, "module_of_current_folder"), (beside, "module_beside_config")):
        folder.mkdir()
        (folder / f"{module}.py").write_text("def network(): ...")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(InputError, match="cannot import 'module_beside_config'"):
        find_factory("module_beside_config:network")
    (beside / "run.yaml").write_text("name: [")
    with pytest.raises(InputError, match="is not YAML"):
        Config.load("../configs/run.yaml")
    (beside / "run.yaml").write_text("{}")
    with pytest.raises(InputError, match="name: Field required"):
        Config.load("../configs/run.yaml")
    assert find_factory("module_beside_config:network").__name__ == "network"
    assert find_factory("module_of_current_folder:network").__name__ == "network"
    with pytest.raises(InputError, match=rf"Looked in .*{here}/../configs, {here}, and among the installed"):
        find_factory("no_such_module:network")
    assert sys.path[-2:] == [f"{here}/../configs", str(here)]  # behind the installed packages


def test_factories_in_allowed_packages_and_in_modules_of_the_user_are_found(monkeypatch):
    assert find_factory("ka_ray.teachers.plain:plain_conv_net") is plain_conv_net
    assert find_factory("torchvision.models:resnet18").__name__ == "resnet18"

    def small() -> None:
        """Represent a user's factory."""

    module = ModuleType("my_networks")
    small.__module__ = "my_networks"
    module.small, module.smaller, module.system = small, partial(small), partial(eval)
    monkeypatch.setitem(sys.modules, "my_networks", module)
    assert find_factory("my_networks:small") is small
    assert find_factory("my_networks:smaller").func is small
    with pytest.raises(InputError, match="'builtins' is not an allowed source of networks"):
        find_factory("my_networks:system")
    with pytest.raises(InputError, match="has no function 'large'"):
        find_factory("my_networks:large")
    with pytest.raises(InputError, match="cannot import 'no_such_networks'"):
        find_factory("no_such_networks:small")


@pytest.mark.parametrize(
    "name",
    [
        "torchvision.datasets.utils:download_url",
        "torchvision.models:get_model",
        "timm.models:load_state_dict",
        "timm.data:create_loader",
        # These fetch weights of a backbone, or of another network, without being asked to.
        "torchvision.models.segmentation:fcn_resnet50",
        "torchvision.models.detection:ssd300_vgg16",
        "timm.task.distillation:DistillationTeacher",
    ],
)
def test_of_torchvision_and_timm_only_classifiers_are_built(name):
    with pytest.raises(InputError, match=r"is no classifier of (torchvision|timm)"):
        find_factory(name)


def test_models_of_both_libraries_are_found_by_module():
    assert find_factory("torchvision.models:VisionTransformer").__name__ == "VisionTransformer"
    assert find_factory("timm.models.resnet:resnet18").__name__ == "resnet18"


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_no_classifier_has_pretrained_weights_by_default(library):
    if library == "torchvision":
        from torchvision import models

        builders = [models.get_model_builder(name) for name in models.list_models(module=models)]
    else:
        import timm

        builders = [timm.model_entrypoint(name) for name in timm.list_models()]
    fetching = [
        builder.__name__
        for builder in builders
        for name, parameter in inspect.signature(builder).parameters.items()
        if ("pretrained" in name or "weights" in name)
        and parameter.default not in (None, False, inspect.Parameter.empty)
    ]
    assert len(builders) > 50
    assert fetching == []


METADATA = {
    "ka-ray": [
        "Torch (>=2.11) ; python_version >= '3.11'",
        "typing_extensions~=4.0",
        "timm>=1; extra == 'timm'",
    ],
    "torch": ["sympy", "torch[opt-einsum]>=2", "not a requirement >"],
    "typing-extensions": None,
}
"""Requirements of some distributions, in all forms that metadata may have."""


@pytest.fixture
def metadata(monkeypatch):
    """Replace the metadata of the installed distributions."""

    def requires(name: str) -> list[str] | None:
        if name not in METADATA:
            raise PackageNotFoundError(name)
        return METADATA[name]

    owners = {"torch": ["Torch"], "typing_extensions": ["typing_extensions"], "sympy": ["SymPy"]}
    monkeypatch.setattr(factories, "requires", requires)
    monkeypatch.setattr(factories, "packages_distributions", lambda: owners | {"other": ["other"]})
    factories._dependency_packages.cache_clear()
    yield
    factories._dependency_packages.cache_clear()


def test_dependencies_are_found_in_all_forms_of_metadata(metadata):
    assert factories._dependency_packages() == {"ka_ray", "torch", "typing_extensions", "sympy"}


def test_requirements_of_extras_are_not_counted_as_dependencies(metadata):
    assert factories._requirements("ka-ray") == ["torch", "typing-extensions"]
