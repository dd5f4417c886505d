"""What activation checkpointing saves: the peak of live tensor bytes of a batch, as the allocator reports it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from planner.rank import peak_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing._internal.distributed.fake_pg import FakeStore
from trainer.model import build, shape, weights
from trainer.parallel.apply import parallelize
from trainer.parallel.layout import Layout
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import MicroBatch, ParallelModel
from trainer.precision import Precision
from trainyard.api.train import ModelConfig

BLOCKS, SAMPLES, LENGTH = 6, 8, 64
FIELDS = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": BLOCKS,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH}


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """This process thinks that it is rank 0 of so many; its collectives move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Blocks are traced and differentiated as ever, but torch's own operators run what comes out. Counts the graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=counter))
    with torch._dynamo.config.patch(suppress_errors=False):  # trainer.parallel.compiled changes it
        yield counter
    torch._dynamo.reset()


def model_of(ranks: int, precision: Precision, checkpointing: str, compiles: bool) -> ParallelModel:
    device = torch.device("cpu")
    config = build.complete(shape.fields(ModelConfig.model_validate({"size": "tiny", "config": FIELDS})))
    model = parallelize(lambda: build.on_meta(config), Mesh(Layout(shard=ranks), device, 0), precision, checkpointing,
                        compiles)
    build.give_weights(model, device, lambda part: weights.draw(part, 0))
    return model


def peak(model: ParallelModel) -> int:
    """Of the second batch: the first one compiles."""
    tokens = torch.arange(SAMPLES * LENGTH).view(SAMPLES, LENGTH) % FIELDS["vocab_size"]

    def batch() -> None:
        model.train_batch(1, lambda _: MicroBatch(tokens, tokens), 1e-3, lambda _: None)
        for parameter in model.parameters():
            parameter.grad = None

    batch()
    return peak_of(batch)


@pytest.mark.parametrize(("ranks", "precision", "compiles"), [
    (1, "bf16", False), (2, "fp32", False), (1, "bf16", True), (2, "fp32", True)], indirect=["ranks"])
def test_full_checkpointing_keeps_inputs_alone(graphs: Any, ranks: int, precision: Precision, compiles: bool) -> None:
    """One block's activations at a time and the others' inputs, whether blocks are compiled or not, and whatever FSDP2
    has made of their classes."""
    everything, inputs = (peak(model_of(ranks, precision, kind, compiles)) for kind in ("none", "full"))
    assert (graphs.frame_count > 0) is compiles
    assert inputs < everything / 2
