"""Which functions a config may name: of networks, and nothing that Python or a dependency offers besides."""

import sys
from functools import partial
from types import ModuleType

import pytest

from ka_ray.errors import InputError
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
def test_what_is_no_place_of_networks_is_refused_before_it_is_imported(monkeypatch, name):
    def imported(module: str) -> None:
        pytest.fail(f"{module} was imported")

    monkeypatch.setattr("ka_ray.teachers.factories.importlib.import_module", imported)
    with pytest.raises(InputError, match="is not an allowed source of networks"):
        find_factory(name)


def test_networks_of_others_and_of_ones_own_are_found(monkeypatch):
    assert find_factory("ka_ray.teachers.plain:plain_conv_net") is plain_conv_net
    assert find_factory("torchvision.models:resnet18").__name__ == "resnet18"

    def small() -> None:
        """Stands for a user's factory."""

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
