"""What the gang is doing, in the conditions Scheduled and Running."""

from __future__ import annotations

from trainyard.plan.bringup import CONTAINER, IMAGE, hindrance
from trainyard.plan.losses import active
from trainyard.plan.tuned import AUTOTUNE
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView


def running(turn: Turn) -> Turn:
    """Scheduled once every pod has a node, Running once all members have joined; else what is waited for."""
    world = turn.world
    if world is None or not active(turn):
        return _not_begun(turn)
    turn = _scheduled(turn)
    if world.phase == "Drain":
        words = f"The ranks save their state first: {world.cause.culprit}."
        moving = turn.judge("Running", "False", "Moving", words)
        return moving.judge("Recovering", "True", world.cause.kind, words)
    if turn.gang.formed:
        fewer = turn.gang.size < turn.spec.num_nodes
        who = f"{turn.gang.size} of {turn.spec.num_nodes}" if fewer else f"All {turn.gang.size}"
        told = turn.gang.progress
        tunes = told is not None and (told.activity or "").startswith(AUTOTUNE)
        doing = f"measure layouts ({told.activity})" if told is not None and tunes else "train"
        words = f"{who} pods {doing} in generation {world.generation}."
        return turn.judge("Running", "True", "Training", words)
    return turn.judge("Running", "False", *_waiting_for(turn))


def _not_begun(turn: Turn) -> Turn:
    return turn.judge("Running", "False", "WaitingForPlaces", "The gang has no pods yet.")


def _scheduled(turn: Turn) -> Turn:
    unbound = [pod for pod in turn.gang.alive.values() if pod.node is None]
    refused = next((pod for pod in unbound if pod.unschedulable), None)
    if refused is not None:
        return turn.judge("Scheduled", "False", "Unschedulable", f"Pod {refused.name}: {refused.unschedulable}")
    if turn.gang.missing or any(pod.pinned is None for pod in unbound):
        if turn.gang.missing and not turn.creates:
            return turn  # placement has said why
        if turn.spec.placement == "Scheduler":
            words = "Pods wait for the scheduler that the template names."
            return turn.judge("Scheduled", "False", "WaitingForScheduler", words)
        return turn
    return turn.judge("Scheduled", "True", "Placed", f"All {turn.gang.size} pods have a place.")


def _waiting_for(turn: Turn) -> tuple[str, str]:
    gang = turn.gang
    stuck = next((pod for pod in gang.alive.values() if not pod.started and pod.reason in IMAGE | CONTAINER), None)
    if stuck is not None:
        return _stuck(turn, stuck)
    started = sum(pod.started for pod in gang.alive.values())
    if started < gang.size:
        if not gang.holders and not turn.creates:
            return "WaitingForPlaces", "The gang has no pods yet."
        return "WaitingForPods", f"{started} of {gang.size} pods have started."
    told = gang.said("Missing")
    if told is not None:
        absent = ", ".join(str(index) for index in told.spec.missing[:10])
        return "WaitingForMembers", f"All {gang.size} pods run; these indices have not joined yet: {absent}."
    if turn.world is not None and turn.world.check == "Pairs":
        return "CheckingNodes", f"All {gang.size} pods run; nodes are checked in pairs before ranks start."
    return "WaitingForMembers", f"All {gang.size} pods run; their members are joining."


def _stuck(turn: Turn, pod: PodView) -> tuple[str, str]:
    found = hindrance(turn, pod)
    why = "ImagePullFailed" if pod.reason in IMAGE else "ContainerCannotStart"
    return why, f"Pod {pod.name}: {found.text if found else pod.reason}"
