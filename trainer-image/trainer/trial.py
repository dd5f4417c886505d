"""A layout that is tried out for a few steps: built, timed, taken down again, all in one generation of the ranks.

Its process groups are all its own: one that fails is closed, which ends the waiting of its other ranks, and the gang's
groups know nothing of it."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from trainyard.api.train import TrainConfig

from trainer import allocator
from trainer import config as configs
from trainer.config import Run
from trainer.data.batches import Batches
from trainer.distributed import TIMEOUT, Gang
from trainer.errors import Drained
from trainer.feed import micro_batch
from trainer.finite import GradientWatch
from trainer.inject import LayoutFault
from trainer.loop import seed_model
from trainer.model.weights import local_slice
from trainer.optimizer import AdamW, learning_rate
from trainer.parallel.model import ParallelModel

WARM = 2  # steps that are not counted: they load, connect and compile
TIMED = 5  # steps that are
ENOUGH = 120.0  # s after which no further step is made
SPREAD = 0.02  # of the weights: any that stay finite will do

Build = Callable[[TrainConfig], ParallelModel]


class Trial:
    """One layout with weights that mean nothing, and an optimizer. `faults`: what is to go wrong, on demand."""

    def __init__(self, config: TrainConfig, run: Run, gang: Gang, build: Build, training: Batches,
                 faults: Sequence[LayoutFault] = ()) -> None:
        self.config, self.run_, self.gang = config, run, gang
        self.training = training
        self.faults = [fault for fault in faults if fault.rank == gang.rank]
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.model = build(config)
        _fill(self.model, config.seed)
        self.optimizer = AdamW(self.model, config.optimizer)
        self.watch = GradientWatch(list(self.model.modules()))  # as in training: gradients are reduced its way
        self.batch_size = configs.batch_size(config, self.model.layout)
        self.micro_batches = configs.micro_batches(config, self.model.layout, self.batch_size)

    def measure(self) -> float:
        """Seconds a step, this rank's median. Raises Drained on every rank, if any was told to stop."""
        times: list[float] = []
        deadline = time.monotonic() + ENOUGH
        for step in range(WARM + TIMED):
            started = time.monotonic()
            slower = self._go_wrong(step)
            stop, enough = self._step(step, self.gang.first and started > deadline)
            if step >= WARM:
                times.append(time.monotonic() - started + slower)
            if stop:
                raise Drained
            if enough and times:
                break
        return median(times)

    def _step(self, step: int, late: bool) -> tuple[bool, bool]:
        """As the loop makes one, with batches of the training data: nothing is consumed by looking at them. Whether a
        rank was told to stop, and whether it has taken long enough."""
        model, config = self.model, self.config
        targets = self.batch_size * config.data.sequence_length
        first = step * self.batch_size
        self.watch.begin()
        loss = model.train_batch(
            self.micro_batches, partial(micro_batch, self.training, config, model, self.batch_size, first),
            model.layout.data * model.layout.sharding_ranks / targets,
            lambda micro: seed_model(config.seed, step, micro, self.gang.rank))
        square = self.optimizer.squared_norm(model.mesh.copies)
        numbers = torch.tensor([float(loss), float(square), self.run_.told_to_drain(), late], dtype=torch.float64)
        dist.all_reduce(numbers, group=self.group)
        _, squares, stop, enough = numbers.tolist()
        clip = max(1.0, math.sqrt(squares) / config.optimizer.clip_norm) if 0 <= squares < math.inf else 1.0
        self.optimizer.step(learning_rate(config.optimizer, config.steps, step + 1), clip)
        self.optimizer.zero_gradients()
        synchronize(self.gang.device)
        return stop > 0, enough > 0

    def _go_wrong(self, step: int) -> float:
        """What is to be injected at this step; seconds that the step is to count as longer than it was."""
        for fault in self.faults:
            if step == 0:
                time.sleep(fault.waits)
            if fault.what == "fails" and step == 1:
                raise MemoryError("out of memory, as $TRAINYARD_INJECT wants it")
            if fault.what == "dies" and step == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return sum(fault.slow for fault in self.faults)

    def parts(self) -> list[tuple[weakref.ref[Any], int]]:
        """What must be gone when the layout was taken down, with its size in bytes."""
        found: list[tuple[weakref.ref[Any], int]] = []
        for parameter in self.model.parameters():
            found.append((weakref.ref(parameter), local_slice(parameter)[0].nbytes))
        return [*found, (weakref.ref(self.optimizer), 2 * sum(size for _, size in found))]


def groups() -> list[Any]:
    """torch's process groups, in the order in which they were made."""
    return list(dist.distributed_c10d._world.pg_map)


def take_down(before: Sequence[Any], failed: bool, device: torch.device) -> list[str]:
    """Close the groups that were not there `before`, last first, and give back what nobody holds any more: gloo's
    connections end with the last that holds a group. Returns the groups' names."""
    made = [group for group in groups() if group not in before]
    names = [str(group.group_name) for group in made]
    while made:
        if failed:  # a wait for other ranks in a kernel would never end
            with contextlib.suppress(RuntimeError):  # not every backend can
                made[-1].abort()
        dist.destroy_process_group(made.pop())
    _forget_meshes()
    gc.collect()
    if device.type == "cpu":
        allocator.give_back()
    else:
        getattr(torch, device.type).empty_cache()
    return names


def _forget_meshes() -> None:
    """torch remembers what it found out about meshes, and takes one of the same shape for the same one: a later model
    would be given groups that are closed. And what remembers a mesh holds its groups: those of a rank that failed would
    stay open, and others wait for it."""
    from torch.distributed.tensor import _collective_utils, _redistribute, debug
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    debug._clear_sharding_prop_cache()
    _redistribute.clear_redistribute_planner_cache()
    _redistribute._gen_transform_infos.cache_clear()
    _collective_utils.MeshTopoInfo.build_from_mesh.cache_clear()
    ShardingPropagator._propagate_tensor_meta_cached.cache_clear()


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on an accelerator."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _fill(model: ParallelModel, seed: int) -> None:
    generator = torch.Generator(device=model.mesh.device)
    generator.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            local, _ = local_slice(parameter)
            if parameter.dim() > 1:
                local.normal_(std=SPREAD, generator=generator)
            else:
                local.fill_(1.0)
