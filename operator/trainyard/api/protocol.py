"""World and Report: how the operator and the supervisors of one job agree (docs/protocol.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from trainyard.api.base import Count, Lenient, Name, Step, Text, Time, rules

PROTOCOL = 1  # the operator speaks this one and the one before

Index = Annotated[int, Field(ge=0, le=16383)]
Protection = Literal["Node", "Pod", "Unprotected"]


class Master(Lenient):
    """The pod whose supervisor runs the job's store."""

    pod: Annotated[str, Field(max_length=253)] = ""
    """Name of the pod; empty while none is chosen."""
    pod_uid: Annotated[str, Field(max_length=64)] = ""
    """UID of that pod."""
    address: Annotated[str, Field(max_length=253)] = ""
    """host:port of its store; empty until its supervisor has reported it."""


class Cause(Lenient):
    """Why this generation exists, and the counters with it: one write makes a recovery."""

    kind: Annotated[str, Field(max_length=64)] = "Start"
    """Start, Resume, RankFailed, PodLost, NodeLost, Hang, Moved, Missing, ..."""
    culprit: Annotated[str, Field(max_length=512)] = ""
    """Pod, rank or node, and what it said."""
    at: Time | None = None
    """When the loss was seen."""
    happened: Time | None = None
    """When it happened, as far as a pod could tell."""
    step: Step | None = None
    """The last finished step that was known then."""
    total: Count = 0
    """Restarts up to and including this one."""
    counted: Count = 0
    """Those of them that count towards maxRestarts."""
    failure: Annotated[str, Field(max_length=256)] = ""
    """What failed, without numbers: the same again without a new step is a crash loop."""
    repeats: Count = 0
    """Times in a row that it was that."""
    node: Annotated[str, Field(max_length=253)] = ""
    """The node of all of these; empty: different ones."""


class WorldSpec(Lenient):
    """Written by the operator alone, always with a resourceVersion."""

    model_config = ConfigDict(hide_input_in_errors=True, json_schema_extra=rules(
        ("self.generation >= oldSelf.generation", "generation only grows"),
        # The operator makes a World that somebody edited again with a later one; there must be one.
        ("self.generation <= oldSelf.generation + 1000", "generation grows by 1000 at most"),
        ("self.job == oldSelf.job", "job cannot be changed"),
    ))

    protocol: Annotated[int, Field(ge=1, le=1000)] = PROTOCOL
    """Version of the protocol."""
    job: Name
    """UID of the TrainingJob."""
    generation: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """Every start of the gang's ranks has its own."""
    phase: Literal["Run", "Drain", "Done"]
    """Run: train. Drain: save at an agreed step, stop. Done: leave."""
    size: Annotated[int, Field(ge=1, le=16384)]
    """Members of the gang."""
    incarnations: Annotated[dict[str, int], Field(max_length=16384)] = Field(default_factory=dict)
    """Incarnation by index, for indices that were ever replaced and those of spares; all others have 1."""
    places: Annotated[dict[str, Index], Field(max_length=16384)] = Field(default_factory=dict)
    """Index of the pod that holds a place, by place, where that is not the pod of the same index: a spare was promoted,
    or the gang is smaller than it was. Ranks follow from places."""
    master: Master = Field(default_factory=Master)
    """Where members meet."""
    token: Annotated[str, Field(min_length=16, max_length=128, repr=False)]
    """Secret of this job's members; authenticates them to each other."""
    cause: Cause = Field(default_factory=Cause)
    """Why this generation exists."""
    join_seconds: Annotated[int, Field(ge=1, le=86400)] = 60
    """A member that has not joined the master this long after the first is reported missing."""
    drain_seconds: Annotated[int, Field(ge=1, le=86400)] = 30
    """Seconds that ranks get to save and stop after Drain."""
    tuned: Annotated[str, Field(max_length=32)] = ""
    """The layout that train.autotune has chosen, by the candidate's name; ranks do not measure again."""
    local_attempts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts of the same members that the master may start by itself each time the API cannot be reached."""
    check: Literal["None", "Pairs"] = "None"
    """Pairs: before the ranks of this generation start, each node runs a few collectives with two others in turn."""

    def incarnation(self, index: int) -> int:
        """The incarnation that holds this index now."""
        return self.incarnations.get(str(index), 1)

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the pods that hold the places, in the order of the places."""
        return tuple(self.places.get(str(place), place) for place in range(self.size))


class Failure(Lenient):
    """The rank of this pod that failed first."""

    root: bool
    """false: it only followed the loss of another."""
    rank: Annotated[int, Field(ge=0, le=1 << 24)]
    """Global rank."""
    exit_code: Annotated[int, Field(ge=-64, le=255)]
    """Exit code; -N means signal N."""
    step: Step | None = None
    """Last finished step it had reported."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """One line: the exception, or the signal's name."""
    text: Text = ""
    """The last lines it printed."""
    oom: bool = False
    """The kernel killed it for want of memory."""
    at: Time | None = None
    """When it ended, or was last seen to make progress."""
    hang: bool = False
    """It did not end by itself: its process could not run any more (stopped, or in an uninterruptible wait)."""
    devices: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=64)] = Field(default_factory=list)
    """No rank was started: these devices of the pod still had a process on them 20 s after the last one had ended."""


class Position(Lenient):
    """How far a rank is in a process group."""

    group: Annotated[str, Field(max_length=64)]
    """Name of the group, the same at all its ranks."""
    rank: Annotated[int, Field(ge=0, le=1 << 24)]
    """Global rank."""
    issued: Annotated[int, Field(ge=0, le=2**63)]
    """Collectives it has begun."""
    completed: Annotated[int, Field(ge=0, le=2**63)] = 0
    """Collectives it has finished."""


class Hang(Lenient):
    """All ranks of the pod have waited for longer than what they do may take. They are left alone: what they wait for
    may be elsewhere."""

    since: Time
    """When they last made progress."""
    phase: Annotated[str, Field(max_length=32)] = ""
    """start, autotune, compile (the first step), step, evaluate, save or export."""
    step: Step = 0
    """The last finished step."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """One line."""
    text: Text = ""
    """Stacks of their threads."""
    positions: Annotated[list[Position], Field(max_length=256)] = Field(default_factory=list)
    """Where each is."""


class Check(Lenient):
    """What came of the check of nodes in pairs that the World asked for."""

    pairs: Count
    """Pairs that met."""
    failed: Count = 0
    """Those of them that failed."""
    culprits: Annotated[list[Index], Field(max_length=64)] = Field(default_factory=list)
    """Indices that failed with both their partners, while one of these passed with another (the first 64)."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """What was found, in one line."""


class Measurement(Lenient):
    """What train.autotune found out about a candidate."""

    name: Annotated[str, Field(max_length=32)]
    """Its name."""
    layout: Annotated[str, Field(max_length=256)] | None = None
    """The layout in words."""
    seconds_per_step: Annotated[str, Field(max_length=40)] | None = None
    """The slowest rank's median, decimal."""
    problem: Annotated[str, Field(max_length=256)] | None = None
    """Why it was left out."""


class RankProgress(Lenient):
    """What rank 0 last reported."""

    step: Step = 0
    """Finished optimizer steps."""
    steps: Step | None = None
    """Steps until the end."""
    loss: Annotated[str, Field(max_length=40)] | None = None
    """Training loss, decimal."""
    evaluation_loss: Annotated[str, Field(max_length=40)] | None = None
    """Validation loss, decimal."""
    tokens_per_second: Count | None = None
    """Over all ranks."""
    durable_step: Step | None = None
    """Newest committed checkpoint."""
    memory_step: Step | None = None
    """Newest step whose copies in memory are whole everywhere."""
    protection: Protection | None = None
    """What these copies outlive."""
    memory_skipped: Count | None = None
    """Copies in memory that were left out in this generation, because other pods still waited for an earlier one."""
    resumed_step: Step | None = None
    """The step that this generation went on from; 0: the beginning."""
    finished_step: Step | None = None
    """The newest step that every rank had finished before, of those whose pods are still there; absent: none is."""
    data: Count | None = None
    """Replicas of the layout in use."""
    shard: Count | None = None
    """Shards of the layout in use."""
    tensor: Count | None = None
    """Ranks that share each matrix."""
    pipeline: Count | None = None
    """Ranks that hold the layers one after the other."""
    context: Count | None = None
    """Ranks that share each sequence."""
    expert: Count | None = None
    """Ranks that share out the experts."""
    first_step_at: Time | None = None
    """When the first step of this generation was finished."""
    connected_at: Time | None = None
    """When this generation's process groups were made, if the program says so."""
    restored_at: Time | None = None
    """When model and optimizer were as they will be trained on, if the program says so."""
    seconds_per_step: Annotated[str, Field(max_length=40)] | None = None
    """Median of the last steps, decimal."""
    expert_imbalance: Annotated[str, Field(max_length=40)] | None = None
    """Of a mixture of experts: tokens of the busiest of the ranks that share out a layer's experts over their mean,
    mean over the layers, since the last log line; decimal."""
    activity: Annotated[str, Field(max_length=32)] | None = None
    """What ranks do instead of steps that may take long (autotune 2/4, evaluate, save, export); absent while steps are
    computed."""
    tuned: Annotated[str, Field(max_length=32)] | None = None
    """The layout in use, by its name, if train.autotune has chosen it."""
    measured: Annotated[list[Measurement], Field(max_length=8)] | None = None
    """What it was chosen from."""
    at: Time | None = None
    """When this was reported."""


class Warning_(Lenient):
    """Something a user should know that stops nothing."""

    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """CamelCase, such as CheckpointFailed."""
    message: Annotated[str, Field(max_length=1024)]
    """One sentence."""
    at: Time
    """When."""


class ReportSpec(Lenient):
    """A pod's newest word. One object a pod; a policy ties it to the token's pod. State, not a log: every field holds
    what is true now, so a watcher that missed updates misses nothing."""

    job: Name
    """UID of the TrainingJob."""
    pod_uid: Name
    """UID of the pod."""
    index: Index
    """Index of the pod; its place in the gang is the World's to say."""
    incarnation: Annotated[int, Field(ge=1)]
    """Incarnation."""
    generation: Count
    """World generation that all this is about."""
    attempt: Count = 0
    """Restarts inside the generation that the master started while the API was away."""
    sequence: Annotated[int, Field(ge=1, le=2**53)]
    """Grows with every write."""
    kind: Literal["Master", "Formed", "Missing", "RankFailed", "PeerLost", "Stopping", "Drained",
                  "Finished", "Checked", "Warm"]
    """Master: my store listens at `address`. Formed: all members joined, ranks start (master only). Missing: members
    did not join in time (master only). RankFailed: see failure. PeerLost: see lost. Stopping: this pod was told to end
    and would like a Drain. Drained: all ranks of the gang saved and stopped (master only). Finished: all ranks of the
    gang ended with 0 (master only). Checked: no rank has started, because `check` has found culprits (master only).
    Warm: a spare that has imported what ranks need (spares only, the only kind that they report)."""
    address: Annotated[str, Field(max_length=253)] | None = None
    """host:port of the store, if this pod is the master."""
    formed_at: Time | None = None
    """When the gang was complete."""
    missing: Annotated[list[Index], Field(max_length=64)] = Field(default_factory=list)
    """Indices that did not join (the first 64)."""
    lost: Annotated[list[Index], Field(max_length=64)] = Field(default_factory=list)
    """Indices whose supervisors this one lost the connection to while ranks run. The master tells of members, the two
    neighbours of its index tell of the master."""
    lost_at: Time | None = None
    """When the first of these connections broke."""
    stalled: bool = False
    """Together with `lost`: this pod's ranks have been in a step for three times as long as usual, and at least 2 s."""
    failure: Failure | None = None
    """The rank that failed."""
    hang: Hang | None = None
    """There while the ranks make no progress."""
    check: Check | None = None
    """Once nodes were checked in pairs in this generation (master only)."""
    drained_step: Step | None = None
    """The step that was saved by Drain."""
    progress: RankProgress | None = None
    """Only from the pod of rank 0."""
    warnings: Annotated[list[Warning_], Field(max_length=5)] = Field(default_factory=list)
    """The newest five."""
