"""Which model: a published shape or a Hugging Face config, without importing transformers or torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainyard.api.train import ModelConfig
from trainyard.layout.shape import COMMON, SIZES

from trainer.errors import ConfigError


def fields(model: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config fields of the model: the files of `path` or the shape of `size`, `config` over it.

    Raises ConfigError if they cannot be read or do not describe a model of its family."""
    found: dict[str, Any] = {}
    if model.path is not None:
        found = _read(Path(model.path) / "config.json")
    elif model.size is not None:
        found = dict(SIZES[model.family][model.size])
    found.update(model.config or {})
    common = COMMON[model.family]
    kind = found.setdefault("model_type", common["model_type"])
    if kind != common["model_type"]:
        raise ConfigError(f"train.model should be of model_type {common['model_type']!r} (family {model.family}), "
                          f"found {kind!r}")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "max_position_embeddings"):
        value = found.setdefault(name, common.get(name))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"train.model.config.{name} should be a whole number of at least 1, found {value!r}")
    heads, kv_heads = found["num_attention_heads"], found.get("num_key_value_heads")
    if kv_heads is not None and (not isinstance(kv_heads, int) or kv_heads < 1 or heads % kv_heads):
        raise ConfigError(f"train.model.config.num_key_value_heads should divide num_attention_heads, {heads}, found "
                          f"{kv_heads!r}")
    if kind == "mixtral":
        _check_mixture(found, common)
    return found


def _check_mixture(found: dict[str, Any], common: dict[str, Any]) -> None:
    """Complete the fields of a mixture of experts. Raises ConfigError."""
    for name in ("num_local_experts", "num_experts_per_tok"):
        value = found.setdefault(name, common[name])
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"train.model.config.{name} should be a whole number of at least 1, found {value!r}")
    if found["num_experts_per_tok"] > found["num_local_experts"]:
        raise ConfigError(f"train.model.config.num_experts_per_tok should be at most num_local_experts, "
                          f"{found['num_local_experts']}, found {found['num_experts_per_tok']}")
    weight = found.setdefault("router_aux_loss_coef", common["router_aux_loss_coef"])
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
        raise ConfigError(f"train.model.config.router_aux_loss_coef should be a number of at least 0, found {weight!r}")
    if found.get("sliding_window") is not None:
        raise ConfigError(f"train.model.config.sliding_window should be null: attention is over whole samples, found "
                          f"{found['sliding_window']!r}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"train.model.path should be a Hugging Face folder: cannot read {path}: "
                          f"{error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} should hold a JSON object, found {type(content).__name__}")
    return content


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two models the same, so that one's checkpoint can be loaded into the other: the fields that decide
    shapes and meaning of the weights, with transformers' defaults where they are left out."""
    heads = config["num_attention_heads"]
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    same: dict[str, Any] = {name: config[name] for name in (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    for name, default in (("num_key_value_heads", heads), ("head_dim", config["hidden_size"] // heads),
                          ("hidden_act", "silu"), ("rms_norm_eps", 1e-6), ("tie_word_embeddings", False),
                          ("attention_bias", False), ("mlp_bias", False)):
        value = config.get(name)
        same[name] = default if value is None else value
    usual = COMMON["mixtral" if config["model_type"] == "mixtral" else "llama2"]["rope_theta"]
    same["rope_theta"] = float(rope.pop("rope_theta", None) or config.get("rope_theta") or usual)
    same["rope_type"] = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    if same["model_type"] == "mixtral":
        same |= {name: config[name] for name in ("num_local_experts", "num_experts_per_tok")}
    if same["rope_type"] != "default":
        same["rope_scaling"] = {name: value for name, value in sorted(rope.items()) if name != "type"}
    return same


def check_sequence(config: dict[str, Any], sequence_length: int) -> None:
    """Raise ConfigError if a sample is longer than the model's positions."""
    longest = config["max_position_embeddings"]
    if sequence_length > longest:
        raise ConfigError(f"train.data.sequenceLength should be at most the model's max_position_embeddings, "
                          f"{longest}, found {sequence_length}")
