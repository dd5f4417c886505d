"""What is broken, one entry a case: the fault, what must hold afterwards, and how fast it should be.

Case 12 (a rank slowed three times) is missing: nothing notices a straggler yet."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos import faults
from chaos.faults import Fault
from chaos.scene import Scene
from chaos.torchrun import Torchrun


@dataclass(frozen=True)
class Case:
    """One of them. After each fault exactly one recovery follows, or none where `causes` is empty; whatever happens,
    the job ends with the losses of a run that nothing happened to."""

    key: str
    name: str
    fault: Fault
    causes: tuple[str, ...]  # of the recovery in status.recoveries
    counted: int = 0  # restarts that a fault adds to status.restarts.counted
    total: int = 1  # and to status.restarts.total
    lost: int = 0  # finished steps at most that are computed again
    within: float = 60.0  # s after which it has failed
    aim: float | None = None  # s, median
    beyond: str = ""  # the aim is so much more than the median of this case
    nodes: int = 2
    spares: int = 0
    steps: int = 40  # that the job takes a fault, at least
    spec: Mapping[str, Any] = field(default_factory=dict)
    environment: Callable[[int], Mapping[str, str]] | None = None  # of the ranks, by the number of faults
    check: Callable[[Scene], None] | None = None  # once training goes on
    beside: Callable[[Torchrun], float] | None = None  # the same fault under torchrun


CASES = (
    Case("1", "SIGKILL of a rank", faults.kill_rank(1), ("RankFailed",), counted=1, aim=1.0,
         beside=lambda other: other.signal(1, signal.SIGKILL)),
    Case("2", "SIGKILL of rank 0", faults.kill_rank(0), ("RankFailed",), counted=1, aim=1.0,
         beside=lambda other: other.signal(0, signal.SIGKILL)),
    Case("3", "a pod deleted by force, with a spare", faults.delete_pod(1), ("PodLost",), lost=1, aim=1.5, spares=1,
         beside=lambda other: other.delete_pod(1)),
    Case("3b", "a pod deleted by force, no spare", faults.delete_pod(1), ("PodLost",), lost=1),
    Case("4", "SIGSTOP of a rank, hangSeconds 5", faults.stop_rank(1), ("Hang",), aim=7.0,
         spec={"failurePolicy": {"hangSeconds": 5}}),
    Case("11", "NaN in the gradients of a rank, once", faults.wait_for_nan, (), total=0, within=20,
         environment=faults.nan_every, steps=faults.NAN_EVERY),
    Case("13", "SIGKILL of a rank, then of the leading operator", faults.kill_rank_and_operator, ("RankFailed",),
         counted=1),
)  # fmt: skip
