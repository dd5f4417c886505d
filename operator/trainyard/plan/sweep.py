"""Pods that hold no place any more are deleted; the last ended one of a place stays, for its logs."""

from __future__ import annotations

from trainyard.plan.removal import removal
from trainyard.plan.turn import Turn


def sweep(turn: Turn) -> Turn:
    """The World was written first, so whoever is deleted here is fenced."""
    if turn.world is None:
        return turn
    places = max(turn.gang.size, turn.spec.num_nodes) + turn.spec.spare_nodes
    newest: dict[int, tuple[int, str]] = {}
    for pod in turn.gang.stale:
        if pod.finished and pod.exit_code is not None and pod.index < places:
            newest[pod.index] = max(newest.get(pod.index, (0, "")), (pod.incarnation, pod.uid))
    kept = {uid for _, uid in newest.values()}
    return removal(turn, [pod for pod in turn.gang.stale if pod.uid not in kept])
