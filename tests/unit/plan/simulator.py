"""A tiny cluster for plan(): pods that take time to start and to die, supervisors that follow the World, nodes
that fall silent, an operator that dies between two writes. One tick is one second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from trainyard.api.job import TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import Failure, RankProgress, ReportSpec, WorldSpec
from trainyard.fleet.devices import Accelerators, Device
from trainyard.plan import plan
from trainyard.plan.types import (
    Admit,
    CreatePod,
    DeleteJob,
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
from unit.plan.builders import NOW, RENDERING, TOKEN, UID, books, condition, rank_failure, spec

STEPS = 40
STARTED, IMPORTED = 3, 6  # ticks after its creation that a container runs, and that a spare's imports are done
NODES = 6
DRAIN_TICKS = 2


@dataclass
class Pod:
    """A pod with what its supervisor knows."""

    view: PodView
    age: int = 0
    generation: int = 0  # the one its ranks were started for
    drained: int = 0  # ticks since it saw Drain
    dying: int | None = None  # ticks until the object is gone
    report: ReportSpec | None = None
    received: datetime | None = None

    @property
    def works(self) -> bool:
        """Whether its ranks could train."""
        return self.view.started and not self.view.finished


@dataclass
class Bad:
    """A device's fault."""

    code: str  # a new one each time: a job that raises the same one again and again is to blame
    told: int  # ticks until the agent has noticed
    lasts: int = 15  # ticks after that


@dataclass
class Cluster:
    """The API server's truth, and the job's."""

    nodes: int = 3
    job: TrainingJobSpec = field(default_factory=spec)
    generation: int = 1
    now: datetime = NOW
    status: TrainingJobStatus = field(default_factory=TrainingJobStatus)
    world: World | None = None
    writes: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)  # node: ticks until it is back
    dead: set[str] = field(default_factory=set)  # silent nodes whose pods do not train either
    since: dict[str, datetime] = field(default_factory=dict)
    bad: dict[str, Bad] = field(default_factory=dict)  # by node, whose only device is out of order
    codes: int = 0
    late: int = 0  # ranks that failed of a device before the agent had noticed it
    rendering: Rendering | None = None
    formed: int = 0  # generation that trains
    step: int = 0
    durable: int = 0
    roots: int = 0
    again: int = 0  # containers that ended by themselves in a pod that was a replacement
    lose: int | None = None  # so many actions of the next plan are carried out, then the operator dies
    acted: int = 0
    names: set[str] = field(default_factory=set)
    spares: int = 0
    least: int = 3  # minNodes
    tells: bool = True  # spares say that they are warm; older supervisors did not
    steps: int = STEPS
    room: int = 1  # pods a node
    told: list[tuple[datetime, str]] = field(default_factory=list)  # reasons of Events, and when

    def __post_init__(self) -> None:
        self.job = spec(self.nodes, scheduleSeconds=30, spareNodes=self.spares,
                        minNodes=self.least, failurePolicy={"replaceSeconds": 4})

    # --- what the operator does -----------------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        """What the operator reads."""
        state = {
            name: NodeState(name, name not in self.silent, self.since.get(name))
            for name in (f"n{i}" for i in range(NODES))
        }
        free = books(NODES, self.room)
        used: dict[str, dict[str, int]] = {}
        for pod in self.pods.values():
            node = pod.view.node or pod.view.pinned
            if node and not pod.view.finished:
                used.setdefault(node, {"cpu": 0, "pods": 0})
                used[node] = {"cpu": used[node]["cpu"] + 1000, "pods": used[node]["pods"] + 1}
        nodes = {name: replace(node, ready=name not in self.silent) for name, node in free.nodes.items()}
        return Snapshot(
            now=self.now, namespace="ns", name="j", uid=UID, generation=self.generation, created=NOW, spec=self.job,
            status=self.status, admitted_hash="hash", world=self.world, pods=tuple(p.view for p in self.pods.values()),
            rendering=self.rendering, nodes=state, books=replace(free, nodes=nodes, used=used), new_token=TOKEN,
            devices=self._devices(),
            reports=tuple(
                Report(p.view.name, p.report, p.received or self.now) for p in self.pods.values() if p.report
            ),
        )  # fmt: skip

    def _devices(self) -> dict[str, Accelerators]:
        """One device a node."""
        held = {p.view.node: f"ns/{p.view.name}" for p in self.pods.values() if p.view.node and not p.view.finished}
        found = {}
        for name in (f"n{i}" for i in range(NODES)):
            device = Device("d0", pod=held.get(name, ""))
            if (bad := self.bad.get(name)) and bad.told <= 0:
                device = replace(device, health="Unhealthy", level="RestartNPU", code=bad.code)
            found[name] = Accelerators(name, resource="npu", devices=(device,), ready=True, reason="Serving")
        return found

    def reconcile(self) -> None:
        """Plan until there is nothing to do; the same snapshot must give the same plan."""
        for _ in range(8):
            snap = self.snapshot()
            made = plan(snap)
            if made.actions:
                assert made == plan(snap), "plan() is not a function of the snapshot"
            if not made.actions and made.status == self.status:
                return
            self.acted += len(made.actions)
            if self._carry_out(made):
                self.status = made.status
                self.told += [(self.now, event.reason) for event in made.events]
        raise AssertionError(f"plan() does not come to rest: {plan(self.snapshot()).actions}")

    def _carry_out(self, made: Plan) -> bool:
        """Whether all actions, and so the status, were written."""
        for number, action in enumerate(made.actions):
            if self.lose is not None and number >= self.lose:
                self.lose = None
                return False
            self._act(action)
        if self.lose is not None:
            self.lose = None
            return False
        return True

    def _act(self, action: object) -> None:
        match action:
            case Admit():
                self.rendering = RENDERING
            case PutWorld(spec=made, resource_version=seen):
                assert seen == (self.world.resource_version if self.world else None), "a lost update"
                assert self.world is None or made.generation >= self.world.spec.generation
                self.writes += 1
                self.world = World(made, str(self.writes))
            case CreatePod(index=index, incarnation=incarnation, node=node):
                self._create(index, incarnation, node)
            case DeletePod(uid=uid, grace_seconds=grace):
                self._delete(uid, grace)
            case DeleteJob():
                raise AssertionError("nobody asked for that")

    def _create(self, index: int, incarnation: int, node: str | None) -> None:
        assert self.world is not None, "a pod without a World"
        assert self.world.spec.incarnation(index) == incarnation, "a pod that is born fenced"
        for pod in self.pods.values():
            same = pod.view.index == index and not pod.view.finished
            assert not same or pod.view.incarnation < incarnation, "two pods for one place, none fenced"
        name = f"j-{index}-{incarnation}"
        assert name not in {pod.view.name for pod in self.pods.values()}
        uid = f"{name}-at-{self.now:%H%M%S}-{len(self.names)}"
        self.names.add(uid)
        self.pods[uid] = Pod(PodView(name, uid, index, incarnation, "r", self.now, pinned=node))

    def _delete(self, uid: str, grace: int | None) -> None:
        pod = self.pods[uid]
        world = self.world.spec if self.world else None
        alive = pod.works and self.step < self.steps
        fenced = world is None or world.phase != "Run" or pod.view.incarnation < world.incarnation(pod.view.index)
        assert not alive or fenced, f"{pod.view.name} was deleted without being fenced"
        if grace == 0:
            del self.pods[uid]
        elif pod.dying is None:
            pod.dying = 1
            pod.view = replace(pod.view, deleting=self.now + timedelta(seconds=30))

    # --- what breaks ------------------------------------------------------------------------------------------------
    def holder(self, index: int) -> Pod | None:
        """The newest pod of an index."""
        pods = [pod for pod in self.pods.values() if pod.view.index == index]
        return max(pods, key=lambda pod: pod.view.incarnation, default=None)

    def break_(self, kind: str, index: int) -> None:
        """Something happens to the pod of an index, its node, or the job."""
        pod = self.holder(index % (self.nodes + self.spares))
        if kind in ("suspend", "resume"):
            if (kind == "suspend") != self.job.suspend and condition(self.status, "Succeeded")[0] != "True":
                self.job = self.job.model_copy(update={"suspend": kind == "suspend"})
                self.generation += 1
        elif kind == "operator":
            for other in self.pods.values():
                other.received = self.now if other.report else None
        elif kind == "lost write":
            self.lose = index % 4
        elif kind == "world" and self.world is not None:
            self.world = None
        elif kind == "config map":
            self.rendering = None
        elif pod is not None:
            self._break_pod(kind, pod)

    def _break_pod(self, kind: str, pod: Pod) -> None:
        node = pod.view.node
        match kind:
            case "vanish":
                del self.pods[pod.view.uid]
            case "exit" if pod.works:
                self.again += pod.view.incarnation > 1
                self._finish(pod, "Failed", 137)
            case "refuse" if not pod.view.started:
                pod.view = replace(pod.view, phase="Failed", reason="UnexpectedAdmissionError")
            case "delete" if pod.dying is None:
                pod.dying, pod.view = 6, replace(pod.view, deleting=self.now + timedelta(seconds=30))
            case "rank" if self._trains(pod):
                self.roots += 1
                self.formed = 0
                self._report(pod, "RankFailed", failure=rank_failure(1))
            case "device" if node and node not in self.bad:
                self.codes += 1
                self.bad[node] = Bad(f"C{self.codes}", 0)
            case "late device" if node and node not in self.bad and self._trains(pod):
                self.codes += 1
                self.bad[node] = Bad(f"C{self.codes}", 2)
                self.late += 1
                self.formed = 0  # its rank notices first
                self._report(pod, "RankFailed", failure=rank_failure(1))
            case "flap" if node and node not in self.silent:
                self.silent[node], self.since[node] = 20, self.now
            case "node" if node and node not in self.silent and len(self.dead) < NODES - self.nodes:
                self.silent[node], self.since[node] = 10_000, self.now
                self.dead.add(node)

    def _trains(self, pod: Pod) -> bool:
        """Whether its ranks run; those of a job that has ended have nothing left to fail at."""
        over = self.world is not None and self.world.spec.phase == "Done"
        member = self.world is not None and pod.view.index in self.world.spec.members
        return member and pod.works and pod.generation == self.formed and self._current(pod) and not over

    def _finish(self, pod: Pod, phase: str, code: int) -> None:
        pod.view = replace(pod.view, phase=phase, exit_code=code, started=False, ready=False)  # type: ignore[arg-type]

    # --- what pods do ----------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """One second of the cluster."""
        self.now += timedelta(seconds=1)
        for node in [name for name in self.silent if name not in self.dead]:
            self.silent[node] -= 1
            if self.silent[node] <= 0:
                del self.silent[node]
                self.since[node] = self.now
        for node, bad in list(self.bad.items()):
            bad.told -= 1
            if bad.told <= -bad.lasts:
                del self.bad[node]
        for pod in list(self.pods.values()):
            self._live(pod)
        if self.world is not None:
            self._gang(self.world.spec)

    def _live(self, pod: Pod) -> None:
        node = pod.view.node or pod.view.pinned
        if node in self.dead:
            return
        pod.age += 1
        if pod.dying is not None:
            pod.dying -= 1
            if pod.dying <= 0:
                self.pods.pop(pod.view.uid, None)
            return
        if not pod.view.finished and pod.age == 1:
            pod.view = replace(pod.view, node=pod.view.pinned)
            if (bad := self.bad.get(node or "")) and bad.told <= 0:
                pod.view = replace(pod.view, phase="Failed", reason="UnexpectedAdmissionError")
        if not pod.view.finished and pod.age == STARTED:
            pod.view = replace(pod.view, started=True, ready=True, phase="Running", started_at=self.now)

    def _current(self, pod: Pod) -> bool:
        world = self.world.spec if self.world else None
        return world is not None and pod.view.incarnation == world.incarnation(pod.view.index)

    def _reachable(self, pod: Pod) -> bool:
        return pod.view.node not in self.dead

    def _gang(self, world: WorldSpec) -> None:
        """What all supervisors together do on this tick."""
        mine = [pod for pod in self.pods.values() if pod.works and self._reachable(pod)]
        members = {place: pod for place, index in enumerate(world.members)
                   for pod in mine if pod.view.index == index and self._current(pod)}
        if world.phase == "Done":
            for pod in mine:
                self._finish(pod, "Succeeded", 0)
            return
        for pod in mine:
            if not self._current(pod) and pod.dying is None:
                self._finish(pod, "Failed", 143)
        for pod in mine:
            beside = self._current(pod) and pod.view.index not in world.members
            if self.tells and beside and pod.age >= IMPORTED and (pod.report is None or pod.report.kind != "Warm"):
                self._report(pod, "Warm")
        complete = len(members) == world.size
        master = next((pod for pod in members.values() if pod.view.uid == world.master.pod_uid), None)
        if world.phase == "Run":
            self._run(world, members, master, complete)
        elif complete and self.formed == world.generation:
            self._drain(members, master)
        elif self.formed == world.generation:
            self._fall(world, members)

    def _run(self, world: WorldSpec, members: dict[int, Pod], master: Pod | None, complete: bool) -> None:
        if self.formed == world.generation:
            if complete and master is not None:
                self._train(members, master)
            else:
                self._fall(world, members)
        elif master is not None:
            if not world.master.address:
                self._report(master, "Master", address=f"{master.view.name}:7000")
            failed = any(p.report and p.report.kind == "RankFailed" and p.report.generation == world.generation
                         for p in members.values())  # fmt: skip
            if complete and world.master.address and not failed:
                self.formed, self.step = world.generation, self.durable
                for pod in members.values():
                    pod.generation, pod.drained = world.generation, 0
                self._report(master, "Formed", formed_at=self.now.isoformat())

    def _train(self, members: dict[int, Pod], master: Pod) -> None:
        if self.step >= self.steps:
            self._report(master, "Finished")
            return
        self.step += 1
        self.durable = max(self.durable, self.step - self.step % 5)
        told = RankProgress(step=self.step, steps=self.steps, durable_step=self.durable,
                            first_step_at=self.now.isoformat())
        kind = "Formed" if members[0] is master else "Master"
        self._report(members[0], kind, progress=told)

    def _fall(self, world: WorldSpec, members: dict[int, Pod]) -> None:
        """Survivors of a lost peer: their collectives fail."""
        self.formed = 0
        for pod in members.values():
            if pod.generation == world.generation:
                self._report(pod, "RankFailed", failure=rank_failure(1, root=False))

    def _drain(self, members: dict[int, Pod], master: Pod | None) -> None:
        for pod in members.values():
            pod.drained += 1
        if master is not None and all(pod.drained >= DRAIN_TICKS for pod in members.values()):
            self.durable = self.step
            self._report(master, "Drained", drained_step=self.step)

    def _report(
        self,
        pod: Pod,
        kind: str,
        failure: Failure | None = None,
        progress: RankProgress | None = None,
        **fields: object,
    ) -> None:
        assert self.world is not None
        before = pod.report
        same = before is not None and before.generation == self.world.spec.generation
        kept = {"formed_at": before.formed_at, "progress": before.progress} if same and before else {}
        base = {
            "job": UID, "pod_uid": pod.view.uid, "index": pod.view.index, "incarnation": pod.view.incarnation,
            "generation": self.world.spec.generation, "sequence": 1, "kind": kind,
            "address": before.address if before else None,
        }  # fmt: skip
        more = {"failure": failure} | ({"progress": progress} if progress else {})
        made = ReportSpec.model_validate(base | kept | more | fields)
        if made != before:
            pod.report, pod.received = (
                made.model_copy(update={"sequence": (before.sequence if before else 0) + 1}),
                self.now,
            )
