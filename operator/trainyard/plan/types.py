"""What `plan()` reads and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from trainyard.api.job import LayoutStatus, TrainingJobSpec, TrainingJobStatus
from trainyard.api.protocol import ReportSpec, WorldSpec
from trainyard.fleet.devices import Accelerators
from trainyard.placement.books import Books, Demand, Nearness, Resources


@dataclass(frozen=True, slots=True)
class PodDevice:
    """A device that kubelet gave to a pod (its allocatedResourcesStatus)."""

    id: str
    health: str = "Healthy"  # Healthy | Unhealthy | Unknown
    resource: str = ""
    since: datetime | None = None  # when this operator first saw this health


@dataclass(frozen=True, slots=True)
class PodView:
    """What matters of one pod of the job."""

    name: str
    uid: str
    index: int
    incarnation: int
    rendered: str  # hash of the rendering it was made from
    created: datetime
    node: str | None = None  # spec.nodeName once bound
    pinned: str | None = None  # the node its affinity names
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    started: bool = False  # the trainer container runs
    started_at: datetime | None = None  # since when
    ready: bool = False
    deleting: datetime | None = None  # deletionTimestamp: when its grace ends
    ip: str | None = None
    exit_code: int | None = None  # of the trainer container, if it terminated
    failed_init: str = ""  # the init container that ended with a failure, which ends the pod
    init_exit_code: int | None = None  # its exit code
    oom: bool = False  # OOMKilled, the trainer container or that init container
    reason: str = ""  # status.reason, or the trainer/init container's waiting reason (ImagePullBackOff, ...)
    message: str = ""  # the message with it: waiting, unschedulable, termination
    unschedulable: str = ""  # message of PodScheduled=False
    unschedulable_since: datetime | None = None  # when the scheduler first said so; None: it did not say
    disruption: str = ""  # reason of DisruptionTarget=True (EvictionByEvictionAPI, PreemptionByScheduler, ...)
    devices: tuple[PodDevice, ...] = ()  # empty: none, or a kubelet that does not tell

    @property
    def finished(self) -> bool:
        """Whether all its containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def ended(self) -> bool:
        """Whether its ranks can never run again; known a second before the pod's phase says so."""
        return self.finished or self.exit_code is not None


@dataclass(frozen=True, slots=True)
class NodeState:
    """Health of a node that holds a pod of the job."""

    name: str
    ready: bool
    since: datetime | None = None  # when that last changed
    cordoned: bool = False
    no_execute: str = ""  # key of a NoExecute taint, not its own unreadiness, that our pods do not tolerate


@dataclass(frozen=True, slots=True)
class Rendering:
    """What all pods of the job are made from: rendered and tried out once at admission, kept in a ConfigMap."""

    name: str  # of the ConfigMap
    hash: str
    demand: Demand
    grace_seconds: int = 30
    checkpoint: bool = True  # a checkpoint volume is there
    layout: LayoutStatus | None = None  # as it was chosen; None: a program of its own, or the trainer chooses


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server (dry run) or the builder would not have such a pod."""

    reason: str  # TemplateRefused | InvalidTemplate | QuotaExceeded | ...
    message: str
    permanent: bool  # only another manifest can help; otherwise it is tried again later
    generation: int  # metadata.generation it is about
    at: datetime | None = None  # when it was said; what is not permanent is tried again 30 s later


@dataclass(frozen=True, slots=True)
class World:
    """The job's World as read."""

    spec: WorldSpec
    resource_version: str
    edited: bool = False  # by somebody else than the operator


@dataclass(frozen=True, slots=True)
class Report:
    """One pod's Report as read."""

    pod: str
    spec: ReportSpec
    received: datetime  # when this operator first saw this sequence


@dataclass(frozen=True, slots=True)
class Quota:
    """What a namespace's ResourceQuotas still allow, by resource (pods, requests.cpu, requests.<extended>, ...)."""

    name: str
    left: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for places: its turn in the queue."""

    key: str  # namespace/name
    priority: int
    since: datetime
    count: int
    demand: Demand
    claims: bool = True  # nodes are what it waits for; one that waits for a quota or a name keeps none from others
    nearness: Nearness | None = None
    preempts: tuple[str, ...] = ()  # keys of the jobs that give up their places for it


@dataclass(frozen=True, slots=True)
class Occupant:
    """Another job, that holds places."""

    key: str  # namespace/name
    priority: int
    created: datetime
    places: Mapping[str, str]  # namespace/name of its pods, and their nodes
    requests: Resources  # of each
    at_risk: float = 0.0  # seconds of training that it may lose by leaving
    leaving: bool = False  # it gives its places back already


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's own settings that policies read."""

    pod_gone_seconds: float = 5.0
    """A pod on an unreachable node that is deleted and does not go is replaced after this long."""
    starvation_seconds: float = 300.0
    """A waiting job's demand is kept free from younger jobs after this long."""
    unready_node_seconds: float = 40.0
    """A NotReady node's pods are replaced after this long, if the job finishes no steps either."""
    default_image: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything about one job at one moment."""

    now: datetime
    namespace: str
    name: str
    uid: str
    generation: int  # metadata.generation
    created: datetime
    spec: TrainingJobSpec | None  # None: it does not validate, see spec_error
    status: TrainingJobStatus
    spec_error: str = ""
    deleting: bool = False
    admitted_hash: str = ""  # hash of the fields that only a suspended job may change, of the spec as it is now
    priority: int = 0
    rendering: Rendering | None = None
    refusal: Refusal | None = None
    world: World | None = None
    pods: tuple[PodView, ...] = ()  # unfinished and finished ones, of this job UID
    strangers: tuple[str, ...] = ()  # pods of the names we would use that belong to somebody else
    reports: tuple[Report, ...] = ()
    heard_since: datetime | None = None  # since when reports were heard without a break; None: as long as it matters
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    devices: Mapping[str, Accelerators] = field(default_factory=dict)  # by node: of these nodes, and of avoided ones
    books: Books = field(default_factory=lambda: Books(nodes={}))
    quotas: tuple[Quota, ...] = ()
    ahead: tuple[Waiting, ...] = ()  # waiting jobs that come before this one, in order
    may_preempt: bool = True  # its priority class does not say preemptionPolicy: Never
    occupants: tuple[Occupant, ...] = ()  # jobs of lower priority that hold places; only looked for if pods are missing
    preemptor: Waiting | None = None  # the job that wants this one's places
    settings: Settings = field(default_factory=Settings)
    new_token: str = ""  # fresh random text, for a World that must be made


@dataclass(frozen=True, slots=True)
class Admit:
    """Make the rights and the network policy, try one pod as a dry run, keep the rendering; then plan again."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make one pod of the gang."""

    index: int
    incarnation: int
    node: str | None  # None: left to the scheduler


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete one pod, this UID only."""

    name: str
    uid: str
    grace_seconds: int | None = None  # None: its own


@dataclass(frozen=True, slots=True)
class PutWorld:
    """Create the World (no resource version) or replace the one that was read."""

    spec: WorldSpec
    resource_version: str | None


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the job itself (TTL)."""


@dataclass(frozen=True, slots=True)
class Emit:
    """A Kubernetes Event, sent once the status has been written."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = Admit | CreatePod | DeletePod | PutWorld | DeleteJob


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. Actions are carried out in their order, neighbouring CreatePods and DeletePods side by side; the
    status is written once, after them."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Emit, ...] = ()
    requeue_after: float | None = None  # seconds; None: only when something changes
    waiting: Waiting | None = None  # this job waits for places
    metrics: tuple[tuple[str, str, float], ...] = ()  # (kind, label, value): ("recovery", cause, seconds), ...
