"""docs/api.md: every field of the API, from the same schemas that the API server explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainyard.api import API_VERSION

if TYPE_CHECKING:
    from trainyard.api.crd import Kind

_INTRODUCTION = f"""<!-- Generated from operator/trainyard/api by `make generate`; edit the types instead. -->
# API reference

Everything below is `{API_VERSION}`. Researchers write TrainingJobs; Worlds and Reports are how the operator and the
pods talk ([protocol.md](protocol.md)). The same text is in the cluster:
`kubectl explain trainingjob.spec.train.optimizer`. An asterisk marks a field that must be set.
`[]` stands for every element of a list.
"""


def reference(kinds: Sequence[Kind]) -> str:
    """The whole page, Markdown."""
    parts = [_INTRODUCTION]
    for kind in kinds:
        schema = kind.schema()
        parts.append(f"\n## {kind.kind}\n{schema['description']}\n")
        for section in ("spec", "status"):
            if section in schema["properties"]:
                parts.append(_section(section, schema["properties"][section]))
        parts.append(_rules(schema))
    return "".join(parts)


def _section(name: str, schema: Mapping[str, Any]) -> str:
    rows = "".join(f"| {field} | {type_} | {text} |\n" for field, type_, text in _fields(name, schema))
    return f"\n| {name} | type | meaning |\n| --- | --- | --- |\n{rows}"


def _fields(path: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(field, type and bounds, description) of everything below, depth first, without the first part of the path."""
    for name, child in schema.get("properties", {}).items():
        inner, suffix = child, ""
        while inner.get("type") == "array":
            inner, suffix = inner["items"], suffix + "[]"
        full = f"{path}.{name}{suffix}"
        mark = " \\*" if name in schema.get("required", ()) else ""
        yield f"`{full.split('.', 1)[1]}`{mark}", _type(child), _escape(child.get("description", ""))
        yield from _fields(full, inner)


def _type(schema: Mapping[str, Any]) -> str:
    """Type and bounds in words."""
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}, at most {schema['maxItems']:,}"
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "`auto` \\| integer"
    if "additionalProperties" in schema:
        return f"map to {_type(schema['additionalProperties'])}"
    if schema.get("format") == "date-time":
        return "time"
    bounds = _bounds(schema)
    return f"{schema['type']}{', ' + bounds if bounds else ''}"


def _bounds(schema: Mapping[str, Any]) -> str:
    if "maxLength" in schema:
        return f"at most {schema['maxLength']:,} characters"
    low, high = schema.get("minimum"), schema.get("maximum")
    above = "above" if schema.get("exclusiveMinimum") else "from"
    below = "below" if schema.get("exclusiveMaximum") else "to"
    words = [f"{above} {low:,}" if low is not None else "", f"{below} {high:,}" if high is not None else ""]
    return " ".join(word for word in words if word)


def _rules(schema: Mapping[str, Any]) -> str:
    """What is checked across fields, as the API server would say it."""
    messages = list(dict.fromkeys(_messages(schema)))
    if not messages:
        return ""
    return "\nChecked at apply, too:\n" + "".join(f"- {_escape(message)}\n" for message in messages)


def _messages(schema: Mapping[str, Any]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["message"]
    for child in schema.get("properties", {}).values():
        yield from _messages(child)
    if "items" in schema:
        yield from _messages(schema["items"])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
