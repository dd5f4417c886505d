"""Deleting pods: each once, and by force where nobody is left to confirm it."""

from __future__ import annotations

from collections.abc import Iterable

from trainyard.plan.nodes import unreachable
from trainyard.plan.times import seconds_between
from trainyard.plan.turn import Turn
from trainyard.plan.types import DeletePod, PodView


def removal(turn: Turn, pods: Iterable[PodView]) -> Turn:
    """The turn with these pods deleted.

    A pod whose deletion is under way is left to its kubelet. If that kubelet is gone, the pod is removed by force once
    its grace has run out: its supervisor is fenced by the World, and nothing else would ever take the object away.
    """
    deletes = []
    for pod in pods:
        if pod.deleting is None:
            deletes.append(DeletePod(pod.name, pod.uid))
        elif unreachable(turn.snap, pod):
            left = turn.snap.settings.pod_gone_seconds - seconds_between(pod.deleting, turn.now)
            if left <= 0:
                deletes.append(DeletePod(pod.name, pod.uid, 0))
            else:
                turn = turn.look_again(left)
    return turn.delete(deletes)
