"""Failures of ranks, judged by failurePolicy: the root alone decides and counts, its consequences are noise."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard.api import EXIT_CONFIG, EXIT_DIVERGED, EXIT_DRAINED, EXIT_SUSPECT_DEVICE
from trainyard.api.job import Avoid
from trainyard.plan.finished import end
from trainyard.plan.loops import LIMIT, crash_loop, loop, signature
from trainyard.plan.losses import active, own_failure
from trainyard.plan.moves import movers
from trainyard.plan.restarts import action, exhausted, no_new_step
from trainyard.plan.times import moment, seconds_between, stamp
from trainyard.plan.turn import Fault, Turn, Weight
from trainyard.plan.types import PodView, Report

ROOT_SECONDS = 1.5  # consequences wait this long for their root; then the earliest is taken for it
FAILED = {EXIT_CONFIG: "BadConfiguration", EXIT_DIVERGED: "Diverged"}  # reasons of a failed job
AVOID_SECONDS = 600.0  # how long RestartNode keeps the job away from a node, if there are others


@dataclass(frozen=True, slots=True)
class Ended:
    """A rank or a container that ended with a failure."""

    index: int
    pod: str
    node: str | None
    who: str
    code: int
    why: str
    at: datetime  # when it was seen
    root: bool
    happened: datetime | None = None  # when its supervisor saw it end
    hang: bool = False  # it was stopped, and killed for that
    text: str = ""  # its last lines
    oom: bool = False

    @property
    def words(self) -> str:
        """What happened, in one line."""
        how = signal_name(self.code) or f"exit code {self.code}"
        why = self.why.strip()
        return f"{self.who} ended with {how}" + (f": {why}" if why and why != how else "")


def failure(turn: Turn) -> Turn:
    """Fail, Restart, RestartNode or Ignore, by the first rule that matches the root."""
    if not active(turn):
        return turn
    ended = _ended(turn)
    if not ended:
        return turn
    excused = frozenset[int]().union(*(fault.replace for fault in turn.faults if fault.kind == "DeviceFault"))
    # Ranks that saved without a Drain: a pod that was told to end had no answer, and the others followed.
    followed = turn.faults or movers(turn)
    roots = [one for one in ended if one.root and one.index not in excused
             and not (followed and one.code == EXIT_DRAINED)]
    if not roots:
        if followed:
            return turn  # the loss that was seen is the root
        left = ROOT_SECONDS - seconds_between(ended[0].at, turn.now)
        if left > 0:
            return turn.look_again(left)
        if _peer_is_silent(turn, ended):
            return turn.with_faults(Fault("PeerLost", ended[0].words, ended[0].at))
        roots = ended[:1]
    if roots and roots[0].hang:
        return _answer_stopped(turn, roots[0])
    for one in roots:
        if action(turn.spec.failure_policy, one.code) == "Fail":
            return end(turn, "Failed", FAILED.get(one.code, "RankFailed"), one.words)
    return _answer(turn, roots[0], frozenset(one.index for one in roots)) if roots else turn


def _peer_is_silent(turn: Turn, ended: list[Ended]) -> bool:
    """Whether members have said nothing while others lost their connections: a pod, a node or the network is gone, and
    nobody's program is to blame. Once; without a finished step since the last time, it counts."""
    assert turn.world is not None
    cause = turn.world.cause
    again = cause.kind == "PeerLost" and no_new_step(turn)
    return len({one.index for one in ended}) < turn.gang.size and not again


def _answer(turn: Turn, root: Ended, indices: frozenset[int]) -> Turn:
    assert turn.world is not None
    chosen, policy = action(turn.spec.failure_policy, root.code), turn.spec.failure_policy
    # A device that computes wrongly is nobody's fault, if steps were finished since the last time.
    suspect = root.code == EXIT_SUSPECT_DEVICE and chosen == "RestartNode" and not no_new_step(turn)
    weight: Weight = "free" if chosen == "Ignore" or suspect else "counted"
    if weight == "counted" and turn.world.cause.counted >= policy.max_restarts:
        return exhausted(turn, root.words)
    seen = loop(turn, signature(root.code, root.why, root.oom), root.node) if weight == "counted" else None
    if seen is not None and seen.times >= LIMIT:
        return crash_loop(turn, root.words, seen, root.index, root.text)
    dead = {index for index in indices if (pod := turn.gang.holders.get(index)) is not None and pod.ended}
    avoid: tuple[Avoid, ...] = ()
    same_node = seen is not None and seen.times == LIMIT - 1 and bool(seen.node)  # the last try is made elsewhere
    if chosen == "RestartNode" or same_node:
        dead.add(root.index)
        if root.node:
            until = stamp(turn.now + timedelta(seconds=AVOID_SECONDS))
            why = "RestartNode" if chosen == "RestartNode" else "the same failure twice here"
            avoid = (Avoid(node=root.node, reason=f"{why}: {root.words}"[:4096], until=until),)
    return turn.with_faults(Fault("RankFailed", root.words, root.at, frozenset(dead), weight, avoid,
                                  happened=root.happened, loop=seen))


def _answer_stopped(turn: Turn, root: Ended) -> Turn:
    """A process that was stopped, or waits in the kernel, is infrastructure: counted only if no step was finished since
    the last hang."""
    assert turn.world is not None
    again = turn.world.cause.kind == "Hang" and no_new_step(turn)
    if again and turn.world.cause.counted >= turn.spec.failure_policy.max_restarts:
        return exhausted(turn, root.words)
    return turn.with_faults(Fault("Hang", f"{root.who}: {root.why}", root.at, weight="counted" if again else "free",
                                  happened=root.happened, text=root.text))


def signal_name(code: int) -> str:
    """SIGKILL for -9; empty if the code names no signal."""
    try:
        return signal.Signals(-code).name if code < 0 else ""
    except ValueError:
        return f"signal {-code}"


def _ended(turn: Turn) -> list[Ended]:
    """All that failed in this generation, earliest first."""
    attempt = max((r.spec.attempt for r in turn.gang.reports if r.spec.kind != "RankFailed"), default=0)
    found = [
        _rank(turn, report)
        for report in turn.gang.reports
        if report.spec.kind == "RankFailed" and report.spec.failure is not None and report.spec.attempt >= attempt
    ]
    told = {one.index for one in found}
    found += [
        _container(turn, pod) for index, pod in turn.gang.holders.items() if own_failure(pod) and index not in told
    ]
    return sorted(found, key=lambda one: (one.at, one.index))


def _rank(turn: Turn, report: Report) -> Ended:
    failure, pod = report.spec.failure, turn.gang.holders[report.spec.index]
    assert failure is not None
    why = failure.reason
    if failure.oom or pod.oom:
        why = f"killed by the kernel for want of memory (OOM){': ' + why if why else ''}"
    who = f"rank {failure.rank} of pod {report.pod}"
    return Ended(pod.index, pod.name, pod.node, who, failure.exit_code, why, report.received, failure.root,
                 moment(failure.at), failure.hang, failure.text, failure.oom or pod.oom)


def _container(turn: Turn, pod: PodView) -> Ended:
    oom = "killed by the kernel for want of memory (OOM); raise the container's memory limit"
    why = oom if pod.oom else pod.message or pod.reason
    code = next((code for code in (pod.exit_code, pod.init_exit_code) if code is not None), 137)
    who = f"{f'init container {pod.failed_init}' if pod.failed_init else 'container'} of pod {pod.name}"
    return Ended(pod.index, pod.name, pod.node, who, code, why, turn.now, True, oom=pod.oom)
