"""Places for the whole gang at its start, or for single lost indices later; and the World that goes with a start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from trainyard.api.job import Avoid
from trainyard.api.protocol import Cause, WorldSpec
from trainyard.placement.books import Books, Nearness, Obstacle
from trainyard.placement.place import check_quota, place
from trainyard.plan.conditions import find
from trainyard.plan.gang import trained
from trainyard.plan.losses import PASSING
from trainyard.plan.naming import pod_name
from trainyard.plan.preemption import PREEMPTED, Room, make_room, preempting, still_preempted
from trainyard.plan.progress import without_memory
from trainyard.plan.recover import drain_seconds, ever, raised
from trainyard.plan.suspend import is_draining
from trainyard.plan.times import fine_stamp, moment, seconds_between
from trainyard.plan.tuned import tuned
from trainyard.plan.turn import Turn
from trainyard.plan.types import CreatePod, Rendering, Waiting

LOOK_AGAIN_SECONDS = 30.0  # besides every change of the cluster
SOFT = "RestartNode: "  # nodes avoided for this are used when there is no other
NOT_ABOUT_NODES = ("PodNameTaken", "QuotaExceeded")  # obstacles that no free node would take away


def placement(turn: Turn) -> Turn:
    """Every index without a pod gets one, all of a new gang or none."""
    rendering, world = turn.snap.rendering, turn.world
    if rendering is None or (world is not None and world.phase == "Drain" and world.cause.kind in PASSING):
        return turn
    start = _started_world(turn)
    wanted = start.gang.missing
    if not wanted:
        return turn
    retry = moment(turn.status.retry_at)
    if not start.gang.holders and retry is not None and retry > turn.now:
        return turn.look_again(seconds_between(turn.now, retry))
    nodes = _obstacle(start, rendering) or _nodes(start, rendering)
    if isinstance(nodes, Obstacle):
        room = make_room(turn, nodes, lambda books: find_places(start, rendering, books)) if _planner(start) else None
        return _waits(turn, rendering, nodes, len(wanted), room)
    if _planner(start):
        start = start.judge("Scheduled", "True", "Placed", f"All {start.gang.size} pods have a place.")
    made = tuple(CreatePod(index, _incarnation(start, index), nodes[index]) for index in wanted)
    return replace(start.note(retry_at=None), creates=start.creates + made)


def _obstacle(turn: Turn, rendering: Rendering) -> Obstacle | None:
    return _taken_names(turn) or check_quota(turn.snap.quotas, rendering.demand, len(turn.gang.missing))


def _planner(turn: Turn) -> bool:
    return turn.spec.placement == "Planner"


def _incarnation(turn: Turn, index: int) -> int:
    return turn.world.incarnation(index) if turn.world else 1


def _started_world(turn: Turn) -> Turn:
    """The World of a gang that starts or resumes; any other job has its World already."""
    world, snap = turn.world, turn.snap
    if world is not None and not (is_draining(turn) or is_draining(turn, PREEMPTED)):
        return turn
    size = turn.spec.num_nodes
    if world is None:
        known = known_generation(turn)
        kind = "Resume" if known else "Start"
        restarts = turn.status.restarts
        cause = Cause(kind=kind, at=fine_stamp(snap.now), total=restarts.total, counted=restarts.counted)
        made = WorldSpec(
            job=snap.uid, generation=known + 1, phase="Run", size=size, token=snap.new_token, cause=cause,
            drain_seconds=drain_seconds(turn), tuned=tuned(turn),
        )  # fmt: skip
        return turn.with_world(made)
    cause = world.cause.model_copy(update={"kind": "Resume", "culprit": "", "at": fine_stamp(snap.now)})
    update = {
        "generation": world.generation + 1, "phase": "Run", "size": size, "cause": cause, "check": "None",
        "incarnations": raised(turn, ever(world)), "places": {},
        "master": type(world.master)(), "drain_seconds": drain_seconds(turn), "tuned": tuned(turn),
    }  # fmt: skip
    return turn.with_world(world.model_copy(update=update))


def known_generation(turn: Turn) -> int:
    """The highest generation that anybody has seen."""
    told = (report.spec.generation for report in turn.snap.reports if report.spec.job == turn.snap.uid)
    edited = turn.snap.world.spec.generation if turn.snap.world else 0
    return max(turn.status.world.generation, max(told, default=0), edited)


def _taken_names(turn: Turn) -> Obstacle | None:
    wanted = (pod_name(turn.snap.name, index, _incarnation(turn, index)) for index in turn.gang.missing)
    taken = sorted(set(wanted) & set(turn.snap.strangers))
    if not taken:
        return None
    names = ", ".join(taken[:5])
    words = (
        f"Pods that this job did not make have the names it needs: {names}. Those of an earlier job of this name go by "
        "themselves within their grace period; delete any other, or rename the job."
    )
    return Obstacle("PodNameTaken", words)


def _nodes(turn: Turn, rendering: Rendering) -> dict[int, str] | dict[int, None] | Obstacle:
    if not _planner(turn):
        return dict.fromkeys(turn.gang.missing)
    return find_places(turn, rendering, turn.snap.books)


def find_places(
    turn: Turn, rendering: Rendering, books: Books, indices: Sequence[int] | None = None,
    spares: Mapping[int, str] | None = None, loose: bool = False,
) -> dict[int, str] | Obstacle:  # fmt: skip
    """A node for every one of the indices (default: members without a pod), were these the books and these the nodes of
    spares; or why there is none. `loose`: better on nodes that hold none of the others."""
    snap, gang = turn.snap, turn.gang
    taken = {i: node for i, pod in gang.holders.items() if (node := pod.node or pod.pinned)} | dict(spares or {})
    mates = frozenset(f"{snap.namespace}/{pod.name}" for pod in (*gang.holders.values(), *gang.spares.values()))
    soft = {entry.node: entry.reason for entry in turn.status.avoid if _is_soft(entry)}
    hard = {entry.node: entry for entry in turn.status.avoid if not _is_soft(entry)}
    spoiled: dict[str, set[str]] = {}
    for entry in turn.status.avoid:
        if entry.device:
            spoiled.setdefault(entry.node, set()).add(entry.device)
    others = frozenset(node for pod in snap.pods if not pod.finished and (node := pod.node or pod.pinned))
    starts = not gang.holders and not trained(gang, turn.world)
    answer = place(
        books, rendering.demand, gang.missing if indices is None else indices, taken, soft,
        _claims(turn) if starts or indices is not None else (),
        nearness=nearness(turn), without=hard.keys(), spoiled=spoiled, mates=mates,
        others=others, loose=loose,
    )  # fmt: skip
    if isinstance(answer, Obstacle) and hard:
        shunned = "; ".join(f"{name} until {entry.until} ({entry.reason})" for name, entry in sorted(hard.items())[:5])
        return Obstacle(answer.reason, f"{answer.message} Avoided for now: {shunned}.")
    return answer


def nearness(turn: Turn) -> Nearness | None:
    """How near to each other the job wants its pods."""
    topology = turn.spec.topology
    return Nearness(topology.level, topology.policy == "Required") if topology else None


def _is_soft(entry: Avoid) -> bool:
    """Whether the node is used when there is no other."""
    return bool(entry.device) or entry.reason.startswith(SOFT)


def _claims(turn: Turn) -> Sequence[Waiting]:
    """Jobs before this one whose places are kept for them: they have waited for long, or others make room for them."""
    limit = turn.snap.settings.starvation_seconds
    return tuple(
        ahead for ahead in turn.snap.ahead
        if ahead.claims and (ahead.preempts or seconds_between(ahead.since, turn.now) > limit)
    )  # fmt: skip


def _waits(turn: Turn, rendering: Rendering, obstacle: Obstacle, count: int, room: Room | None) -> Turn:
    since = _waiting_since(turn)
    claims = obstacle.reason not in NOT_ABOUT_NODES
    obstacle = preempting(obstacle, room) if room else still_preempted(turn, obstacle)
    turn = turn.judge("Scheduled", "False", obstacle.reason, obstacle.message)
    turn = turn if turn.snap.pods else without_memory(turn)
    key = f"{turn.snap.namespace}/{turn.snap.name}"
    told = tuple(one.key for one in room.all) if room else ()
    waiting = Waiting(key, turn.snap.priority, since, count, rendering.demand, claims, nearness(turn), told)
    turn = replace(turn, waiting=waiting).look_again(LOOK_AGAIN_SECONDS)
    for entry in turn.status.avoid:
        until = moment(entry.until)
        turn = turn.look_again(seconds_between(turn.now, until)) if until else turn
    return turn


def _waiting_since(turn: Turn) -> datetime:
    found = find(turn.status, "Scheduled")
    since = moment(found.last_transition_time) if found and found.status == "False" else None
    return since or turn.now
