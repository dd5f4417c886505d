"""Types of computation, and the loss scale that fp16 needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from trainer.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(asked: str, device: torch.device) -> Precision:
    """`auto` made definite: fp32 on a CPU, bf16 where the device has it, else fp16 (Ascend 910A).

    Raises ConfigError for bf16 on a device without it."""
    if device.type == "cpu":
        return "fp32" if asked == "auto" else asked  # type: ignore[return-value]
    module: Any = getattr(torch, device.type)
    if asked in ("auto", "bf16") and module.is_bf16_supported():
        return "bf16"
    if asked == "bf16":
        raise ConfigError(f"train.precision is bf16, which this device ({device.type}) does not have; use auto or fp16")
    return "fp16" if asked == "auto" else asked  # type: ignore[return-value]


def flush_denormals() -> None:
    """Take numbers below 1.2e-38 for zero in this thread and those that it starts: before the first that computes.

    AdamW's moments of a row that gets no gradients any more, such as a rare token's, shrink until they are that small
    and stay so, with which a CPU computes ten times as long (112 ms against 10 for 8 million parameters)."""
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # numpy looks for the smallest of them, once, and warns where there is none
    torch.set_flush_denormal(True)


@dataclass
class LossScale:
    """The factor that keeps small fp16 gradients from vanishing. Every rank sees the same overflows, because they
    are summed over the gang, so every rank has the same scale."""

    value: float = 2.0**16
    good_steps: int = 0  # since the last change
    growth_steps: int = 1000  # good steps after which a larger scale is tried
    largest: float = 2.0**24

    def overflowed(self) -> None:
        """Gradients were not finite: the step is skipped and the scale halved."""
        self.value = max(self.value / 2, 2.0**-14)
        self.good_steps = 0

    def succeeded(self) -> None:
        """Gradients were finite."""
        self.good_steps += 1
        if self.good_steps >= self.growth_steps:
            self.value = min(self.value * 2, self.largest)
            self.good_steps = 0

    @property
    def exhausted(self) -> bool:
        """Overflow at the smallest scale: the loss itself is not finite."""
        return self.value <= 2.0**-14


def clear_overflow(device: torch.device) -> None:
    """Forget earlier overflows; 910A saturates instead of making infinities, and keeps a flag."""
    if device.type == "npu":
        torch.npu.utils.clear_npu_overflow_flag()


def overflow_seen(device: torch.device) -> bool:
    """Did a computation on this device overflow since `clear_overflow`? On other devices the gradients tell."""
    return device.type == "npu" and bool(torch.npu.utils.get_npu_overflow_flag())
