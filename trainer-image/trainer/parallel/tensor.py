"""Tensor parallelism with sequence parallelism, from outside: matrices of attention and feed-forward are cut by heads
and columns; between them each rank holds a stretch of the sequence. The vocabulary is cut for embedding and head."""

from __future__ import annotations

from typing import Any

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from trainer.parallel.pipeline import Absent

SEQUENCE = Shard(1)  # of hidden states (batch, sequence, hidden)


def apply(model: Any, mesh: DeviceMesh) -> None:
    """Cut a meta LlamaForCausalLM, or a stage of one, over the ranks of `mesh`, in place. The head's logits stay cut by
    vocabulary: (batch, sequence, vocabulary / ranks), for loss.py.

    Norms become replicated DTensors, whose gradients torch adds up over the ranks. Nothing is sent: weights come
    later, drawn or read slice by slice."""
    tied = model.config.tie_word_embeddings
    for block in model.model.layers:
        if not isinstance(block, Absent):
            _apply(block, mesh, block_plan())
    top = {name: style for name, style in top_plan().items() if not isinstance(model.get_submodule(name), Absent)}
    _apply(model, mesh, top)
    if tied:  # parallelize_module gave each its own
        model.lm_head.weight = model.model.embed_tokens.weight


def top_plan() -> dict[str, ParallelStyle]:
    """What is around the blocks."""
    return {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "model.norm": SequenceParallel(use_local_output=True),
        "lm_head": ColwiseParallel(input_layouts=SEQUENCE, output_layouts=Shard(-1)),
    }


def block_plan() -> dict[str, ParallelStyle]:
    """A block: attention by heads, feed-forward by its inner width, norms by sequence."""
    return {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(input_kwarg_layouts={"hidden_states": SEQUENCE},
                                        desired_input_kwarg_layouts={"hidden_states": Replicate()}),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
    }


def _apply(module: Any, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> None:
    # src_data_rank=None: nothing is sent; a rank that is replaced alone would wait for the others in a scatter
    parallelize_module(module, mesh, plan, src_data_rank=None)
