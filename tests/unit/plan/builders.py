"""Snapshots in a few words: `job(2).placed().running().report(1, "RankFailed", failure=rank_failure())`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import Failure, RankProgress, ReportSpec, WorldSpec
from trainyard.placement.books import Books, Demand, NodeView
from trainyard.plan import plan
from trainyard.plan.types import (
    Action,
    CreatePod,
    DeletePod,
    NodeState,
    Plan,
    PodView,
    PutWorld,
    Rendering,
    Report,
    Snapshot,
    World,
)

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
UID = "uid-of-j"
TOKEN = "0123456789abcdef-token"
DEMAND = Demand({"cpu": 1000, "pods": 1})
RENDERING = Rendering("j-0123456789", "0123456789", DEMAND)


def spec(nodes: int = 2, **fields: Any) -> TrainingJobSpec:
    """A job with a command; fields in camelCase, as in a manifest."""
    return TrainingJobSpec.model_validate({"numNodes": nodes, "command": ["python", "t.py"]} | fields)


def books(nodes: int = 4, pods: int = 1) -> Books:
    """Nodes n0, n1, ... with room for so many pods each."""
    room = {"cpu": 1000 * pods, "pods": 110}
    return Books({f"n{i}": NodeView(f"n{i}", room) for i in range(nodes)})


def rank_failure(code: int = 1, root: bool = True, **fields: Any) -> Failure:
    """A rank that ended."""
    return Failure.model_validate({"root": root, "rank": 3, "exit_code": code, "reason": "ValueError: no"} | fields)


@dataclass(frozen=True)
class Case:
    """A snapshot under construction; every method gives a changed copy."""

    snap: Snapshot
    rv: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.snap, name)

    def but(self, **changes: Any) -> Case:
        """With these fields of the snapshot."""
        return replace(self, snap=replace(self.snap, **changes))

    def spec_with(self, **fields: Any) -> Case:
        """With these fields of the spec, in camelCase."""
        assert self.snap.spec is not None
        return self.but(spec=TrainingJobSpec.model_validate(self.snap.spec.dump() | fields))

    def status_with(self, **fields: Any) -> Case:
        """With these fields of the status, in snake_case."""
        return self.but(status=self.snap.status.model_copy(update=fields))

    def after(self, seconds: float) -> Case:
        """Later."""
        return self.but(now=self.snap.now + timedelta(seconds=seconds))

    def plan(self) -> Plan:
        """What is to be done."""
        return plan(self.snap)

    def applied(self) -> Case:
        """The plan carried out: World, pods, status; Admit gives a rendering and another plan, as in a reconcile."""
        made = self.plan()
        case = self
        for action in made.actions:
            case = case._apply(action)
        if any(type(action).__name__ == "Admit" for action in made.actions):
            return case.but(rendering=RENDERING).applied()
        return case.but(status=made.status)

    def _apply(self, action: Action) -> Case:
        snap = self.snap
        if isinstance(action, PutWorld):
            assert action.resource_version == (snap.world.resource_version if snap.world else None)
            made = replace(self, rv=self.rv + 1)
            return made.but(world=World(action.spec, str(self.rv)))
        if isinstance(action, CreatePod):
            name = f"{snap.name}-{action.index}-{action.incarnation}"
            assert all(pod.name != name for pod in snap.pods), f"two pods named {name}"
            pod = PodView(
                name, f"uid-{name}", action.index, action.incarnation, "r", snap.now, action.node, action.node
            )
            return self.but(pods=(*snap.pods, pod))
        if isinstance(action, DeletePod):
            return self.but(pods=tuple(pod for pod in snap.pods if pod.uid != action.uid))
        return self

    def settled(self, limit: int = 10) -> Case:
        """Planned and applied until nothing is left to do."""
        case = self
        for _ in range(limit):
            made = case.plan()
            if not made.actions and made.status == case.snap.status:
                return case
            case = case.applied()
        raise AssertionError(f"no end: {case.plan().actions}")

    def pod(self, index: int, **changes: Any) -> Case:
        """With changes to the newest pod of an index."""
        newest = max((pod for pod in self.snap.pods if pod.index == index), key=lambda pod: pod.incarnation)
        pods = tuple(replace(pod, **changes) if pod.uid == newest.uid else pod for pod in self.snap.pods)
        return self.but(pods=pods)

    def without_pod(self, index: int) -> Case:
        """With no pod of this index."""
        return self.but(pods=tuple(pod for pod in self.snap.pods if pod.index != index))

    def started(self) -> Case:
        """All pods' containers run."""
        pods = tuple(
            pod if pod.finished else replace(pod, started=True, ready=True, phase="Running", ip="10.0.0.1")
            for pod in self.snap.pods
        )
        return self.but(pods=pods)

    def warm(self) -> Case:
        """All pods run, and every spare's supervisor says that it has imported."""
        case = self.started()
        members = case.world_spec.members
        for index in sorted({pod.index for pod in case.snap.pods if not pod.ended} - set(members)):
            case = case.report(index, "Warm")
        return case

    def report(self, index: int, kind: str, **fields: Any) -> Case:
        """A report by the pod that holds an index, in the current generation; replaces the one it made before."""
        assert self.snap.world is not None
        world = self.snap.world.spec
        pod = max((pod for pod in self.snap.pods if pod.index == index), key=lambda pod: pod.incarnation)
        base = {
            "job": UID, "pod_uid": pod.uid, "index": index, "incarnation": pod.incarnation,
            "generation": world.generation, "sequence": 1, "kind": kind,
        }  # fmt: skip
        made = Report(pod.name, ReportSpec.model_validate(base | fields), self.snap.now)
        return self.but(reports=(*(report for report in self.snap.reports if report.pod != pod.name), made))

    def formed(self, **progress: Any) -> Case:
        """The gang has formed; the master says so, with progress if any is given."""
        at = self.snap.now.isoformat()
        told = RankProgress.model_validate({"first_step_at": at, "at": at} | progress) if progress else None
        return self.report(0, "Formed", formed_at=at, address="10.0.0.1:7000", progress=told).but()

    def node(self, name: str, **fields: Any) -> Case:
        """With a node in this state."""
        state = replace(NodeState(name, True), **fields)
        return self.but(nodes=dict(self.snap.nodes) | {name: state})

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition after this plan."""
        return condition(self.plan().status, kind)

    @property
    def world_spec(self) -> WorldSpec:
        """The World as read."""
        assert self.snap.world is not None
        return self.snap.world.spec


def condition(status: TrainingJobStatus, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty texts if it is not there."""
    found = next((one for one in status.conditions if one.type == kind), None)
    return (found.status, found.reason, found.message) if found else ("", "", "")


def job(nodes: int = 2, **fields: Any) -> Case:
    """A job that was just made, on a cluster of four nodes with one place each."""
    return Case(
        Snapshot(
            now=NOW, namespace="ns", name="j", uid=UID, generation=1, created=NOW, spec=spec(nodes, **fields),
            status=TrainingJobStatus(), admitted_hash="hash", books=books(max(4, nodes + 2)), new_token=TOKEN,
            nodes={f"n{i}": NodeState(f"n{i}", True) for i in range(max(4, nodes + 2))},
        )
    )  # fmt: skip


def placed(nodes: int = 2, **fields: Any) -> Case:
    """Admitted, with World and pods; nothing runs yet."""
    return job(nodes, **fields).settled()


def training(nodes: int = 2, step: int = 20, **fields: Any) -> Case:
    """In full swing: formed, at this step, checkpoints up to ten steps behind."""
    case = placed(nodes, **fields).started().settled()
    told = {"step": step, "steps": 100, "durable_step": step - step % 10, "seconds_per_step": "1.0"}
    return case.formed(**told).settled()


def of_type(made: Plan, kind: type[Any]) -> list[Any]:
    """The actions of one type."""
    return [action for action in made.actions if isinstance(action, kind)]


def world_of(made: Plan) -> WorldSpec:
    """The World that the plan writes."""
    (write,) = of_type(made, PutWorld)
    spec_: WorldSpec = write.spec
    return spec_
