"""Published training speeds of LLaMA2 and its kin, with one efficiency factor a device; leave-one-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from trainyard.layout import HARDWARE, Layout, Workload
from trainyard.layout.choose import choose, estimate
from trainyard.layout.hardware import GB
from trainyard.layout.shape import PRESETS, ModelShape, shape_of

CODE_34B = ModelShape(8192, 22016, 48, 64, 8, 128, 32000)
LLAMA3_8B = ModelShape(4096, 14336, 32, 32, 8, 128, 128256)
LLAMA3_70B = ModelShape(8192, 28672, 80, 64, 8, 128, 128256)
FMS = "foundation-model-stack/fms-fsdp, README"
BLOG = "pytorch.org/blog/maximizing-training (2024)"
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
    network: float = 0.0  # GB/s a device between nodes; 0: as the device's row has it
    reduced: int = 4  # bytes of a gradient on its way between ranks


def _llama(size: str) -> ModelShape:
    return shape_of(PRESETS[size])


def _fms(name: str, device: str, shape: ModelShape, samples: int, speed: float, layout: Layout,
         source: str = BLOG) -> Run:  # fmt: skip
    """Of IBM: 400 Gb/s between nodes of eight A100, 800 Gb/s between those of eight H100 (the blog's table 1), and
    gradients reduced in bf16 (policy bfSixteen)."""
    nodes, network = (16, 50.0 / 8) if device == "A100" else (12, 100.0 / 8)
    return Run(name, device, 8 * nodes, shape, 4096, samples, speed, layout, source, network, 2)


RUNS = (
    _fms("Llama2 7B", "A100", _llama("7b"), 2, 3760, Layout(data=16, shard=8, micro=2), FMS),
    _fms("Llama2 13B", "A100", _llama("13b"), 1, 1700, Layout(data=16, shard=8), FMS),
    _fms("Llama2 13B", "A100", _llama("13b"), 2, 1800, Layout(shard=128, micro=2, recompute="selective")),
    _fms("Llama2 34B", "A100", CODE_34B, 8, 772, Layout(shard=128, micro=8, recompute="full"), FMS),
    _fms("Llama2 34B", "A100", CODE_34B, 2, 700, Layout(shard=128, micro=2, recompute="full")),
    _fms("Llama2 70B", "A100", _llama("70b"), 6, 380, Layout(shard=128, micro=6, recompute="full"), FMS),
    _fms("Llama2 70B", "A100", _llama("70b"), 2, 370, Layout(shard=128, micro=2, recompute="full")),
    Run("Llama3 8B", "A100", 64, LLAMA3_8B, 8192, 1, 2973, Layout(shard=64, recompute="selective"), TITAN),
    Run("Llama3 70B", "A100", 64, LLAMA3_70B, 8192, 1, 331, Layout(shard=64, recompute="full"), TITAN),
    _fms("Llama2 7B", "H100", _llama("7b"), 2, 7500, Layout(data=12, shard=8, micro=2)),
    _fms("Llama2 13B", "H100", _llama("13b"), 2, 3800, Layout(shard=96, micro=2, recompute="selective")),
    _fms("Llama2 34B", "H100", CODE_34B, 2, 1550, Layout(shard=96, micro=2, recompute="full")),
    _fms("Llama2 70B", "H100", _llama("70b"), 2, 800, Layout(shard=96, micro=2, recompute="full")),
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
    if run.network:
        row = replace(row, links=(*row.links[:-1], replace(row.links[-1], bandwidth=run.network * GB)))
    work = Workload(run.shape, run.devices, row, run.sequence, run.devices * run.samples, "bf16", reduced=run.reduced)
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
    lines = ["| run, samples a device | devices | tokens/s/device | estimate, fitted without it | ratio | source |",
             "| --- " * 6 + "|"]
    for run, efficiency, real, said in leave_one_out():
        layout = "" if run.layout else ", layout not published"
        lines.append(f"| {run.name}, {run.samples} | {run.devices} x {run.device}{layout} | {real:.0f} | {said:.0f} "
                     f"(efficiency {efficiency:.2f}) | {said / real:.2f} | {run.source} |")  # fmt: skip
    return "\n".join(lines)
