"""Pods that their peers have lost: nodes that were cut off show here seconds before their kubelets are missed."""

from __future__ import annotations

from datetime import datetime, timedelta

from trainyard.api.job import Avoid
from trainyard.plan.losses import active, is_master
from trainyard.plan.nodes import last_step_at, seconds_per_step, unready
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Fault, Turn
from trainyard.plan.types import Report

STEP_SECONDS = 3.0  # without a finished step, which are told of every 2 s: then a loss that peers tell of is believed
OTHERS_SECONDS = 1.0  # that others get to tell of losses, too, before more than one is believed
LONGEST_STEP = 15.0  # for jobs whose steps take longer than that; they are waited for three steps
MOST = 2  # losses at once that are believed, or 10 % of the gang: more are probably the network's between them
AVOID_SECONDS = 120.0  # until the node is known to be unready, the successor would be placed there


def peers(turn: Turn) -> Turn:
    """A fault for every place that peers cannot reach any more, unless steps are finished all the same."""
    world = turn.world
    if world is None or world.phase != "Run" or not active(turn) or not turn.gang.formed:
        return turn
    told = {index: told for index, told in _accused(turn).items() if index in turn.gang.alive}
    seen = frozenset[int]().union(*(fault.replace for fault in turn.faults))
    if len(told) > max(MOST, turn.gang.size // 10):
        return turn  # node conditions decide
    for index, report in sorted(told.items()):
        if index in seen:
            continue
        left = _patience(turn, index, report, len(told))
        if left > 0:
            turn = turn.look_again(left)
            continue
        pod = turn.gang.alive[index]
        culprit = f"pod {pod.name} on node {pod.node} does not answer its peers"
        until = stamp(turn.now + timedelta(seconds=AVOID_SECONDS))
        avoid = (Avoid(node=pod.node, reason=culprit, until=until),) if pod.node else ()
        kind = "NodeLost" if unready(turn.snap, pod) else "PeerLost"
        happened = moment(report.spec.lost_at)
        turn = turn.with_faults(Fault(kind, culprit, turn.now, frozenset({index}), "free", avoid, happened=happened))
    return turn


def _accused(turn: Turn) -> dict[int, Report]:
    """By index, the report that tells of its loss: one whose ranks wait as well, else the first. A master that still
    reports is not lost: its members are. Members that tell of a master that tells of them live, as it does: the network
    is broken between them. Then the one member is replaced; of a master and both its neighbours, the master."""
    master = next((index for index in turn.gang.members if is_master(turn, index)), None)
    its = next((report for report in turn.gang.reports if report.spec.index == master), None)
    charged = set(its.spec.lost) if its is not None else set()
    mutual = {report.spec.index for report in turn.gang.reports if master in report.spec.lost} & charged
    found: dict[int, Report] = {}
    for report in turn.gang.reports:
        if report is its and len(mutual) > 1:
            continue  # it is the one that is cut off
        for index in report.spec.lost:
            if index == master and len(mutual) < 2 and (mutual or _spoke_since(turn, index, report.received)):
                continue
            if index not in found or (report.spec.stalled and not found[index].spec.stalled):
                found[index] = report
    return found


def _spoke_since(turn: Turn, index: int, at: datetime) -> bool:
    return any(report.spec.index == index and report.received >= at for report in turn.gang.reports)


def _patience(turn: Turn, index: int, report: Report, many: int) -> float:
    """Seconds to wait yet. None, if the node is silent, too, or if a rank has failed: there is no training to spare.
    None either if the ranks of the pod that tells of the loss wait in their step: it sees that as it happens, while
    steps are told of only now and then."""
    pod = turn.gang.alive[index]
    if unready(turn.snap, pod) or turn.gang.said("RankFailed") is not None:
        return 0.0
    last = last_step_at(turn)
    if report.spec.stalled and (last is None or last <= report.received):
        return 0.0 if many == 1 else OTHERS_SECONDS - seconds_between(report.received, turn.now)
    since = max(report.received, last) if last is not None else report.received
    wanted = max(STEP_SECONDS, min(3 * (seconds_per_step(turn) or 0.0), LONGEST_STEP))
    return wanted - seconds_between(since, turn.now)
