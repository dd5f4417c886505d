"""The truth that layouts are compared with: transformers' model as it is, torch's AdamW and clipping, one process,
fp32. Nothing of the trainer but its first weights, its learning rate and which parameters decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity.samples import BATCH, STEPS, Samples
from trainer.model import shape, weights
from trainer.optimizer import learning_rate
from trainyard.api.train import TrainConfig


@dataclass(frozen=True)
class Step:
    """What one step is compared by: the mean loss, the norm before clipping, every gradient before clipping."""

    loss: float
    norm: float
    gradients: dict[str, torch.Tensor]


def steps_of(config: dict[str, Any]) -> list[Step]:
    """Train one process."""
    train = TrainConfig.model_validate(config)
    model = _model(train)
    weights.draw(model, train.seed)
    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed_tokens" in name]
    settings = train.optimizer
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": settings.weight_decay},
                                   {"params": others, "weight_decay": 0.0}],
                                  betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    found = []
    for step in range(STEPS):
        numbers = np.arange(step * BATCH, (step + 1) * BATCH)
        loss = sum(_backward(model, train, part, len(numbers)) for part in np.array_split(numbers, _parts(train)))
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        found.append(Step(loss, float(norm), gradients))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, train.steps, step + 1)
        optimizer.step()
        optimizer.zero_grad()
    return found


def _model(train: TrainConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    fields = {**shape.fields(train.model), "use_cache": False}
    if train.model.family == "llama2":
        return LlamaForCausalLM(LlamaConfig(**fields))
    model = MixtralForCausalLM(MixtralConfig(**fields, output_router_logits=True, experts_implementation="eager"))
    if train.experts is not None and train.experts.capacity_factor is not None:
        for block in model.model.layers:
            _limit(block.mlp.experts, train.experts.capacity_factor)
    return model


def _limit(experts: Any, factor: float) -> None:
    """What an expert of transformers gets beyond its capacity, heaviest first, counts nothing in its result."""
    everything = experts.forward

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        most = math.ceil(factor * chosen.numel() / experts.num_experts)
        counts = torch.zeros(chosen.numel())
        for expert in range(experts.num_experts):
            wanting = (chosen.flatten() == expert).nonzero()[:, 0]
            heaviest = weights.detach().flatten()[wanting].sort(descending=True, stable=True).indices
            counts[wanting[heaviest[:most]]] = 1.0
        result: torch.Tensor = everything(hidden, chosen, weights * counts.view_as(weights))
        return result

    experts.forward = forward


def _parts(train: TrainConfig) -> int:
    """Into how many a batch is divided: only a mixture tells the difference."""
    return BATCH // train.micro_batch_size if train.model.family == "mixtral" else 1


def _backward(model: Any, train: TrainConfig, numbers: Any, whole: int) -> float:
    """Add the gradients of samples of a batch of `whole`; returns their part of its loss, without what balances a
    mixture's experts."""
    inputs, targets = Samples().take(numbers)
    mask = None
    if train.data.document_mask:
        documents = Samples().documents(numbers)
        mask = (documents[:, :, None] == documents[:, None]).tril()[:, None]
    if train.model.family == "mixtral" and mask is not None:
        raise ValueError("transformers' balancing loss takes no mask of documents")
    found = model(input_ids=inputs, attention_mask=mask)
    loss = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), targets.flatten()) * (len(numbers) / whole)
    balance: Any = 0.0
    if train.model.family == "mixtral":
        balance = model.config.router_aux_loss_coef * found.aux_loss * (len(numbers) / whole)
    (loss + balance).backward()
    return float(loss.detach())


def save(config: dict[str, Any], file: Path) -> None:
    """Train one process and keep what it found."""
    torch.save([(step.loss, step.norm, step.gradients) for step in steps_of(config)], file)


def load(file: Path) -> list[Step]:
    """What `save` kept."""
    return [Step(*fields) for fields in torch.load(file, weights_only=True)]
