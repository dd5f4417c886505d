"""The bubble of each pipeline schedule, from the trainer's own timeline (`train.profile`): a stage a process, a core a
process."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from train.gang import Gang

from speed import cases

RANKS = 2
MICROS = 8  # of one sample
STEPS = 3  # recorded, after as many that warm up
# Head and loss cost in multiplications what a layer costs: with seven layers, two stages and four have equal work.
MODEL = {**cases.MODEL, "vocab_size": 5920, "num_hidden_layers": 7}
SCHEDULES = ("1F1B", "Interleaved1F1B", "ZBV")
TOLD = re.compile(r"Bubble: ([\d.]+)% .* has ([\d.]+)% at equal stages")
PROGRAM = """
import os, runpy
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
import torch
torch.set_num_threads(1)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


def config(schedule: str, tokens: Path, **fields: Any) -> dict[str, Any]:
    """A TrainConfig that records its last steps."""
    spread = {"data": 1, "shard": 1, "tensor": 1, "context": 1, "pipeline": RANKS, "schedule": schedule}
    return {
        "model": {"config": MODEL}, "steps": 2 * STEPS, "batchSize": MICROS, "microBatchSize": 1,
        "data": {"sources": [{"path": str(tokens), "format": "prepared"}], "sequenceLength": cases.SEQUENCE},
        "parallel": spread, "precision": "fp32", "activationCheckpointing": "none", "export": False,
        "profile": {"first": STEPS + 1, "steps": STEPS}, **fields,
    }  # fmt: skip


def measure(schedule: str, folder: Path, tokens: Path, **fields: Any) -> tuple[float, float]:
    """(bubble, the schedule's own at equal stages), as shares of the time that ranks are busy. Raises RuntimeError."""
    made = config(schedule, tokens, **fields)
    checkpoint = folder / "checkpoint"
    with Gang(folder, [made] * RANKS, checkpoint=checkpoint, every=1_000_000, program=("-c", PROGRAM)) as gang:
        ended = gang.wait(600)
    page = checkpoint / "profile" / "summary.md"
    told = TOLD.search(page.read_text()) if page.exists() else None
    if told is None:
        raise RuntimeError(f"{schedule}: no bubble in {page}\n{ended.text[-3000:]}")
    return float(told[1]) / 100, float(told[2]) / 100


def table(folder: Path, rounds: int) -> str:
    """Every schedule in turn, `rounds` times; the smallest counts, what else happens on the machine adds to it."""
    tokens = cases.write_tokens(folder / "tokens", MODEL["vocab_size"])
    found: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    ideal = {}
    for number in range(rounds):
        for schedule in SCHEDULES:
            share, ideal[schedule] = measure(schedule, folder / f"{schedule}-{number}", tokens)
            found[schedule].append(share)
            print(f"  {schedule}: bubble {share:.1%}, the schedule's {ideal[schedule]:.1%}", flush=True)
    lines = [f"| {RANKS} ranks, {MICROS} micro-batches | bubble, least (median) | (p - 1) / (v m) | times |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for schedule, shares in found.items():
        times = f"{min(shares) / ideal[schedule]:.2f}" if ideal[schedule] else "-"
        lines.append(f"| {schedule} | {min(shares):.1%} ({statistics.median(shares):.1%}) | {ideal[schedule]:.1%} | "
                     f"{times} |")
    return "\n".join(lines)
