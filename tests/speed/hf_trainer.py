"""Hugging Face's Trainer as a contender."""

from __future__ import annotations

import time
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.data import default_data_collator

from speed.cases import BATCH, LOG_EVERY
from speed.hf import Samples, model
from speed.turns import Turns, told

TURNS = Turns()


class Boundary(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Waits for its turn before a step."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Between two optimizer steps."""
        TURNS.boundary()


class Timed(Trainer):  # type: ignore[misc]
    """Times how long it waits for data, and a checkpoint."""

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """The batch of a step."""
        started = time.perf_counter()
        found = super().get_batch_samples(*given, **named)
        TURNS.waited += time.perf_counter() - started
        return found

    def stall(self) -> float:
        """Seconds that training stands still for a checkpoint: it writes all of it first."""
        started = time.perf_counter()
        self._save_checkpoint(self.model, None)
        return time.perf_counter() - started


def main() -> None:
    """Train until the end of the last turn."""
    case = told()
    tuned: dict[str, Any] = {}
    if case.get("tuned"):
        tuned = {"optim": "adamw_torch_fused", "learning_rate": 1e-4, "weight_decay": 0.1, "adam_beta2": 0.95,
                 "lr_scheduler_type": "cosine", "warmup_steps": 10, "max_grad_norm": 1.0, "logging_steps": LOG_EVERY,
                 "torch_compile": case.get("compile", False)}  # fmt: skip
    arguments = TrainingArguments(
        output_dir=case["folder"], per_device_train_batch_size=BATCH, max_steps=1_000_000, use_cpu=True,
        bf16=case["precision"] == "bf16", save_strategy="no", report_to="none", disable_tqdm=True, **tuned)
    trainer = Timed(model=model(), args=arguments, train_dataset=Samples(case["data"]),
                    data_collator=default_data_collator, callbacks=[Boundary()])
    TURNS.answers["stall"] = trainer.stall
    trainer.train()


if __name__ == "__main__":
    main()
