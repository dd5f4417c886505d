"""Warm pods beside the gang: made once the gang has its places, made again when one is lost or promoted. The job never
waits for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

from trainyard.api.job import Avoid, ConditionType
from trainyard.placement.books import Obstacle
from trainyard.placement.place import check_quota
from trainyard.plan.bringup import hindrance
from trainyard.plan.conditions import find
from trainyard.plan.devices import uses_broken
from trainyard.plan.losses import active
from trainyard.plan.naming import pod_name
from trainyard.plan.nodes import gone, unready
from trainyard.plan.placement import LOOK_AGAIN_SECONDS, find_places, nearness
from trainyard.plan.recover import raised
from trainyard.plan.seats import beside, free, idle, importing, next_incarnation, ready, sizes, warm
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Fault, Turn
from trainyard.plan.types import CreatePod, PodView, Rendering, Waiting

MOVE_WITHIN = 300.0  # s that a spare which is made to replace another has to get warm
ENDED_PAUSE = 30.0  # a spare that ended by itself is made again this long after it was made
MOST_AT_ONCE = 16  # spares placed by one plan: each is a placement of its own, and nothing waits for them


def promotion(turn: Turn) -> Turn:
    """A gang that waits for a pod, and a spare that runs: the next generation has the spare in that pod's place. The
    pod, should it come, is a spare then."""
    waits = active(turn) and turn.world is not None and turn.world.phase == "Run"
    if not waits or turn.faults or not idle(turn) or not ready(turn):
        return turn
    return turn.with_faults(Fault("Promoted", "a spare was ready first", turn.now, weight="planned"))


def spares(turn: Turn) -> Turn:
    """As many spares as the job wants and there is room for."""
    if not active(turn) or turn.world is None or turn.world.phase != "Run":
        return turn
    wanted = turn.spec.spare_nodes + max(0, max(sizes(turn)) - turn.gang.size)
    turn = _without_lost(turn)
    turn = _without(turn, _surplus(turn, wanted))
    obstacle = None
    missing = wanted - len(turn.gang.spares)
    if missing > 0 and _is_complete(turn) and turn.snap.rendering is not None:
        turn, obstacle = _made(turn, turn.snap.rendering, min(missing, MOST_AT_ONCE))
    return _judged(turn, turn.spec.spare_nodes, wanted, obstacle)


def without_condition(turn: Turn, kind: ConditionType) -> Turn:
    """The status without a condition that says nothing any more."""
    if find(turn.status, kind) is None:
        return turn
    return turn.note(conditions=[one for one in turn.status.conditions if one.type != kind])


def _is_complete(turn: Turn) -> bool:
    """Whether every member runs: a spare must not take what the gang itself is still looking for."""
    alive = turn.gang.alive
    return not turn.creates and all(index in alive and alive[index].started for index in turn.gang.members)


def _without(turn: Turn, indices: Collection[int]) -> Turn:
    """These spares fenced; the sweep deletes them."""
    if not indices or turn.world is None:
        return turn
    return turn.with_world(turn.world.model_copy(update={"incarnations": raised(turn, frozenset(indices))}))


def _without_lost(turn: Turn) -> Turn:
    """Spares that can be of no use are given up."""
    lost, avoid = [], []
    for index, pod in sorted(turn.gang.spares.items()):
        left = _left(turn, pod)
        if left <= 0:
            lost.append(index)
            found = hindrance(turn, pod)
            node = pod.node or pod.pinned
            if found is not None and found.avoid and node:
                until = stamp(turn.now + timedelta(seconds=found.avoid))
                avoid.append(Avoid(node=node, reason=found.text[:4096], until=until))
        elif left < float("inf"):
            turn = turn.look_again(left)
    return _without(turn, lost).avoiding(avoid)


def _left(turn: Turn, pod: PodView) -> float:
    """Seconds until a spare is given up; infinite: nothing is wrong with it."""
    state = turn.snap.nodes.get(pod.node or "")
    leaves = pod.deleting is not None or pod.disruption or (state is not None and state.no_execute)
    if leaves or gone(turn.snap, pod):
        return 0.0
    if pod.exit_code is not None:
        return ENDED_PAUSE - seconds_between(pod.created, turn.now)
    if uses_broken(turn, pod):
        return 0.0
    if unready(turn.snap, pod) and state is not None:
        return turn.snap.settings.unready_node_seconds - seconds_between(state.since or turn.now, turn.now)
    found = hindrance(turn, pod)
    return found.wait if found is not None else float("inf")


def _surplus(turn: Turn, wanted: int) -> list[int]:
    """Spares more than are wanted: those that do not run yet first, then those that are not warm, then those that share
    a node with a member."""
    able, running, shared = warm(turn), ready(turn), beside(turn)
    kept = sorted(turn.gang.spares, key=lambda one: (one not in running, one not in able, one in shared, one))
    return kept[wanted + _replaces(turn, kept, wanted):]


def _replaces(turn: Turn, kept: list[int], wanted: int) -> bool:
    """Whether the first that is too many is to replace a spare that shares its node with a member, and not warm yet."""
    able, shared = warm(turn), beside(turn)
    if not any(index in able and index in shared for index in kept[:wanted]):
        return False
    fresh = [index for index in kept[wanted:wanted + 1] if index not in able and index not in shared]
    return any(seconds_between(turn.gang.spares[index].created, turn.now) < MOVE_WITHIN for index in fresh)


def _made(turn: Turn, rendering: Rendering, count: int) -> tuple[Turn, Obstacle | None]:
    """With up to `count` spares more, and what stands in the way of the rest. Each has an incarnation that the World
    names and no pod ever had, also if the last one vanished without a trace."""
    assert turn.world is not None
    obstacle: Obstacle | None = None
    books = turn.snap.books
    taken = {index: node for index, pod in turn.gang.spares.items() if (node := pod.node or pod.pinned)}
    incarnations, creates = dict(turn.world.incarnations), list[CreatePod]()
    for index in free(turn, count):
        obstacle = check_quota(turn.snap.quotas, rendering.demand, len(creates) + 1)
        node = None
        if obstacle is None and turn.spec.placement == "Planner":
            # What takes a lost pod's place is best on a node that is not lost with it; what waits to grow is not.
            loose = len(taken) < turn.spec.spare_nodes
            found = find_places(turn, rendering, books, (index,), taken, loose)
            if isinstance(found, Obstacle):
                obstacle = found
            else:
                node = taken[index] = found[index]
                key = f"{turn.snap.namespace}/{pod_name(turn.snap.name, index, 0)}"
                books = books.take({key: node}, rendering.demand.requests)
        if obstacle is not None:
            break
        incarnations[str(index)] = next_incarnation(turn, index)
        creates.append(CreatePod(index, incarnations[str(index)], node))
    if creates:
        turn = turn.with_world(turn.world.model_copy(update={"incarnations": incarnations}))
    return replace(turn, creates=(*turn.creates, *creates)), obstacle


def _judged(turn: Turn, asked: int, wanted: int, obstacle: Obstacle | None) -> Turn:
    """What is made beyond `asked` is for a gang that has shrunk."""
    if not asked and wanted == asked:
        return without_condition(turn, "SparesReady")
    there = min(wanted, len(warm(turn)))
    which = "spare pods" if wanted == asked else "pods beside the gang"
    if there == wanted:
        words = f"{'The spare pod is' if wanted == asked == 1 else f'All {wanted} {which} are'} warm."
        return turn.judge("SparesReady", "True", "SparesReady", words)
    left = [seconds for index in ready(turn) if (seconds := importing(turn, turn.gang.spares[index])) > 0]
    for seconds in left:
        turn = turn.look_again(seconds)
    if obstacle is None:
        counts = {"importing": len(left), "not started yet": wanted - there - len(left)}
        rest = ", ".join(f"{count} {what}" for what, count in counts.items() if count > 0)
        return turn.judge("SparesReady", "False", "SparesStarting", f"{there} of {wanted} {which} are warm: {rest}.")
    words = f"{there} of {wanted} {which} are warm; the job runs without the rest. {obstacle.message}"
    turn = turn.judge("SparesReady", "False", obstacle.reason, words)
    assert turn.snap.rendering is not None
    found = find(turn.status, "SparesReady")
    since = moment(found.last_transition_time) if found else None
    key = f"{turn.snap.namespace}/{turn.snap.name}"
    missing = wanted - len(turn.gang.spares) - len(turn.creates)
    waiting = Waiting(key, turn.snap.priority, since or turn.now, missing, turn.snap.rendering.demand, False,
                      nearness(turn))
    return replace(turn, waiting=turn.waiting or waiting).look_again(LOOK_AGAIN_SECONDS)
