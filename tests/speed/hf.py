"""What the contenders of Hugging Face share: the model and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from speed.cases import MODEL, SEQUENCE


class Samples(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not typed here
    """The same file of tokens, read in the same way."""

    def __init__(self, folder: str) -> None:
        self._tokens = np.memmap(Path(folder) / "shard-00000.bin", dtype="<u2", mode="r")

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // SEQUENCE

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self._tokens[number * SEQUENCE: (number + 1) * SEQUENCE].astype(np.int64))
        return {"input_ids": tokens, "labels": tokens}


def model() -> Any:
    """The model, weights random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**MODEL, use_cache=False)).train()
