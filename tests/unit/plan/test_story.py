"""Status, Events, metrics and what `kubectl get tj` shows tell one story of a recovery."""

from __future__ import annotations

from datetime import timedelta

import pytest
from trainyard.plan.types import CreatePod
from unit.plan.builders import Case, condition, of_type, rank_failure, training


@pytest.mark.parametrize(("how", "cause", "first"), [
    ("promoted", "PodLost", ["Promoted", "Recovering"]), ("regrouped", "RankFailed", ["Recovering"]),
])  # fmt: skip
def test_one_recovery_is_told_alike_everywhere(how: str, cause: str, first: list[str]) -> None:
    """A spare takes a lost pod's place; or every pod stays, and ranks only make their groups anew."""
    case = training(2, spareNodes=1).settled().warm().settled()
    broken = case.without_pod(1) if how == "promoted" else case.report(1, "RankFailed", failure=rank_failure())
    made = broken.plan()
    begun = made.status.recoveries[-1]
    assert (begun.cause, begun.generation, begun.milliseconds.total) == (cause, 2, None)
    assert [event.reason for event in made.events] == first
    assert made.events[-1].message == f"{cause}: {begun.culprit}"
    assert condition(made.status, "Recovering")[:2] == ("True", cause)
    assert (made.status.state, made.status.world.generation, made.status.restarts.total) == ("Recovering", 2, 1)
    assert made.status.nodes.ready == 2, "no place waits for a new pod"
    assert [one.index for one in of_type(made, CreatePod)] == ([1] if how == "promoted" else []), "the next spare"

    over = _trains(broken.applied())
    made = over.plan()
    told = made.status.recoveries[-1]
    phases = {name: value for name, value in told.milliseconds if name != "total" and value is not None}
    total = told.milliseconds.total
    assert (told.cause, total, sum(phases.values())) == (cause, 900, 900)
    metrics = {kind: (label, value) for kind, label, value in made.metrics if kind.startswith("recovery")}
    assert metrics == {"recovery": (cause, 0.9)} | {f"recovery.{name}": (cause, value / 1000)
                                                    for name, value in phases.items()}
    assert ("Recovered", "Training goes on at step 21 after 0.9 s.") in [
        (event.reason, event.message) for event in made.events]
    words = "Training goes on in generation 2 after 0.9 s."
    assert condition(made.status, "Recovering") == ("False", "Recovered", words)
    assert (made.status.state, made.status.restarts.total) == ("Running", 1)
    assert len(made.status.recoveries) == 1
    assert made.status.progress is not None
    assert made.status.progress.step == 21


def _trains(case: Case) -> Case:
    """The gang of the next generation is complete after 0.3 s and finishes its first step after 0.9 s."""
    begun, case = case.snap.now, case.after(1)
    at = {name: (begun + timedelta(seconds=seconds)).isoformat() for name, seconds in (
        ("formed_at", 0.3), ("connected_at", 0.4), ("restored_at", 0.7), ("first_step_at", 0.9))}
    return case.report(0, "Formed", formed_at=at.pop("formed_at"), address="10.0.0.1:7000",
                       progress={"step": 21, "steps": 100, "seconds_per_step": "1.0", **at})
