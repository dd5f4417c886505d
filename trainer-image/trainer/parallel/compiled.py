"""`train.compile`: torch.compile block by block."""

from __future__ import annotations

import importlib.util
from types import MethodType
from typing import Any

import torch

from trainer.parallel.layout import Layout
from trainer.parallel.pipeline import present


def problem(device: torch.device, layout: Layout, kind: str, checkpointing: str) -> str | None:
    """Why blocks of a model of this `kind` (model_type) are not compiled here, or None if they are.

    Tensor parallelism is left out as torch loses the embedding's gradient there, silently; the exchanges of context
    parallelism and the routes of a mixture break the graph into pieces too small to be worth it; what selective
    checkpointing keeps it finds operator by operator, of which a compiled block shows none."""
    if layout.tensor > 1 or layout.context > 1 or kind == "mixtral":
        return "blocks are compiled for dense models without tensor and context parallelism only"
    if checkpointing == "selective":
        return "blocks are not compiled with activationCheckpointing selective; use full or none"
    if device.type == "cpu":
        from torch._inductor import exc
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "there is no C++ compiler in this image: install g++, or set $CXX"
    elif importlib.util.find_spec("triton") is None:
        return "triton is not installed in this image"
    return None


def apply(model: Any) -> None:
    """Compile the blocks of a meta model, in place. What torch cannot compile after all runs as it is, with a warning
    of torch's: training does not depend on it."""
    torch._dynamo.config.suppress_errors = True
    for block in present(model):
        block.forward = torch.compile(MethodType(_forward, block))


def _forward(block: Any, *given: Any, **named: Any) -> Any:
    """That of the class that a block has when it is called. FSDP2 will give it another class, and what transformers'
    checkpointing does, it does in the forward of the block's own class only, not in that of a base class: the bound
    method that there is now would keep everything."""
    return type(block).forward(block, *given, **named)
