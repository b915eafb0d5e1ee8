"""Test which functions a config may name without consent."""

import sys

import pytest

from ka_ray.config.factories import is_installed
from ka_ray.errors import InputError
from ka_ray.teachers.factories import find_factory


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Return a function that writes a module into a folder of the path, and returns the folder."""

    def make(name, *folders):
        folder = tmp_path.joinpath(*folders)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("raise SystemExit('it was run')")
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test may have imported its own
        monkeypatch.syspath_prepend(folder)
        return folder

    return make


@pytest.mark.parametrize("package", ["pip", "pytest", "mypy", "huggingface_hub", "test", "os"])
def test_installed_packages_are_found_out_without_running_them(package):
    before = set(sys.modules)
    assert is_installed(package)
    assert package in before or package not in sys.modules


def test_modules_of_a_project_are_not_installed(make_module):
    make_module("my_own_nets")
    make_module("somebodys_nets", "lib", "site-packages")
    assert not is_installed("my_own_nets")
    assert is_installed("somebodys_nets")
    assert not is_installed("no_such_nets")


@pytest.mark.parametrize("key", ["student.network", "teachers.0.network", "scores.descriptive"])
def test_an_installed_package_needs_consent_wherever_it_is_named(load_config, config_tree, make_module, key):
    make_module("somebodys_nets", "lib", "site-packages")
    network = "somebodys_nets.deep:make"
    if key == "teachers.0.network":
        config_tree["teachers"][0] |= {"network": network, "arguments": {}}
    elif key == "student.network":
        config_tree["student"] = {"network": network}
    else:
        config_tree["scores"] = {"descriptive": {"network": network}}
    with pytest.raises(InputError, match=r"trust it, set factories: \[somebodys_nets\]"):
        load_config()
    assert load_config("factories=[somebodys_nets]").factories == ("somebodys_nets",)


@pytest.mark.parametrize("network", ["os:system", "test.support.os_helper:rmtree"])
def test_functions_of_python_itself_are_refused_whatever_the_config_says(load_config, config_tree, network):
    config_tree["student"] = {"network": network, "arguments": {"path": "somewhere"}}
    for overrides in ([], [f"factories=[{network.partition('.')[0].partition(':')[0]}]"]):
        with pytest.raises(InputError, match="is a function of Python itself"):
            load_config(*overrides)
    with pytest.raises(InputError, match="is not an allowed source of networks"):
        find_factory(network)


def test_a_students_folder_gets_no_consent_by_naming_pip(load_config, config_tree):
    config_tree["teachers"][0]["arguments"] = {"network": "pip._internal.cli.main:main"}
    with pytest.raises(InputError, match=r"arguments\.network: 'pip.* of the installed package pip"):
        load_config()


def test_modules_of_the_project_and_known_models_need_no_consent(load_config, config_tree, make_module):
    make_module("my_own_nets")
    for network in ("my_own_nets:make", "torchvision.models:resnet18", "timm.models.resnet:resnet18"):
        config_tree["student"] = {"network": network}
        assert load_config().student.network == network
