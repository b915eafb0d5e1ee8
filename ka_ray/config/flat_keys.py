"""Compare configs by their flat keys, such as ``joint.epochs``."""

from typing import Any

from ka_ray.config.base import Section
from ka_ray.config.job_paths import without_job_folder

SAME_RESULT = ("output", "ray", "placement", "tracking")
"""Sections that change where a run happens, but not what it computes."""

CHANGEABLE_EXTRACT_KEYS = ("batch_size", "actors_per_teacher", "reducers", "object_store_gib", "shard_mib")
"""Keys of `extract` that may change when a run resumes, for example because memory ran out."""

HOLDOUT = "tune.holdout"
"""The only key of `tune` that changes which images students are computed from."""


def flatten(config: Section) -> dict[str, Any]:
    """Return every leaf of a config by its dotted key, as ``--set`` takes it.

    Example:
        >>> from ka_ray.config import TrainingConfig
        >>> flatten(TrainingConfig(epochs=2))
        {'epochs': 2, 'batch_size': 64, 'learning_rate': 0.001, 'beta2': 0.95}
    """
    return _flat(config.model_dump(mode="json"))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(value, dict) for value in tree):
        items = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare two dumped configs in everything that decides the result.

    Args:
        old: ``config.model_dump(mode="json")`` of the run that wrote the output folder.
        new: The same for the run that wants to continue in it.

    Returns:
        Dotted key -> (old value, new value). The keys for where the run happens and is tracked, and for what
        a search tries, are not compared. Paths are compared without the temporary folder of a job.
    """
    a, b = (_flat({k: v for k, v in tree.items() if k not in SAME_RESULT}) for tree in (old, new))
    a, b = ({k: v for k, v in flat.items() if not k.startswith("tune.") or k == HOLDOUT} for flat in (a, b))
    a, b = without_job_folder(a), without_job_folder(b)
    keys = sorted((a.keys() | b.keys()) - {f"extract.{key}" for key in CHANGEABLE_EXTRACT_KEYS})
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
