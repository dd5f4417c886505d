"""What is left of a layout that was tried out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining._utils import _StageBackwardMeta
from torch.distributed.tensor import DTensor, Replicate, Shard, _collective_utils
from torch.testing._internal.distributed.fake_pg import FakeStore
from trainer.model import build, shape, weights
from trainer.parallel.apply import parallelize
from trainer.parallel.layout import Layout, fit
from trainer.parallel.mesh import Mesh
from trainer.parallel.model import MicroBatch, ParallelModel
from trainer.trial import groups, take_down
from trainyard.api.train import ModelConfig

MODEL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 16}


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This process thinks that it is rank 0 of 4; its collectives move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_ranks")
def test_nothing_remembers_its_mesh() -> None:
    """A mesh holds its groups, and gloo's connections are closed with the last that holds a group: while a rank that
    failed remembers one, the others wait for it."""
    before = groups()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    part = DTensor.from_local(torch.ones(2, 4), mesh["tensor"], [Shard(0)])
    assert (part.redistribute(placements=[Replicate()]) + 1).shape == (4, 4)
    assert torch.mm(part, DTensor.from_local(torch.ones(2, 4), mesh["tensor"], [Shard(0)])).shape == (4, 4)
    assert _collective_utils.MeshTopoInfo.build_from_mesh.cache_info().currsize
    assert len(groups()) > len(before)
    held = weakref.ref(mesh)
    del mesh, part
    take_down(before, True, torch.device("cpu"))
    assert groups() == before
    assert held() is None


def pipeline() -> ParallelModel:
    """The first stage of two, with FSDP2."""
    fields = shape.fields(ModelConfig.model_validate({"size": "tiny", "config": MODEL}))
    layout = fit(Layout(pipeline=2, shard=2, zero=2), fields, 16)
    config, device = build.complete(fields), torch.device("cpu")
    model = parallelize(lambda: build.on_meta(config), Mesh(layout, device, 0), "fp32", "none")
    build.give_weights(model, device, lambda part: weights.draw(part, 0))
    return model


def failing(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> tuple[str, list[weakref.ref[torch.Tensor]]]:
    """What a pipeline says that loses another rank in there, and its parameters, of which nobody holds any."""
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(PipelineStage, "_recv_meta", lambda stage, _: _StageBackwardMeta(stage._stage_meta.outputs))
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    model = pipeline()
    held = [weakref.ref(parameter) for parameter in model.parameters()]
    monkeypatch.setattr(owner, method, lost)
    try:  # not pytest.raises(), which keeps every frame
        model.train_batch(2, lambda _: MicroBatch(tokens, tokens), 1.0, lambda _: None)
    except RuntimeError as error:
        return str(error), held
    return "", held


@pytest.mark.usefixtures("four_ranks")
def test_nothing_is_left_of_a_pipeline_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that wait for their backward pass do not hold the model."""
    said, held = failing(monkeypatch, PipelineStage, "backward_one_chunk")
    assert said == "Connection closed by peer"
    gc.collect()
    assert [one() for one in held if one() is not None] == []


@pytest.mark.usefixtures("four_ranks")
def test_a_stage_that_has_lost_another_rank_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is not taken for the one to blame: torch wraps what a stage raises."""
    said, held = failing(monkeypatch, PipelineStage, "forward_maybe_with_nosync")
    assert said == "Connection closed by peer"
    gc.collect()
    assert [one() for one in held if one() is not None] == []
