"""The truth that layouts are compared with: transformers' model as it is, torch's AdamW and clipping, one process,
fp32. Nothing of the trainer but its first weights, its learning rate and which parameters decay."""

from __future__ import annotations

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
    from transformers import LlamaConfig, LlamaForCausalLM

    train = TrainConfig.model_validate(config)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**shape.fields(train.model), "use_cache": False}))
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
        inputs, targets = Samples().take(numbers)
        mask = None
        if train.data.document_mask:
            documents = Samples().documents(numbers)
            mask = (documents[:, :, None] == documents[:, None]).tril()[:, None]
        logits = model(input_ids=inputs, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        found.append(Step(float(loss.detach()), float(norm), gradients))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, train.steps, step + 1)
        optimizer.step()
        optimizer.zero_grad()
    return found


def save(config: dict[str, Any], file: Path) -> None:
    """Train one process and keep what it found."""
    torch.save([(step.loss, step.norm, step.gradients) for step in steps_of(config)], file)


def load(file: Path) -> list[Step]:
    """What `save` kept."""
    return [Step(*fields) for fields in torch.load(file, weights_only=True)]
