"""Fetch published models: from Hugging Face's hub, and the weights of torchvision.

Both libraries keep what they download in a cache of their own (``HF_HOME``, ``TORCH_HOME``), and take it from
there without the network. On several machines these folders must be shared, or the files be given by path.
"""

import difflib
from pathlib import Path
from typing import Any

from ka_ray.errors import InputError

HUB = "hf-hub:"
"""Prefix of a model's name on Hugging Face's hub, as timm writes it."""

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the files with weights in a folder of timm or transformers, the preferred one first."""


def fetch_hub_folder(source: str) -> Path:
    """Download a model from Hugging Face's hub, unless it is in the cache.

    Args:
        source: ``hf-hub:ORGANISATION/MODEL``, optionally followed by ``@REVISION``.

    Returns:
        The folder with the model's config and weights.

    Raises:
        InputError: The package huggingface_hub is not installed, or the model cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise InputError(f"from: {source} needs the package huggingface_hub; install ka_ray[hf]") from None
    name, _, revision = source.removeprefix(HUB).partition("@")

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision or None))

    try:
        folder = fetch(CONFIG).parent
    except Exception as error:  # no such model, no network, no access: many types
        raise InputError(f"from: {source} cannot be fetched: {str(error).splitlines()[0]}") from None
    for file in (PREPROCESSOR, *WEIGHT_FILES):
        try:
            found = fetch(file)
        except EntryNotFoundError:  # no model has all of these files
            continue
        except Exception as error:
            raise InputError(f"from: {source}: {file} cannot be fetched: {error}") from None
        if found.name in WEIGHT_FILES:
            break
    return folder


def check_torchvision_name(source: str) -> None:
    """Check that a source that is no path is the name of a torchvision model.

    Raises:
        InputError: It is not; the message has similar names.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if source not in known:
        near = ", ".join(difflib.get_close_matches(source, known, n=4)) or "none"
        raise InputError(
            f"from: {source!r} is no file or folder in {Path.cwd()}, and no torchvision model (similar: "
            f"{near})"
        )


def find_torchvision_weights(network: str, name: str) -> Any:
    """Look up published weights of a torchvision model.

    Args:
        network: Name of the model, such as ``resnet18``.
        name: Name of the weights, such as ``IMAGENET1K_V1`` or ``DEFAULT``.

    Returns:
        torchvision's ``Weights``, which know their classes and their transform.

    Raises:
        InputError: There is no such model, or it has no such weights.
    """
    import torchvision

    try:
        known = torchvision.models.get_model_weights(network)
    except ValueError:
        raise InputError(f"network: {network!r} is not a torchvision model with published weights") from None
    if name not in known.__members__:
        raise InputError(f"weights: {network} has no {name!r}; it has {', '.join(known.__members__)}")
    return known[name]


def fetch_torchvision_weights(weights: Any) -> Path:
    """Download published weights, unless they are in torch's cache.

    Args:
        weights: Result of :func:`find_torchvision_weights`.

    Returns:
        The file in torch's cache.

    Raises:
        InputError: The file cannot be fetched.
    """
    import torch

    file: Path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # The end of the name is the beginning of the file's hash, which is compared.
            torch.hub.download_url_to_file(
                weights.url, str(file), file.stem.rpartition("-")[2], progress=False
            )
        except Exception as error:  # no network, no space, another hash: many types
            raise InputError(f"weights: {weights.url} cannot be fetched ({error})") from None
    return file
