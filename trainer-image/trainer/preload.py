"""What a rank needs that is the same for every rank: done once in each pod, by the process that ranks are forked from.

Nothing here may touch a device or a process group, or leave a thread behind (docs/supervisor.md)."""

from __future__ import annotations

import contextlib
import importlib

# Imported lazily or late by the trainer, torch or transformers: each would cost every rank at its start.
MODULES = (
    "trainer.pretrain",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.pipelining.schedules",
    "transformers.models.llama.configuration_llama",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.configuration_mixtral",
    "transformers.models.mixtral.modeling_mixtral",
    "numpy.ma",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch.profiler._cupti_monitor",
    "yaml",
)


def warm_up() -> None:
    """Import everything. What is not there, in another version of a library, is not needed."""
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
