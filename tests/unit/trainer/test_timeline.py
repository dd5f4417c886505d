"""Stretches of time, and what they went for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from trainer.parallel.layout import Layout
from trainer.timeline import STAGES, STEP, Spans, length, shares_of, united, without

PIPELINE, SHARDS, RING = Layout(pipeline=2), Layout(shard=2), Layout(pipeline=2, context=2, ulysses=1)


@pytest.mark.parametrize(("given", "expected"), [
    ([], []), ([(0, 1), (2, 3)], [(0, 1), (2, 3)]), ([(2, 3), (0, 1), (1, 2)], [(0, 3)]),
    ([(0, 9), (1, 2), (3, 4)], [(0, 9)])])
def test_united(given: Spans, expected: Spans) -> None:
    assert united(given) == expected


@pytest.mark.parametrize(("spans", "others", "left"), [
    ([(0, 10)], [], [(0, 10)]), ([(0, 10)], [(0, 10)], []), ([(0, 10)], [(2, 3), (5, 20)], [(0, 2), (3, 5)]),
    ([(0, 4), (6, 10)], [(3, 7)], [(0, 3), (7, 10)]), ([(5, 6)], [(0, 1), (9, 10)], [(5, 6)]),
    ([(0, 4), (6, 10)], [(0, 20)], [])])
def test_without(spans: Spans, others: Spans, left: Spans) -> None:
    assert without(spans, others) == left
    assert length(left) <= length(spans)


def recorded(*events: tuple[str, int, int, str]) -> Any:
    """As torch's profiler has it: name, begin, end and device of each, in seconds."""
    made = [SimpleNamespace(name=lambda name=name: name, start_ns=lambda begin=begin: begin * 10**9,
                            duration_ns=lambda span=end - begin: span * 10**9, device_type=lambda on=device: on)
            for name, begin, end, device in [(STEP, 0, 100, "CPU"), *events]]
    return SimpleNamespace(profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: made)))


# On a CPU the message is under way from the beginning; the rank computes, waits, computes, and Python works the rest.
ON_CPU = (("gloo:recv", 0, 90, "CPU"), ("aten::mm", 0, 40, "CPU"), (STAGES, 45, 60, "CPU"), ("aten::mm", 60, 80, "CPU"),
          ("gloo:all_reduce", 90, 95, "CPU"))
ON_DEVICE = (("aten::mm", 0, 5, "CPU"), ("gemm", 10, 60, "CUDA"), ("ncclDevKernel_SendRecv(x)", 50, 80, "CUDA"),
             ("ncclDevKernel_AllReduce(x)", 85, 95, "CUDA"))


@pytest.mark.parametrize(("events", "layout", "compute", "communication", "bubble", "other"), [
    (ON_CPU, PIPELINE, 60, 5, 15, 20),
    (ON_CPU, SHARDS, 60, 35, 0, 5),
    (ON_CPU, RING, 60, 20, 15, 5),  # a ring's messages are communication, and not told from a pipeline's
    (ON_DEVICE, PIPELINE, 50, 10, 20, 20),
    (ON_DEVICE, SHARDS, 50, 30, 0, 20)])  # fmt: skip
def test_what_time_goes_for(events: Any, layout: Layout, compute: int, communication: int, bubble: int,
                            other: int) -> None:
    shares = shares_of(recorded(*events), layout)
    found = shares.compute, shares.communication, shares.bubble, shares.other, shares.whole
    assert found == (compute, communication, bubble, other, 100)
