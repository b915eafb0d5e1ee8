"""Where modules with a user's network factories are found: beside the config, and in the current folder.

``python -m`` and scripts find them by themselves; the command `ka-ray` is installed elsewhere and does not.
"""

import os
import sys
from pathlib import Path

from ka_ray.storage.files import is_remote

VARIABLE = "KA_RAY_MODULE_FOLDERS"
"""Environment variable with which the processes of a Ray that this process starts get to know the folders."""

_of_configs: list[str] = []


def add_module_folders(config: Path) -> None:
    """Add the folder of a config and the current folder to :func:`module_folders`.

    Args:
        config: The config file; the folder of a remote one is not added.
    """
    folders = [Path.cwd()] if is_remote(config) else [config.absolute().parent, Path.cwd()]
    _of_configs.extend(str(folder) for folder in folders if str(folder) not in _of_configs)


def module_folders() -> list[str]:
    """Return the folders of the configs that this process, or the process that started Ray, has loaded."""
    inherited = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return list(dict.fromkeys([*_of_configs, *inherited]))


def make_modules_importable() -> None:
    """Add the folders to the end of ``sys.path``: a user's file must not replace an installed package."""
    sys.path.extend(folder for folder in module_folders() if folder not in sys.path)
