"""Find out what a teacher is from its source: the network, its classes, its preprocessing and its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from ka_ray.config import DESCRIPTIVE, DescriptiveConfig, TeacherConfig
from ka_ray.config.job_paths import is_absolute
from ka_ray.errors import InputError
from ka_ray.storage.files import exists
from ka_ray.storage.uris import to_path
from ka_ray.teachers.networks import (
    INPUT_TRANSFORMERS,
    STUDENT_NETWORK,
    TIMM,
    check_timm_name,
    import_timm,
)
from ka_ray.teachers.sources.description import (
    UNNAMED,
    Description,
    describe_result,
    express,
    merge_preprocessing,
    name_classes,
)
from ka_ray.teachers.sources.files import describe_file, timm_preprocessing
from ka_ray.teachers.sources.folders import STUDENT, STUDENT_WEIGHTS, describe_folder, is_model_folder
from ka_ray.teachers.sources.hubs import (
    HUB,
    check_torchvision_name,
    fetch_hub_folder,
    fetch_torchvision_weights,
    find_torchvision_weights,
)
from ka_ray.teachers.sources.library_preprocessing import preprocessing_of_torchvision
from ka_ray.teachers.sources.taught import describe_taught, find_taught

SAY_THE_SIZE = {"preset", "resize", "size", "crop"}
"""Keys of a preprocessing, one of which is needed if the source's own cannot be used."""


def describe_teacher(config: TeacherConfig) -> tuple[TeacherConfig, str]:
    """Fill in what the config of a teacher leaves open, from its source.

    Args:
        config: The section of the teacher. Its keys override what is found.

    Returns:
        The section with network, classes, preprocessing and checkpoint; and what was found, for the user.
        A section that describes its teacher by itself is returned unchanged, with an empty text.

    Raises:
        InputError: The source cannot be read or is of no known kind, or the classes are not found in it. The
            message names the teacher and the key.
    """
    described, note, _ = _describe_from_source(config, f"teachers.{config.name}")
    return described, note


def describe_descriptive(config: DescriptiveConfig) -> tuple[DescriptiveConfig, str]:
    """Fill in what the section of a network that is nobody's teacher leaves open, as for a teacher.

    Args:
        config: The section. Its keys override what is found.

    Returns:
        The section with network, arguments, preprocessing and checkpoint; and what was found, for the user.

    Raises:
        InputError: The source cannot be read or is of no known kind.
    """
    given = {key: getattr(config, key) for key in type(config).model_fields}
    section = TeacherConfig.model_validate({"name": DESCRIPTIVE, "classes": UNNAMED, **given})
    described, note, classes = _describe_from_source(section, f"scores.{DESCRIPTIVE}")
    found = {key: getattr(described, key) for key in ("network", "checkpoint", "preprocessing")}
    # A source may know how many classes its network has, although their names are not needed.
    is_factory = ":" in described.network and described.network != STUDENT_NETWORK
    count = {"num_classes": len(classes)} if classes and not is_factory else {}
    return config.model_copy(update={**found, "arguments": count | described.arguments}), note


def describe_model(config: TeacherConfig) -> tuple[TeacherConfig, Description]:
    """Find out what a model is, also one that could not be a teacher without further keys.

    Args:
        config: The section of a teacher with `from`. Its keys override what is found.

    Returns:
        The section, filled in: its classes are :data:`UNNAMED` if nothing names them, and its preprocessing
        is the default if that of the source cannot be used. And what the source says.

    Raises:
        InputError: The source cannot be read or is of no known kind.
    """
    with _named_errors(config, f"model {config.from_}"):
        found = _describe(config)
        assert found is not None  # it has a source
        if not config.classes and not found.classes:
            config = config.model_copy(update={"classes": UNNAMED})
        return _merge(config, replace(found, preprocessing_problem=""))[0], found


def _describe_from_source(config: TeacherConfig, key: str) -> tuple[TeacherConfig, str, tuple[str, ...]]:
    """Return the section, filled in; what was found, for the user; and the classes that the source names."""
    with _named_errors(config, key):
        found = _describe(config)
        return (config, "", ()) if found is None else (*_merge(config, found), found.classes)


@contextmanager
def _named_errors(config: TeacherConfig, key: str) -> Iterator[None]:
    """Raise what goes wrong inside as an InputError that begins with the key."""
    try:
        yield
        return
    except InputError as error:
        problem = str(error)
    except Exception as error:  # a damaged or unusual file: many types
        problem = f"from: {config.from_} is not understood ({type(error).__name__}: {str(error)[:200]})"
    raise InputError(f"{key}: {problem}")


def _describe(config: TeacherConfig) -> Description | None:
    """Return what the source says, or published weights, or a timm network's name; None if there is none."""
    source, is_published = config.from_, config.checkpoint is None and config.training is None
    if source is None:
        if config.weights is not None:
            return _describe_torchvision(config.network, config.weights, is_published)
        if config.network.startswith(TIMM):  # a factory may return one, too: see teachers/check.py
            check_timm_name(config.network)
            pixels = express(lambda: timm_preprocessing(config.network), "timm's data config of this model")
            return Description(kind="a network of timm", network=config.network, **pixels)
        return None
    if is_absolute(source):
        return _describe_path(config, to_path(source))
    if config.weights is not None and (source.startswith((HUB, TIMM))):
        raise InputError(f"weights: {source} has its own; `weights` names weights of a torchvision model")
    if source.startswith(HUB):
        return describe_folder(fetch_hub_folder(source))
    if source.startswith(TIMM):
        return _describe_published_timm(source)
    check_torchvision_name(source)
    return _describe_torchvision(source, config.weights or "DEFAULT", is_published)


def _describe_path(config: TeacherConfig, path: Path) -> Description:
    """Describe a file or folder; `weights` of the config says its preprocessing."""
    trusted = str(config.arguments.get("network", ""))
    if path.name in (STUDENT, STUDENT_WEIGHTS):
        found = describe_folder(path.parent, trusted=trusted)
    elif not exists(path / STUDENT) and (taught := find_taught(path)) is not None:
        found = describe_taught(taught, trusted=config.network)
    elif path.is_dir():
        found = describe_folder(path, trusted=trusted)
    elif is_model_folder(path.parent):
        found = describe_folder(path.parent, path)
    else:
        found = describe_file(path, config.network)
    if config.weights is None:
        return found
    weights = _describe_torchvision(config.network or found.network, config.weights, is_published=False)
    return replace(
        found,
        preprocessing=weights.preprocessing,
        preprocessing_source=weights.preprocessing_source,
        arguments={**weights.arguments, **found.arguments},
    )


def _describe_published_timm(source: str) -> Description:
    """Describe published weights of timm, which are on Hugging Face's hub."""
    timm = import_timm(f"from: {source}")
    name = source.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]) or not timm.is_model_pretrained(name):
        raise InputError(
            f"from: timm has no published weights {name!r}; timm.list_pretrained() has all names"
        )
    settings = timm.get_pretrained_cfg(name)
    found = describe_folder(fetch_hub_folder(f"{HUB}{settings.hf_hub_id}"))
    if found.classes:
        return found
    network = timm.create_model(name, pretrained=False)
    subset = timm.data.infer_imagenet_subset(network)
    info = timm.data.ImageNetInfo(subset) if subset else None
    classes = [info.index_to_description(index) for index in range(info.num_classes())] if info else []
    return replace(found, classes=name_classes(classes))


def _describe_torchvision(network: str, name: str, is_published: bool) -> Description:
    """Describe a torchvision model with the transform of published weights.

    Args:
        network: Name of the model.
        name: Name of the weights.
        is_published: Whether the published weights are the teacher's; else those of a checkpoint are.
    """
    arguments: dict[str, object] = {}
    if network in INPUT_TRANSFORMERS:  # as torchvision builds them for these weights
        arguments = {"transform_input": True, "aux_logits": is_published, "init_weights": False}
    weights = find_torchvision_weights(network, name)
    return Description(
        kind=f"torchvision's weights {name}",
        network=network,
        arguments=arguments,
        classes=name_classes(weights.meta["categories"]),
        preprocessing=preprocessing_of_torchvision(weights),
        preprocessing_source=f"the transform of {name}",
        checkpoint=fetch_torchvision_weights(weights) if is_published else None,
    )


def _merge(config: TeacherConfig, found: Description) -> tuple[TeacherConfig, str]:
    """Override what was found by the config's own keys, and describe the result."""
    network = config.network or found.network
    classes = config.classes or found.classes
    if not classes:
        known = "".join(f" ({note})" for note in found.notes)
        raise InputError(
            f"classes: {config.from_ or network} does not name them{known}; give a list in the order of the "
            f"scores, or a file: --set teachers.{config.name}.classes=FILE"
        )
    if found.preprocessing_problem and not config.preprocessing.model_fields_set & SAY_THE_SIZE:
        raise InputError(f"preprocessing: {found.preprocessing_problem}; give it in the config")
    same_network = network.partition(".")[0] == found.network.partition(".")[0]  # timm/MODEL.WEIGHTS
    try:
        merged = TeacherConfig.model_validate(
            {
                **config.model_dump(),
                **{key: value for key, value in found.scores.items() if getattr(config, key) is None},
                "network": network,
                "arguments": {**(found.arguments if same_network else {}), **config.arguments},
                "classes": classes,
                "checkpoint": config.checkpoint or found.checkpoint,
                "preprocessing": merge_preprocessing(found.preprocessing, config.preprocessing),
            }
        )
    except ValidationError as error:
        problem = error.errors()[0]
        key = "preprocessing" if error.title == "Preprocessing" else ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        ) from None
    return merged, describe_result(config, merged, found)
