"""The model, the data and who takes part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from trainer.data.tokens import Index, Shard, write_index

MODEL = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256}  # fmt: skip
SEQUENCE = 256
BATCH = 4  # samples a step and process
TOKENS = 1_000_000
LOG_EVERY = 10
THEIRS = {"HF Trainer": "speed.hf_trainer", "Accelerate": "speed.hf_accelerate"}


@dataclass(frozen=True)
class Case:
    """One contender: `program` is the module that plays it, `options` what that module is told."""

    name: str
    program: str
    precision: str = "fp32"
    ranks: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def ours(name: str, precision: str = "fp32", ranks: int = 1, **options: Any) -> Case:
    """The trainer of this repository. Options: `train`, fields of TrainConfig; `alone`: ranks that know nothing of each
    other; `memory`: copies in memory."""
    return Case(name, "speed.ours", precision, ranks, options)


def one_process() -> list[Case]:
    """One process with every core. Like for like: AdamW with the same hyperparameters, fused, the norm clipped, the
    same schedule, a log line every ten steps. Defaults: what each does when it is told the model, the data, the batch
    and the precision only."""
    found = []
    for precision in ("fp32", "bf16"):
        found += [
            ours(f"Trainyard, {precision}", precision),
            *(Case(f"{name}, {precision}, every switch on", program, precision, options={"tuned": True})
              for name, program in THEIRS.items()),
            *(Case(f"{name}, {precision}, defaults", program, precision) for name, program in THEIRS.items()),
        ]  # fmt: skip
    return found


def compiled() -> list[Case]:
    """One process, like for like, with torch.compile as well: of blocks here (`train.compile`), of the whole model in
    theirs; and without it here."""
    found = []
    for precision in ("fp32", "bf16"):
        found += [
            ours(f"Trainyard, {precision}", precision),
            ours(f"Trainyard, {precision}, compiled", precision, train={"compile": True}),
            *(Case(f"{name}, {precision}, every switch on, compiled", program, precision,
                   options={"tuned": True, "compile": True}) for name, program in THEIRS.items()),
        ]  # fmt: skip
    return found


LAYOUTS: dict[str, dict[str, Any]] = {
    "FSDP2, ZeRO-3": {"shard": 2, "zero": 3}, "FSDP2, ZeRO-2": {"shard": 2, "zero": 2}, "replicas": {"data": 2},
    "tensor": {"tensor": 2}, "pipeline, 1F1B": {"pipeline": 2}, "context, Ulysses": {"context": 2, "ulysses": 2},
}  # fmt: skip


def two_processes(precisions: tuple[str, ...] = ("fp32", "bf16")) -> list[Case]:
    """Two processes of a core each; the same samples a core in all of them."""
    found = []
    for precision in precisions:
        found.append(ours(f"no communication, {precision}", precision, 2, alone=True))
        for name, spread in LAYOUTS.items():
            one = {"data": 1, "shard": 1, "tensor": 1, "pipeline": 1, "context": 1, **spread}
            micro = BATCH // 2 if "pipeline" in spread else BATCH
            found.append(ours(f"{name}, {precision}", precision, 2, train={
                "parallel": one, "batchSize": 2 * BATCH, "microBatchSize": micro}))
    return found


def copies() -> list[Case]:
    """Two processes with and without copies in memory."""
    return [ours("without copies in memory", ranks=2), ours("with copies in memory", ranks=2, memory=True)]


def write_tokens(folder: Path, vocabulary: int = MODEL["vocab_size"]) -> Path:
    """One long document of random tokens, as trainer.prepare would have written it; frequencies like those of text."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(5).zipf(1.2, TOKENS) % vocabulary
    content = drawn.astype("<u2").tobytes()
    (folder / "shard-00000.bin").write_bytes(content)
    (folder / "shard-00000.doc").write_bytes(np.zeros(1, dtype="<u8").tobytes())
    shard = Shard("shard-00000.bin", TOKENS, 1, hashlib.sha256(content).hexdigest())
    write_index(folder, Index("uint16", vocabulary, "speed", (shard,)))
    return folder
