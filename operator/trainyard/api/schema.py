"""Structural schemas from pydantic types: what the API server stores, checks and explains.

A structural schema knows no references, no unions but int-or-string, no null and no const, so those are rewritten;
defaults are left out on purpose (stored objects would freeze them) and named in the description instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_INT32 = 2**31 - 1
_KEPT = ("type", "format", "pattern", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
         "minProperties", "maxProperties")


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of one type. Raises ValueError for what such a schema cannot say, naming the field."""
    whole = model.model_json_schema(by_alias=True)
    return _convert(whole, whole.get("$defs", {}), model.__name__)


def _convert(node: Mapping[str, Any], defs: Mapping[str, Any], path: str, defaults: bool = False) -> Schema:
    """One node; `defaults`: its default belongs into the description."""
    merged = _merge(node, defs, path)
    made: Schema = {}
    if text := _describe(merged, defaults):
        made["description"] = text
    made |= {key: merged[key] for key in _KEPT if key in merged}
    if "const" in merged:
        made["enum"] = [merged["const"]]
    _exclusive(merged, made)
    if made.get("type") == "integer":
        small = made.get("minimum", -_INT32 - 1) >= -_INT32 and made.get("maximum", _INT32 + 1) <= _INT32
        made["format"] = "int32" if small else "int64"
    if made.get("type") == "number":
        made["format"] = "double"
    made |= {key: value for key, value in merged.items() if key.startswith("x-kubernetes-")}
    _children(merged, made, defs, path)
    if "type" not in made and not made.get("x-kubernetes-int-or-string"):
        raise ValueError(f"{path}: a structural schema needs a type, found {sorted(merged)}")
    _capped(made, path)
    return made


def _merge(node: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The node with its reference put in place, `X or null` made `X`; what the field says wins over what the type
    says, except that both descriptions are kept."""
    own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "allOf", "oneOf")}
    inner: list[Mapping[str, Any]] = [defs[node["$ref"].removeprefix("#/$defs/")]] if "$ref" in node else []
    for union in ("anyOf", "allOf", "oneOf"):
        inner += [choice for choice in node.get(union, ()) if choice.get("type") != "null"]
    if len(inner) > 1:
        raise ValueError(f"{path}: a structural schema holds no union; found one of {len(inner)} types")
    if not inner:
        return own
    below = _merge(inner[0], defs, path)
    texts = [part["description"] for part in (own, below) if part.get("description")]
    validations = [*below.get("x-kubernetes-validations", []), *own.get("x-kubernetes-validations", [])]
    return {**below, **own, **({"description": " ".join(texts)} if texts else {}),
            **({"x-kubernetes-validations": validations} if validations else {})}


def _describe(node: Mapping[str, Any], defaults: bool) -> str:
    """The description as one paragraph, with the default if it has one and does not speak of it."""
    text = " ".join(str(node.get("description", "")).split())
    default = node.get("default")
    if defaults and isinstance(default, str | int | float) and "default" not in text.lower():
        shown = default if isinstance(default, str) else json.dumps(default)
        text = f"{text} Default: {shown}.".lstrip()
    return text


def _exclusive(node: Mapping[str, Any], made: Schema) -> None:
    """OpenAPI v3.0 knows exclusive bounds as a flag beside the bound."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            made[bound], made[exclusive] = node[exclusive], True


def _children(node: Mapping[str, Any], made: Schema, defs: Mapping[str, Any], path: str) -> None:
    """Properties, items and map values."""
    if "properties" in node:
        strict = node.get("additionalProperties") is False
        made["properties"] = {name: _convert(child, defs, f"{path}.{name}", defaults=strict)
                              for name, child in node["properties"].items()}
        if node.get("required"):
            made["required"] = list(node["required"])
    elif isinstance(node.get("additionalProperties"), Mapping):
        made["additionalProperties"] = _convert(node["additionalProperties"], defs, f"{path}[*]")
    if "items" in node:
        made["items"] = _convert(node["items"], defs, f"{path}[]")
        made.setdefault("x-kubernetes-list-type", "atomic")


def _capped(made: Mapping[str, Any], path: str) -> None:
    """Everything that can grow needs a cap: the API server estimates the cost of CEL rules from it."""
    kind = made.get("type")
    if kind == "string" and not {"maxLength", "enum"} & made.keys():
        raise ValueError(f"{path}: a string needs a maximum length")
    if kind == "array" and "maxItems" not in made:
        raise ValueError(f"{path}: a list needs a maximum length")
    if kind == "object" and "additionalProperties" in made and "maxProperties" not in made:
        raise ValueError(f"{path}: a map needs a maximum size")
