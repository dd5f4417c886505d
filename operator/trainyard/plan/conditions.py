"""Conditions of a job's status, and the one word that sums them up."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from trainyard.api.job import Condition, ConditionType, Phase, TrainingJobStatus
from trainyard.plan.times import stamp

Verdict = Literal["True", "False", "Unknown"]
ORDER: tuple[ConditionType, ...] = (
    "Accepted", "Scheduled", "Running", "Recovering", "SparesReady", "Suspended", "Succeeded", "Failed",
)  # fmt: skip
LIMIT = 4000  # characters of a message; a status object should stay readable


def find(status: TrainingJobStatus, kind: ConditionType) -> Condition | None:
    """The condition of this type, if it was ever judged."""
    return next((condition for condition in status.conditions if condition.type == kind), None)


def holds(status: TrainingJobStatus, kind: ConditionType) -> bool:
    """Whether the condition is True."""
    found = find(status, kind)
    return found is not None and found.status == "True"


def reason(status: TrainingJobStatus, kind: ConditionType) -> str:
    """Reason of the condition; empty if it was never judged."""
    found = find(status, kind)
    return found.reason if found else ""


def with_condition(
    status: TrainingJobStatus,
    kind: ConditionType,
    verdict: Verdict,
    why: str,
    message: str,
    now: datetime,
    generation: int,
) -> TrainingJobStatus:
    """The status with this condition; its transition time moves only when the verdict does."""
    before = find(status, kind)
    since = before.last_transition_time if before and before.status == verdict else stamp(now)
    made = Condition(
        type=kind, status=verdict, reason=why, message=shorten(message, LIMIT),
        last_transition_time=since, observed_generation=generation,
    )  # fmt: skip
    others = (condition for condition in status.conditions if condition.type != kind)
    return status.model_copy(update={"conditions": _ordered([*others, made])})


def _ordered(conditions: Iterable[Condition]) -> list[Condition]:
    return sorted(conditions, key=lambda condition: ORDER.index(condition.type))


def finished(status: TrainingJobStatus) -> bool:
    """Whether the job has ended for good."""
    return holds(status, "Succeeded") or holds(status, "Failed")


def state(status: TrainingJobStatus) -> Phase:
    """One word for the whole, from the conditions alone."""
    for kind, word in _TRUE:
        if holds(status, kind):
            return word
    if reason(status, "Suspended") == "Draining":
        return "Suspending"
    if holds(status, "Recovering"):
        return "Recovering"
    if holds(status, "Running"):
        return "Running"
    return "Starting" if holds(status, "Scheduled") else "Pending"


_TRUE: tuple[tuple[ConditionType, Phase], ...] = (
    ("Succeeded", "Succeeded"), ("Failed", "Failed"), ("Suspended", "Suspended"),
)  # fmt: skip


def shorten(text: str, limit: int) -> str:
    """The text, cut at `limit` characters with a mark that it was."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
