"""Gangs that go on smaller when no replacement is to be had, and grow again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from trainyard.api.job import LayoutStatus, TrainingJobSpec
from trainyard.layout.problems import InvalidLayout
from trainyard.layout.sizes import check_min_nodes, gang_sizes
from trainyard.placement.books import Books
from trainyard.plan.types import CreatePod
from unit.plan.builders import Case, books, condition, of_type, placed, training, world_of

POLICY = {"replaceSeconds": 60}


def full(case: Case) -> Case:
    """With no node free."""
    return case.but(books=Books({}))


def lost(nodes: int = 4, least: int = 2, **fields: Any) -> Case:
    """Place 1 is lost, and there is no room for a replacement."""
    return full(training(nodes, minNodes=least, failurePolicy=POLICY, **fields)).without_pod(1).settled()


def shrunk(**fields: Any) -> Case:
    """And the gang trains without it."""
    case = lost(**fields).after(60).settled()
    return case.formed(step=30, steps=100, durable_step=20).settled()


def test_it_shrinks_after_replace_seconds() -> None:
    case = lost()
    assert (case.world_spec.generation, case.world_spec.size) == (2, 4)
    assert case.condition("Scheduled")[0] == "False"
    assert 59 <= (case.plan().requeue_after or 0) + 30 <= 90
    assert case.after(59).settled().world_spec.size == 4
    made = case.after(60).plan()
    world = world_of(made)
    assert (world.generation, world.phase, world.size, world.members) == (3, "Run", 3, (0, 2, 3))
    assert world.incarnation(1) == 2, "the lost pod stays out"
    assert world.cause.kind == "Shrunk"
    assert world.master.pod == "j-0-1"
    assert [event.reason for event in made.events] == ["Shrunk", "Scheduled", "SparesMissing"]
    case = case.after(60).applied()
    assert len(case.snap.status.recoveries) == 1, "the same recovery"
    assert case.snap.status.recoveries[0].cause == "Shrunk"
    assert "no replacement for 1 of 4 pods within 60 s" in case.snap.status.recoveries[0].culprit
    assert case.snap.status.restarts.total == 1
    assert len(case.snap.pods) == 3, "no survivor is touched"
    done = case.formed(step=30, steps=100, durable_step=20)
    assert done.condition("Running")[2] == "3 of 4 pods train in generation 3."
    assert done.plan().status.nodes.dump() == {"ready": 3, "spare": 0, "desired": 4}
    assert done.plan().status.world.size == 3


@pytest.mark.parametrize(("change", "size"), [
    ({"minNodes": 4}, 4), ({"minNodes": None}, 4), ({"minNodes": 3}, 3), ({"minNodes": 1}, 3)])
def test_never_below_min_nodes(change: dict[str, Any], size: int) -> None:
    case = lost().spec_with(**change).after(1000).settled()
    assert case.world_spec.size == size


def test_two_losses_and_room_for_one() -> None:
    case = full(training(4, minNodes=2, failurePolicy=POLICY)).without_pod(1).without_pod(3)
    case = case.but(books=books(5).take({f"n/{i}": f"n{i}" for i in range(4)}, {"cpu": 1000, "pods": 1}))
    case = case.settled()
    assert not [pod for pod in case.snap.pods if pod.index in (1, 3)], "all that are missing, or none"
    made = case.after(60).plan()
    assert world_of(made).members == (0, 2)
    assert [one.index for one in of_type(made, CreatePod)] == [1], "the room is used: it may grow to 3"


def test_a_replacement_in_time_keeps_the_size() -> None:
    case = lost().but(books=books(6)).after(30).settled().started().settled()
    assert case.after(60).settled().world_spec.size == 4


def test_a_first_start_never_shrinks() -> None:
    case = full(placed(3, minNodes=1, failurePolicy=POLICY)).without_pod(1)
    assert case.after(1000).settled().world_spec.size == 3


def test_it_grows_at_a_checkpoint_when_there_is_room() -> None:
    case = shrunk()
    assert case.plan().waiting is not None
    case = case.but(books=books(8)).settled()
    assert [pod.name for pod in case.snap.pods if pod.index == 1] == ["j-1-3"]
    assert case.world_spec.size == 3, "it starts beside the gang"
    case = case.started().after(59).settled()
    assert case.world_spec.phase == "Run"
    case = case.after(1).settled()
    assert (case.world_spec.phase, case.world_spec.cause.kind) == ("Drain", "Grown")
    made = case.report(0, "Drained", drained_step=33).plan()
    world = world_of(made)
    assert (world.phase, world.size, world.members) == ("Run", 4, (0, 2, 3, 1))
    assert made.status.recoveries[-1].cause == "Grown"
    assert [event.reason for event in made.events] == ["Promoted", "Grown"]
    assert condition(made.status, "SparesReady") == ("", "", "")
    assert made.status.restarts.total == 1, "growing is no restart"


def test_a_loss_meanwhile_takes_the_new_pod_in() -> None:
    case = shrunk().but(books=books(8)).settled().started().without_pod(3)
    world = world_of(case.plan())
    assert (world.size, world.members) == (3, (0, 2, 1))


def test_without_a_checkpoint_it_does_not_begin_anew_to_grow() -> None:
    case = shrunk()
    assert case.snap.rendering is not None
    case = case.but(rendering=replace(case.snap.rendering, checkpoint=False), books=books(8)).settled().started()
    assert case.after(600).settled().world_spec.size == 3
    case = case.status_with(checkpoint=type(case.snap.status).model_validate(
        {"checkpoint": {"memoryStep": 30}}).checkpoint)
    told = {"step": 31, "steps": 100, "memory_step": 30}
    assert case.formed(**told).after(600).settled().world_spec.size == 4, "copies in memory will do"


def layout(**sizes: int) -> LayoutStatus:
    return LayoutStatus.model_validate({"data": 1, "shard": 1, "tensor": 1, "pipeline": 1, "context": 1, **sizes})


def trains(nodes: int, procs: int, **fields: Any) -> TrainingJobSpec:
    train = {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/d"}]}, "steps": 1}
    return TrainingJobSpec.model_validate({"numNodes": nodes, "numProcPerNode": procs, "train": train} | fields)


@pytest.mark.parametrize(("nodes", "procs", "least", "sizes", "expected"), [
    (4, 1, 1, {"shard": 4}, [1, 2, 3, 4]), (4, 1, 1, {"shard": 2, "tensor": 2}, [2, 4]), (4, 1, 3, {"tensor": 4}, [4]),
    (4, 8, 2, {"tensor": 8, "shard": 4}, [2, 3, 4]), (6, 2, 1, {"pipeline": 3, "shard": 4}, [3, 6]),
    (4, 1, 1, {"shard": 4, "expert": 2}, [2, 4]), (4, 2, 1, {"context": 4, "shard": 2}, [2, 4]),
])
def test_sizes_that_keep_tensor_pipeline_and_context(nodes: int, procs: int, least: int, sizes: dict[str, int],
                                                     expected: list[int]) -> None:
    assert gang_sizes(trains(nodes, procs, minNodes=least), layout(**sizes)) == expected


def test_min_nodes_has_to_be_a_legal_size() -> None:
    check_min_nodes(trains(4, 1, minNodes=2), layout(tensor=2, shard=2))
    check_min_nodes(trains(4, 1), layout(tensor=2, shard=2))
    with pytest.raises(InvalidLayout, match=r"3 nodes have 3 ranks, which tensor 2 .* legal: 2, 4"):
        check_min_nodes(trains(4, 1, minNodes=3), layout(tensor=2, shard=2))
    with pytest.raises(InvalidLayout, match="leave minNodes out"):
        check_min_nodes(trains(4, 1, minNodes=3), None)
    check_min_nodes(TrainingJobSpec.model_validate({"numNodes": 3, "minNodes": 1, "command": ["x"]}), None)
