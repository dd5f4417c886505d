"""A pod that cannot start is placed again alone, away from what stood in its way. No rank ran: no new generation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard.api.job import Avoid, ConditionType
from trainyard.api.protocol import Master
from trainyard.plan.conditions import find
from trainyard.plan.gang import trained
from trainyard.plan.losses import active
from trainyard.plan.recover import raised
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView

IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
     "RegistryUnavailable", "SignatureValidationFailed"}
)  # fmt: skip
CONTAINER = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
)
DEVICE_SECONDS = 20.0  # UnexpectedAdmissionError: a device plugin that starts again is back soon
REFUSED_SECONDS = 120.0  # a node that refused a pod, or that the scheduler would not have
BROKEN_SECONDS = 300.0  # a node on which a pod that starts elsewhere does not start
UNSCHEDULABLE_PATIENCE = 5.0  # since the scheduler's first no: it looks again when something changes
UNSCHEDULABLE = "Unschedulable: "
MOST_NODES = 4  # once the scheduler has refused so many, it is not the nodes: the gang is withdrawn,
MOST_PART = 0.05  # unless that is few for the size of the gang: of a thousand nodes some are always out of order
UNPINNED_PAUSE = 5.0  # nothing keeps the successor of a pod that Trainyard did not place from the same node
CONTAINER_PATIENCE = 20.0  # kubelet tries again by itself
START_PATIENCE = 2.0  # a device plugin that keeps a container from its devices: kubelet tries again by itself
LONGEST_PAUSE = 30.0  # between two pods of a place whose devices are refused
ADMISSION = "UnexpectedAdmissionError"  # kubelet could not give the pod its devices
# In kubelet's message of a start that the device plugin refused or did not answer, or that came before the plugin had
# registered with a kubelet that was just started again.
DEVICE_START = (
    "PreStartContainer rpc failed", "endpoint not found in cache for a registered resource",
    "no devices found allocated in local cache",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What keeps a pod from starting, and what to do about it."""

    text: str
    wait: float  # seconds until the pod is placed again; infinite: never
    avoid: float  # seconds for which its node is avoided; 0: not at all


def bringup(turn: Turn) -> Turn:
    """Pods that will not start: next incarnation, same generation."""
    if not active(turn) or turn.gang.formed or turn.world is None:
        return turn
    stuck: dict[int, Hindrance] = {}
    for index, pod in turn.gang.holders.items():
        found = hindrance(turn, pod)
        if found is None or found.wait == float("inf") or is_hopeless(turn, pod):
            continue
        if found.wait <= 0:
            stuck[index] = found
        else:
            turn = turn.look_again(found.wait)
    return _again(turn, stuck) if stuck else turn


def _again(turn: Turn, stuck: dict[int, Hindrance]) -> Turn:
    assert turn.world is not None
    avoid = []
    for index, found in sorted(stuck.items()):
        pod = turn.gang.holders[index]
        node = pod.node or pod.pinned
        if node and found.avoid:
            until = stamp(turn.now + timedelta(seconds=found.avoid))
            avoid.append(Avoid(node=node, reason=found.text[:4096], until=until))
    uids = {turn.gang.holders[index].uid for index in stuck}
    master = Master() if turn.world.master.pod_uid in uids else turn.world.master
    update = {"incarnations": raised(turn, frozenset(stuck)), "master": master}
    return turn.with_world(turn.world.model_copy(update=update)).avoiding(avoid)


def hindrance(turn: Turn, pod: PodView) -> Hindrance | None:
    """Why this pod has not started; None: it has, or it is just on its way."""
    age = seconds_between(pod.created, turn.now)
    if pod.ended:
        text = f"{pod.reason or 'the pod failed before it ran'}{': ' + pod.message if pod.message else ''}"
        wait = 0.0 if pod.pinned else UNPINNED_PAUSE - age
        if pod.reason == ADMISSION:
            return Hindrance(text, max(wait, _pause(turn) - age), 0.0 if _is_told(turn, pod) else DEVICE_SECONDS)
        return Hindrance(text, wait, REFUSED_SECONDS)
    if pod.started:
        return None
    if pod.deleting is not None:
        return Hindrance("deleted before it ran", 0.0, 0.0)
    if pod.unschedulable and pod.node is None:
        wait = UNSCHEDULABLE_PATIENCE - refused_for(pod, turn.now) if pod.pinned else float("inf")
        return Hindrance(UNSCHEDULABLE + pod.unschedulable, wait, REFUSED_SECONDS)
    text = f"{pod.reason}{': ' + pod.message if pod.message else ''}"
    if pod.reason in CONTAINER and any(words in pod.message for words in DEVICE_START):
        return Hindrance(text, max(START_PATIENCE, _pause(turn)) - age, 0.0)
    if pod.reason in IMAGE | CONTAINER and _starts_elsewhere(turn, pod):
        return Hindrance(text, CONTAINER_PATIENCE - age, BROKEN_SECONDS)
    slow = turn.spec.schedule_seconds - age
    if trained(turn.gang, turn.world) and (pod.node or pod.pinned):
        words = text if pod.reason in IMAGE | CONTAINER else f"did not start within {turn.spec.schedule_seconds} s"
        return Hindrance(words, slow, BROKEN_SECONDS)
    return Hindrance(text, float("inf"), 0.0) if pod.reason in IMAGE | CONTAINER else None


def _pause(turn: Turn) -> float:
    """Seconds between two pods whose devices were refused: half of what the trouble has lasted, so each try comes after
    half as long again. Kubelet or the device plugin was restarted, most likely; nothing is counted."""
    since = [_since(turn, "Running", "False"), _since(turn, "Scheduled", "True")]
    return min(LONGEST_PAUSE, max(0.0, seconds_between(max(since), turn.now)) / 2)


def _since(turn: Turn, kind: ConditionType, verdict: str) -> datetime:
    """Since when the condition has had this status; far in the past if it has another."""
    found = find(turn.status, kind)
    at = moment(found.last_transition_time) if found and found.status == verdict else None
    return at or turn.snap.created


def _is_told(turn: Turn, pod: PodView) -> bool:
    """Whether an agent tells of the devices of the pod's node: placement knows by itself when it may not be used."""
    node = turn.snap.books.nodes.get(pod.node or pod.pinned or "")
    return node is not None and node.devices is not None


def is_hopeless(turn: Turn, pod: PodView) -> bool:
    """Whether yet another node would hardly help a pod that the scheduler cannot bind (a volume, say)."""
    refused = sum(entry.reason.startswith(UNSCHEDULABLE) for entry in turn.status.avoid)
    stuck = bool(pod.unschedulable) and pod.node is None and pod.pinned is not None
    most = max(MOST_NODES, MOST_PART * turn.spec.num_nodes)
    return stuck and refused >= most and not trained(turn.gang, turn.world)


def refused_for(pod: PodView, now: datetime) -> float:
    """Seconds since the scheduler first refused this pod; a busy one may come to look at it long after its creation."""
    return seconds_between(pod.unschedulable_since or pod.created, now)


def _starts_elsewhere(turn: Turn, pod: PodView) -> bool:
    return any(other.started and other.node != pod.node for other in turn.gang.holders.values())
