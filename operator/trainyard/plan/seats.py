"""Which pod holds which place of the next generation: survivors stay, spares take the places of those that are lost,
and a gang for which there is not enough gets smaller."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.layout.sizes import gang_sizes
from trainyard.plan.changed import is_changed
from trainyard.plan.gang import highest_incarnation, trained
from trainyard.plan.naming import pod_name
from trainyard.plan.nodes import unreachable
from trainyard.plan.times import seconds_between
from trainyard.plan.tuned import planned
from trainyard.plan.turn import Turn
from trainyard.plan.types import PodView

UNTOLD_SECONDS = 60.0  # imports take 4 to 6 s, on a slow disk a minute; supervisors before this did not tell of them


def seated(turn: Turn, lost: frozenset[int], give_up: bool = False) -> tuple[int, ...]:
    """Indices of the pods of the next generation, in the order of its places. A place for which there is no spare
    keeps its index: the next incarnation of that is placed and waited for; with `give_up` the gang goes on without
    it. A gang that has shrunk takes what spares are left, up to the size that it should have."""
    able = ready(turn)
    vacant = idle(turn)
    gone = [index for index in turn.gang.members if index in lost or index in vacant]
    promoted = dict(zip(gone, able, strict=False))
    members = [promoted.get(index, index) for index in turn.gang.members]
    if give_up:
        members = [index for index in members if index not in gone]
        return tuple(members[: largest(turn, len(members))])
    more = able[len(gone):]
    size = largest(turn, len(members) + len(more))
    return tuple([*members, *more][: max(size, len(members))])


def largest(turn: Turn, most: int) -> int:
    """The largest size that the gang may have, of at most so many pods; 0: none."""
    return max((size for size in sizes(turn) if size <= most), default=0)


def sizes(turn: Turn) -> list[int]:
    """Sizes that the gang may have, ascending: numNodes, and smaller ones from minNodes on, as far as the ranks of the
    shipped trainer's layout share them out evenly."""
    rendering = turn.snap.rendering
    if is_changed(turn):  # another numNodes counts only once the job was suspended
        return [turn.gang.size]
    return gang_sizes(turn.spec, planned(turn)) if rendering else [turn.spec.num_nodes]


def places_of(members: Sequence[int]) -> dict[str, int]:
    """The World's places, which name only what is not where its index says."""
    return {str(place): index for place, index in enumerate(members) if place != index}


def ready(turn: Turn) -> list[int]:
    """Spares that could take a place at this moment, warm ones first: in any other the gang would wait for imports. Of
    those, the ones on nodes of their own: else two members would be lost with one node."""
    able = [index for index, pod in sorted(turn.gang.spares.items()) if is_ready(turn, pod)]
    shared = beside(turn)
    return sorted(able, key=lambda index: (importing(turn, turn.gang.spares[index]) > 0, index in shared))


def warm(turn: Turn) -> list[int]:
    """Spares that could take a place at this moment, and whose ranks would start at once."""
    return [index for index in ready(turn) if importing(turn, turn.gang.spares[index]) <= 0]


def importing(turn: Turn, pod: PodView) -> float:
    """Seconds for which a spare that runs is still taken to import; 0: it says that it has, or has not said so for so
    long that its supervisor must be one that says nothing."""
    if pod.index in turn.gang.imported:
        return 0.0
    return max(0.0, UNTOLD_SECONDS - seconds_between(pod.started_at or pod.created, turn.now))


def is_ready(turn: Turn, pod: PodView) -> bool:
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


def member_nodes(turn: Turn) -> frozenset[str]:
    """Nodes of the members that are there."""
    return frozenset(node for pod in turn.gang.alive.values() if (node := pod.node or pod.pinned))


def beside(turn: Turn) -> list[int]:
    """Spares that share a node with a member, and would be lost with it."""
    nodes = member_nodes(turn)
    return [index for index, pod in sorted(turn.gang.spares.items()) if (pod.node or pod.pinned) in nodes]


def free(turn: Turn, count: int) -> list[int]:
    """The lowest indices that no member and no spare has, and whose next pod's name is nobody else's."""
    found: list[int] = []
    index = 0
    while len(found) < count:
        vacant = index not in turn.gang.members and index not in turn.gang.spares
        if vacant and pod_name(turn.snap.name, index, next_incarnation(turn, index)) not in turn.snap.strangers:
            found.append(index)
        index += 1
    return found


def next_incarnation(turn: Turn, index: int) -> int:
    """The next one of an index; the World's own, if that was raised just now and no pod has been made of it."""
    assert turn.world is not None
    before = turn.snap.world.spec.incarnations if turn.snap.world else {}
    now = turn.world.incarnations.get(str(index))
    known = any(pod.index == index for pod in turn.snap.pods)
    if now is None and not known:
        return 1
    if now is not None and now != before.get(str(index)):
        return now
    return highest_incarnation(turn.snap, turn.world, index) + 1
