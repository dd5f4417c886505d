"""The list of recoveries: cause, culprit, and where the time went."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from trainyard.api.job import PhaseSeconds, Recovery
from trainyard.plan.gang import PLANNED
from trainyard.plan.losses import active
from trainyard.plan.times import fine_stamp, milliseconds_between, moment
from trainyard.plan.training_time import begun, spent
from trainyard.plan.turn import Turn

KEPT = 10


def recoveries(turn: Turn) -> Turn:
    """A recovery begins with its generation, and ends with the first step that is finished in it."""
    if not active(turn) or turn.world is None:
        return turn
    return _completed(begun(_begun(turn)))


def latest(turn: Turn) -> Recovery | None:
    """The recovery that led to the generation of now, if one did."""
    last = turn.status.recoveries[-1] if turn.status.recoveries else None
    return last if last and turn.world and last.generation == turn.world.generation else None


def _begun(turn: Turn) -> Turn:
    world = turn.world
    if world is None or world.phase != "Run" or world.cause.kind in PLANNED or latest(turn) is not None:
        return turn
    cause, kept = world.cause, list(turn.status.recoveries)
    at = moment(cause.at) or turn.now
    if kept and kept[-1].milliseconds.total is None and kept[-1].at == fine_stamp(at):
        update = {"generation": world.generation, "cause": cause.kind, "culprit": cause.culprit}
        kept[-1] = kept[-1].model_copy(update=update)  # a second fault on the way, or what was behind the first
    else:
        happened = moment(cause.happened)
        # An operator that died between World and status decided then, not when another comes to tell of it.
        told_late = turn.snap.world is not None and turn.snap.world.spec.generation == world.generation
        decide = PhaseSeconds(detect=milliseconds_between(happened, at) if happened else None,
                              decide=0 if told_late else milliseconds_between(at, turn.now))
        made = Recovery(
            at=fine_stamp(at), generation=world.generation, cause=cause.kind, culprit=cause.culprit,
            lost_steps=_lost(turn, cause.step), milliseconds=decide,
            text=next((fault.text for fault in turn.faults if fault.kind == cause.kind), "")[:2048],
        )  # fmt: skip
        kept.append(made)
    shown = kept[-1]
    message = f"{shown.culprit}; the gang starts again in generation {world.generation}."
    turn = turn.judge("Recovering", "True", shown.cause, message)
    return turn.note(recoveries=kept[-KEPT:])


def _lost(turn: Turn, step: int | None) -> int | None:
    """Steps between the last that was finished and the last that was saved, as a checkpoint or as copies in memory, as
    rank 0 last said: the ranks that go on will know it for certain."""
    if step is None:
        return None
    told, known = turn.gang.progress, turn.status.checkpoint
    durable = told.durable_step if told is not None else None
    memory = told.memory_step if told is not None else known.memory_step if known is not None else None
    if durable is None and known is not None:
        durable = known.durable_step
    return max(0, step - max(durable or 0, memory or 0))


def _lost_for_certain(turn: Turn, last: Recovery) -> int | None:
    """From what the ranks went on from. If no pod is left that knows what had been finished, what rank 0 last said."""
    told = turn.gang.progress
    if told is None or told.resumed_step is None:
        return last.lost_steps
    finished = told.finished_step
    if finished is None and turn.world is not None:
        finished = turn.world.cause.step
    return last.lost_steps if finished is None else max(0, finished - told.resumed_step)


def _completed(turn: Turn) -> Turn:
    last, told = latest(turn), turn.gang.progress
    formed = turn.gang.formed_at
    if last is None or formed is None or last.milliseconds.total is not None:
        return turn
    reports_steps = turn.status.progress is not None or turn.spec.train is not None
    first = moment(told.first_step_at) if told is not None else None
    if reports_steps and first is None:
        return turn  # where a program resumes from is no finished step
    made = _phases(turn, last, formed, first or formed)
    ended = last.model_copy(update={"milliseconds": made, "lost_steps": _lost_for_certain(turn, last)})
    kept = [*turn.status.recoveries[:-1], ended]
    message = f"Training goes on in generation {last.generation} after {(made.total or 0) / 1000:.1f} s."
    turn = turn.note(recoveries=kept).judge("Recovering", "False", "Recovered", message)
    return _measured(spent(turn, ended), last.cause, made)


def _phases(turn: Turn, last: Recovery, formed: datetime, first: datetime) -> PhaseSeconds:
    """Pods' clocks may differ from the operator's: no phase is negative, and the sum is the sum."""
    known, told = last.milliseconds, turn.gang.progress
    at, decide = moment(last.at) or turn.now, known.decide or 0
    first = min(first, turn.now)
    formed = min(max(formed, at), max(first, at))
    phases = {"decide": decide, "replace": max(0, milliseconds_between(at, formed) - decide)}
    if known.detect is not None:
        phases["detect"] = known.detect
    connected = moment(told.connected_at) if told else None
    restored = moment(told.restored_at) if told else None
    if connected is not None and restored is not None:
        connected = min(max(connected, formed), max(first, formed))
        restored = min(max(restored, connected), max(first, connected))
        phases["rendezvous"] = milliseconds_between(formed, connected)
        phases["restore"] = milliseconds_between(connected, restored)
        formed = restored
    phases["first_step"] = milliseconds_between(formed, first)
    return PhaseSeconds(**phases, total=sum(phases.values()))


def _measured(turn: Turn, cause: str, made: PhaseSeconds) -> Turn:
    phases = tuple((f"recovery.{name}", cause, value / 1000) for name, value in made
                   if name != "total" and value is not None)
    return replace(turn, metrics=(*turn.metrics, ("recovery", cause, (made.total or 0) / 1000), *phases))
