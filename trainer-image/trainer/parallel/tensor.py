"""Tensor parallelism with sequence parallelism, from outside: matrices of attention and feed-forward are cut by heads
and columns; between them each rank holds a stretch of the sequence. The vocabulary is cut for embedding and head.

Experts of a mixture are not cut: each rank sends the tokens of its stretch to them, wherever they are (experts.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from trainer.parallel.pipeline import Absent, present

SEQUENCE = Shard(1)  # of hidden states (batch, sequence, hidden)
MIXTURE: dict[str, ParallelStyle] = {  # routers and experts are called with the rank's own stretch of the sequence
    "mlp": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(SEQUENCE,), use_local_output=True)}


def apply(model: Any, mesh: DeviceMesh) -> None:
    """Cut a meta LlamaForCausalLM or MixtralForCausalLM, or a stage of one, over the ranks of `mesh`, in place. The
    head's logits stay cut by vocabulary: (batch, sequence, vocabulary / ranks), for loss.py.

    Norms become replicated DTensors, whose gradients torch adds up over the ranks. Nothing is sent: weights come
    later, drawn or read slice by slice."""
    tied = model.config.tie_word_embeddings
    for block in present(model):
        if hasattr(block.mlp, "experts"):
            _apply(block, mesh, {**attention_plan(), **MIXTURE})
            _replicate_router(block.mlp.gate, mesh)
        else:
            _apply(block, mesh, block_plan())
    top = {name: style for name, style in top_plan().items() if not isinstance(model.get_submodule(name), Absent)}
    _apply(model, mesh, top)
    if not isinstance(model.model.embed_tokens, Absent):
        _cut_embedding(model.model.embed_tokens, mesh)
    if tied:  # parallelize_module gave each its own
        model.lm_head.weight = model.model.embed_tokens.weight


def top_plan() -> dict[str, ParallelStyle]:
    """What is around the blocks, but for the embedding."""
    return {
        "model.norm": SequenceParallel(use_local_output=True),
        "lm_head": ColwiseParallel(input_layouts=SEQUENCE, output_layouts=Shard(-1)),
    }


def block_plan() -> dict[str, ParallelStyle]:
    """A block: attention by heads, feed-forward by its inner width, norms by sequence."""
    return {
        **attention_plan(),
        "mlp": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
    }


def attention_plan() -> dict[str, ParallelStyle]:
    """Of a block, all but its feed-forward."""
    return {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(input_kwarg_layouts={"hidden_states": SEQUENCE},
                                        desired_input_kwarg_layouts={"hidden_states": Replicate()}),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "post_attention_layernorm": SequenceParallel(),
    }


def _cut_embedding(embedding: Any, mesh: DeviceMesh) -> None:
    """Rank r has the r-th part of the vocabulary. torch's own style would make the gradient of the whole vocabulary on
    every rank, and hold it until the last micro-batch."""
    _distribute(embedding, mesh, Shard(0))
    embedding.forward = _CutEmbedding(embedding, mesh)


class _CutEmbedding:
    """An embedding's forward: from tokens (batch, sequence), which all ranks have, to the rank's stretch of their
    vectors, (batch, sequence / ranks, hidden)."""

    def __init__(self, embedding: Any, mesh: DeviceMesh) -> None:
        self._embedding, self._mesh = embedding, mesh

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        weight, spared = self._embedding.weight.to_local(), self._embedding.padding_idx  # whose vector is not trained
        first = self._mesh.get_local_rank() * len(weight)
        here = tokens - first
        others = (here < 0) | (here >= len(weight))
        spared = spared - first if spared is not None and first <= spared < first + len(weight) else None
        found = nn.functional.embedding(here.masked_fill(others, 0), weight, spared).masked_fill(others[..., None], 0.0)
        parts = DTensor.from_local(found, self._mesh, [Partial()], run_check=False)
        stretch: torch.Tensor = parts.redistribute(placements=[SEQUENCE]).to_local()
        return stretch


def _replicate_router(router: Any, mesh: DeviceMesh) -> None:
    """A router sees the tokens of its rank alone. Its weight is a replicated DTensor like a norm's, whose gradient is
    a part of the sum over the ranks."""
    _distribute(router, mesh, Replicate())
    router.forward = _OwnTokens(router, router.forward)


class _OwnTokens:
    """A router's forward, for the time of which its weight is a plain tensor."""

    def __init__(self, router: Any, forward: Any) -> None:
        self._router, self._forward = router, forward

    def __call__(self, hidden: torch.Tensor) -> Any:
        parameters = self._router._parameters
        kept = parameters["weight"]
        parameters["weight"] = kept.to_local(grad_placements=[Partial()])
        try:
            return self._forward(hidden)
        finally:
            parameters["weight"] = kept


def _distribute(module: Any, mesh: DeviceMesh, placement: Placement) -> None:
    """Make the module's weight a DTensor; nothing is sent, see _apply."""
    weight = distribute_tensor(module.weight.detach(), mesh, [placement], src_data_rank=None)
    module.register_parameter("weight", nn.Parameter(weight))


def _apply(module: Any, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    # src_data_rank=None: nothing is sent; a rank that is replaced alone would wait for the others in a scatter
    parallelize_module(module, mesh, plan, src_data_rank=None)
