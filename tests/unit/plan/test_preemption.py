"""Jobs that make room for one of a higher priority."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard.placement.books import Books
from trainyard.plan.types import CreatePod, DeletePod, Occupant, Plan, PutWorld, Quota, Waiting
from unit.plan.builders import DEMAND, NOW, Case, books, condition, job, of_type, placed, training, world_of


def occupant(name: str, *nodes: str, priority: int = 0, **changes: Any) -> Occupant:
    """A job with a pod on each of these nodes."""
    places = {f"ns/{name}-{i}-1": node for i, node in enumerate(nodes)}
    return replace(Occupant(f"ns/{name}", priority, NOW, places, DEMAND.requests), **changes)


def urgent(*occupants: Occupant, nodes: int = 2, **fields: Any) -> Case:
    """A job of priority 10 that needs two of four nodes, which others hold."""
    full = Books(books(4).nodes)
    for one in occupants:
        full = full.take(one.places, one.requests)
    return job(nodes, **fields).applied().but(books=full, priority=10, occupants=occupants)


def preempts(made: Plan) -> tuple[str, ...]:
    return made.waiting.preempts if made.waiting else ()


LOW = occupant("low", "n0", "n1")
MIDDLE = occupant("middle", "n2", "n3", priority=5)


@pytest.mark.parametrize(("case", "occupants", "chosen"), [
    ("the lowest priority", (MIDDLE, LOW), ("ns/low",)),
    ("whole jobs", (occupant("all", "n0", "n1", "n2", "n3"),), ("ns/all",)),
    ("least progress lost", (replace(LOW, at_risk=60.0), replace(MIDDLE, priority=0, at_risk=5.0)), ("ns/middle",)),
    ("the youngest of equals", (replace(LOW, created=NOW - timedelta(1)), replace(MIDDLE, priority=0)), ("ns/middle",)),
    ("as many as it takes", (occupant("a", "n0"), occupant("b", "n1"), occupant("c", "n2", "n3", priority=1)),
     ("ns/a", "ns/b")),
    ("one that alone would do, not the small one as well", (occupant("small", "n0"), occupant("large", "n1", "n2", "n3",
     priority=1)), ("ns/large",)),
    ("nobody of the same priority", (replace(LOW, priority=10), replace(MIDDLE, priority=11)), ()),
    ("nobody, if that would not be enough", (LOW, replace(MIDDLE, priority=10)), ("ns/low",)),
    ("nobody in vain", (occupant("one", "n0"), occupant("rest", "n1", "n2", "n3", priority=10)), ()),
    ("nobody more, if some leave already", (replace(LOW, leaving=True), MIDDLE), ("ns/low",)),
    ("more, if those who leave are not enough", (occupant("a", "n0", leaving=True), occupant("b", "n1", "n2", "n3")),
     ("ns/a", "ns/b")),
])  # fmt: skip
def test_who_makes_room(case: str, occupants: tuple[Occupant, ...], chosen: tuple[str, ...]) -> None:
    made = urgent(*occupants).plan()
    assert preempts(made) == chosen, case
    assert of_type(made, CreatePod) == [], "never half a gang"
    assert condition(made.status, "Scheduled")[1] == ("Preempting" if chosen else "InsufficientResources")


def test_it_is_said_on_both_and_once() -> None:
    case = urgent(LOW, replace(MIDDLE, priority=10))
    made = case.plan()
    (event,) = [event for event in made.events if event.reason == "Preempting"]
    assert "ns/low (priority 0)" in event.message
    assert [event.reason for event in case.applied().plan().events] == []
    other = training().but(preemptor=made.waiting).plan()
    assert [(e.type, e.reason) for e in other.events] == [("Warning", "Preempted")]
    assert "ns/j (priority 10)" in condition(other.status, "Scheduled")[2]


@pytest.mark.parametrize("changes", [
    {"may_preempt": False}, {"quotas": (Quota("small", {"pods": 1}),)}, {"strangers": ("j-1-1",)}, {"occupants": ()},
], ids=["preemptionPolicy Never", "a quota", "a name", "nobody"])  # fmt: skip
def test_who_does_not_preempt(changes: dict[str, Any]) -> None:
    assert preempts(urgent(LOW, MIDDLE).but(**changes).plan()) == ()


def test_a_gang_that_never_starts_stops_no_others() -> None:
    """Its image cannot be pulled, say: they would be saved, removed and brought back time and again."""
    assert preempts(urgent(LOW, MIDDLE).status_with(withdrawals=1).plan())
    assert preempts(urgent(LOW, MIDDLE).status_with(withdrawals=2).plan()) == ()


def test_places_that_are_free_are_taken_without_preemption() -> None:
    made = urgent(LOW).plan()
    assert {pod.node for pod in of_type(made, CreatePod)} == {"n2", "n3"}


PREEMPTOR = Waiting("ns/urgent", 10, NOW, 2, DEMAND, preempts=("ns/j",))


def test_a_preempted_job_saves_first_then_gives_up_all_pods_then_comes_back() -> None:
    case = training().but(preemptor=PREEMPTOR)
    made = case.plan()
    world = world_of(made)
    assert (world.phase, world.cause.kind, world.cause.culprit) == ("Drain", "Preempted", "ns/urgent (priority 10)")
    assert of_type(made, DeletePod) == []
    assert condition(made.status, "Running")[:2] == ("False", "Preempted")
    drained = case.applied().report(0, "Drained", drained_step=21)
    made = drained.plan()
    assert len(of_type(made, DeletePod)) == 2
    gone = drained.applied()
    assert gone.snap.pods == ()
    full = gone.but(books=books(4).take({f"ns/u{i}": f"n{i}" for i in range(4)}, DEMAND.requests), preemptor=None)
    waits = full.applied()
    assert waits.plan().waiting is not None
    assert condition(waits.snap.status, "Scheduled")[1] == "Preempted"
    assert "Its places went to ns/urgent" in condition(waits.snap.status, "Scheduled")[2]
    assert [event.reason for event in waits.plan().events] == []
    back = waits.but(books=books(4)).plan()
    world = world_of(back)
    assert (world.phase, world.cause.kind, world.generation) == ("Run", "Resume", 2)
    assert world.incarnations == {"0": 2, "1": 2}
    assert len(of_type(back, CreatePod)) == 2
    assert (world.cause.total, world.cause.counted) == (0, 0), "not a restart"


def test_its_places_are_kept_for_the_one_that_it_made_room_for() -> None:
    gone = training().but(preemptor=PREEMPTOR).applied().report(0, "Drained", drained_step=21).applied()
    case = gone.but(books=books(2), ahead=(PREEMPTOR,))
    assert case.plan().actions == ()
    other = job().applied().but(books=books(2), ahead=(PREEMPTOR,)).plan()
    assert other.actions == (), "nor does a third one get them"
    assert of_type(case.but(ahead=(replace(PREEMPTOR, preempts=()),)).plan(), CreatePod), "only a wish is no claim"


def test_what_began_is_completed() -> None:
    case = training().but(preemptor=PREEMPTOR).applied().but(preemptor=None)
    assert case.plan().actions == ()
    late = case.after(case.world_spec.drain_seconds + 11)
    assert len(of_type(late.plan(), DeletePod)) == 2, "ranks that do not save in time"


def test_a_job_that_does_not_train_yet_has_nothing_to_save() -> None:
    made = placed().but(preemptor=PREEMPTOR).plan()
    assert len(of_type(made, DeletePod)) == 2
    assert [write.spec.phase for write in of_type(made, PutWorld)] == ["Drain"]


def test_the_step_that_was_saved_is_in_the_status() -> None:
    case = training().but(preemptor=PREEMPTOR).applied().after(1)
    told = {"step": 23, "steps": 100, "at": case.snap.now.isoformat(), "durable_step": 23}
    made = case.report(0, "Drained", drained_step=23, formed_at=NOW.isoformat(), progress=told).plan()
    assert len(of_type(made, DeletePod)) == 2
    assert made.status.progress is not None
    assert made.status.progress.step == 23


def test_suspension_goes_first() -> None:
    case = training().but(preemptor=PREEMPTOR).spec_with(suspend=True)
    assert world_of(case.plan()).cause.kind == "Suspended"
