"""Hypothesis strategies from structural schemas: objects that an API server takes, as far as single fields go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]
_TEXT = st.characters(codec="ascii", categories=("L", "N", "P"))
_LONG = 8  # enough to be interesting


def drawn(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that satisfy `schema`; its CEL rules are not looked at."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        [rule] = schema["x-kubernetes-validations"]  # "must be 'auto' or a whole number from 1 to 256"
        low, high = map(int, re.findall(r"\d+", rule["message"]))
        return st.just("auto") | st.integers(low, min(high, low + 16)) | st.integers(low, high)
    return _KINDS[schema["type"]](schema)


def _integer(schema: Schema) -> st.SearchStrategy[int]:
    low, high = schema.get("minimum"), schema.get("maximum")
    small = st.integers(low, min(high, (low or 0) + 16) if high is not None else None)
    return small | st.integers(low, high)


def _number(schema: Schema) -> st.SearchStrategy[float]:
    return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False,
                     exclude_min=schema.get("exclusiveMinimum", False),
                     exclude_max=schema.get("exclusiveMaximum", False), allow_subnormal=False)


def _string(schema: Schema) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return st.datetimes().map(lambda moment: moment.replace(microsecond=0).isoformat() + "Z")
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"), alphabet=_TEXT).filter(
            lambda text: len(text) <= schema["maxLength"])
    low = schema.get("minLength", 0)
    return st.text(_TEXT, min_size=low, max_size=min(schema["maxLength"], low + _LONG))


def _array(schema: Schema) -> st.SearchStrategy[list[Any]]:
    low = schema.get("minItems", 0)
    return st.lists(drawn(schema["items"]), min_size=low, max_size=min(schema["maxItems"], low + 2))


def _object(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" in schema:
        fields = {name: drawn(child) for name, child in schema["properties"].items()}
        required = set(schema.get("required", ()))
        return st.fixed_dictionaries({name: fields[name] for name in fields if name in required},
                                     optional={name: fields[name] for name in fields if name not in required})
    if "additionalProperties" in schema:
        return st.dictionaries(st.text("0123456789", min_size=1, max_size=4), drawn(schema["additionalProperties"]),
                               max_size=3)
    return st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 9) | st.booleans(), max_size=2)


_KINDS: dict[str, Callable[[Schema], st.SearchStrategy[Any]]] = {
    "integer": _integer, "number": _number, "string": _string, "array": _array, "object": _object,
    "boolean": lambda schema: st.booleans(),
}
