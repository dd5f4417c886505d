"""Losses and gradients that are not finite: computed again, then skipped, then given up, and whose they were first.

Every rank comes to the same answer: what is judged is the step's all-reduce and what the ranks then gather."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn
from trainyard.api import EXIT_DIVERGED, EXIT_SUSPECT_DEVICE

from trainer.distributed import Gang, gather
from trainer.parallel.shard import reduce_scatter

IN_A_ROW = 3  # batches that were skipped, after which the run is given up
REMEMBERED = 64  # skipped steps that a checkpoint names
SUSPECT = 2  # times that a device was first, after which it is one


class Diverged(Exception):
    """The loss or the gradients stay not finite: no restart can help."""

    exit_code = EXIT_DIVERGED


class SuspectDevice(Exception):
    """This rank's device has computed wrongly again."""

    exit_code = EXIT_SUSPECT_DEVICE


class Verdict(Enum):
    """What becomes of a batch."""

    UPDATE = "update"
    AGAIN = "again"
    SKIP = "skip"
    FAIL = "fail"


@dataclass
class Record:
    """What is remembered of batches that were not finite; a checkpoint and the copies in memory carry it."""

    in_a_row: int = 0  # skipped batches since the last update
    skipped: list[int] = field(default_factory=list)  # their steps, the newest
    blamed: dict[str, int] = field(default_factory=dict)  # by place: how often it was first

    def judge(self, finite: bool, tries: int) -> Verdict:
        """After the batch was computed `tries` times."""
        if finite:
            return Verdict.UPDATE
        if tries == 1:
            return Verdict.AGAIN
        return Verdict.FAIL if self.in_a_row + 1 >= IN_A_ROW else Verdict.SKIP

    def updated(self) -> None:
        """A batch was finite."""
        self.in_a_row = 0

    def skip(self, step: int) -> None:
        """The batch of this step was left out."""
        self.in_a_row += 1
        self.skipped = [*self.skipped, step][-REMEMBERED:]

    def leave_out(self, first: int, last: int) -> None:
        """These steps' batches were left out for another reason than that they were not finite."""
        self.skipped = [*self.skipped, *range(max(first, last - REMEMBERED + 1), last + 1)][-REMEMBERED:]

    def blame(self, place: str) -> bool:
        """This place was first and the batch was finite afterwards; whether it is suspect now."""
        self.blamed[place] = self.blamed.get(place, 0) + 1
        return self.blamed[place] >= SUSPECT

    def dump(self) -> dict[str, Any]:
        """For a checkpoint; empty as long as nothing has happened."""
        if not self.skipped and not self.blamed:
            return {}
        return {"nonFinite": {"inARow": self.in_a_row, "skipped": self.skipped, "blamed": self.blamed}}

    @classmethod
    def read(cls, counters: dict[str, Any]) -> Record:
        """The reverse; checkpoints of earlier versions have none."""
        found = counters.get("nonFinite") or {}
        return cls(found.get("inARow", 0), list(found.get("skipped", [])), dict(found.get("blamed", {})))


@dataclass(frozen=True)
class First:
    """A rank whose own numbers were not finite when no other's were yet."""

    rank: int
    place: str  # node or pod, and the device there

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.place})"


def firsts(gang: Gang, moment: int | None) -> list[First]:
    """Those ranks, at every rank; each says when its own were first not finite, see GradientWatch.first()."""
    return earliest(gather(gang, (moment, place(gang))))


def place(gang: Gang) -> str:
    """Where this rank computes."""
    node = os.environ.get("TRAINYARD_NODE") or os.environ.get("TRAINYARD_POD") or socket.gethostname()
    return f"{node} {gang.device.type} {gang.local_rank}"


def earliest(moments: Sequence[tuple[int | None, str]]) -> list[First]:
    """`moments` by rank: when, and the rank's place. Empty if it showed in the ranks' sum only."""
    first = min((moment for moment, _ in moments if moment is not None), default=None)
    return [First(rank, place) for rank, (moment, place) in enumerate(moments) if first is not None and moment == first]


class GradientWatch:
    """Looks at this rank's own gradients before FSDP2 mixes them with the others'.

    Each reduction's input is summed up on the device, which is not waited for: the sums are looked at only after a step
    that was not finite. Where parameters are replicated only, torch shows no gradient before its all-reduce; then the
    rank's own loss is all that tells."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._sums: list[torch.Tensor] = []
        sharded = [module for module in modules if hasattr(module, "set_custom_reduce_scatter")]  # FSDPModule
        for module in sharded:
            module.set_custom_reduce_scatter(_Watched(self._sums))
        self._own = [] if sharded else [one for module in modules for one in module.parameters(recurse=False)]

    def begin(self) -> None:
        """Before a batch."""
        self._sums.clear()

    def first(self, loss: torch.Tensor) -> int | None:
        """When this rank's own numbers of the batch were first not finite: 0: its loss, n: the n-th reduction of
        gradients, None: never."""
        if not math.isfinite(float(loss)):
            return 0
        sums = self._sums or [one.grad.sum() for one in self._own if one.grad is not None]
        return next((number for number, total in enumerate(sums, 1) if not math.isfinite(float(total))), None)


class _Watched:
    """FSDP2's reduce-scatter, and the sum of what goes in (torch.distributed.fsdp.ReduceScatter)."""

    def __init__(self, sums: list[torch.Tensor]) -> None:
        self._sums = sums

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any,
                 async_op: bool = False) -> Any:
        self._sums.append(input_tensor.sum())
        return reduce_scatter(output_tensor, input_tensor, group, op, async_op)
