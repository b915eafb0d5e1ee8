"""Image classifiers of Hugging Face's transformers: built from their config, loaded by the library itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ka_ray.errors import InputError

LABEL_KEYS = ("id2label", "label2id", "num_labels", "_num_labels")
"""Keys of a model's config that name its classes; the number of scores replaces them."""

OTHER_KEYS = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "problem_type",
    # These name code: on the hub, or of other packages.
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "quantization_config",
)
"""Keys that do not describe the network, or that could make the library fetch and run code."""


OF_OTHERS = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs")
"""Keys with which a model has another one inside, which the library would look for and fetch."""

TIMM_WRAPPER = "timm_wrapper"
"""Type of a model of timm inside transformers: its arguments could read any file."""


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a model's ``config.json`` describes its network, without its classes."""
    return {key: value for key, value in config.items() if key not in (*LABEL_KEYS, *OTHER_KEYS)}


def build_transformers_network(
    num_classes: int, model_type: str = "", architectures: Sequence[str] = (), **config: Any
) -> nn.Module:
    """Build an image classifier of transformers with random weights.

    Args:
        num_classes: Number of classes.
        model_type: Type of the model, such as ``vit``.
        architectures: Names of the library's classes for the model; the first image classifier is built.
        **config: The other keys of its ``config.json``; those left out have the library's defaults.

    Returns:
        The network. It returns a structured output, whose scores are ``logits``.

    Raises:
        InputError: transformers is not installed.
        ValueError: transformers has no such image classifier.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("network transformers needs the package transformers; install ka_ray[hf]") from None
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    _refuse_others(model_type, config)
    of_type = CLASSIFIERS.get(model_type)
    if of_type is None:
        known = ", ".join(sorted(CLASSIFIERS))
        raise ValueError(f"{model_type!r} is no image classifier of transformers; there are {known}")
    settings = transformers.AutoConfig.for_model(
        model_type, **network_arguments(config), num_labels=num_classes
    )
    named = [name for name in architectures if name in ([of_type] if isinstance(of_type, str) else of_type)]
    # A type can have several classifiers, such as DeiT with and without a distillation token.
    by_type: Any = transformers.AutoModelForImageClassification.from_config
    network: nn.Module = (getattr(transformers, named[0]) if named else by_type)(settings)
    return network


def _refuse_others(model_type: str, config: Mapping[str, Any]) -> None:
    """Refuse models that hold another one, for which the library would read or fetch files."""
    if model_type == TIMM_WRAPPER:
        raise ValueError("a network of timm is named as timm/MODEL")
    others = [key for key in OF_OTHERS if config.get(key)]
    if others:
        raise ValueError(f"{', '.join(others)}: networks that hold other published ones are not built")


def is_transformers_network(network: nn.Module) -> bool:
    """Whether a network is one of transformers, without importing the library."""
    return type(network).__module__.startswith("transformers.")


def load_by_transformers(network: Any, state: Mapping[str, Tensor]) -> None:
    """Load weights into a network of transformers, in place, by the library's own loader.

    The loader knows the names that weights had in earlier versions of the library.

    Args:
        network: The network.
        state: Name of each weight -> tensor.

    Raises:
        InputError: A weight is missing, unexpected, or of another shape.
    """
    from transformers.utils import logging

    messages: Any = logging  # its functions have no types
    verbosity = messages.get_verbosity()
    # A report of many lines, in colour, and a progress bar would stand in front of the message.
    messages.set_verbosity(messages.CRITICAL)
    messages.disable_progress_bar()
    try:
        loaded, details = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below
        )
    finally:
        messages.set_verbosity(verbosity)
    _refuse_mismatches(details, network.config.num_labels)
    network.load_state_dict(loaded.state_dict())


def _refuse_mismatches(details: Mapping[str, Any], num_classes: int) -> None:
    kinds = {
        "missing": "missing_keys",
        "unexpected": "unexpected_keys",
        "of another shape (file, network)": "mismatched_keys",
    }
    problems = {kind: sorted(map(str, details[key])) for kind, key in kinds.items() if details[key]}
    if problems:
        found = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:6])}" for kind, keys in problems.items())
        raise InputError(
            f"transformers cannot load it: {found}. If only the classifier has another shape, the number of "
            f"classes differs from the {num_classes} that are named"
        )
