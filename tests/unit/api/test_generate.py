"""The generated files are what the types say, and what an API server and a human can live with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field
from trainyard.api import SCHEMA_VERSION
from trainyard.api.base import Model
from trainyard.api.crd import KINDS, SCHEMA_VERSION_ANNOTATION, Kind
from trainyard.api.generate import REPOSITORY, files, main, stale
from trainyard.api.job import TrainingJobSpec
from trainyard.api.schema import structural

FORBIDDEN = {"anyOf", "oneOf", "allOf", "not", "$ref", "const", "default", "title", "nullable"}
CLIENT_SIDE_APPLY = 256 * 1024  # bytes that all annotations of an object may have
FILES = files()
KINDS_BY_NAME = {kind.kind: kind for kind in KINDS}


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from nodes(schema[key], f"{path}[]")


def test_generated_files_are_fresh() -> None:
    assert stale() == [], "run `make generate`"
    assert main(["--check"]) == 0


def test_check_names_what_is_stale(tmp_path: Path) -> None:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert stale(tmp_path) == []
    (tmp_path / "crds/trainyard.dev_worlds.yaml").unlink()
    (tmp_path / "docs/api.md").write_text("old")
    (tmp_path / "crds/trainyard.dev_gone.yaml").write_text("a type that is no more")
    assert {str(path) for path in stale(tmp_path)} == {
        "crds/trainyard.dev_worlds.yaml", "docs/api.md", "crds/trainyard.dev_gone.yaml"}


def test_the_chart_has_the_same_crds() -> None:
    names = sorted(path.name for path in (REPOSITORY / "crds").iterdir())
    assert names == sorted(path.name for path in (REPOSITORY / "charts/trainyard/files/crds").iterdir())
    for name in names:
        copy = REPOSITORY / "charts/trainyard/files/crds" / name
        assert copy.read_text() == (REPOSITORY / "crds" / name).read_text()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_crd_fits_into_the_annotation_of_kubectl_apply(kind: Kind) -> None:
    # kubectl stores the compact JSON and there are other annotations beside it.
    assert len(json.dumps(kind.dump())) < CLIENT_SIDE_APPLY // 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_crd_carries_its_schema_version_and_outlives_the_release(kind: Kind) -> None:
    annotations = kind.dump()["metadata"]["annotations"]
    assert annotations[SCHEMA_VERSION_ANNOTATION] == str(SCHEMA_VERSION)
    assert annotations["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_schema_is_structural_and_bounded(kind: Kind) -> None:
    for path, node in nodes(kind.schema()):
        assert not FORBIDDEN & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        if "additionalProperties" in node:
            assert "properties" not in node, path
            assert "maxProperties" in node, path
        if node.get("type") == "array":
            assert node["maxItems"] > 0, path
            assert node["x-kubernetes-list-type"] in ("atomic", "map", "set"), path
        if node.get("type") == "string" and path not in (".apiVersion", ".kind", ".metadata.name"):
            assert "maxLength" in node or "enum" in node, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_is_explained_in_one_paragraph_that_ends(kind: Kind) -> None:
    for path, node in nodes(kind.schema()):
        if path.endswith("[]") or path.startswith(".metadata"):
            continue
        text = node.get("description", "")
        assert re.search(r"[.)]$", text), f"{path}: {text!r}"
        assert "\n" not in text, path


def test_optional_scalars_of_a_spec_name_their_default() -> None:
    """What is filled in when a field is left out is told by explain: the schema holds no defaults."""
    schema = structural(TrainingJobSpec)
    named = {path for path, node in nodes(schema) if "default" in node.get("description", "").lower()}
    assert {".numProcPerNode", ".minNodes", ".checkpoint.every", ".checkpoint.keep", ".failurePolicy.maxRestarts",
            ".scheduleSeconds", ".cleanPodPolicy", ".suspend", ".train.optimizer.learningRate",
            ".train.microBatchSize", ".train.batchSize", ".train.export"} <= named


def test_every_rule_says_what_was_expected() -> None:
    for kind in KINDS:
        for path, node in nodes(kind.schema()):
            for rule in node.get("x-kubernetes-validations", ()):
                assert len(rule["message"].split()) >= 3, f"{kind.kind}{path}: {rule}"


def test_the_end_of_a_job_holds_every_field_but_three() -> None:
    rule = KINDS_BY_NAME["TrainingJob"].schema()["x-kubernetes-validations"][-1]["rule"]
    held = set(re.findall(r"self\.spec\.(\w+) == oldSelf", rule))
    fields = {str(field.alias) for field in TrainingJobSpec.model_fields.values()}
    assert fields - held == {"suspend", "cleanPodPolicy", "ttlSecondsAfterFinished"}


def test_crds_are_plain_yaml_that_reads_back() -> None:
    for kind in KINDS:
        text = FILES[Path("crds", f"trainyard.dev_{kind.plural}.yaml")]
        assert yaml.safe_load(text) == json.loads(json.dumps(kind.dump()))


class _Unbounded(Model):
    text: str
    """A string without an end."""


class _Union(Model):
    both: Annotated[int, Field(ge=1)] | Annotated[str, Field(max_length=3)]
    """Two types."""


class _Tree(Model):
    listed: list[Annotated[int, Field(ge=1)]]
    """A list without an end."""


@pytest.mark.parametrize(("model", "words"), [
    (_Unbounded, "_Unbounded.text: a string needs a maximum length"), (_Union, "_Union.both: .* holds no union"),
    (_Tree, "_Tree.listed: a list needs a maximum length"),
])
def test_what_a_structural_schema_cannot_say_is_refused_by_name(model: type[Model], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        structural(model)


def test_the_reference_names_every_field() -> None:
    text = FILES[Path("docs/api.md")]
    for kind in KINDS:
        assert f"\n## {kind.kind}\n" in text
    for field in ("`numNodes` \\*", "`train.data.sources[].path` \\*", "`checkpoint.volume`", "`conditions[].reason`",
                  "`failure.exitCode` \\*", "`incarnations`"):
        assert field in text, field
