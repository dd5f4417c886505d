"""One write makes a recovery: generation, incarnations, cause and counters, whatever and however much failed."""

from __future__ import annotations

from typing import Any

from trainyard.api.protocol import Cause, Master, WorldSpec
from trainyard.plan.conditions import shorten
from trainyard.plan.gang import PLANNED, highest_incarnation
from trainyard.plan.restarts import known_step
from trainyard.plan.seats import places_of, seated
from trainyard.plan.times import fine_stamp
from trainyard.plan.tuned import tuned
from trainyard.plan.turn import Fault, Turn

WEIGHTS = {"counted": 0, "free": 1, "planned": 2}


def recover(turn: Turn) -> Turn:
    """The next generation, if there was a fault. The fence comes with it: replaced places get their new incarnation
    before any of their pods is touched, or a spare. Survivors keep their pods, and the master its place if it is one of
    them."""
    world = turn.world
    if world is None or not turn.faults:
        return turn
    lost = frozenset[int]().union(*(fault.replace for fault in turn.faults))
    members = seated(turn, lost, any(fault.kind == "Shrunk" for fault in turn.faults))
    made = world.model_copy(
        update={
            "generation": world.generation + 1,
            "phase": "Run",
            "incarnations": raised(turn, lost),
            "size": len(members),
            "places": places_of(members),
            "master": _master(turn, lost, members),
            "cause": _cause(turn, world),
            "tuned": tuned(turn),
            "drain_seconds": drain_seconds(turn),
            "check": "Pairs" if _checks(turn) else "None",
        }
    )
    avoid = [entry for fault in turn.faults for entry in fault.avoid]
    promoted = [index for index in members if index in turn.gang.spares]
    for index in promoted:
        words = f"Spare pod {turn.gang.spares[index].name} takes place {members.index(index)} of the gang."
        turn = turn.emit("Normal", "Promoted", words)
    if len(members) < turn.gang.size:
        why = shorten(turn.faults[0].culprit, 512)
        words = f"The gang goes on with {len(members)} of {turn.spec.num_nodes} pods: {why}."
        turn = turn.emit("Warning", "Shrunk", words)
    return turn.with_world(made).avoiding(avoid)


def raised(turn: Turn, indices: frozenset[int]) -> dict[str, int]:
    """The World's incarnations with these indices at their next one: a number that no pod ever had."""
    before = dict(turn.world.incarnations) if turn.world else {}
    return before | {str(i): highest_incarnation(turn.snap, turn.world, i) + 1 for i in sorted(indices)}


def drain_seconds(turn: Turn) -> int:
    """Seconds to save at a Drain: the grace that the template gives its pods."""
    return max(1, min(86400, turn.snap.rendering.grace_seconds)) if turn.snap.rendering else 30


def ever(world: WorldSpec) -> frozenset[int]:
    """Every index that may ever have had a pod."""
    return frozenset({*range(world.size), *world.members, *map(int, world.incarnations)})


def _master(turn: Turn, lost: frozenset[int], members: tuple[int, ...]) -> Master:
    """An open store keeps its address over generations; a lost one leaves the place to be filled."""
    assert turn.world is not None
    stays = {pod.uid for index, pod in turn.gang.alive.items() if index in members and index not in lost}
    return turn.world.master if turn.world.master.pod_uid in stays else Master()


def _cause(turn: Turn, world: WorldSpec) -> Cause:
    first = min(turn.faults, key=lambda fault: (WEIGHTS[fault.weight], not fault.refund, fault.at))
    before = world.cause
    if first.refund:  # one fault, one recovery: it was known by its consequence so far
        known = {"kind": first.kind, "culprit": shorten(first.culprit, 512), "counted": max(0, before.counted - 1)}
        return before.model_copy(update=known)
    counted = before.counted + (first.weight == "counted")
    total = before.total + _adds(turn, first)
    if _folds(turn, first):
        update: dict[str, object] = {"total": total, "counted": counted}
        if first.takes_over and before.kind not in PLANNED:
            update |= {"kind": first.kind, "culprit": shorten(f"{first.culprit}; {before.culprit}", 512)}
        return before.model_copy(update=update)
    return Cause(
        kind=first.kind, culprit=shorten(first.culprit, 512), at=fine_stamp(first.at), step=known_step(turn),
        happened=fine_stamp(first.happened) if first.happened else None,
        total=total, counted=counted, **_loop(first),
    )  # fmt: skip


def _loop(fault: Fault) -> dict[str, Any]:
    if fault.loop is None:
        return {}
    return {"failure": fault.loop.failure, "repeats": fault.loop.times, "node": fault.loop.node}


def _folds(turn: Turn, fault: Fault) -> bool:
    """A fault of infrastructure before the gang has formed again, or while it drains, belongs to what is under way."""
    assert turn.world is not None
    return fault.weight != "counted" and (not turn.gang.formed or turn.world.phase == "Drain")


def _checks(turn: Turn) -> bool:
    """Whether nodes are checked in pairs before ranks start: asked for now, or already under way when another fault
    came in between. Once it has found a culprit, ranks start without it."""
    assert turn.world is not None
    wanted = any(fault.check for fault in turn.faults)
    under_way = turn.world.check == "Pairs" and not turn.gang.formed
    return wanted or (under_way and all(fault.kind != "CheckFailed" for fault in turn.faults))


def _adds(turn: Turn, fault: Fault) -> int:
    """A restart is a new start after something failed: not a planned move, not the start itself, not the same recovery
    again."""
    assert turn.world is not None
    if fault.weight == "counted" or fault.kind == "RankFailed":
        return 1
    under_way = not turn.gang.formed or turn.world.phase == "Drain"
    return 0 if fault.weight == "planned" or under_way else 1
