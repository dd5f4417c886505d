"""The pydantic types and the schemas made from them take and refuse the same objects."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from harness.schemas import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from pydantic import BaseModel, ValidationError
from trainyard.api.crd import KINDS
from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import ReportSpec, WorldSpec
from trainyard.api.schema import structural

TYPES: dict[str, type[BaseModel]] = {
    "job": TrainingJobSpec, "status": TrainingJobStatus, "world": WorldSpec, "report": ReportSpec}
SCHEMAS = {name: structural(model) for name, model in TYPES.items()}
# OpenAPI 3.0's exclusiveMinimum is a flag, as in JSON schema's fourth draft.
VALIDATORS = {name: Draft4Validator(schema) for name, schema in SCHEMAS.items()}
QUICK = settings(max_examples=25, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


def messages(schema: Mapping[str, Any]) -> Iterator[str]:
    """Messages of all CEL rules."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["message"]
    for child in schema.get("properties", {}).values():
        yield from messages(child)
    if "items" in schema:
        yield from messages(schema["items"])


RULES = {message for kind in KINDS for message in messages(kind.schema())}


@pytest.mark.parametrize("name", TYPES)
@QUICK
@given(data=st.data())
def test_what_the_schema_takes_pydantic_refuses_only_by_a_rule(name: str, data: st.DataObject) -> None:
    value = data.draw(drawn(SCHEMAS[name]))
    assert VALIDATORS[name].is_valid(value)
    try:
        TYPES[name].model_validate(value)
    except ValidationError as error:
        for wrong in error.errors():
            assert wrong["type"] == "value_error", wrong
            assert wrong["msg"].removeprefix("Value error, ") in RULES, wrong


@pytest.mark.parametrize("name", TYPES)
@QUICK
@given(data=st.data())
def test_what_pydantic_takes_and_dumps_the_schema_takes(name: str, data: st.DataObject) -> None:
    value = data.draw(drawn(SCHEMAS[name]))
    try:
        parsed = TYPES[name].model_validate(value)
    except ValidationError:
        return
    dumped = parsed.dump()  # type: ignore[attr-defined]
    assert list(VALIDATORS[name].iter_errors(dumped)) == []
    assert TYPES[name].model_validate(dumped) == parsed


def leaves(schema: Mapping[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, a value that is just too much) for every bounded field."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        yield path, low if schema.get("exclusiveMinimum") else low - 1
    if high is not None:
        yield path, high if schema.get("exclusiveMaximum") else high + 1
    if "maxLength" in schema:
        yield path, "x" * (schema["maxLength"] + 1)
    if schema.get("minLength"):
        yield path, ""
    if "enum" in schema:
        yield path, "neither of them"
    if schema.get("type") in ("boolean", "integer", "number"):
        yield path, "text"
    for name, child in schema.get("properties", {}).items():
        yield from leaves(child, (*path, name))
    if "items" in schema:
        if schema.get("minItems"):
            yield path, []
        yield from leaves(schema["items"], (*path, 0))


def complete(schema: Mapping[str, Any]) -> Any:
    """A value with every field set."""
    if "properties" in schema:
        return {name: complete(child) for name, child in schema["properties"].items()}
    if schema.get("type") == "array":
        return [complete(schema["items"])]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") == "date-time":
        return "2030-01-01T00:00:00Z"
    if schema.get("x-kubernetes-int-or-string"):
        return "auto"
    if "pattern" in schema:
        return "example.com/device"
    least = schema.get("minimum") or 0
    by_type = {"string": "x" * max(1, schema.get("minLength", 1)), "integer": least + 1, "number": least + 0.5,
               "boolean": True}
    return by_type.get(str(schema.get("type")), {})


@pytest.mark.parametrize("name", TYPES)
def test_both_refuse_every_field_that_is_out_of_bounds(name: str) -> None:
    good = complete(SCHEMAS[name])
    if name == "job":
        del good["command"], good["preload"]  # train it is
        good["train"]["model"] |= {"family": "mixtral", "size": "8x7b"}  # experts are set, too
        good["train"]["twoBatchOverlap"] = False  # it goes not with all of them
    assert list(VALIDATORS[name].iter_errors(good)) == []
    TYPES[name].model_validate(good)
    tried = 0
    for path, value in leaves(SCHEMAS[name]):
        if path[0] in ("command", "preload"):
            continue
        bad = copy.deepcopy(good)
        node = bad
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        assert not VALIDATORS[name].is_valid(bad), (path, str(value)[:40])
        with pytest.raises(ValidationError):
            TYPES[name].model_validate(bad)
        tried += 1
    assert tried > 20


@pytest.mark.parametrize(("spec", "message"), [
    ({"numNodes": 1}, "exactly one of train and command must be set"),
    ({"numNodes": 1, "command": ["a"], "minNodes": 2}, "minNodes must not be above numNodes"),
    ({"numNodes": 2, "command": ["a"], "checkpoint": {"memory": {"copies": 2}}}, "must be less than numNodes"),
    ({"numNodes": 1, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/a"}]}, "steps": 1},
      "preload": ["torch"]}, "preload needs command"),
    ({"numNodes": 1, "command": ["a"], "checkpoint": {"subPath": "a/../b"}},
     "subPath must be a path inside the volume"),
    ({"numNodes": 1, "command": ["a"], "failurePolicy": {"rules": [{"onExitCodes": [0], "action": "Fail"}]}},
     "onExitCodes must not name 0"),
    ({"numNodes": 1, "train": {"model": {}, "data": {"sources": [{"path": "/a"}]}, "steps": 1}},
     "model needs one of size, config or path"),
    ({"numNodes": 1, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/a"}]}, "steps": 1,
                               "batchSize": 3, "microBatchSize": 2}}, "batchSize must be a multiple"),
    ({"numNodes": 1, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/a"}]}, "steps": 1,
                               "optimizer": {"minLearningRate": 1e-3}}}, "minLearningRate must not be above"),
    ({"numNodes": 1, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/a"}]}, "steps": 1,
                               "experts": {"capacityFactor": 1.25}}}, "experts is for model.family mixtral"),
    ({"numNodes": 1, "train": {"model": {"size": "8x7b", "family": "mixtral"}, "data": {"sources": [{"path": "/a"}]},
                               "steps": 1, "experts": {"moveAbove": 1.2}}}, "moveAbove needs moveEvery"),
    ({"numNodes": 1, "train": {"model": {"size": "8x7b", "family": "mixtral"}, "data": {"sources": [{"path": "/a"}]},
                               "steps": 1, "twoBatchOverlap": True, "experts": {"capacityFactor": 1.2}}},
     "counts tokens over a whole micro-batch"),
    ({"numNodes": 1, "train": {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/a"}]}, "steps": 1,
                               "batchSize": 3, "microBatchSize": 3, "twoBatchOverlap": True}}, "must be even"),
])
def test_pydantic_refuses_by_the_same_rules(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingJobSpec.model_validate(spec)
