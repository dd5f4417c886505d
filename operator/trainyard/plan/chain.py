"""The order in which a job is judged. Each policy sees what the ones before it decided; the first to stop the turn has
the last word."""

from __future__ import annotations

from collections.abc import Callable

from trainyard.api import CONTROLLER_NAME
from trainyard.api.job import NodesStatus, Restarts, TrainingJobSpec, WorldStatus
from trainyard.plan import conditions
from trainyard.plan.admission import admission
from trainyard.plan.bringup import bringup
from trainyard.plan.changed import changed
from trainyard.plan.checks import check_failed, check_passed
from trainyard.plan.deadline import deadline
from trainyard.plan.devices import devices
from trainyard.plan.elastic import elastic
from trainyard.plan.events import events
from trainyard.plan.failure import failure
from trainyard.plan.finished import finished
from trainyard.plan.gang import assess
from trainyard.plan.hang import hang
from trainyard.plan.invalid import invalid
from trainyard.plan.losses import losses
from trainyard.plan.lost_world import lost_world
from trainyard.plan.master import master
from trainyard.plan.missing import missing
from trainyard.plan.moves import moves
from trainyard.plan.peers import peers
from trainyard.plan.placement import placement
from trainyard.plan.preemption import preempted
from trainyard.plan.progress import progress
from trainyard.plan.recover import recover
from trainyard.plan.recoveries import recoveries
from trainyard.plan.resume import resume
from trainyard.plan.running import running
from trainyard.plan.seats import warm
from trainyard.plan.spare_moves import spare_moves
from trainyard.plan.spares import promotion, spares, without_condition
from trainyard.plan.success import success
from trainyard.plan.suspend import suspend
from trainyard.plan.sweep import sweep
from trainyard.plan.times import moment
from trainyard.plan.turn import Turn
from trainyard.plan.types import Action, Admit, DeleteJob, Plan, PutWorld, Snapshot
from trainyard.plan.withdrawal import withdrawal

Policy = Callable[[Turn], Turn]

CHAIN: tuple[Policy, ...] = (
    # has it ended?
    finished, success, deadline,
    # may it run?
    invalid, changed, suspend, resume, preempted, admission,
    # what went wrong? (faults are only collected)
    lost_world, devices, losses, peers, check_failed, failure, missing, moves, hang,
    # a spare in the place of a pod that is waited for
    promotion, elastic,
    # one write answers all of it
    recover,
    # get every place filled
    bringup, withdrawal, placement, spares, spare_moves, sweep, master,
    # what is to be said about it
    running, recoveries, check_passed, progress,
)  # fmt: skip

_STILL = ("Suspended", "Succeeded", "Failed")  # states in which no end of training is to be expected


def plan(snap: Snapshot) -> Plan:
    """What to do about this job now. Pure: the same snapshot always gives the same plan."""
    if snap.deleting or _foreign(snap):
        return Plan(snap.status)
    turn = _begin(snap)
    for policy in CHAIN:
        turn = policy(turn)
        if turn.stopped:
            break
    turn = events(_close(turn))
    return Plan(turn.status, _actions(turn), turn.events, turn.requeue, turn.waiting, turn.metrics)


def _foreign(snap: Snapshot) -> bool:
    """Another controller looks after this job (spec.managedBy): nothing at all is done, not even said."""
    return snap.spec is not None and snap.spec.managed_by not in (None, CONTROLLER_NAME)


def _begin(snap: Snapshot) -> Turn:
    world = snap.world.spec if snap.world and not snap.world.edited else None
    known = snap.status.world.size
    # A spec that no longer validates may have a gang that runs: size from the World, policies at their defaults, but no
    # job ends at a limit that it did not set.
    fallback: dict[str, object] = {
        "num_nodes": world.size if world else known or 1, "command": ["-"], "failure_policy": {"max_restarts": 1 << 20},
    }  # fmt: skip
    spec = snap.spec or TrainingJobSpec.model_validate(
        fallback | {"suspend": conditions.holds(snap.status, "Suspended")}
    )
    size = world.size if world else (known if known and snap.pods else spec.num_nodes)
    avoid = [entry for entry in snap.status.avoid if (moment(entry.until) or snap.now) > snap.now]
    status = snap.status if len(avoid) == len(snap.status.avoid) else snap.status.model_copy(update={"avoid": avoid})
    return Turn(snap, spec, status, world, assess(snap, world, size))


def _close(turn: Turn) -> Turn:
    """The parts of the status that follow from everything else."""
    alive = sum(not pod.finished for pod in turn.snap.pods)
    ready = sum(pod.started for pod in turn.gang.alive.values())
    spare = len(warm(turn))
    world = turn.world
    changes: dict[str, object] = {
        "observed_generation": turn.snap.generation,
        "pods": alive + len(turn.creates),
        "nodes": NodesStatus(ready=ready, spare=spare, desired=turn.spec.num_nodes),
        "state": conditions.state(turn.status),
    }
    if changes["state"] in _STILL and turn.status.progress is not None:
        changes["progress"] = turn.status.progress.model_copy(update={"eta": None})
    if changes["state"] in _STILL:
        turn = without_condition(turn, "SparesReady").note(spare_move=None)
    if world is not None:
        changes["world"] = WorldStatus(generation=world.generation, phase=world.phase, size=world.size)
        changes["restarts"] = Restarts(total=world.cause.total, counted=world.cause.counted)
    return turn.note(**changes)


def _actions(turn: Turn) -> tuple[Action, ...]:
    """The fence first, then what it protects from; creations last."""
    before = turn.snap.world
    actions: list[Action] = [Admit()] if turn.admit else []
    if turn.world is not None and (before is None or turn.world != before.spec):
        actions.append(PutWorld(turn.world, before.resource_version if before else None))
    actions += [*turn.deletes, *turn.creates]
    return tuple([*actions, DeleteJob()] if turn.delete_job else actions)
