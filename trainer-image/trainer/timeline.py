"""`train.profile`: a Chrome trace a rank of some steps, and a page that says where their time went."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function
from trainyard.api.train import ProfileConfig

from trainer import allocator
from trainer.distributed import Gang, gather
from trainer.errors import describe
from trainer.parallel.layout import Layout

OURS = "trainyard::"
STEP, DATA, CHECKPOINT = f"{OURS}step", f"{OURS}data", f"{OURS}checkpoint"
STAGES = f"{OURS}wait for other stages"
COMMUNICATION = ("gloo:", "nccl:", "hccl:", "ncclDevKernel", "ncclKernel", "hcom_", "Hccl")
POINT_TO_POINT = ("gloo:send", "gloo:recv", "nccl:send", "nccl:recv", "nccl:coalesced", "ncclDevKernel_SendRecv",
                  "hcom_send", "hcom_receive", "hcom_batchSendRecv")
NOT_COMPUTING = (OURS, "c10d::", "_c10d_functional::", "c10d_functional::", "autograd::", "FSDP::")
OPERATORS = 12  # that the page lists
RECORDED = 6 << 20  # bytes of the heap that recording takes for a block and micro-batch; 3 to 5 MiB were seen

Span = tuple[float, float]  # ns: begin, end
Spans = list[Span]  # in order, without overlap


@dataclass(frozen=True)
class Shares:
    """Seconds of the recorded steps of one rank, by what they went for; each moment counts once, for the first of
    checkpoint, data, compute, bubble and communication that it was spent in."""

    steps: int
    whole: float
    checkpoint: float
    data: float
    compute: float
    communication: float  # exposed: nothing was computed meanwhile
    bubble: float  # waiting for another stage of the pipeline
    other: float  # the host: Python, launching

    def line(self, rank: int) -> str:
        """As a row of the page's table."""
        parts = (self.compute, self.communication, self.bubble, self.data, self.checkpoint, self.other)
        shares = " | ".join(f"{part / self.whole:.1%}" for part in parts)
        return f"| {rank} | {self.whole / self.steps:.3f} | {shares} |"


class Timeline:
    """Records the steps that were asked for; the rest of a run pays nothing for it."""

    def __init__(self, asked: ProfileConfig | None, folder: Path | None, gang: Gang, layout: Layout, blocks: int,
                 local_ranks: int, micro_batches: int, tokens: int, notes: Callable[[], list[str]] = list) -> None:
        """`folder`: where it goes; `blocks`: of this rank's model; `local_ranks`: of this pod; `tokens`: of a step,
        over all ranks; `notes`: lines for the page about the steps since it was last called."""
        self._asked, self._folder, self._gang, self._layout = asked, folder, gang, layout
        self._blocks, self._micro_batches, self._tokens = blocks, micro_batches, tokens
        self._local_ranks = local_ranks
        self._notes = notes
        self._profile: Any = None
        self._step: AbstractContextManager[Any] | None = None
        self._steps: list[int] = []

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._asked is None or self._folder is None:
            return
        if step == self._asked.first:
            devices = {"cuda": ProfilerActivity.CUDA, "npu": getattr(ProfilerActivity, "PrivateUse1", None)}
            found = [ProfilerActivity.CPU, devices.get(self._gang.device.type)]
            if self._gang.device.type == "cpu":
                passes = self._micro_batches * (2 if self._layout.schedule == "ZBV" else 1)  # twice backward
                allocator.reserve(RECORDED * self._blocks * passes * self._asked.steps, self._local_ranks)
            # halves of a micro-batch have a thread each; else others, such as that of a save, are nobody's time
            threads = _ExperimentalConfig(profile_all_threads=self._layout.overlap)
            self._profile = profile(activities=[one for one in found if one is not None], acc_events=True,
                                    experimental_config=threads)
            self._profile.start()
            self._notes()
            dist.barrier(group=self._gang.control)  # that took one rank longer than another
        if self._profile is not None:
            self._step = record_function(STEP)
            self._step.__enter__()
            self._steps.append(step)

    def end(self, step: int, last: bool) -> str | None:
        """It ends, `last` of the run or not. After the last step to record every rank writes its trace, rank 0 the
        page. Returns a problem, the first of any rank, if there is one."""
        if self._profile is None or self._asked is None or self._step is None:
            return None
        self._step.__exit__(None, None, None)
        self._step = None
        if step + 1 < self._asked.first + self._asked.steps and not last:
            return None
        self._profile.stop()
        recorded, self._profile = self._profile, None
        problem = self._write(recorded)
        del recorded
        gc.collect()  # torch's profiler refers to itself
        if self._gang.device.type == "cpu":
            allocator.give_back()
        return next((text for text in gather(self._gang, problem) if text), None)

    def _write(self, recorded: Any) -> str | None:
        assert self._folder is not None
        everybody = gather(self._gang, shares_of(recorded, self._layout))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(self._folder / f"trace-rank-{self._gang.rank}.json"))
            if self._gang.first:
                (self._folder / "summary.md").write_text(self._page(everybody, recorded))
        except (OSError, RuntimeError) as error:  # torch makes the latter of a disk that is full
            return f"cannot write the profile to {self._folder}: {describe(error)}"
        return None

    def _page(self, everybody: Sequence[Shares], recorded: Any) -> str:
        seconds = max(one.whole / one.steps for one in everybody)
        lines = [f"# Steps {self._steps[0]} to {self._steps[-1]}", "",
                 f"{self._layout} on {self._gang.device.type}, {self._micro_batches} micro-batches a step: "
                 f"{seconds:.3f} s a step, {self._tokens / seconds:.0f} tokens/s. Recording costs some of it.", "",
                 "| rank | s a step | compute | exposed communication | bubble | data | checkpoint | other |",
                 "| --- | --- | --- | --- | --- | --- | --- | --- |",
                 *(one.line(rank) for rank, one in enumerate(everybody)), ""]
        if self._layout.pipeline > 1:
            found, ideal = bubble(everybody), self.ideal_bubble()
            lines += [f"Bubble: {found:.1%} of the time that ranks compute or communicate; the schedule "
                      f"{self._layout.schedule} has {ideal:.1%} at equal stages.", ""]
        lines += self._notes()
        total = sum(one.self_cpu_time_total for one in recorded.key_averages()) or 1
        by_time = sorted(recorded.key_averages(), key=lambda one: -_own_time(one))
        lines += ["| rank 0's operators | calls | own time |", "| --- | --- | --- |"]
        lines += [f"| {one.key[:60]} | {one.count} | {_own_time(one) / total:.1%} |"
                  for one in by_time if not one.key.startswith(OURS)][:OPERATORS]
        return "\n".join([*lines, ""])

    def ideal_bubble(self) -> float:
        """(p - 1) / (v m) of the time that ranks are busy: p ranks, v stages each, m micro-batches; 0 for ZBV, whose
        forward, backward and weight gradient are taken to cost the same."""
        layout = self._layout
        if layout.schedule == "ZBV":
            return 0.0
        return (layout.pipeline - 1) / (layout.stages // layout.pipeline * self._micro_batches)


def span(name: str) -> Any:
    """A stretch of the host's time that the trace shows by this name."""
    return record_function(name)


def bubble(everybody: Sequence[Shares]) -> float:
    """What ranks wait for other stages, as a share of what they are busy."""
    busy = sum(one.compute + one.communication + one.other for one in everybody)
    return sum(one.bubble for one in everybody) / busy if busy else 0.0


def shares_of(recorded: Any, layout: Layout) -> Shares:
    """Of one rank's recording. On a device that queues work, computing is what its kernels do, and the bubble of a
    pipeline its point-to-point messages that nothing hides. Elsewhere computing is what operators do, and the bubble
    what the rank waits for messages: they are under way all the time, while Python works, too."""
    events = [(str(one.name()), one.start_ns(), one.start_ns() + one.duration_ns(), str(one.device_type()))
              for one in recorded.profiler.kineto_results.events()]
    queued = any("CPU" not in device for _, _, _, device in events)
    pipelined = layout.pipeline > 1

    def named(*names: str, besides: tuple[str, ...] = ()) -> Spans:
        return united((begin, end) for name, begin, end, _ in events
                      if name.startswith(names) and not (besides and name.startswith(besides)))

    steps = [(begin, end) for name, begin, end, device in events if name == STEP and "CPU" in device]
    computing = united((begin, end) for name, begin, end, device in events
                       if ("CPU" not in device if queued else "::" in name)
                       and not name.startswith((*NOT_COMPUTING, *COMMUNICATION)))
    messages = named(STAGES, *(POINT_TO_POINT if queued else ())) if pipelined else []
    between_stages = POINT_TO_POINT if pipelined and layout.ring == 1 else ()  # a ring's are not told from those
    rest, taken = united(steps), []
    for part in (named(CHECKPOINT), named(DATA), computing, messages, named(*COMMUNICATION, besides=between_stages)):
        left = without(rest, part)
        taken.append(length(rest) - length(left))
        rest = left
    checkpoint, data, compute, bubbles, communication = (part / 1e9 for part in taken)
    return Shares(len(steps), length(steps) / 1e9, checkpoint, data, compute, communication, bubbles,
                  length(rest) / 1e9)


def united(spans: Iterable[Span]) -> Spans:
    """The same stretches of time, without overlap."""
    found: Spans = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def without(spans: Spans, others: Spans) -> Spans:
    """What of `spans` is in none of `others`; both without overlap, in order."""
    found: Spans = []
    first = 0
    for begin, end in spans:
        while first < len(others) and others[first][1] <= begin:
            first += 1
        at = first
        while at < len(others) and others[at][0] < end:
            if others[at][0] > begin:
                found.append((begin, others[at][0]))
            begin = max(begin, others[at][1])
            at += 1
        if begin < end:
            found.append((begin, end))
    return found


def length(spans: Iterable[Span]) -> float:
    """Of all of them together."""
    return sum(end - begin for begin, end in spans)


def _own_time(one: Any) -> float:
    return float(one.self_device_time_total or one.self_cpu_time_total)
