"""A training loop written with Accelerate, as its documentation has it, as a contender."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from speed.cases import BATCH, LOG_EVERY
from speed.hf import Samples, model
from speed.turns import Turns, told

TURNS = Turns()


def main() -> None:
    """Train until the end of the last turn."""
    case = told()
    tuned = bool(case.get("tuned"))
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case["precision"] == "bf16" else "no",
                              **({"dynamo_backend": "inductor"} if case.get("compile") else {}))  # fmt: skip
    network = model()
    settings: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True} if tuned else {}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, **settings)
    loader = torch.utils.data.DataLoader(Samples(case["data"]), batch_size=BATCH, shuffle=True)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)

    def stall() -> float:
        started = time.perf_counter()
        accelerator.save_state(f"{case['folder']}/state")
        return time.perf_counter() - started

    TURNS.answers["stall"] = stall
    step = 0
    while True:
        batches = iter(loader)
        while True:
            TURNS.boundary()
            started = time.perf_counter()
            batch = next(batches, None)
            TURNS.waited += time.perf_counter() - started
            if batch is None:
                break
            loss = network(**batch).loss
            accelerator.backward(loss)
            if tuned:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if tuned and step % LOG_EVERY == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
