"""The JSON schema of configs: editors complete and check a config with it.

``python -m ka_ray.config.json_schema FOLDER`` writes the schemas of :class:`ka_ray.config.Config` and
:class:`ka_ray.config.TeachConfig` to files, see :data:`SCHEMAS`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ka_ray.config.base import Section
from ka_ray.config.schema import Config, TeachConfig

SCHEMAS: dict[str, type[Section]] = {"config.schema.json": Config, "teach.schema.json": TeachConfig}
"""Name of a file -> the class of the configs that its schema describes."""


def build_schema(kind: type[Section]) -> dict[str, Any]:
    """Return the JSON schema of a config.

    It accepts every config that `kind` accepts, and more: what depends on several keys or on files is checked
    only when the config is loaded. It refuses numbers as text, and 1 for true, which `kind` takes.

    Args:
        kind: The class of the config.
    """
    schema: dict[str, Any] = _adapt(kind.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Config of ka_ray", **schema}


def format_schema(kind: type[Section]) -> str:
    """Return the content of the file with the schema of a config.

    Args:
        kind: The class of the config.
    """
    return json.dumps(build_schema(kind), indent=1, ensure_ascii=False) + "\n"


def _adapt(part: Any) -> Any:
    """Return a part of a schema with short descriptions, and without what editors do not need."""
    if isinstance(part, list):
        return [_adapt(item) for item in part]
    if not isinstance(part, dict):
        return part
    # The titles repeat the keys. A property of this name would be a schema, not a text.
    adapted = {key: _adapt(value) for key, value in part.items() if not _is_title(key, value)}
    if isinstance(adapted.get("description"), str):
        adapted["description"] = adapted["description"].partition("\n\n")[0].replace("``", "`")
    if "oneOf" in adapted and "discriminator" not in adapted:
        adapted["anyOf"] = adapted.pop("oneOf")  # {energy: 1} also has the form of widths by layer
    return adapted


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)


if __name__ == "__main__":
    for file, config in SCHEMAS.items():
        (Path(sys.argv[1]) / file).write_text(format_schema(config), encoding="utf-8")
