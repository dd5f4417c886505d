"""The model on the meta device: names and shapes, not one number."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError, one_line
from trainer.model import weights
from trainer.parallel import attention, experts

_CLASSES = {"llama": ("transformers.models.llama", "Llama"), "mixtral": ("transformers.models.mixtral", "Mixtral")}


def complete(fields: dict[str, Any]) -> Any:
    """transformers' config of these fields. Raises ConfigError if transformers refuses them."""
    module, name = _CLASSES[fields["model_type"]]
    kind = getattr(importlib.import_module(f"{module}.configuration_{fields['model_type']}"), f"{name}Config")
    try:
        return kind(**{**fields, "use_cache": False})
    except Exception as error:  # whatever its validation raises is about the user's fields
        raise ConfigError(f"transformers does not accept train.model.config: {one_line(error, 400)}") from None


def on_meta(config: Any) -> nn.Module:
    """LlamaForCausalLM or MixtralForCausalLM without storage."""
    module, name = _CLASSES[config.model_type]
    kind = getattr(importlib.import_module(f"{module}.modeling_{config.model_type}"), f"{name}ForCausalLM")
    if config.model_type == "mixtral":
        config._experts_implementation = experts.register()
    config._attn_implementation = attention.register()
    try:
        with torch.device("meta"):
            model: nn.Module = kind(config)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"transformers cannot build a model from train.model: {one_line(error, 400)}") from None
    return model.train()


def restore_buffers(model: Any, device: torch.device) -> None:
    """Compute what the meta device could not hold and no checkpoint carries: the rotary frequencies."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)


def give_storage(model: Any, device: torch.device) -> None:
    """Storage without values, and the buffers, for every stage of a ParallelModel."""
    for stage in model.stages:
        weights.materialise(stage, device)
        restore_buffers(stage, device)


def give_weights(model: Any, device: torch.device, fill: Callable[[Any], None]) -> None:
    """Storage, buffers and first weights for every stage of a ParallelModel; `fill` draws or reads them."""
    give_storage(model, device)
    fill(model)
