"""The pod whose supervisor runs the store: chosen once, kept while it lives, its address filled in when it is known."""

from __future__ import annotations

from trainyard.api.protocol import Master
from trainyard.plan.losses import active
from trainyard.plan.turn import Turn


def master(turn: Turn) -> Turn:
    """The lowest index whose pod runs, else whose pod is there; then its address."""
    world = turn.world
    if not active(turn) or world is None:
        return turn
    current = world.master if world.master.pod_uid else _choose(turn)
    address = _address(turn, current.pod_uid) or current.address
    current = current.model_copy(update={"address": address})
    return turn if current == world.master else turn.with_world(world.model_copy(update={"master": current}))


def _choose(turn: Turn) -> Master:
    there = turn.gang.alive
    running = [index for index, pod in there.items() if pod.started]
    index = min(running or there, default=None)
    return Master(pod=there[index].name, pod_uid=there[index].uid) if index is not None else Master()


def _address(turn: Turn, uid: str) -> str:
    """A store outlives generations, so any report of that very pod counts."""
    told = (r.spec.address for r in turn.snap.reports if uid and r.spec.pod_uid == uid and r.spec.job == turn.snap.uid)
    return next((address for address in told if address), "")
