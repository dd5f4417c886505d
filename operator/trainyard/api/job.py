"""TrainingJob: what a researcher applies, and what the operator says about it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from trainyard.api.base import (
    Auto,
    Count,
    HangSeconds,
    Lenient,
    Model,
    Name,
    NumProc,
    Open,
    Seconds,
    Step,
    Text,
    Time,
    auto_or,
    rules,
)
from trainyard.api.protocol import Protection, Warning_
from trainyard.api.train import TrainConfig

Phase = Literal["Pending", "Starting", "Running", "Recovering", "Suspending", "Suspended", "Succeeded", "Failed"]
ConditionType = Literal[
    "Accepted", "Scheduled", "Running", "Recovering", "SparesReady", "Suspended", "Succeeded", "Failed"
]
HangDetection = Literal["Ranks", "Steps", "None"]
Action = Literal["Fail", "Restart", "RestartNode", "Ignore"]
MOST_NODES = 16384  # pods of one job


class Devices(Model):
    """Accelerators a pod asks for."""

    resource: Annotated[str, StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=253)]
    """Name of the extended resource, such as huawei.com/Ascend910 or nvidia.com/gpu."""
    per_node: Annotated[int, Field(ge=1, le=256)]
    """Devices a pod."""


class Topology(Model):
    """How near to each other the pods of the gang have to be."""

    level: Annotated[str, StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)]
    """ring, node, rack, superpod, or the key of a node label; the gang is kept inside one of these."""
    policy: Literal["Required", "Preferred"] = "Preferred"
    """Required: the gang waits for it. Preferred: it uses as few of them as it can."""


class MemoryCopies(Model):
    """Copies of the shipped trainer's state in the pods' memory, newer than any checkpoint on disk."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!has(self.every) || !has(self.copyEvery) || type(self.every) == string || type(self.copyEvery) == string || "
         "self.every == 0 || self.copyEvery % self.every == 0", "copyEvery must be a multiple of every"),
    ))

    every: Annotated[Annotated[int, Field(ge=0, le=1 << 31)] | Auto, WithJsonSchema(auto_or(0, 1 << 31))] = "auto"
    """Steps between two copies in the pod's own memory; 0 keeps none. auto: as often as takes half of 3 % of the
    time."""
    copy_every: Annotated[Annotated[int, Field(ge=1, le=1 << 31)] | Auto, WithJsonSchema(auto_or(1, 1 << 31))] = "auto"
    """Steps between two copies that are also sent to other nodes, a multiple of every. auto: as often as takes the
    other half."""
    copies: Annotated[Annotated[int, Field(ge=0, le=8)] | Auto, WithJsonSchema(auto_or(0, 8))] = "auto"
    """Other nodes that hold a copy, less than numNodes. auto: 1, or fewer if memory does not suffice. A number is kept:
    the memory it takes is added to what the container trainer asks for and may use."""

    @model_validator(mode="after")
    def _whole_periods(self) -> Self:
        if isinstance(self.every, int) and isinstance(self.copy_every, int) and self.every \
                and self.copy_every % self.every:
            raise ValueError("copyEvery must be a multiple of every")
        return self


class Checkpoint(Model):
    """Where and how often the state of training is kept."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!has(self.subPath) || (!self.subPath.startsWith('/') && !self.subPath.split('/').exists(part, part == '..'))",
         "subPath must be a path inside the volume: relative, without .."),
    ))

    volume: Open | None = None
    """A Kubernetes volume source (persistentVolumeClaim, nfs, hostPath, ...) that every pod of the gang can write;
    mounted at /checkpoint. Without it a loss of a pod starts training over."""
    sub_path: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Folder inside the volume; default: the job's name."""
    every: Annotated[int, Field(ge=1, le=1 << 31)] = 100
    """Steps between two durable checkpoints."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many of the newest checkpoints stay."""
    memory: MemoryCopies = Field(default_factory=MemoryCopies)
    """Copies in memory, from which most recoveries go on; the volume is for the rest."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.sub_path is not None and (self.sub_path.startswith("/") or ".." in self.sub_path.split("/")):
            raise ValueError("subPath must be a path inside the volume: relative, without ..")
        return self


class FailureRule(Model):
    """What to do about a rank that ended with one of these exit codes."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("!self.onExitCodes.exists(code, code == 0)", "onExitCodes must not name 0: that rank did not fail"),
    ))

    on_exit_codes: Annotated[list[Annotated[int, Field(ge=-64, le=255)]], Field(min_length=1, max_length=64)]
    """Exit codes of the rank that failed first; -N means that signal N ended it."""
    action: Action
    """Fail ends the job. Restart starts the ranks again and counts it. RestartNode also replaces the pod, on
    another node if there is one. Ignore starts the ranks again without counting it."""

    @model_validator(mode="after")
    def _failures(self) -> Self:
        if 0 in self.on_exit_codes:
            raise ValueError("onExitCodes must not name 0: that rank did not fail")
        return self


class FailurePolicy(Model):
    """How failures of ranks are answered. Losses of pods and nodes are always recovered from and never counted."""

    max_restarts: Annotated[int, Field(ge=0, le=1 << 20)] = 10
    """Counted restarts after which the job fails."""
    hang_seconds: HangSeconds = "auto"
    """Seconds without a finished step after which a running job is restarted. auto: 10 times the median step, once 5
    steps were finished; at least 5 s where pods watch their ranks (the shipped trainer), at least 300 s where only the
    steps that rank 0 reports are known."""
    replace_seconds: Seconds = 120
    """Seconds for which a gang waits for the pods that take lost ones' places, before it goes on with fewer where
    minNodes allows it; and for which it then trains before it grows again."""
    stragglers: Literal["Report", "Replace"] = "Report"
    """What is done about a rank of the shipped trainer that needs 1.5 times as long as the median for its own work, for
    a minute. Report: an Event names it. Replace: its pod is also replaced, on another node if there is one."""
    rules: Annotated[list[FailureRule], Field(max_length=32)] = Field(default_factory=list)
    """Judged in order, the first match wins. Unless a rule names them, exit codes 78 (bad configuration) and 79 (loss
    not finite) mean Fail, and 76 (this rank's device computes wrongly) RestartNode."""


FEW_COPIES = "checkpoint.memory.copies must be less than numNodes: copies are kept on other nodes"


class TrainingJobSpec(Model):
    """What is wanted."""

    model_config = ConfigDict(json_schema_extra=rules(
        ("has(self.train) != has(self.command)", "exactly one of train and command must be set"),
        ("!has(self.minNodes) || self.minNodes <= self.numNodes", "minNodes must not be above numNodes"),
        ("!has(self.checkpoint) || !has(self.checkpoint.memory) || !has(self.checkpoint.memory.copies) || "
         "type(self.checkpoint.memory.copies) == string || self.checkpoint.memory.copies < self.numNodes", FEW_COPIES),
        (f"self.numNodes + (has(self.spareNodes) ? self.spareNodes : 0) <= {MOST_NODES}",
         f"numNodes and spareNodes must not be above {MOST_NODES} together"),
        ("!has(self.train) || !has(self.runtime) || self.runtime == 'torch'",
         "runtime mindspore needs command: the shipped trainer is torch's"),
        ("!has(self.preload) || has(self.command)",
         "preload needs command: the shipped trainer's imports are always loaded ahead"),
        ("has(self.managedBy) == has(oldSelf.managedBy) && "
         "(!has(self.managedBy) || self.managedBy == oldSelf.managedBy)", "managedBy cannot be changed"),
    ))

    num_nodes: Annotated[int, Field(ge=1, le=MOST_NODES)]
    """Pods in the gang. Those with devices share nodes where they fit (docs/placement.md)."""
    num_proc_per_node: NumProc = "auto"
    """Processes (ranks) a pod; auto: devices.perNode, or 1 without devices."""
    min_nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] | None = None
    """Smallest gang that training may go on with when no replacement can be had for failurePolicy.replaceSeconds; it
    grows again at a checkpoint when there is room. Default: numNodes. For the shipped trainer only data and shard
    change then; legal sizes are in status.layout.sizes."""
    spare_nodes: Annotated[int, Field(ge=0, le=1024)] = 0
    """Warm pods beside the gang, with image, imports and devices of their own: one takes a lost pod's place at once.
    They are placed after the gang, and the job runs without them where there is no room."""
    devices: Devices | None = None
    """Accelerators; absent means CPU."""
    topology: Topology | None = None
    """How near to each other the pods have to be; absent: pods with devices in as few super-pods, then racks, then
    nodes as possible, pods without one a node while there are enough."""
    runtime: Literal["torch", "mindspore"] = "torch"
    """How the ranks of `command` find each other: by torch's environment, or by MindSpore's dynamic cluster."""
    placement: Literal["Planner", "Scheduler"] = "Planner"
    """Planner: Trainyard gives every pod a node before any is created. Scheduler: pods are created unpinned, for
    the scheduler that the template names (Volcano, Kueue's, an autoscaled default scheduler)."""
    train: TrainConfig | None = None
    """The shipped trainer, configured."""
    command: Annotated[list[Annotated[str, Field(max_length=8192)]], Field(min_length=1, max_length=256)] | None = None
    """Your own program instead, started in the template's image the way torchrun starts it."""
    preload: Annotated[list[Annotated[str, StringConstraints(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$", max_length=253)]],
        Field(min_length=1, max_length=64)] | None = None
    """Python modules, such as torch, that a process in each pod imports ahead and that ranks are then forked from: they
    start in milliseconds. Needs a command that is python with a script, -m or -c."""
    template: Open | None = None
    """PodTemplateSpec laid over the pods that Trainyard builds: image, volumes, tolerations, resources. The
    container that trains is called trainer."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """Checkpoints."""
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)
    """Failures."""
    schedule_seconds: Seconds = 120
    """Seconds that a placed pod may take to be bound and started before the gang is withdrawn and placed again."""
    priority_class_name: Name | None = None
    """Priority class of the pods, and of the job: a higher one comes first among waiting jobs, and whole jobs of a
    lower one make room for it (after saving their state)."""
    suspend: bool = False
    """true saves a checkpoint and removes the pods; false goes on from there."""
    managed_by: Name | None = None
    """Controller that looks after this job; absent or trainyard.dev/operator means Trainyard. Cannot be changed."""
    active_deadline_seconds: Seconds | None = None
    """Seconds of not being suspended after which the job fails; the clock restarts when it is resumed."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Seconds after its end at which the job is deleted; absent keeps it."""
    clean_pod_policy: Literal["All", "Running", "None"] = "Running"
    """Pods deleted at the end: all, those still running, or none (logs stay readable)."""

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        if (self.train is None) == (self.command is None):
            raise ValueError("exactly one of train and command must be set")
        if self.min_nodes is not None and self.min_nodes > self.num_nodes:
            raise ValueError("minNodes must not be above numNodes")
        copies = self.checkpoint.memory.copies
        if isinstance(copies, int) and copies >= self.num_nodes:
            raise ValueError(FEW_COPIES)
        if self.num_nodes + self.spare_nodes > MOST_NODES:
            raise ValueError(f"numNodes and spareNodes must not be above {MOST_NODES} together")
        if self.train is not None and self.runtime != "torch":
            raise ValueError("runtime mindspore needs command: the shipped trainer is torch's")
        if self.train is not None and self.preload is not None:
            raise ValueError("preload needs command: the shipped trainer's imports are always loaded ahead")
        return self

    @property
    def procs(self) -> int:
        """Ranks a pod."""
        if self.num_proc_per_node != "auto":
            return int(self.num_proc_per_node)
        return self.devices.per_node if self.devices else 1


class Condition(Lenient):
    """metav1.Condition."""

    type: ConditionType
    """What is judged."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """A sentence for people: what is, and what would help."""
    last_transition_time: Time
    """When the status last changed."""
    observed_generation: Count | None = None
    """The metadata.generation that was judged."""


class WorldStatus(Lenient):
    """The world generation that the supervisors follow."""

    generation: Count = 0
    """Counts every new start of the ranks; only grows."""
    phase: Literal["Run", "Drain", "Done"] | None = None
    """What the ranks are asked to do."""
    size: Count = 0
    """Members of the gang."""


class NodesStatus(Lenient):
    """Pods of the gang."""

    ready: Count = 0
    """Members of the gang whose supervisor runs."""
    spare: Count = 0
    """Spares that are warm: they run and have imported what ranks need, so that one could take a place at once."""
    desired: Count = 0
    """numNodes."""


class SpareMove(Lenient):
    """A spare shares its node with a member of the gang, and would be lost with it."""

    node: Annotated[str, Field(max_length=253)]
    """A node without members that has room for it now."""
    at: Time
    """If it still has then, a spare is made there, which replaces the other once it is warm."""


class Restarts(Lenient):
    """New starts of the ranks after something failed."""

    total: Count = 0
    """All of them."""
    counted: Count = 0
    """Those that count towards maxRestarts."""


class Progress(Lenient):
    """How far training is, as rank 0 last said."""

    step: Step = 0
    """Finished optimizer steps."""
    steps: Step | None = None
    """Steps until the end."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """step / steps."""
    loss: Annotated[str, Field(max_length=40)] | None = None
    """Training loss of that step, in decimal."""
    evaluation_loss: Annotated[str, Field(max_length=40)] | None = None
    """Newest validation loss, in decimal."""
    tokens_per_second: Count | None = None
    """Tokens a second over all ranks, mean of the last steps."""
    expert_imbalance: Annotated[str, Field(max_length=40)] | None = None
    """Of a mixture of experts: tokens of the busiest of the ranks that share out a layer's experts over their mean,
    mean over the layers, in decimal; 1 is even."""
    eta: Time | None = None
    """When training is expected to end."""
    activity: Annotated[str, Field(max_length=32)] | None = None
    """What the ranks do instead of steps: autotune 2/4, evaluate, save, export; absent while they train."""
    updated: Time | None = None
    """When this was reported."""


class LayoutEstimate(Lenient):
    """A layout, and what it was estimated to take."""

    data: Count | None = None
    """Replicas."""
    shard: Count | None = None
    """Ranks a replica is sharded over."""
    tensor: Count | None = None
    """Ranks that share each matrix."""
    pipeline: Count | None = None
    """Ranks that hold the layers one after the other."""
    context: Count | None = None
    """Ranks that share each sequence."""
    expert: Count | None = None
    """Ranks that share out the experts."""
    memory_per_device: Annotated[str, Field(max_length=32)] | None = None
    """Estimate of the fullest device's memory, such as 52.1Gi."""
    seconds_per_step: Annotated[str, Field(max_length=32)] | None = None
    """Estimate of a step's time, in decimal."""
    measured_seconds_per_step: Annotated[str, Field(max_length=40)] | None = None
    """A step's time as train.autotune measured it, in decimal."""
    explanation: Text | None = None
    """The layout in words, where the estimated time and memory go, and on what device."""


class LayoutCandidate(LayoutEstimate):
    """A layout that train.autotune measures."""

    name: Annotated[str, Field(max_length=32)]
    """By which ranks and operator call it."""
    problem: Annotated[str, Field(max_length=256)] | None = None
    """Why it was left out."""


class LayoutStatus(LayoutEstimate):
    """The parallel layout in use: chosen and estimated before pods start, then as the ranks report it."""

    sizes: Annotated[list[Count], Field(max_length=16384)] | None = None
    """Sizes of the gang, from minNodes on, that the layout can go on with when pods are lost: those whose ranks are
    multiples of tensor x pipeline x context."""
    tuned: Annotated[str, Field(max_length=32)] | None = None
    """Name of the candidate that train.autotune has chosen; absent until it has."""
    candidates: Annotated[list[LayoutCandidate], Field(max_length=8)] | None = None
    """What train.autotune measures, in the planner's order."""


class CheckpointStatus(Lenient):
    """What training could go on from."""

    durable_step: Step | None = None
    """Newest step whose checkpoint is complete on the volume."""
    memory_step: Step | None = None
    """Newest step whose copies in memory survive the loss of a pod; absent: none do, at the moment."""
    memory_skipped: Count | None = None
    """Copies in memory that were left out since the ranks last started, because other pods still waited for an earlier
    one: what is in memory is then older than `checkpoint.memory` asks for."""
    protection: Protection | None = None
    """What the copies in memory outlive. Node: the loss of any one node. Pod: of any one pod, but not of its node, as
    all pods are on that one. Unprotected: of neither; so it is before the first copies have arrived, after a recovery
    until they are whole again, and as long as there is no other pod to hold them. Absent: no copies are kept."""


class PhaseSeconds(Lenient):
    """Where the time of a recovery went, in milliseconds (whole numbers, so that every client reads them alike)."""

    detect: Count | None = None
    """From the fault, where its time is known, to the operator's knowing."""
    decide: Count | None = None
    """From the report or the loss seen to the new generation written."""
    replace: Count | None = None
    """Until old processes were gone and every pod of the new generation was there: all members have joined."""
    rendezvous: Count | None = None
    """Until the ranks ran and their process groups were made, where the program says so."""
    restore: Count | None = None
    """Until model and optimizer were restored, where the program says so."""
    first_step: Count | None = None
    """Until the next finished step."""
    total: Count | None = None
    """The sum."""


class Recovery(Lenient):
    """One recovery."""

    at: Time
    """When the loss was seen."""
    generation: Count
    """The world generation that it led to."""
    cause: Annotated[str, Field(max_length=64)]
    """RankFailed, PodLost, NodeLost, Hang, Moved, ..."""
    culprit: Annotated[str, Field(max_length=512)] = ""
    """Pod, rank or node at fault, and what it said."""
    lost_steps: Step | None = None
    """Finished steps that were computed again: those between the last that every rank had finished, as far as pods that
    are still there know, and the one that training went on from. Until the first step after it, and for programs that
    do not say what they go on from, estimated from what was last reported, which may be seconds old."""
    text: Annotated[str, Field(max_length=2048)] = ""
    """Evidence: stacks of ranks that hung."""
    milliseconds: PhaseSeconds = Field(default_factory=PhaseSeconds)
    """How long it took, by phase."""


class TrainingTime(Lenient):
    """How much of its time a job trains: trainyard_effective_training_ratio."""

    since: Time
    """When its first step was finished, or the first since it last got its places."""
    lost_milliseconds: Step = 0
    """Since then, in recoveries that have ended, and for finished steps that were computed again."""


class Avoid(Lenient):
    """A node that this job's new pods keep away from."""

    node: Name
    """Its name."""
    device: Annotated[str, Field(max_length=63)] = ""
    """The device on it, if only that is avoided."""
    reason: Text = ""
    """Why."""
    until: Time
    """When it is forgotten."""


class DeviceFault(Lenient):
    """A device that went bad under this job."""

    node: Name
    """Its node."""
    device: Annotated[str, Field(max_length=63)]
    """Its id."""
    code: Annotated[str, Field(max_length=64)]
    """Code of the fault."""
    at: Time
    """When it stopped the job last."""


class JobWarning(Warning_):
    """What a pod warned of."""

    pod: Name
    """The pod."""


class TrainingJobStatus(Lenient):
    """What is."""

    observed_generation: Count | None = None
    """The metadata.generation that this status answers."""
    state: Phase | None = None
    """One word for the whole, derived from the conditions."""
    conditions: Annotated[list[Condition], Field(max_length=16, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})] = Field(default_factory=list)
    """metav1 conditions: Accepted, Scheduled, Running, Recovering, SparesReady (of a job that wants spares), Suspended,
    Succeeded, Failed."""
    start_time: Time | None = None
    """When the job was last admitted or resumed; activeDeadlineSeconds counts from here."""
    completion_time: Time | None = None
    """When the job ended."""
    admitted_hash: Annotated[str, Field(max_length=64)] | None = None
    """Hash of numNodes, devices, template, train and command as they were admitted."""
    rendered: Name | None = None
    """ConfigMap that holds what every pod of this job is made from."""
    pods: Count = 0
    """Pods that exist, finished ones left out; the fields that only a job without pods may change look at it."""
    world: WorldStatus = Field(default_factory=WorldStatus)
    """World generation."""
    nodes: NodesStatus = Field(default_factory=NodesStatus)
    """The gang."""
    restarts: Restarts = Field(default_factory=Restarts)
    """Restarts."""
    progress: Progress | None = None
    """Progress."""
    layout: LayoutStatus | None = None
    """Layout."""
    checkpoint: CheckpointStatus | None = None
    """Checkpoints."""
    recoveries: Annotated[list[Recovery], Field(max_length=10)] = Field(default_factory=list)
    """The last ten recoveries, oldest first."""
    training_time: TrainingTime | None = None
    """Since when it trains, and what recoveries cost."""
    avoid: Annotated[list[Avoid], Field(max_length=64)] = Field(default_factory=list)
    """Nodes and devices that this job avoids for now."""
    device_faults: Annotated[list[DeviceFault], Field(max_length=64)] = Field(default_factory=list)
    """Devices that went bad under this job in the last 24 hours. The same code on three of them counts against the
    job: further faults with it count as restarts, and quarantine no devices."""
    hang_detection: HangDetection | None = None
    """Ranks: every pod watches its own ranks (the shipped trainer). Steps: the program reports steps, and a job that
    finishes none for failurePolicy.hangSeconds hangs. None: it reports none, so nobody would notice."""
    withdrawals: Count = 0
    """Times in a row that the gang was withdrawn because a pod could not start; decides the backoff."""
    retry_at: Time | None = None
    """When the gang is placed again after a withdrawal."""
    spare_move: SpareMove | None = None
    """There while a spare is to be moved away from a member."""
    warnings: Annotated[list[JobWarning], Field(max_length=10)] = Field(default_factory=list)
    """The last ten warnings of pods, oldest first: batches that were not finite, stragglers, checkpoints that could not
    be saved. Each is also an Event, once."""
