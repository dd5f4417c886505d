"""The manifests in examples/ are good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from trainyard.api.generate import REPOSITORY
from trainyard.api.job import TrainingJobSpec

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def parts(path: Path) -> list[dict[str, Any]]:
    return [part for part in yaml.safe_load_all(path.read_text()) if part]


def test_there_are_examples() -> None:
    assert {"llama2-tiny-cpu.yaml", "own-script.yaml", "llama2-7b-ascend.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_holds_one_good_job_and_what_it_mounts(path: Path) -> None:
    objects = parts(path)
    [job] = [item for item in objects if item["kind"] == "TrainingJob"]
    spec = TrainingJobSpec.model_validate(job["spec"])
    claims = {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
    assert spec.checkpoint.volume is not None
    assert spec.checkpoint.volume["persistentVolumeClaim"]["claimName"] in claims
    pod = (spec.template or {})["spec"]
    [container] = pod["containers"]
    assert container["name"] == "trainer"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_batch_of_an_example_divides_over_its_ranks(path: Path) -> None:
    [job] = [item for item in parts(path) if item["kind"] == "TrainingJob"]
    spec = TrainingJobSpec.model_validate(job["spec"])
    if spec.train is None:
        return
    assert spec.train.batch_size is not None
    for nodes in range(spec.min_nodes or spec.num_nodes, spec.num_nodes + 1):
        ranks = nodes * spec.procs
        assert spec.train.batch_size % (ranks * spec.train.micro_batch_size) == 0
        assert ranks % (spec.train.parallel.shard or ranks) == 0
