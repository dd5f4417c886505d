"""Published training speeds of LLaMA2 and its kin, with one efficiency factor a device; leave-one-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from trainyard.layout import HARDWARE, Layout, Workload
from trainyard.layout.choose import choose, estimate
from trainyard.layout.shape import PRESETS, ModelShape, shape_of

CODE_34B = ModelShape(8192, 22016, 48, 64, 8, 128, 32000)
LLAMA3_8B = ModelShape(4096, 14336, 32, 32, 8, 128, 128256)
LLAMA3_70B = ModelShape(8192, 28672, 80, 64, 8, 128, 128256)
FMS = "foundation-model-stack/fms-fsdp, README"
TITAN = "torchtitan, docs/performance.md (2024)"


@dataclass(frozen=True)
class Run:
    """One published run. `layout` None: not published, the planner's own is taken."""

    name: str
    device: str
    devices: int
    shape: ModelShape
    sequence: int
    samples: int  # a step and device, at least
    speed: float  # tokens/s a device, or if below 1 the share of the peak (12 x layers x width x sequence counted)
    layout: Layout | None
    source: str


def _llama(size: str) -> ModelShape:
    return shape_of(PRESETS[size])


RUNS = (
    Run("Llama2 7B", "A100", 128, _llama("7b"), 4096, 2, 3760, Layout(data=16, shard=8, micro=2), FMS),
    Run("Llama2 13B", "A100", 128, _llama("13b"), 4096, 1, 1700, Layout(data=16, shard=8), FMS),
    Run("Llama2 34B", "A100", 128, CODE_34B, 4096, 8, 772, Layout(shard=128, micro=8, recompute="full"), FMS),
    Run("Llama2 70B", "A100", 128, _llama("70b"), 4096, 6, 380, Layout(shard=128, micro=6, recompute="full"), FMS),
    Run("Llama3 8B", "A100", 64, LLAMA3_8B, 8192, 1, 2973, Layout(shard=64, recompute="selective"), TITAN),
    Run("Llama3 70B", "A100", 64, LLAMA3_70B, 8192, 1, 331, Layout(shard=64, recompute="full"), TITAN),
    Run("Llama2 7B", "H100", 96, _llama("7b"), 4096, 2, 7500, Layout(data=12, shard=8, micro=2), FMS),
    Run("Llama2 13B", "H100", 96, _llama("13b"), 4096, 2, 3800, Layout(shard=96, micro=2, recompute="selective"), FMS),
    Run("Llama2 34B", "H100", 96, CODE_34B, 4096, 2, 1550, Layout(shard=96, micro=2, recompute="full"), FMS),
    Run("Llama3 8B", "H100", 8, LLAMA3_8B, 8192, 1, 0.36, Layout(shard=8, recompute="selective"), TITAN),
    Run("Llama2 7B", "910B", 8, _llama("7b"), 4096, 32, 4160, None, "MindFormers 1.3, models"),
    Run("Llama2 13B", "910B", 8, _llama("13b"), 4096, 32, 1691, None, "MindFormers 1.3, models"),
    Run("Llama2 70B", "910B", 64, _llama("70b"), 4096, 8, 337, None, "MindFormers 1.3, models"),
    Run("Llama2 7B", "910B", 8, _llama("7b"), 4096, 32, 0.69, None, "MindSpeed-LLM, models"),
    Run("Llama2 13B", "910B", 8, _llama("13b"), 4096, 32, 0.65, None, "MindSpeed-LLM, models"),
    Run("Llama2 70B", "910B", 32, _llama("70b"), 4096, 16, 0.44, None, "MindSpeed-LLM, models"),
)  # fmt: skip


def measured(run: Run) -> float:
    """Tokens/s a device."""
    if run.speed >= 1:
        return run.speed
    return run.speed * HARDWARE[run.device].peak["bf16"] / run.shape.flops(run.sequence)


@cache
def _chosen(shape: ModelShape, devices: int, device: str, batch: int) -> Layout:
    work = Workload(shape, devices, HARDWARE[device].with_node(8), 4096, batch, "bf16", micro=1)
    return choose(work).best.layout


def predicted(run: Run, efficiency: float) -> float:
    """Tokens/s a device with this share of the peak; memory is not asked, these runs did fit."""
    row = HARDWARE[run.device].with_node(8)
    work = Workload(run.shape, run.devices, row, run.sequence, run.devices * run.samples, "bf16")
    layout = run.layout or _chosen(work.shape, run.devices, run.device, work.batch)
    free = replace(work, hardware=replace(row, memory=0, efficiency=efficiency))
    return work.batch * work.sequence / estimate(free, layout).seconds.total / run.devices


def fitted(runs: Sequence[Run]) -> float:
    """The efficiency with which the runs are right on average (of logarithms)."""
    low, high = 0.05, 1.5
    for _ in range(12):
        middle = math.sqrt(low * high)
        if sum(math.log(predicted(run, middle) / measured(run)) for run in runs) > 0:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)


def leave_one_out() -> list[tuple[Run, float, float, float]]:
    """(run, efficiency fitted to the device's other runs, measured, predicted) of every run."""
    found = []
    for run in RUNS:
        others = [other for other in RUNS if other.device == run.device and other is not run]
        efficiency = fitted(others)
        found.append((run, efficiency, measured(run), predicted(run, efficiency)))
    return found


def table() -> str:
    """As docs/planner.md has it."""
    lines = ["| run | devices | tokens/s/device | estimate, fitted without it | ratio | source |", "| --- " * 6 + "|"]
    for run, efficiency, real, said in leave_one_out():
        layout = "" if run.layout else ", layout not published"
        lines.append(f"| {run.name} | {run.devices} x {run.device}{layout} | {real:.0f} | {said:.0f} (efficiency "
                     f"{efficiency:.2f}) | {said / real:.2f} | {run.source} |")  # fmt: skip
    return "\n".join(lines)
