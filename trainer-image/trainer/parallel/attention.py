"""The attention that transformers' models are given: causal, within documents, over a sequence that may be spread over
ranks. It is registered under a name of its own, with a mask function of its own: transformers would silently leave out
the mask of a name that has none."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from trainer.parallel.context import Context

NAME = "trainyard"


def attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None = None,
           dropout: float = 0.0, scaling: float | None = None, context: Context | None = None,
           documents: torch.Tensor | None = None, **_: Any) -> tuple[torch.Tensor, None]:
    """What transformers calls. query: (batch, heads, positions, width); key, value: a divisor of the heads. `context`
    and `documents` (batch, whole sequence: the number of the document that a token is of) are what the model was
    called with. Returns (batch, positions, heads, width)."""
    if context is None:
        result = whole(query, key, value, scaling, dropout, documents)
    else:
        result = context.attend(query, key, value, scaling, dropout, documents, whole)
    return result.transpose(1, 2).contiguous(), None


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, dropout: float,
          documents: torch.Tensor | None) -> torch.Tensor:
    """Causal attention of a rank that has every position; torch chooses the kernel. No mask is made without
    documents."""
    mask = None if documents is None else (documents[:, :, None] == documents[:, None]).tril()[:, None]
    return functional.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None,
                                                   scale=scale, enable_gqa=query.shape[1] != key.shape[1])


def no_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
    """What transformers makes its masks with: none, `attend` makes its own. Padding would be ignored, so it is
    refused."""
    if attention_mask is not None:
        raise ValueError("expected no attention_mask: samples are packed, not padded; documents are told apart by the "
                         "argument `documents`")


def register() -> str:
    """Tell transformers; returns the name for a config's attention implementation."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_mask)
    return NAME
