"""Pydantic's validators and the CRD's CEL rules judge alike, whatever object comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.apiserver import ApiServer
from contract.rest import GROUP, Rest
from harness.schemas import drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from trainyard.api.job import TrainingJobSpec
from trainyard.api.schema import structural

NAMESPACE = "crd-agreement"
SPEC = structural(TrainingJobSpec)


@pytest.fixture(scope="module")
def rest(crds: ApiServer) -> Iterator[Rest]:
    crds.namespace(NAMESPACE)
    with Rest(crds.kubeconfig) as client:
        yield client


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_pydantic_and_the_api_server_agree(rest: Rest, data: st.DataObject) -> None:
    spec = data.draw(drawn(SPEC))
    if data.draw(st.booleans()):  # most that is drawn breaks the commonest rule; have enough that does not
        spec.pop("command", None)
        spec["train"] = data.draw(drawn(SPEC["properties"]["train"]))
    try:
        TrainingJobSpec.model_validate(spec)
        problem = ""
    except ValidationError as error:
        problem = str(error)
    answer = rest.create(f"{GROUP}/namespaces/{NAMESPACE}/trainingjobs", {
        "apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "drawn"}, "spec": spec,
    }, dryRun="All")
    assert answer.ok == (not problem), f"{answer}\n{problem}"
