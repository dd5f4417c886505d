"""Which pod holds which place of the next generation: survivors stay, spares take the places of those that are lost."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.plan.gang import trained
from trainyard.plan.nodes import unreachable
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView


def seated(turn: Turn, lost: frozenset[int]) -> tuple[int, ...]:
    """Indices of the pods of the next generation, in the order of its places. A place for which there is no spare
    keeps its index: the next incarnation of that is placed and waited for."""
    ready = warm(turn)
    vacant = idle(turn)
    gone = [index for index in turn.gang.members if index in lost or index in vacant]
    promoted = dict(zip(gone, ready, strict=False))
    return tuple(promoted.get(index, index) for index in turn.gang.members)


def places_of(members: Sequence[int]) -> dict[str, int]:
    """The World's places, which name only what is not where its index says."""
    return {str(place): index for place, index in enumerate(members) if place != index}


def warm(turn: Turn) -> list[int]:
    """Spares that could take a place at this moment."""
    return [index for index, pod in sorted(turn.gang.spares.items()) if is_warm(turn, pod)]


def is_warm(turn: Turn, pod: PodView) -> bool:
    """Whether it runs, and nothing is known that would soon end it; its node is not one that the job avoids."""
    state = turn.snap.nodes.get(pod.node or "")
    avoided = {entry.node for entry in turn.status.avoid if not entry.device}
    avoided |= {entry.node for fault in turn.faults for entry in fault.avoid if not entry.device}
    stays = pod.deleting is None and not pod.disruption and not (state is not None and state.no_execute)
    return pod.started and not pod.ended and stays and not unreachable(turn.snap, pod) and pod.node not in avoided


def idle(turn: Turn) -> frozenset[int]:
    """Members for whose pod a gang that has not formed would have to wait."""
    if turn.gang.formed:
        return frozenset()
    again = trained(turn.gang, turn.world)
    holders = turn.gang.holders
    return frozenset(
        index for index in turn.gang.members
        if (pod := holders.get(index)) is None or (again and not pod.started and not pod.ended)
    )
