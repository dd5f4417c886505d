"""`python -m planner.account [LAYERS]`: the planner's memory against what the trainer's own code allocates for models
of 7B to 70B, step by step but without computing a number: tensors are torch's fake ones, which have shapes and storages
without bytes, on one rank of a gang that exists in torch's accounting alone (the process group `fake`).

LAYERS: of each model that are run, for all of them take minutes."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # teaches collectives to take fake tensors
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from trainer import config as configs
from trainer.model import build, shape
from trainer.optimizer import AdamW
from trainer.parallel import layout as layouts
from trainer.parallel.apply import parallelize
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import MicroBatch, ParallelModel
from trainer.precision import choose as precision_of
from trainyard.api.train import TrainConfig
from trainyard.layout import HARDWARE, Layout, Workload, choose, of_train, settle
from trainyard.layout.memory import kept_bytes, memory

from planner.run import PRELOADED

GB = 1e9
SHALLOW, DEEP = 2, 4  # layers, where the whole model is not run
ONES = {"data": 1, "shard": 1, "tensor": 1, "pipeline": 1, "context": 1, "zero": 3}


class Case(NamedTuple):
    """A published size over so many ranks."""

    size: str
    ranks: int
    parallel: dict[str, Any]
    recompute: str = "none"
    precision: str = "bf16"
    micros: int = 1  # micro-batches a step
    micro: int = 1  # samples of each

    def train(self, layers: int | None = None) -> TrainConfig:
        """Complete but for what the layout leaves open. `layers`: instead of all."""
        parallel = {**ONES, **self.parallel}
        batch = self.micros * self.micro * parallel["data"] * parallel["shard"]
        return TrainConfig.model_validate({
            "model": {"size": self.size, "config": {} if layers is None else {"num_hidden_layers": layers}},
            "data": {"sources": [{"path": "/none"}], "sequenceLength": 4096}, "steps": 1, "batchSize": batch,
            "microBatchSize": self.micro, "precision": self.precision, "parallel": parallel,
            "activationCheckpointing": self.recompute})  # fmt: skip

    def planned(self, layers: int | None = None) -> tuple[Workload, Layout]:
        """The workload, on devices of any memory, and its layout."""
        work = of_train(self.train(layers), self.ranks, 8, replace(HARDWARE["910B"], memory=0.0))
        assert work is not None
        return work, choose(work).best.layout


CASES = (
    Case("7b", 8, {"shard": 8}),
    Case("7b", 8, {"shard": 8}, "selective", micros=2),
    Case("13b", 8, {"tensor": 8}),
    Case("70b", 64, {"shard": 8, "tensor": 8}),
)


class Account(NamedTuple):
    """Bytes of live tensors on one rank."""

    state: int  # before the first step: parameters and both moments
    forward: int  # when the layers' forward pass of the first micro-batch has ended
    peak: int  # of the step


class Live(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed here
    """Counts the bytes of every storage that an operator returns, until it is given back. A storage that is resized
    counts with its new size: FSDP2 frees and allocates what it gathers so."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._sizes: Any = WeakIdKeyDictionary()
        self.pauses = 0  # while above 0, nothing that is new counts

    def __torch_dispatch__(self, operator: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts come by themselves
        if operator is torch.ops.aten._local_scalar_dense.default and given[0].dtype == torch.bool:
            return False  # the one question that is asked: is the gradient of the loss another than 1?
        if operator is torch.ops._c10d_functional.wait_tensor.default:
            return given[0]  # as it does for real; the fake one returns a copy
        found = operator(*given, **(named or {}))
        if not self.pauses:
            for each in tree_leaves(found):
                if isinstance(each, torch.Tensor):
                    self.note(each.untyped_storage())
        return found

    def note(self, storage: Any) -> None:
        """Count a storage that is new or has another size than before."""
        size = self._sizes.get(storage)
        if size is None:
            size = self._sizes[storage] = [0]
            weakref.finalize(storage, self._gone, size).atexit = False
        now = storage.nbytes()
        self.bytes += now - size[0]
        size[0] = now
        self.most = max(self.most, self.bytes)

    def _gone(self, size: list[int]) -> None:
        self.bytes -= size[0]


@contextmanager
def counting(live: Live) -> Iterator[None]:
    """Tell `live` of storages that are resized, which no mode is told of, and hide from it the tensors that DTensor
    makes of whole matrices to ask for shapes: for real these have no storage."""
    plain, propagate = torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached

    def resize(storage: Any, size: int) -> None:
        plain(storage, size)
        live.note(storage)

    def ask(*given: Any) -> Any:
        live.pauses += 1
        try:
            return propagate(*given)
        finally:
            live.pauses -= 1

    torch.UntypedStorage.resize_ = resize
    ShardingPropagator._propagate_tensor_meta_non_cached = ask
    try:
        yield
    finally:
        torch.UntypedStorage.resize_, ShardingPropagator._propagate_tensor_meta_non_cached = plain, propagate


def account(train: TrainConfig, ranks: int) -> Account:
    """One step of rank 0 of `ranks`, of a configuration with everything set. Needs a process of its own: it is a rank
    of that gang until it ends."""
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    fields = shape.fields(train.model)
    layout = layouts.fit(configs.layout(train, ranks), fields, train.data.sequence_length)
    complete, device = build.complete(fields), torch.device("cpu")
    model = parallelize(lambda: build.on_meta(complete), Mesh(layout, device, 0), precision_of(train.precision, device),
                        train.activation_checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live, counting(live):
        return _step(train, model, device, live, fields["vocab_size"])


def _step(train: TrainConfig, model: ParallelModel, device: torch.device, live: Live, vocabulary: int) -> Account:
    build.give_storage(model, device)
    optimizer = AdamW(model, train.optimizer)
    state, ends = live.bytes, []
    model.stages[0].model.register_forward_hook(lambda *_: ends.append(live.bytes))
    assert train.batch_size is not None
    size = train.micro_batch_size, train.data.sequence_length

    def take(_: int) -> MicroBatch:
        return MicroBatch(torch.randint(0, vocabulary, size), torch.randint(0, vocabulary, size))

    model.train_batch(train.batch_size // (train.micro_batch_size * model.layout.batch_ranks), take, 1e-3,
                      lambda _: None)
    optimizer.squared_norm(model.mesh.copies)
    return Account(state, ends[0], live.most)


def accounts(wanted: Sequence[tuple[Case, int | None]]) -> list[Account]:
    """Of each case with so many layers (None: all), in a process of its own."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "planner.account"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        made = []
        for case, layers in wanted:
            work, layout = case.planned(layers)
            made.append(pool.submit(account, settle(case.train(layers), work, layout), case.ranks))
        return [each.result(600) for each in made]


@dataclass(frozen=True)
class Compared:
    """A case, accounted at two depths and planned: bytes."""

    case: Case
    layout: Layout
    kept: float  # what a layer keeps for the backward pass
    kept_planned: float
    peak: float  # of all tensors, at the larger depth
    peak_planned: float


def compare(cases: Sequence[Case], shallow: int = SHALLOW, deep: int = DEEP) -> list[Compared]:
    """What a layer keeps is the difference of two depths, without its own state."""
    found = accounts([(case, layers) for case in cases for layers in (shallow, deep)])
    made = []
    for case, less, more in zip(cases, found[::2], found[1::2], strict=True):
        work, layout = case.planned(deep)
        tokens = layout.micro * work.sequence / layout.context
        kept = ((more.forward - more.state) - (less.forward - less.state)) / (deep - shallow)
        made.append(Compared(case, layout, kept, tokens * kept_bytes(work.shape, layout, work.precision), more.peak,
                             memory(work, layout).tensors))
    return made


def main(layers: int | None) -> None:
    """Print the table."""
    print("| model | layout | kept a layer, MB | planned | error | peak, GB | planned | error |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for case in CASES:
        depth = layers or case.planned()[0].shape.layers
        for each in compare([case], min(SHALLOW, depth - 1), depth):
            print(f"| {case.size}, {case.precision} | {each.layout} | {each.kept / 1e6:.1f} | "
                  f"{each.kept_planned / 1e6:.1f} | {each.kept_planned / each.kept - 1:+.1%} | {each.peak / GB:.2f} | "
                  f"{each.peak_planned / GB:.2f} | {each.peak_planned / each.peak - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
