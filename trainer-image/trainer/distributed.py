"""The gang's process groups, and how its ranks come to the same conclusion."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainer.config import Rank, rendezvous_defaults
from trainer.errors import ConfigError, Drained, describe

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # of a collective
LOOK = 1.0  # s between two looks at each other while one rank works for long
ALONE_TIMEOUT = timedelta(seconds=60)  # for a rank that only has to tell the others why it cannot take part
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "npu": "cpu:gloo,npu:hccl"}


@dataclass(frozen=True)
class Gang:
    """The connected ranks. `control` is a gloo group for the loop's small messages, `saving` one for the thread that
    writes checkpoints: collectives of two threads must not meet in one group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any
    saving: Any

    @property
    def first(self) -> bool:
        """Is this rank 0?"""
        return self.rank == 0


def on_cpu() -> bool:
    """Is there nothing else to compute on? Nothing of a vendor is imported to tell, and no device touched."""
    return not _has_npu() and not torch.cuda.is_available()


def find_device(local_rank: int) -> torch.device:
    """This rank's device: an Ascend NPU if the node shows one, else a CUDA device, else the CPU.

    Nothing of a vendor is imported unless its device is there."""
    if _has_npu():
        import torch_npu  # noqa: F401  (registers the device type and hccl)

        torch.npu.set_device(local_rank)
        return torch.device("npu", local_rank)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _has_npu() -> bool:
    here = bool(os.environ.get("ASCEND_VISIBLE_DEVICES")) or Path("/dev/davinci_manager").exists()
    return here and importlib.util.find_spec("torch_npu") is not None


def connect(rank: Rank, problem: str | None) -> Gang:
    """Join the others. `problem` is why this rank cannot train, if so: then every rank raises ConfigError with it."""
    rendezvous_defaults()
    device = find_device(rank.local_rank)
    try:
        dist.init_process_group(BACKENDS[device.type], timeout=ALONE_TIMEOUT if problem else TIMEOUT)
    except Exception:
        if problem:
            raise ConfigError(problem) from None
        raise
    control = dist.group.WORLD if device.type == "cpu" else dist.new_group(backend="gloo", timeout=TIMEOUT)
    gang = Gang(rank.rank, rank.world_size, rank.local_rank, device, control,
                dist.new_group(backend="gloo", timeout=TIMEOUT))
    agree(gang, problem)
    return gang


def gather(gang: Gang, mine: T) -> list[T]:
    """What each rank has, in order of rank, at every rank."""
    everybody: list[Any] = [None] * gang.world_size
    dist.all_gather_object(everybody, mine, group=gang.control)
    return everybody


def agree(gang: Gang, problem: str | None) -> None:
    """Raise ConfigError on every rank if any has a problem; each must call this at the same place."""
    problems = gather(gang, problem)
    found = [(rank, text) for rank, text in enumerate(problems) if text]
    if found:
        rank, text = found[0]
        raise ConfigError(text if len(found) == gang.world_size or rank == gang.rank else f"rank {rank}: {text}")


def together(gang: Gang, work: Callable[[], T]) -> T:
    """Do `work` on every rank; a ConfigError of one becomes everybody's."""
    problem: str | None = None
    try:
        result = work()
    except ConfigError as error:
        problem = describe(error)
    agree(gang, problem)
    return result


def tell_all(gang: Gang, work: Callable[[], T], ranks_per_teller: int | None = None) -> T:
    """Do `work` on rank 0 alone (or on the first rank of every `ranks_per_teller`) and hand its result to the others.

    A ConfigError becomes everybody's."""
    group_size = ranks_per_teller or gang.world_size
    mine: T | None = None
    problem: str | None = None
    if gang.rank % group_size == 0:
        try:
            mine = work()
        except ConfigError as error:
            problem = describe(error)
    answers = gather(gang, (mine, problem))
    for rank, (_, text) in enumerate(answers):
        if text:
            raise ConfigError(text if rank == gang.rank or ranks_per_teller is None else f"rank {rank}: {text}")
    told: Any = answers[gang.rank - gang.rank % group_size][0]
    result: T = told
    return result


def tell_all_after_long_work(gang: Gang, work: Callable[[], T], stop: Callable[[], bool],
                             ranks_per_teller: int | None = None) -> T:
    """Like tell_all, for work of minutes or hours. Meanwhile the ranks keep meeting, so that no collective's timeout
    runs out and the loss of a rank is noticed. Raises Drained on every rank once `stop` says so on any."""
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # raised again in the thread that asked
            failure.append(error)

    thread = threading.Thread(target=run, name="long work", daemon=True)
    if gang.rank % (ranks_per_teller or gang.world_size) == 0:
        thread.start()
    busy = True
    while busy:
        if thread.ident is not None:
            thread.join(LOOK)
        states = gather(gang, (thread.is_alive(), stop()))
        if any(stopped for _, stopped in states):
            raise Drained
        busy = any(alive for alive, _ in states)

    def result() -> T:
        if failure:
            raise failure[0]
        return answer[0]

    return tell_all(gang, result, ranks_per_teller)


def say(gang: Gang, text: str) -> None:
    """A line of the log, from rank 0."""
    if gang.first:
        print(text, flush=True)
