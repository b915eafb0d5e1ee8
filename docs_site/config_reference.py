"""Write the page of all keys of a config, from the JSON schema."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ka_ray.config.json_schema import build_schema
from ka_ray.config.schema import Config, TeachConfig

INTRODUCTION = """# Keys of a config

This page is generated from the code. The first table has the keys of a whole config, as `ka-ray run` reads
it. Each table after it has the keys of one section. The [template](../repository/jobs/configs/folder.yaml.md)
shows all of them as YAML.

A config of `ka-ray teach` has the key `teacher` instead of `teachers`. Of the other keys it has only these:
"""


@dataclass
class Reference:
    """The page while it is written.

    Attributes:
        definitions: Name of a section -> its JSON schema.
        places: Name of a section -> the first key at which it stands, such as ``joint.augment``.
    """

    definitions: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    def write_section(self, section: dict[str, Any], place: str) -> str:
        """Return the description of a section and the table of its keys.

        Args:
            section: Its JSON schema.
            place: The key at which it stands; empty for the whole config.
        """
        required = section.get("required", ())
        lines = [f"## `{place}`" if place else "## The whole config", "", section.get("description", ""), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key, value in section["properties"].items():
            cells = map(_escape, self._describe_key(key, value, key in required))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _describe_key(self, key: str, value: dict[str, Any], required: bool) -> tuple[str, str, str, str]:
        if required:
            default = "required"
        elif "default" not in value or isinstance(value["default"], dict):
            default = ""
        else:
            default = f"`{json.dumps(value['default'], ensure_ascii=False)}`"
        sections = [self.definitions[name] for name in _find_sections(value)]
        of_section = sections[0].get("description", "") if len(sections) == 1 else ""
        description = value.get("description", of_section)
        return f"`{key}`", self._describe_type(value), default, description

    def _describe_type(self, value: Any) -> str:
        """Return the values that a key takes, as words with links to sections."""
        if not isinstance(value, dict):
            return "anything"
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            place = self.places.get(name, name)
            return f"[`{place}`](#{_anchor(place)})"
        for alternatives in ("anyOf", "oneOf"):
            if alternatives in value and "type" not in value:
                return " or ".join(dict.fromkeys(self._describe_type(part) for part in value[alternatives]))
        if "enum" in value or "const" in value:
            return " or ".join(f"`{option}`" for option in value.get("enum", [value.get("const")]))
        return self._describe_simple_type(value)

    def _describe_simple_type(self, value: dict[str, Any]) -> str:
        words = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "null"}
        kind = value.get("type")
        if kind == "array":
            items = value.get("items") or value.get("prefixItems", [{}])[0]
            return f"list of {self._describe_type(items)}"
        if kind == "object":
            inner = value.get("additionalProperties")
            return "mapping" + (f" to {self._describe_type(inner)}" if isinstance(inner, dict) else "")
        return words.get(str(kind), "anything") + _describe_range(value)


def _describe_range(value: dict[str, Any]) -> str:
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    if low is None or high is None:
        return ""
    words = [f"above {low}" if "exclusiveMinimum" in value else f"at least {low}"]
    if high <= 4096:  # the largest values of the other keys only refuse typing errors
        words.append(f"below {high}" if "exclusiveMaximum" in value else f"at most {high}")
    return ", " + ", ".join(words)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _anchor(place: str) -> str:
    return "".join(c for c in place.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _find_sections(value: Any) -> Iterator[str]:
    """Yield the names of the sections that a part of the schema refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for key, part in value.items():
            if key not in ("$defs", "discriminator", "default"):
                yield from _find_sections(part)
    elif isinstance(value, list):
        for part in value:
            yield from _find_sections(part)


def _find_places(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, str]:
    """Return the first key at which each section stands, keys of one level before those of the next."""
    places: dict[str, str] = {}
    waiting = [(schema, "")]
    while waiting:
        section, path = waiting.pop(0)
        for key, value in section["properties"].items():
            for name in _find_sections(value):
                source = definitions[name]["properties"].get("source", {}).get("const")
                place = f"{path}{key}" + (f" {source}" if source else "")
                if name not in places:
                    places[name] = place
                    waiting.append((definitions[name], f"{path}{key}."))
    return places


def write_config_reference() -> str:
    """Return the page: a section for each section of a config."""
    schema = build_schema(Config)
    definitions = schema["$defs"]
    reference = Reference(definitions, _find_places(schema, definitions))
    order = sorted(
        reference.places.items(), key=lambda item: list(schema["properties"]).index(_first(item[1]))
    )
    sections = [reference.write_section(schema, "")]
    sections += [reference.write_section(definitions[name], place) for name, place in order]
    teach = ", ".join(f"`{key}`" for key in build_schema(TeachConfig)["properties"] if key != "teacher")
    return INTRODUCTION + f"{teach}.\n\n" + "\n".join(sections)


def _first(place: str) -> str:
    return place.partition(".")[0].partition(" ")[0]
