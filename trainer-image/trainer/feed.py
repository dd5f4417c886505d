"""Micro-batches of a rank: which samples of a batch are its own, and padding where the ranks do not divide it."""

from __future__ import annotations

import numpy as np
import torch
from trainyard.api.train import TrainConfig

from trainer.data import batches as data
from trainer.data.batches import Batches
from trainer.parallel.model import MicroBatch, ParallelModel


def micro_batch(batches: Batches, config: TrainConfig, model: ParallelModel, batch_size: int, first: int,
                number: int) -> MicroBatch:
    """One micro-batch of this rank in the batch that begins with sample `first`. Ranks that share samples (tensor,
    context, pipeline) take the same."""
    numbers = data.numbers_of(first, number, config.micro_batch_size, model.mesh.batch_rank, model.layout.batch_ranks)
    padding = numbers >= first + batch_size  # of zero weight, where the ranks do not divide the batch
    numbers = np.where(padding, first, numbers)
    documents = batches.documents(numbers) if config.data.document_mask else None
    inputs, targets = batches.take(numbers)
    if padding.any():  # not in place: inputs and targets of a single sample share their memory
        targets = targets.masked_fill(torch.from_numpy(padding)[:, None], -1)
    return MicroBatch(inputs, targets, documents)
