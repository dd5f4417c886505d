"""Shapes of models: what the planner counts with, and the published shapes that `model.size` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainyard.api.train import ModelConfig
from trainyard.layout.problems import InvalidLayout

LLAMA2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
}
"""Fields of the Hugging Face config that all sizes of LLaMA2 share."""


def _preset(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {**LLAMA2, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads}


PRESETS = {
    "tiny": _preset(128, 352, 6, 4, 4),  # 9.4 million parameters, 8.2 of them embeddings
    "7b": _preset(4096, 11008, 32, 32, 32),
    "13b": _preset(5120, 13824, 40, 40, 40),
    "70b": _preset(8192, 28672, 80, 64, 8),
}  # fmt: skip

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
}
"""Fields of the Hugging Face config of Mixtral, as published (https://arxiv.org/abs/2401.04088)."""


def _mixture(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {**_preset(hidden, inner, layers, heads, kv_heads), **MIXTRAL}


MIXTRALS = {
    "tiny": _mixture(128, 256, 4, 4, 2),  # 11.5 million parameters, 8.2 of them embeddings
    "8x7b": _mixture(4096, 14336, 32, 32, 8),
}

COMMON = {"llama2": LLAMA2, "mixtral": MIXTRAL}
SIZES = {"llama2": PRESETS, "mixtral": MIXTRALS}


@dataclass(frozen=True)
class ModelShape:
    """A decoder of Llama's kind: RMS norms, rotary positions, gated feed-forward, perhaps a mixture of experts."""

    hidden: int
    inner: int  # width of the feed-forward, of one expert in a mixture
    layers: int
    heads: int
    kv_heads: int
    head: int  # width of one head
    vocabulary: int
    positions: int = 4096
    tied: bool = False  # embedding and head share their weights
    experts: int = 0  # 0: dense
    chosen: int = 0  # experts that a token goes to

    @cached_property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head

    @cached_property
    def key(self) -> int:
        """Width of all key heads together; that of the values, too."""
        return self.kv_heads * self.head

    @cached_property
    def attention(self) -> int:
        """Parameters of one layer's attention."""
        return self.hidden * (2 * self.query + 2 * self.key)

    @cached_property
    def feed_forward(self) -> int:
        """Parameters of one feed-forward, or of one expert."""
        return 3 * self.hidden * self.inner

    @cached_property
    def dense_layer(self) -> int:
        """Parameters of one layer, without experts but with their router."""
        return self.attention + 2 * self.hidden + (self.hidden * self.experts if self.experts else self.feed_forward)

    @cached_property
    def expert_layer(self) -> int:
        """Parameters of all experts of one layer."""
        return self.experts * self.feed_forward

    @cached_property
    def embedding(self) -> int:
        """Parameters of the embedding; that of the head, too."""
        return self.vocabulary * self.hidden

    @cached_property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        ends = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * (self.dense_layer + self.expert_layer) + ends

    @cached_property
    def layer_flops(self) -> float:
        """Floating-point operations of one layer's matrices in the forward pass, a token (2 a parameter used)."""
        used = self.attention + self.feed_forward * max(1, self.chosen)
        return 2.0 * (used + self.hidden * self.experts)

    def attention_flops(self, sequence: int) -> float:
        """Those of scores and their sum, a token and layer, counted in full (4 x width x sequence) as published
        efficiencies do, though a causal kernel computes half."""
        return 4.0 * self.query * sequence

    @cached_property
    def head_flops(self) -> float:
        """Those of the head, a token."""
        return 2.0 * self.embedding

    def flops(self, sequence: int) -> float:
        """Forward and backward, a token: 6 a parameter without the embedding, and 12 x layers x width x sequence."""
        return 3 * (self.layers * (self.layer_flops + self.attention_flops(sequence)) + self.head_flops)


def fields_of(model: ModelConfig) -> dict[str, Any] | None:
    """The Hugging Face config that `size` and `config` make; None if only the files in `path` know it."""
    if model.path is not None:
        return None
    experts = {name: value for name, value in COMMON[model.family].items() if "experts" in name}
    return {**experts, **SIZES[model.family].get(model.size or "", {}), **(model.config or {})}


def shape_of(fields: Mapping[str, Any]) -> ModelShape:
    """The shape in a Hugging Face config. Raises InvalidLayout that names the field at fault."""
    hidden, heads = _whole(fields, "hidden_size"), _whole(fields, "num_attention_heads")
    kv_heads = _whole(fields, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise InvalidLayout("train.model.config.num_key_value_heads",
                            f"should divide num_attention_heads, {heads}, found {kv_heads}")
    experts = _whole(fields, "num_local_experts", 0, 0)
    chosen = _whole(fields, "num_experts_per_tok", min(2, experts), 0) if experts else 0
    return ModelShape(
        hidden, _whole(fields, "intermediate_size"), _whole(fields, "num_hidden_layers"), heads, kv_heads,
        _whole(fields, "head_dim", max(1, hidden // heads)), _whole(fields, "vocab_size", LLAMA2["vocab_size"]),
        _whole(fields, "max_position_embeddings", LLAMA2["max_position_embeddings"]),
        bool(fields.get("tie_word_embeddings")), experts, chosen)  # fmt: skip


def _whole(fields: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidLayout(f"train.model.config.{name}", f"should be a whole number of at least {least}, "
                                                          f"found {value!r}")
    return value
