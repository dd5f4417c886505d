"""A small world for the protocol: an API, pods with real supervisor cores, connections that break, and two leaders.

Everything that can be late, lost or doubled is an entry of a queue that somebody else decides to take; nothing happens
by itself. test_protocol_model.py is that somebody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from supervisor import events as e
from supervisor.core import Core
from trainyard.api.job import TrainingJobStatus
from trainyard.api.protocol import Cause, Master, ReportSpec, WorldSpec

JOB, TOKEN = "job-uid", "a-token-of-the-model"
PATIENCE = 4.0  # s, as trainer/regroup.py has it


@dataclass
class Connection:
    """A member's TCP connection to a master's store: in order, until it breaks."""

    number: int
    member: Pod
    master: Pod
    up: deque[e.Event] = field(default_factory=deque)  # to the master
    down: deque[e.Event] = field(default_factory=deque)  # to the member


class Pod:
    """A supervisor's core and what it did: one rank, one link, maybe a store."""

    def __init__(self, model: Model, index: int, incarnation: int) -> None:
        self.model = model
        self.name = f"j-{index}-{incarnation}"
        self.uid = f"uid-{len(model.pods)}"
        self.created = model.now
        self.deleting: float | None = None  # when its grace ends
        self.me = e.Member(JOB, self.name, self.uid, f"10.0.{incarnation}.{index}", index, incarnation, 1, 10,
                           keeps=model.keeps)
        self.core = Core(self.me, uniform=lambda low, high: high, free_port=lambda: 4000)
        self.inbox: deque[e.Event] = deque()
        self.training: e.Run | None = None  # its rank runs
        self.dying = False  # the rank was killed, and is not gone yet
        self.asked = False  # its rank is to leave its groups
        self.kept = False  # its rank has left them, and lives
        self.alone_since: float | None = None  # its rank waits to be told what becomes of the gang
        self.drain = False
        self.report: dict[str, Any] | None = None  # not written yet
        self.link: e.Link | None = None
        self.status: e.Status | None = None
        self.connection: Connection | None = None
        self.store = ""  # address, if open
        self.stores = 0
        self.exit_code: int | None = None
        self.cut = False  # does not reach the API
        self.deleted = False  # the API knows it no longer; its token is refused

    @property
    def gone(self) -> bool:
        return self.exit_code is not None

    def take(self, event: e.Event) -> None:
        """One event into the core, its actions into the world."""
        if self.gone:
            return
        for action in self.core.handle(event, self.model.now, self.model.now):
            self._do(action)

    def die(self, code: int = 137) -> None:
        """The container ends, and with it everything in it."""
        self.exit_code, self.training, self.store = code, None, ""
        self.deleted = self.deleted or self.deleting is not None
        self.model.close(self)

    def _do(self, action: e.Action) -> None:
        if isinstance(action, e.StartRanks):
            assert self.training is None, f"{self.name} starts {action.run} while {self.training} runs"
            assert not self.asked, f"{self.name} starts {action.run} in a rank that has not left its groups"
            self.training, self.drain, self.alone_since = action.run, False, None
            self.model.started(self, action.run)
            if self.kept:
                self.kept = False
                self.model.regrouped += 1
                self.inbox.append(e.RanksJoined(action.run))
        elif isinstance(action, e.KillRanks):
            self.dying = True
        elif isinstance(action, e.KeepRanks):
            self.asked = True
        elif isinstance(action, e.TermRanks):
            self.rank_exits(-15)
        elif isinstance(action, e.TouchDrain):
            self.drain = True
        elif isinstance(action, e.OpenStore):
            self.stores += 1
            self.store = f"{self.me.pod_ip}:{5000 + self.stores}"
            self.inbox.append(e.StoreOpened(self.store))
        elif isinstance(action, e.CloseStore):
            self.store = ""
            self.model.close_store(self)
        elif isinstance(action, e.PrepareStore):
            self.inbox.append(e.StoreReady(action.run, 6000, True))
        elif isinstance(action, e.Link):
            self.model.disconnect(self, quiet=True)
            self.link = action
        elif isinstance(action, e.Unlink):
            self.model.disconnect(self, quiet=True)
            self.link = None
        elif isinstance(action, e.SendStatus):
            self.status = action.status
            self.model.said(self, action.status)
            if self.connection is not None:
                self.connection.up.append(e.MemberStatus(self.connection.number, action.status))
        elif isinstance(action, e.Tell):
            self.model.tell(self, action)
        elif isinstance(action, e.Refuse):
            self.model.refuse(self, action.connection)
        elif isinstance(action, e.WriteReport):
            assert not self.core.fenced, f"{self.name} is fenced and writes"
            self.model.check_report(self, ReportSpec.model_validate(action.spec))
            self.report = action.spec
        elif isinstance(action, e.DropReport):
            self.report = None
        elif isinstance(action, e.Leave):
            assert self.training is None, f"{self.name} leaves while its rank runs"
            if action.flush:
                self.model.write(self)
            self.die(action.code)

    def kill_takes_effect(self) -> None:
        """What was killed is gone and reaped."""
        if self.dying:
            self.dying, self.training, self.asked, self.kept = False, None, False, False
            self.take(e.RanksGone())

    def patient(self) -> bool:
        """Whether its rank still waits for word, now that it is alone."""
        if self.alone_since is None:
            self.alone_since = self.model.now
        return self.model.keeps and self.model.now - self.alone_since < PATIENCE

    def rank_answers(self, left: bool) -> None:
        """It was asked to leave its groups."""
        if self.asked and not self.dying:
            self.asked, self.kept = False, left
            if left:
                self.training = None
            self.take(e.RanksLeft("" if left else "is busy"))

    def rank_exits(self, code: int, root: bool = True) -> None:
        """The rank ends by itself."""
        if self.asked or self.kept:
            self.asked, self.kept, self.training = False, False, None
            if not self.dying:
                self.inbox.append(e.RanksLeft("has ended"))
            return
        run, self.training = self.training, None
        if run is not None and not self.dying:
            self.inbox.append(e.RankExited(run, 0, e.Exit(self.me.index, code, root, "why")))


class Model:
    """The API server, the network, the kubelets and the clock."""

    def __init__(self, size: int, spares: int = 0, keeps: bool = False) -> None:
        self.size = size
        self.spares = spares
        self.keeps = keeps  # ranks may outlive a run
        self.regrouped = 0  # times that they did
        self.now = 0.0
        self.history: list[WorldSpec | None] = [None]
        self.version = 0
        self.reports: dict[str, ReportSpec] = {}
        self.status: tuple[int, TrainingJobStatus] | None = None  # the job's, with its version
        self.pods: list[Pod] = []  # all that ever were
        self.connections: dict[int, Connection] = {}
        self.members: dict[e.Run, set[Pod]] = {}  # who started it
        self.joined: dict[e.Run, set[int]] = {}  # places that have joined it
        self.newest: e.Run = (0, 0)  # that was ever complete
        self.succeeded: set[e.Run] = set()  # trained to the end: its ranks exit 0
        self.ended: dict[e.Run, dict[int, int]] = {}  # exit code by place
        self.api_up = True
        self._number = 0

    # The API ----------------------------------------------------------------------------------------------------------

    @property
    def world(self) -> WorldSpec | None:
        return self.history[-1]

    def put_world(self, spec: WorldSpec | None, version: int) -> bool:
        """A PUT with the resourceVersion that was read; False: a conflict."""
        if version != self.version or not self.api_up:
            return False
        old = self.world
        if spec is not None and old is not None:
            assert spec.generation >= old.generation
        self.history.append(spec)
        self.version += 1
        return True

    def reaches(self, pod: Pod) -> bool:
        return self.api_up and not pod.cut

    def see_world(self, pod: Pod, lag: int = 0) -> None:
        """A GET or a watch event, `lag` writes late."""
        if not self.reaches(pod):
            return
        if pod.deleted:
            pod.take(e.Unauthorized())
            return
        pod.take(e.ApiBack())
        world = self.history[max(0, len(self.history) - 1 - lag)]
        pod.take(e.WorldMissing() if world is None else e.WorldSeen(self._parsed(world)))

    def _parsed(self, world: WorldSpec) -> e.World:
        """As a supervisor reads it; metadata.generation grows with every write."""
        version = max(number for number, spec in enumerate(self.history) if spec is world)
        return e.World.parse({"metadata": {"generation": version}, "spec": world.dump()})

    def write(self, pod: Pod) -> None:
        """The report that waits, if there is one."""
        if pod.report is None or not self.reaches(pod):
            return
        if pod.deleted:
            pod.take(e.Unauthorized())
        else:
            self.reports[pod.name] = ReportSpec.model_validate(pod.report)
            pod.report = None

    def create(self, index: int, incarnation: int) -> bool:
        """A pod, unless there is one of that name: two leaders make no twins."""
        name = f"j-{index}-{incarnation}"
        if not self.api_up or any(pod.name == name and not pod.deleted for pod in self.pods):
            return False
        self.pods.append(Pod(self, index, incarnation))
        return True

    def delete(self, uid: str, grace: float) -> None:
        """A DELETE with this UID: SIGTERM, and SIGKILL when the grace is over."""
        for pod in self.pods:
            if pod.uid == uid and not pod.deleted and self.api_up:
                if pod.gone:
                    pod.deleted = True
                elif pod.deleting is None:
                    pod.deleting = self.now + grace
                    pod.inbox.append(e.Terminate())

    def kubelets(self) -> None:
        """Graces end."""
        for pod in self.pods:
            if pod.deleting is not None and pod.deleting <= self.now and not pod.gone:
                pod.die()

    # The network ------------------------------------------------------------------------------------------------------

    def connect(self, pod: Pod) -> None:
        """A member reaches its master's store and proves to know the token."""
        if pod.link is None or pod.connection is not None or pod.gone:
            return
        master = next((other for other in self.pods if not other.gone and other.store == pod.link.address), None)
        if master is None:
            return
        self._number += 1
        connection = Connection(self._number, pod, master)
        self.connections[self._number] = pod.connection = connection
        connection.up.append(e.MemberHello(connection.number, e.Hello(pod.me.index, pod.me.incarnation, pod.uid)))
        if pod.status is not None:
            connection.up.append(e.MemberStatus(connection.number, pod.status))
        connection.down.append(e.Linked())

    def disconnect(self, pod: Pod, quiet: bool = False) -> None:
        """A connection ends; what was on its way is lost."""
        connection, pod.connection = pod.connection, None
        if connection is not None:
            self.connections.pop(connection.number, None)
            if not quiet:
                pod.inbox.append(e.Unlinked("lost"))
            if not connection.master.gone and connection.master.store:
                connection.master.inbox.append(e.MemberGone(connection.number))

    def close_store(self, master: Pod) -> None:
        for connection in list(self.connections.values()):
            if connection.master is master:
                self.disconnect(connection.member)

    def close(self, pod: Pod) -> None:
        self.disconnect(pod, quiet=True)
        self.close_store(pod)

    def tell(self, master: Pod, action: e.Tell) -> None:
        connection = self.connections.get(action.connection)
        if connection is not None and connection.master is master:
            connection.down.append(e.GangSeen(action.gang))

    def refuse(self, master: Pod, number: int) -> None:
        connection = self.connections.get(number)
        if connection is not None and connection.master is master:
            self.disconnect(connection.member)

    def deliver(self, connection: Connection, up: bool) -> None:
        """The next message in one direction."""
        queue, pod = (connection.up, connection.master) if up else (connection.down, connection.member)
        if queue and connection.number in self.connections:
            pod.take(queue.popleft())

    def beat(self, pod: Pod) -> None:
        """A heartbeat."""
        if pod.connection is not None and pod.status is not None:
            pod.connection.up.append(e.MemberBeat(pod.connection.number, pod.status.generation))

    # What must hold ---------------------------------------------------------------------------------------------------

    def size_of(self, run: e.Run) -> int:
        """Members of a run."""
        return next(world.size for world in reversed(self.history) if world and world.generation == run[0])

    def place(self, pod: Pod, run: e.Run) -> int:
        """The place of a member in a run. A generation's places never change."""
        worlds = [world for world in self.history if world is not None and world.generation == run[0]]
        assert len({world.members for world in worlds}) == 1, f"generation {run[0]} has places {worlds}"
        return worlds[0].members.index(pod.me.index)

    def said(self, pod: Pod, status: e.Status) -> None:
        """Who joins has stopped whatever it ran before."""
        if status.state == "joining":
            assert pod.training is None, f"{pod.name} joins {status.run} while {pod.training} runs"
            self.joined.setdefault(status.run, set()).add(self.place(pod, status.run))

    def started(self, pod: Pod, run: e.Run) -> None:
        """A start: nobody may start a run twice, and no two pods the same place of it."""
        assert self.joined.get(run) == set(range(self.size_of(run))), f"{run} starts with {self.joined.get(run)}"
        members = self.members.setdefault(run, set())
        assert pod not in members, f"{pod.name} starts {run} a second time"
        places = [self.place(other, run) for other in members]
        assert self.place(pod, run) not in places, f"{run} has two members {pod.me.index}"
        members.add(pod)

    def complete(self, run: e.Run) -> bool:
        """All its members train: only then can anything be committed."""
        members = self.members.get(run, set())
        whole = bool(members) and len(members) == self.size_of(run)
        return whole and all(pod.training == run and not pod.dying for pod in members)

    def check(self) -> None:
        """Two runs never train at once, nor an older one after a newer; a member of a run runs nothing older."""
        complete = [run for run in self.members if self.complete(run)]
        assert len(complete) <= 1, f"runs {complete} train at once"
        for run in complete:
            assert run >= self.newest, f"{run} trains after {self.newest}"
            self.newest = run
        for run, members in self.members.items():
            for pod in members:
                assert pod.training is None or pod.training >= run, f"{pod.name} runs {pod.training}, is in {run}"

    def check_report(self, pod: Pod, report: ReportSpec) -> None:
        """Finished and Drained are said only of what all members have done, Warm only by spares that have imported."""
        run = (report.generation, report.attempt)
        if report.kind == "Warm":
            assert pod.core.imported, f"{pod.name} has not imported"
            worlds = [world for world in self.history if world is not None and world.generation == run[0]]
            assert pod.me.index not in worlds[0].members, f"{pod.name} is no spare in generation {run[0]}"
        if report.kind == "Finished":
            codes = self.ended.get(run, {})
            assert codes == dict.fromkeys(range(self.size_of(run)), 0), f"{pod.name}: {run} {codes}"
        if report.kind == "Drained":
            assert not any(other.training == run and not other.dying for other in self.members.get(run, set()))

    def rank_exits(self, pod: Pod, code: int, root: bool = True) -> None:
        run = pod.training
        if run is not None and not pod.dying and not pod.asked:
            self.ended.setdefault(run, {})[self.place(pod, run)] = code
            pod.rank_exits(code, root)
        elif pod.asked or pod.kept:
            pod.rank_exits(code, root)


@dataclass
class View:
    """What one leader has read, maybe long ago."""

    world: WorldSpec | None = None
    version: int = 0
    pods: dict[str, tuple[int, int, str, bool]] = field(default_factory=dict)  # index, incarnation, uid, finished
    reports: dict[str, ReportSpec] = field(default_factory=dict)
    seen: dict[tuple[str, int], float] = field(default_factory=dict)  # when a report's sequence was first seen


class Leader:
    """The operator of docs/protocol.md, as small as can be: it acts on its own view, which may be old."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.view = View()

    def refresh(self) -> None:
        """Read everything anew."""
        model = self.model
        if not model.api_up:
            return
        seen = self.view.seen
        for name, report in model.reports.items():
            seen.setdefault((name, report.sequence), model.now)
        pods = {pod.name: (pod.me.index, pod.me.incarnation, pod.uid, pod.gone)
                for pod in model.pods if not pod.deleted}
        self.view = View(model.world, model.version, pods, dict(model.reports), seen)

    def act(self) -> None:
        """Decide, and write the World if it has to change. Pods follow the World."""
        world = self.view.world
        new = self._decide(world) if world is not None else self._first()
        if new is not None and new != world and not self.model.put_world(new, self.view.version):
            return
        self._pods(new or world)

    def _first(self) -> WorldSpec:
        # The small leader keeps no status; what it has written stands in for one. plan() has to do with its own.
        known = [spec.generation for spec in self.model.history if spec is not None]
        newest: dict[str, int] = {}
        for index, incarnation, _, _ in self.view.pods.values():
            newest[str(index)] = max(incarnation, newest.get(str(index), 1))
        return WorldSpec(job=JOB, generation=max(known, default=0) + 1, phase="Run", size=self.model.size, token=TOKEN,
                         incarnations=newest, join_seconds=10, drain_seconds=5)

    def _holder(self, world: WorldSpec, index: int) -> tuple[str, tuple[int, int, str, bool]] | None:
        name = f"j-{index}-{world.incarnation(index)}"
        return (name, self.view.pods[name]) if name in self.view.pods else None

    def _reports(self, world: WorldSpec) -> list[tuple[str, ReportSpec]]:
        """Those that count."""
        found = []
        for index in world.members:
            name = f"j-{index}-{world.incarnation(index)}"
            report = self.view.reports.get(name)
            if report is not None and report.generation == world.generation:
                found.append((name, report))
        return found

    def _decide(self, world: WorldSpec) -> WorldSpec | None:
        if world.phase == "Done":
            return None
        reports = self._reports(world)
        kinds = {report.kind for _, report in reports}
        if "Finished" in kinds:
            return world.model_copy(update={"phase": "Done"})
        lost = [index for index in world.members if self._lost(world, index)]
        if lost:
            return self._next(world, lost, "PodLost")
        stopping = [report.index for _, report in reports if report.kind == "Stopping"]
        if world.phase == "Drain":
            done = "Drained" in kinds or self.model.now - float(world.cause.culprit or 0) > world.drain_seconds + 7
            return self._next(world, stopping, "Moved") if done else None
        if self._failed(reports):
            return self._next(world, [], "RankFailed")
        if stopping:
            cause = Cause(kind="Moved", culprit=str(self.model.now))
            return world.model_copy(update={"phase": "Drain", "cause": cause})
        missing = [index for _, report in reports if report.kind == "Missing" for index in report.missing]
        missing = [index for index in missing if self._holder(world, index)]
        return self._next(world, missing, "Missing") if missing else self._with_master(self._with_spares(world))

    def _lost(self, world: WorldSpec, index: int) -> bool:
        """Its pod was there and is over, or its name was used up by one that is gone."""
        holder = self._holder(world, index)
        if holder is not None:
            return holder[1][3]
        return any(pod.me.index == index and pod.me.incarnation == world.incarnation(index) for pod in self.model.pods)

    def _failed(self, reports: list[tuple[str, ReportSpec]]) -> bool:
        attempt = max((report.attempt for _, report in reports if report.kind != "RankFailed"), default=0)
        failed = [(name, report) for name, report in reports
                  if report.kind == "RankFailed" and report.attempt >= attempt]
        return any(report.failure is not None and report.failure.root for _, report in failed) or any(
            self.model.now - self.view.seen[name, report.sequence] >= 1.5 for name, report in failed)

    def _next(self, world: WorldSpec, replace: list[int], kind: str) -> WorldSpec:
        incarnations = dict(world.incarnations)
        for index in replace:
            used = [pod.me.incarnation for pod in self.model.pods if pod.me.index == index]
            incarnations[str(index)] = max([world.incarnation(index), *used]) + 1
        spares = iter([index for index in self._spares(world)
                       if (holder := self._holder(world, index)) and not holder[1][3]])
        members = [next(spares, index) if index in replace else index for index in world.members]
        places = {str(place): index for place, index in enumerate(members) if place != index}
        new = world.model_copy(update={"generation": world.generation + 1, "phase": "Run", "cause": Cause(kind=kind),
                                       "incarnations": incarnations, "places": places})
        holders = (self._holder(new, index) for index in new.members)
        lives = any(holder and holder[1][2] == world.master.pod_uid for holder in holders)
        return self._with_master(new if lives else new.model_copy(update={"master": Master()}))

    def _spares(self, world: WorldSpec) -> list[int]:
        """Indices of the pods beside the gang."""
        return [index for index in range(world.size + self.model.spares) if index not in world.members]

    def _with_spares(self, world: WorldSpec) -> WorldSpec:
        """A spare that is over is fenced; the next one is made."""
        incarnations = dict(world.incarnations)
        for index in self._spares(world):
            if self._lost(world, index):
                incarnations[str(index)] = world.incarnation(index) + 1
        return world.model_copy(update={"incarnations": incarnations})

    def _with_master(self, world: WorldSpec) -> WorldSpec:
        master = world.master
        if not master.pod_uid:
            holders = [holder for index in world.members if (holder := self._holder(world, index))]
            alive = [(name, pod) for name, pod in holders if not pod[3]]
            if alive:
                master = Master(pod=alive[0][0], pod_uid=alive[0][1][2])
        address = next((report.address for report in self.view.reports.values()
                        if report.pod_uid == master.pod_uid and report.address), "")
        return world.model_copy(update={"master": master.model_copy(update={"address": address or master.address})})

    def _pods(self, world: WorldSpec | None) -> None:
        """Make what is missing, delete what has no place any more."""
        model = self.model
        if world is None or not model.api_up or world.phase == "Done":
            return
        for index in (*world.members, *self._spares(world)):
            model.create(index, world.incarnation(index))
        for pod in model.pods:
            if pod.me.incarnation < world.incarnation(pod.me.index) and not pod.deleted:
                pod.deleted = True  # its kubelet ends it when it hears of that
