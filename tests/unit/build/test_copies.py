"""Room for copies of state in the pods' memory."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.api.job import TrainingJobSpec
from trainyard.build import InvalidTemplate, render
from trainyard.build.copies import copies_bytes
from trainyard.build.planning import plan_layout
from trainyard.layout.memory import state_bytes
from trainyard.layout.shape import fields_of, shape_of
from trainyard.layout.types import Layout
from unit.build.jobs import JOB, SETTINGS, command_job, train_job

GIB = 2**30


def copying(template: Any = None, **memory: Any) -> TrainingJobSpec:
    return train_job(template, numNodes=4, numProcPerNode=8, checkpoint={"memory": memory})


def trainer(template: Any, volumes: Any = None, **resources: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "trainer", **template}
    if resources:
        container["resources"] = resources
    return {"spec": {"containers": [container], **({"volumes": volumes} if volumes else {})}}


@pytest.mark.parametrize(("memory", "expected"), [
    ({"copies": 1, "every": 5, "copyEvery": 5}, 8 * (2 + 2) * GIB),  # ranks x slots (own + those for other nodes)
    ({"copies": 1, "every": 1, "copyEvery": 5}, 8 * (3 + 2) * GIB),
    ({"copies": 2}, 8 * (3 + 2 * 2) * GIB),
    ({"copies": 0}, 8 * 3 * GIB),
    ({"copies": 1, "every": 0}, 0),
    ({}, 0),  # auto takes what there is
])
def test_bytes_a_pod(memory: dict[str, Any], expected: int) -> None:
    assert copies_bytes(copying(**memory), GIB) == expected


def test_a_checkpoint_is_written_from_one_slot_more() -> None:
    memory = {"copies": 1, "every": 5, "copyEvery": 5}
    spec = train_job(numNodes=4, numProcPerNode=8, checkpoint={"memory": memory, "volume": {"emptyDir": {}}})
    assert copies_bytes(spec, GIB) == 8 * (2 + 2 + 1) * GIB


def test_fewer_pods_hold_more_each() -> None:
    spec = train_job(numNodes=4, minNodes=2, checkpoint={"memory": {"copies": 1, "every": 2, "copyEvery": 2}})
    assert copies_bytes(spec, GIB) == 2 * 4 * GIB


def test_programs_of_ones_own_keep_their_own_copies() -> None:
    assert copies_bytes(command_job(checkpoint={"memory": {"copies": 1}}), GIB) == 0


def test_state_of_the_fullest_rank() -> None:
    fields = fields_of(train_job().train.model)  # type: ignore[union-attr]
    assert fields is not None
    shape = shape_of(fields)
    assert state_bytes(shape, Layout()) == 12 * shape.parameters
    assert state_bytes(shape, Layout(shard=4)) == 3 * shape.parameters
    halves = Layout(pipeline=2, stage_layers=(shape.layers - 1, 1))
    assert 6 * shape.parameters < state_bytes(shape, halves) < 12 * shape.parameters


def test_memory_that_was_asked_for_grows_and_the_mount_is_bounded() -> None:
    asked = {"limits": {"memory": "64Gi", "cpu": "2"}, "requests": {"memory": "32Gi"}}
    spec = copying(trainer({}, **asked), copies=1, every=1, copyEvery=1)
    plain = copying(trainer({}, **asked))
    need = copies_bytes(spec, plan_layout(spec).state) / 0.8 / 2**20
    grown, before = pod_of(spec), pod_of(plain)
    limits = grown["containers"][0]["resources"]["limits"]
    assert limits["cpu"] == "2"
    assert int(limits["memory"].removesuffix("Mi")) == pytest.approx(65536 + need, abs=2)
    assert int(grown["containers"][0]["resources"]["requests"]["memory"].removesuffix("Mi")) == pytest.approx(
        32768 + need, abs=2)  # fmt: skip
    (shm,) = (volume for volume in grown["volumes"] if volume["name"] == "trainyard-shm")
    assert int(shm["emptyDir"]["sizeLimit"].removesuffix("Mi")) == pytest.approx(need, abs=2)
    assert before["containers"][0]["resources"] == asked
    assert {"name": "trainyard-shm", "emptyDir": {"medium": "Memory"}} in before["volumes"]


def test_without_amounts_none_are_made_up() -> None:
    assert "resources" not in pod_of(copying(copies=1))["containers"][0]


def test_a_mount_of_the_templates_own_must_be_large_enough() -> None:
    mount = {"volumeMounts": [{"name": "mine", "mountPath": "/dev/shm"}]}
    volumes = [{"name": "mine", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]
    with pytest.raises(InvalidTemplate, match=r"64Mi is too little .*copies 1 takes \d+Mi a pod"):
        render(JOB, copying(trainer(mount, volumes), copies=1), SETTINGS)
    volumes[0]["emptyDir"]["sizeLimit"] = "64Gi"  # type: ignore[index]
    (kept,) = (volume for volume in pod_of(copying(trainer(mount, volumes), copies=1))["volumes"]
               if volume["name"] == "mine")  # fmt: skip
    assert kept == volumes[0]


def pod_of(spec: TrainingJobSpec) -> dict[str, Any]:
    pod: dict[str, Any] = dict(render(JOB, spec, SETTINGS).template["spec"])
    return pod
