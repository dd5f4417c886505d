"""One rank of a measured run: the trainer's own model, optimizer and steps on random tokens.

Run as `python -m planner.rank CASE OUTPUT`; writes the peak of live tensor bytes, from the profiler's allocator events,
or the seconds of each step."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from trainer.allocator import keep_freed_memory
from trainer.config import batch_size, rank_of
from trainer.distributed import connect
from trainer.finite import GradientWatch
from trainer.model import build, shape, weights
from trainer.optimizer import AdamW
from trainer.parallel import layout as layouts
from trainer.parallel.apply import parallelize
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import MicroBatch
from trainer.precision import choose, flush_denormals
from trainyard.api.train import TrainConfig


class Stepper:
    """A model and its optimizer, ready to make steps."""

    def __init__(self, train: TrainConfig) -> None:
        self.train = train
        self.gang = gang = connect(rank_of(os.environ), None)
        fields = shape.fields(train.model)
        layout = layouts.fit(layouts.complete(train.parallel, gang.world_size), fields, train.data.sequence_length)
        config = build.complete(fields)
        precision = choose(train.precision, gang.device)
        self.model = parallelize(lambda: build.on_meta(config), Mesh(layout, gang.device, gang.rank), precision,
                                 train.activation_checkpointing)
        build.give_weights(self.model, gang.device, lambda part: weights.draw(part, 0))
        self.optimizer = AdamW(self.model, train.optimizer)
        self.micros = batch_size(train, layout) // (train.micro_batch_size * layout.batch_ranks)
        self.vocabulary = fields["vocab_size"]

    def take(self, number: int) -> MicroBatch:
        """Random tokens."""
        size = self.train.micro_batch_size, self.train.data.sequence_length
        tokens = torch.randint(0, self.vocabulary, size, generator=torch.Generator().manual_seed(number))
        return MicroBatch(tokens, tokens)

    def step(self) -> None:
        """Forward, backward, norm, update."""
        self.model.train_batch(self.micros, self.take, 1e-3, lambda _: None)
        square = self.optimizer.squared_norm(self.model.mesh.copies)
        dist.all_reduce(square, group=self.gang.control)
        self.optimizer.step(1e-4, 1.0 + float(square) * 1e-12)
        self.optimizer.zero_gradients()


def measure_memory(train: TrainConfig, steps: int) -> dict[str, Any]:
    """Peak of live tensor bytes over building and two steps."""
    def work() -> None:
        stepper = Stepper(train)
        for _ in range(steps):
            stepper.step()

    return {"peak": peak_of(work)}


def peak_of(work: Callable[[], None]) -> int:
    """Of live tensor bytes, those of before `work` not counted, as the CPU allocator reports them to the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    live = peak = 0
    for _, _, size in sorted(allocations(seen), key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak


def allocations(seen: Any) -> list[tuple[int, int, int]]:
    """(time, address, bytes) of every allocation, and with negative bytes of every release."""
    tree = list(seen.profiler.kineto_results.experimental_event_tree())
    made = []
    while tree:
        event = tree.pop()
        tree.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            made.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return made


def measure_time(train: TrainConfig, steps: int) -> dict[str, Any]:
    """Seconds of each step after the first, with this rank on a core of its own. As in training it keeps the memory
    that a step frees, and gradients are watched, for with that comes the trainer's own reduction over gloo."""
    flush_denormals()
    keep_freed_memory(threads=1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"]) % len(cores)]})
    stepper = Stepper(train)
    watch = GradientWatch(list(stepper.model.modules()))
    stepper.step()
    times = []
    for _ in range(steps):
        dist.barrier()
        started = time.perf_counter()
        watch.begin()
        stepper.step()
        dist.barrier()
        times.append(time.perf_counter() - started)
    return {"times": times}


def main(case: Path, output: Path) -> None:
    """What `case` asks for."""
    torch.set_num_threads(1)
    asked = json.loads(case.read_text())
    train = TrainConfig.model_validate(asked["train"])
    measure = measure_memory if asked["what"] == "memory" else measure_time
    found = measure(train, asked["steps"])
    (output / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
