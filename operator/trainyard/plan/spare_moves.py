"""A spare on a node with a member is lost together with it. Once there is room on a node without members, another spare
is made there, and the one beside the member goes when that is warm: the job is never less protected on the way."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from trainyard.api.job import SpareMove
from trainyard.placement.books import Obstacle
from trainyard.placement.matching import hindrance
from trainyard.placement.place import check_quota
from trainyard.placement.room import room
from trainyard.plan.conditions import find, holds
from trainyard.plan.losses import active
from trainyard.plan.naming import pod_name
from trainyard.plan.placement import LOOK_AGAIN_SECONDS, find_places
from trainyard.plan.seats import beside, free, member_nodes, next_incarnation, warm
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Turn
from trainyard.plan.types import CreatePod, PodView, Rendering

ROOM_SECONDS = 60.0  # that a node has to have room before a spare is made there; so moves are as far apart at least


def spare_moves(turn: Turn) -> Turn:
    """One spare at a time, while nothing else happens to the job."""
    shared = beside(turn)
    if not shared or not _is_quiet(turn):
        return _forgotten(turn)
    pod = turn.gang.spares[shared[-1]]  # the first to be given up
    if len(turn.gang.spares) > turn.spec.spare_nodes:
        other = next(one for index, one in sorted(turn.gang.spares.items(), reverse=True) if index not in warm(turn))
        words = f"pod {other.name} on node {other.node or other.pinned} replaces it once that is warm"
        return _told(_forgotten(turn), pod, words).look_again(LOOK_AGAIN_SECONDS)
    assert turn.snap.rendering is not None
    found = _room(turn, turn.snap.rendering)
    if isinstance(found, Obstacle):
        return _told(_forgotten(turn), pod, f"there is room elsewhere, but not for one pod more: {found.message}")
    if not found:
        return _told(_forgotten(turn), pod, "no node without members has room for it").look_again(LOOK_AGAIN_SECONDS)
    move = turn.status.spare_move
    at = moment(move.at) if move is not None and move.node == found else None
    if at is None or seconds_between(at, turn.now) > ROOM_SECONDS:  # or nobody has looked for that long
        at = turn.now + timedelta(seconds=ROOM_SECONDS)
    left = seconds_between(turn.now, at)
    if left <= 0:
        return _made(_forgotten(turn), pod, found)
    turn = turn.note(spare_move=SpareMove(node=found, at=stamp(at))).look_again(left)
    return _told(turn, pod, f"it is replaced by one on node {found} if that still has room at {at:%H:%M:%S}")


def _is_quiet(turn: Turn) -> bool:
    """Whether the whole gang trains, all spares are warm, and nothing is being recovered from or made."""
    world = turn.world
    if world is None or not active(turn) or world.phase != "Run" or turn.snap.rendering is None:
        return False
    whole = turn.gang.formed and turn.gang.size == turn.spec.num_nodes and len(warm(turn)) >= turn.spec.spare_nodes
    busy = turn.faults or turn.creates or holds(turn.status, "Recovering")
    return turn.spec.placement == "Planner" and whole and not busy


def _room(turn: Turn, rendering: Rendering) -> str | Obstacle:
    """The node without members that a new spare would be placed on; empty: there is none. An obstacle: the quota."""
    snap, taken = turn.snap, member_nodes(turn)
    some = any(room(node, snap.books.used.get(name, {}), rendering.demand.requests)
               and hindrance(node, rendering.demand) is None
               for name, node in snap.books.nodes.items() if name not in taken)
    if not some:  # which is soon known; why there is none takes longer to find out, and is not asked here
        return ""
    (index,) = free(turn, 1)
    others = {index: node for index, pod in turn.gang.spares.items() if (node := pod.node or pod.pinned)}
    found = find_places(turn, rendering, snap.books, (index,), others, loose=True)
    avoided = {entry.node for entry in turn.status.avoid if not entry.device}
    if isinstance(found, Obstacle) or found[index] in taken | avoided:
        return ""
    return check_quota(snap.quotas, rendering.demand, 1) or found[index]


def _made(turn: Turn, pod: PodView, node: str) -> Turn:
    assert turn.world is not None
    (index,) = free(turn, 1)
    incarnation = next_incarnation(turn, index)
    known = dict(turn.world.incarnations) | {str(index): incarnation}
    turn = turn.with_world(turn.world.model_copy(update={"incarnations": known}))
    turn = replace(turn, creates=(*turn.creates, CreatePod(index, incarnation, node)))
    name = pod_name(turn.snap.name, index, incarnation)
    words = f"pod {name} on node {node} replaces it once that is warm"
    return _told(turn, pod, words).emit("Normal", "SpareMoved", f"{_shares(turn, pod)}; {words}.")


def _shares(turn: Turn, pod: PodView) -> str:
    node = pod.node or pod.pinned
    member = next(one for one in turn.gang.alive.values() if (one.node or one.pinned) == node)
    return f"Spare pod {pod.name} shares node {node} with {member.name} and would be lost with it"


def _told(turn: Turn, pod: PodView, words: str) -> Turn:
    """With what is said of the spares so far, and this."""
    known = find(turn.status, "SparesReady")
    if known is None or known.status != "True":
        return turn
    return turn.judge("SparesReady", "True", known.reason, f"{known.message} {_shares(turn, pod)}; {words}.")


def _forgotten(turn: Turn) -> Turn:
    return turn if turn.status.spare_move is None else turn.note(spare_move=None)
