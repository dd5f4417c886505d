"""What is handed from policy to policy while one job is judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from trainyard.api.job import Avoid, ConditionType, TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import WorldSpec
from trainyard.plan.conditions import Verdict, with_condition
from trainyard.plan.gang import Gang, assess
from trainyard.plan.types import CreatePod, DeletePod, Emit, Snapshot, Waiting

Metric = tuple[str, str, float]
Weight = Literal["planned", "free", "counted"]


@dataclass(frozen=True, slots=True)
class Loop:
    """How often the same failure was seen in a row, without a step in between."""

    failure: str  # what failed, without numbers, which change from time to time; empty: cannot be compared
    times: int
    node: str  # the node of all of them; empty: different ones


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that takes the gang to its next generation."""

    kind: str  # cause: DeviceFault, RankFailed, PodLost, NodeLost, Hang, Missing, Moved
    culprit: str
    at: datetime  # when it was seen
    replace: frozenset[int] = frozenset()  # indices that need a new pod
    weight: Weight = "free"  # planned: no restart; free: total only
    avoid: tuple[Avoid, ...] = ()
    refund: bool = False  # the recovery under way was counted for what turns out to be this
    happened: datetime | None = None  # where a pod could tell
    text: str = ""  # evidence: stacks, last lines
    loop: Loop | None = None  # a rank's failure, a hang without a culprit: how often it was this one
    takes_over: bool = False  # the recovery under way goes on, and is told by this from now on
    check: bool = False  # nodes are checked in pairs before ranks start again


@dataclass(frozen=True, slots=True)
class Turn:
    """One job being judged: what was read, what was decided so far. Policies return a changed copy."""

    snap: Snapshot
    spec: TrainingJobSpec
    status: TrainingJobStatus
    world: WorldSpec | None  # as it will be after this plan
    gang: Gang
    faults: tuple[Fault, ...] = ()
    deletes: tuple[DeletePod, ...] = ()
    creates: tuple[CreatePod, ...] = ()
    admit: bool = False
    delete_job: bool = False
    events: tuple[Emit, ...] = ()
    metrics: tuple[Metric, ...] = ()
    requeue: float | None = None
    waiting: Waiting | None = None
    stopped: bool = False

    @property
    def now(self) -> datetime:
        """The moment of the snapshot."""
        return self.snap.now

    def stop(self) -> Turn:
        """No further policy is asked."""
        return replace(self, stopped=True)

    def look_again(self, seconds: float) -> Turn:
        """Plan again after this long, or earlier if somebody already wants that."""
        wait = max(0.05, seconds)
        return replace(self, requeue=wait if self.requeue is None else min(wait, self.requeue))

    def note(self, **changes: Any) -> Turn:
        """With these fields of the status."""
        return replace(self, status=self.status.model_copy(update=changes))

    def judge(self, kind: ConditionType, verdict: Verdict, why: str, message: str) -> Turn:
        """With this condition."""
        made = with_condition(self.status, kind, verdict, why, message, self.now, self.snap.generation)
        return replace(self, status=made)

    def with_world(self, spec: WorldSpec) -> Turn:
        """With this World, and the gang judged by it."""
        return replace(self, world=spec, gang=assess(self.snap, spec, spec.size))

    def with_faults(self, *faults: Fault) -> Turn:
        """With these faults as well."""
        return replace(self, faults=self.faults + faults)

    def delete(self, pods: Iterable[DeletePod]) -> Turn:
        """With these deletions, each pod once."""
        known = {delete.uid for delete in self.deletes}
        return replace(self, deletes=self.deletes + tuple(pod for pod in pods if pod.uid not in known))

    def avoiding(self, avoid: Iterable[Avoid]) -> Turn:
        """With these nodes or devices avoided; a later word about one replaces the earlier one."""
        fresh = {(entry.node, entry.device): entry for entry in avoid}
        if not fresh:
            return self
        kept = [entry for entry in self.status.avoid if (entry.node, entry.device) not in fresh]
        return self.note(avoid=[*kept, *fresh.values()][-64:])

    def emit(self, kind: Literal["Normal", "Warning"], why: str, message: str) -> Turn:
        """With this event."""
        return replace(self, events=(*self.events, Emit(kind, why, message)))
