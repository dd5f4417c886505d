"""Pods that are gone for good, whatever took them. Infrastructure is nobody's fault: it never counts. A container that
ends by itself again and again is not infrastructure."""

from __future__ import annotations

from datetime import timedelta

from trainyard.plan.naming import pod_name
from trainyard.plan.nodes import MASS_PATIENCE, gone, is_blip, stepping, suspects, unreachable, unready
from trainyard.plan.restarts import LOOK, action, exhausted, lost_again
from trainyard.plan.times import seconds_between
from trainyard.plan.turn import Fault, Turn, Weight
from trainyard.plan.types import PodView

PASSING = ("Moved", "Grown")  # causes of a Drain after which the gang goes on at once
FROM_OUTSIDE = (None, 0, 137, 143)  # exit codes of a container that somebody else ended, or that just left


def active(turn: Turn) -> bool:
    """Whether the gang is meant to train: not suspended, not over."""
    world = turn.world
    return world is not None and (world.phase == "Run" or (world.phase == "Drain" and world.cause.kind in PASSING))


def losses(turn: Turn) -> Turn:
    """A fault for every place whose pod cannot come back."""
    if not active(turn):
        return turn
    for index in turn.gang.members:
        kind, culprit = _loss(turn, index)
        if not kind or any(index in fault.replace for fault in turn.faults):
            continue
        weight: Weight = "free"
        if _ended_by_itself_again(turn, index):
            weight, culprit = "counted", f"{culprit}, again without a new step{LOOK}"
            if turn.world and turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
                return exhausted(turn, culprit)
        turn = turn.with_faults(Fault(kind, culprit, turn.now, frozenset({index}), weight))
    return _silent_nodes(turn)


def own_failure(pod: PodView) -> bool:
    """Whether a container of the pod ended by its own doing; that is judged like the failure of a rank."""
    failed = any(code not in FROM_OUTSIDE for code in (pod.exit_code, pod.init_exit_code))
    return pod.ended and pod.deleting is None and (pod.oom or failed)


def is_master(turn: Turn, index: int) -> bool:
    """Whether the World names the pod that holds this index as the master."""
    world = turn.world
    return world is not None and world.master.pod == pod_name(turn.snap.name, index, world.incarnation(index))


def _loss(turn: Turn, index: int) -> tuple[str, str]:
    pod, formed = turn.gang.holders.get(index), turn.gang.formed
    if pod is None:
        if not formed and not is_master(turn, index):
            return "", ""  # not made yet
        assert turn.world is not None
        return "PodLost", f"pod {pod_name(turn.snap.name, index, turn.world.incarnation(index))} is gone"
    if own_failure(pod):
        return "", ""
    if pod.ended:
        never_ran = pod.exit_code is None and not formed
        return ("", "") if never_ran else ("PodLost", f"pod {pod.name} ended without a report{_words(pod)}")
    return _loss_of_running(turn, pod)


def _ended_by_itself_again(turn: Turn, index: int) -> bool:
    """Whether a container ended although nobody took its pod or its node away, in a place that was lost before."""
    pod = turn.gang.holders.get(index)
    if pod is None or pod.exit_code is None or pod.deleting is not None or pod.disruption:
        return False
    state = turn.snap.nodes.get(pod.node or "")
    if unreachable(turn.snap, pod) or (state is not None and state.no_execute):
        return False
    return lost_again(turn, pod) and action(turn.spec.failure_policy, pod.exit_code) != "Ignore"


def _loss_of_running(turn: Turn, pod: PodView) -> tuple[str, str]:
    if gone(turn.snap, pod):
        return "NodeLost", f"node {pod.node} of pod {pod.name} is gone"
    if pod.deleting is None:
        return "", ""
    if unready(turn.snap, pod):
        asked = pod.deleting - timedelta(seconds=_grace(turn))
        if seconds_between(asked, turn.now) >= turn.snap.settings.pod_gone_seconds:
            return "NodeLost", f"pod {pod.name} was deleted and its node {pod.node} does not answer"
    if not turn.gang.formed and pod.started:
        return "PodLost", f"pod {pod.name} was deleted"
    return "", ""


def _grace(turn: Turn) -> float:
    return float(turn.snap.rendering.grace_seconds) if turn.snap.rendering else 30.0


def _words(pod: PodView) -> str:
    words = [f"exit code {pod.exit_code}"] if pod.exit_code is not None else []
    words += [text for text in (pod.reason, pod.message) if text]
    return f" ({': '.join(words)})" if words else ""


def _silent_nodes(turn: Turn) -> Turn:
    """NotReady convicts nobody whose job goes on; many at once are probably a blip of the control plane."""
    snap, pods = turn.snap, turn.gang.alive
    since = suspects(snap, pods)
    if not since:
        return turn
    turn = turn.look_again(10.0)
    if stepping(turn):
        return turn
    blip = is_blip(since, pods, turn.gang.size)
    patience = snap.settings.unready_node_seconds * (MASS_PATIENCE if blip else 1.0)
    assert turn.world is not None
    complained = not blip and (turn.gang.said("RankFailed") is not None or turn.world.cause.kind == "PeerLost")
    for index, at in since.items():
        left = patience - seconds_between(at, turn.now)
        if left <= 0 or complained:
            culprit = f"node {pods[index].node} does not answer since {at:%H:%M:%S}"
            turn = turn.with_faults(Fault("NodeLost", culprit, turn.now, frozenset({index})))
        else:
            turn = turn.look_again(left)
    return turn
