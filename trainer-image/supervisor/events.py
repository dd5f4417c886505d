"""What goes into the state machine (events), what comes out (actions), and the values both carry. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from supervisor.ranktable import Part, Table

PROTOCOL = 1
PHASES = {"Run": 0, "Drain": 1, "Done": 2}  # the order in which a generation can pass through them

Run = Tuple[int, int]  # (generation, attempt): one start of the gang's ranks


def named(run: Run) -> str:
    """`3`, or `3.1` for the first attempt made without the API."""
    return str(run[0]) if run[1] == 0 else f"{run[0]}.{run[1]}"


@dataclass(frozen=True)
class World:
    """The operator's word, as far as a supervisor needs it."""

    job: str
    generation: int
    phase: str
    size: int
    token: str
    protocol: int = PROTOCOL
    incarnations: Mapping[int, int] = field(default_factory=dict)
    places: Mapping[int, int] = field(default_factory=dict)  # index of the pod that holds a place, where they differ
    master_uid: str = ""
    master_index: int = -1
    address: str = ""
    restarts: int = 0
    join_seconds: float = 60
    drain_seconds: float = 30
    local_attempts: int = 3
    check: str = ""  # Pairs: nodes are checked in pairs before the ranks of this generation start
    tuned: str = ""  # the layout that train.autotune has chosen in an earlier generation
    version: int = 0  # metadata.generation: grows with every change of this object

    @property
    def order(self) -> Tuple[int, int, int]:
        """Of two answers about the same job, the one with the greater order is the newer."""
        return (self.generation, PHASES[self.phase], self.version)

    def incarnation(self, index: int) -> int:
        """The incarnation that holds this index now."""
        return self.incarnations.get(index, 1)

    def holder(self, place: int) -> int:
        """Index of the pod that holds this place of the gang."""
        return self.places.get(place, place)

    def place(self, index: int) -> Optional[int]:
        """The place of the gang that the pod of this index holds; None: it is a spare."""
        for place, holder in self.places.items():
            if holder == index:
                return place
        return index if 0 <= index < self.size and index not in self.places else None

    def members(self) -> List[int]:
        """Indices of the pods that hold the places, in the order of the places."""
        return [self.holder(place) for place in range(self.size)]

    @classmethod
    def parse(cls, manifest: Mapping[str, Any]) -> World:
        """A World from its manifest. Unknown fields are ignored; ValueError names what is missing or wrong."""
        spec = manifest.get("spec") or {}
        try:
            phase = str(spec["phase"])
            if phase not in PHASES:
                raise ValueError(f"spec.phase is {phase!r}, expected one of {', '.join(PHASES)}")
            master = spec.get("master") or {}
            return cls(
                job=str(spec["job"]),
                generation=int(spec["generation"]),
                phase=phase,
                size=int(spec["size"]),
                token=str(spec["token"]),
                protocol=int(spec.get("protocol", PROTOCOL)),
                incarnations={int(key): int(value) for key, value in (spec.get("incarnations") or {}).items()},
                places={int(key): int(value) for key, value in (spec.get("places") or {}).items()},
                master_uid=str(master.get("podUid") or ""),
                master_index=index_of(str(master.get("pod") or "")),
                address=str(master.get("address") or ""),
                restarts=int((spec.get("cause") or {}).get("total") or 0),
                join_seconds=float(spec.get("joinSeconds") or 60),
                drain_seconds=float(spec.get("drainSeconds") or 30),
                local_attempts=int(spec.get("localAttempts", 3)),
                check=str(spec.get("check") or ""),
                tuned=str(spec.get("tuned") or ""),
                version=int((manifest.get("metadata") or {}).get("generation") or 0),
            )
        except KeyError as error:
            raise ValueError(f"spec.{error.args[0]} is missing") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field has a wrong type: {error}") from None


def index_of(pod: str) -> int:
    """The index in a pod's name, `<job>-<index>-<incarnation>`; -1 if there is none."""
    index = pod.rsplit("-", 2)[-2:][0]
    return int(index) if index.isdigit() else -1


@dataclass(frozen=True)
class Member:
    """This pod. Which place of the gang it holds, if any, is in the World."""

    job: str  # UID of the TrainingJob
    pod: str
    pod_uid: str
    pod_ip: str
    index: int
    incarnation: int
    ranks: int  # processes in this pod
    grace: float  # seconds between SIGTERM and SIGKILL of this pod
    runtime: str = "torch"  # torch | mindspore
    rank_table: bool = False  # the ranks want HCCL's
    keeps: bool = False  # ranks may outlive a generation, see survivors.py
    devices: bool = False  # accelerators that somebody can tell of: they have to be free before a rank starts
    drain_by: str = "auto"  # auto | file | signal, see draining.py

    def processes(self, place: Optional[int]) -> int:
        """Ranks, and MindSpore's scheduler beside rank 0; its local rank is the one after the last."""
        return self.ranks + int(self.runtime == "mindspore" and place == 0)


@dataclass(frozen=True)
class Exit:
    """How one rank ended."""

    rank: int  # global
    code: int  # -N means signal N
    root: bool = True  # False: it only followed the loss of another rank
    reason: str = ""
    text: str = ""
    step: Optional[int] = None
    oom: bool = False
    at: float = 0.0  # seconds since 1970
    hang: bool = False  # it did not end by itself: it could not run, and was killed for that
    devices: Tuple[str, ...] = ()  # no rank: these devices are not free


@dataclass(frozen=True)
class Hello:
    """Who a member says it is when it connects to the master's store."""

    index: int
    incarnation: int
    pod_uid: str
    place: str = ""  # its devices, see ranktable.py; empty: not known
    checks: bool = False  # it knows how to be checked in pairs


@dataclass(frozen=True)
class PairOrder:
    """Be checked together with another member."""

    round: int  # from 1 on
    rank: int  # 0 or 1
    peer: int  # index of the other
    host: str  # of the store in which the two meet
    port: int


@dataclass(frozen=True)
class Checked:
    """How a check of this member with another went."""

    round: int
    passed: bool
    why: str = ""  # it failed


@dataclass(frozen=True)
class Status:
    """What is true of a member now. Sent on every change and on every connection, so that nothing depends on a message
    that may be lost."""

    generation: int
    attempt: int
    state: str  # stopping | joining | running | failed | finished | drained
    step: Optional[int] = None  # drained: the step that was saved, if this pod has rank 0
    saved: bool = False  # drained: all ranks saved
    host: str = ""
    port: int = 0  # place 0 only: a free port, for programs without torch's store
    checked: Optional[Checked] = None  # the last check in this run
    progress: Optional[Mapping[str, Any]] = None  # finished or drained, of place 0: what rank 0 said last

    @property
    def run(self) -> Run:
        return (self.generation, self.attempt)


@dataclass(frozen=True)
class Start:
    """All members have joined: where the ranks of this run meet."""

    host: str
    port: int
    agent_store: bool  # True: a TCPStore already listens there
    table: str = ""  # digest of the rank table; empty: there is none


@dataclass(frozen=True)
class GangState:
    """What the master's store tells every member, on every change and as the answer to every heartbeat."""

    generation: int
    attempt: int
    start: Optional[Start] = None
    ended: str = ""  # finished | drained: all members have said so
    check: Optional[PairOrder] = None  # to be done before the start

    @property
    def run(self) -> Run:
        return (self.generation, self.attempt)


# Events ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldSeen:
    world: World


@dataclass(frozen=True)
class WorldMissing:
    """The API answers, but there is no World of this name."""


@dataclass(frozen=True)
class ApiLost:
    reason: str = ""


@dataclass(frozen=True)
class ApiBack:
    pass


@dataclass(frozen=True)
class Unauthorized:
    """401: this pod's token is no longer valid, so the pod was deleted."""


@dataclass(frozen=True)
class StoreOpened:
    address: str


@dataclass(frozen=True)
class StoreReady:
    """torch's TCPStore for a run listens on `port`, or there is none because torch cannot be imported."""

    run: Run
    port: int
    agent_store: bool


@dataclass(frozen=True)
class MemberHello:
    connection: int
    hello: Hello


@dataclass(frozen=True)
class MemberStatus:
    connection: int
    status: Status


@dataclass(frozen=True)
class MemberBeat:
    """A heartbeat; `generation` is the member's."""

    connection: int
    generation: int


@dataclass(frozen=True)
class MemberAsks:
    """A member that has the rank table `have` wants `table`, from byte `at` on."""

    connection: int
    table: str
    have: str
    at: int


@dataclass(frozen=True)
class MemberGone:
    connection: int


@dataclass(frozen=True)
class Linked:
    """Connected to the master's store, which knows our token."""


@dataclass(frozen=True)
class Unlinked:
    reason: str = ""


@dataclass(frozen=True)
class GangSeen:
    gang: GangState


@dataclass(frozen=True)
class TablePart:
    """A piece of the rank table."""

    part: Part


@dataclass(frozen=True)
class RankExited:
    run: Run
    local_rank: int
    exit: Exit


@dataclass(frozen=True)
class PairChecked:
    """The process of a check has ended."""

    run: Run
    checked: Checked


@dataclass(frozen=True)
class RanksGone:
    """Every process of the ranks has ended and was reaped, and none is left on the pod's devices."""


@dataclass(frozen=True)
class DeviceHeld:
    """All have ended, and these devices still have a process on them. Told again while it is so."""

    devices: Tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class RanksLeft:
    """The ranks live, in no group any more, and wait for the next run; with a problem: they cannot, or do no longer."""

    problem: str = ""


@dataclass(frozen=True)
class RanksJoined:
    """Those that were kept have made their groups for this run."""

    run: Run


@dataclass(frozen=True)
class RanksSignalled:
    """Ranks that catch it were sent SIGTERM together with the file that asks to save: how they answer it is their own
    affair."""

    run: Run


@dataclass(frozen=True)
class ProgressSeen:
    run: Run
    progress: Mapping[str, Any]  # as in Report.progress, checked
    warnings: Tuple[Tuple[str, str], ...] = ()  # (reason, message)
    at: Optional[float] = None  # when it was written, seconds since 1970


@dataclass(frozen=True)
class HangSeen:
    """The ranks of this pod make no progress."""

    run: Run
    culprit: Optional[int]  # a rank that is stopped; None: all wait for others, or for each other
    reason: str
    phase: str
    step: int
    silent: float  # s without progress
    text: str = ""  # stacks
    positions: Tuple[Tuple[str, int, int, int], ...] = ()  # (group, rank, collectives issued, completed)


@dataclass(frozen=True)
class StallSeen:
    """All ranks of this pod are in a step that takes far longer than usual, or they are no longer."""

    run: Run
    stalled: bool


@dataclass(frozen=True)
class HangOver:
    """They do make progress again."""

    run: Run


@dataclass(frozen=True)
class Imported:
    """What ranks are forked from has imported what it is to, or there is nothing to import ahead."""


@dataclass(frozen=True)
class Terminate:
    """SIGTERM or SIGINT."""


@dataclass(frozen=True)
class Timer:
    """A deadline of the core may have passed."""


Event = Union[
    WorldSeen, WorldMissing, ApiLost, ApiBack, Unauthorized, StoreOpened, StoreReady, MemberHello, MemberStatus,
    MemberBeat, MemberAsks, MemberGone, Linked, Unlinked, GangSeen, TablePart, RankExited, RanksGone, RanksLeft,
    RanksJoined, RanksSignalled, ProgressSeen, HangSeen, StallSeen, HangOver, PairChecked, DeviceHeld, Imported,
    Terminate, Timer,
]

# Actions --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartRanks:
    """Start the ranks, or tell those that were kept of their next run."""

    run: Run
    start: Start
    size: int  # members
    restarts: int
    table: Table = ()
    place: int = 0  # of this pod
    tuned: str = ""  # layout that was chosen by measuring


@dataclass(frozen=True)
class CheckPair:
    """Be checked with another member; answered by PairChecked. KillRanks ends it as well."""

    run: Run
    order: PairOrder


@dataclass(frozen=True)
class KillRanks:
    """SIGKILL to everything the ranks are and started; answered by RanksGone, also if nothing was there."""


@dataclass(frozen=True)
class KeepRanks:
    """Ask the ranks to leave their groups and to wait; answered by RanksLeft, if at all."""


@dataclass(frozen=True)
class TermRanks:
    """SIGTERM to the ranks."""


@dataclass(frozen=True)
class TouchDrain:
    """Ask the ranks to save and stop; answered by RanksSignalled if some were sent SIGTERM."""


@dataclass(frozen=True)
class OpenStore:
    token: str


@dataclass(frozen=True)
class CloseStore:
    pass


@dataclass(frozen=True)
class PrepareStore:
    """Make torch's TCPStore for this run; the one of an earlier run ends."""

    run: Run


@dataclass(frozen=True)
class Link:
    """Connect to this store, and again whenever the connection is lost."""

    address: str
    token: str
    size: int
    near: bool = False  # this pod is one of the two that tell of the master's loss


@dataclass(frozen=True)
class Unlink:
    pass


@dataclass(frozen=True)
class SendStatus:
    status: Status


@dataclass(frozen=True)
class Tell:
    """To a member's connection."""

    connection: int
    gang: GangState


@dataclass(frozen=True)
class SendPart:
    """A piece of the rank table to a member's connection."""

    connection: int
    part: Part


@dataclass(frozen=True)
class AskTable:
    """Ask the master for a rank table."""

    table: str
    have: str
    at: int


@dataclass(frozen=True)
class Refuse:
    """Tell a member's connection why and close it."""

    connection: int
    reason: str


@dataclass(frozen=True)
class WriteReport:
    """Replaces whatever report has not been written yet."""

    spec: Dict[str, Any]


@dataclass(frozen=True)
class DropReport:
    """Forget a report that has not been written yet."""


@dataclass(frozen=True)
class ReadWorld:
    """GET the World now."""


@dataclass(frozen=True)
class TerminationMessage:
    text: str


@dataclass(frozen=True)
class Log:
    text: str


@dataclass(frozen=True)
class Leave:
    """Exit with this code; first give the last report a second to be written, if `flush`."""

    code: int
    flush: bool


Action = Union[
    StartRanks, CheckPair, KillRanks, KeepRanks, TermRanks, TouchDrain, OpenStore, CloseStore, PrepareStore, Link,
    Unlink, SendStatus, Tell, SendPart, AskTable, Refuse, WriteReport, DropReport, ReadWorld, TerminationMessage, Log,
    Leave,
]
