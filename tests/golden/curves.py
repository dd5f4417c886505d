"""Golden loss curves: 200 steps on real text, kept in this folder. A change that moves one must say so.

    python -m golden.curves            train every curve whole and compare it
    python -m golden.curves --write    train every curve whole and keep what comes out

The text is the first chapters of Genesis in the King James translation, which is in the public domain."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from train.gang import Gang

FOLDER = Path(__file__).parent
STEPS = 200
CLOSE = 2e-3  # of a loss, relative: another processor sums in another order, which training amplifies

CURVES: dict[str, dict[str, Any]] = {
    "llama2-tiny": {"model": {"size": "tiny", "config": {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "max_position_embeddings": 64}}},
    "mixtral-tiny": {"model": {"family": "mixtral", "size": "tiny", "config": {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 86, "num_hidden_layers": 2,
        "num_local_experts": 4, "max_position_embeddings": 64}}},
}


def config_of(name: str, folder: Path) -> dict[str, Any]:
    """The TrainConfig of a curve; `folder` gets the tokenizer and the tokens."""
    return {"data": {"sources": [{"path": str(FOLDER / "genesis.txt")}], "tokenizer": str(tokenizer(folder)),
                     "sequenceLength": 64, "cache": str(folder / "cache")},
            "steps": STEPS, "batchSize": 4, "microBatchSize": 4, "optimizer": {"learningRate": 2e-3}, "seed": 11,
            "precision": "fp32", "export": False, **CURVES[name]}


def tokenizer(folder: Path) -> Path:
    """One token a byte, <s> and </s>: no library's training of a tokenizer is part of the curve."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


def losses(name: str, folder: Path, until: int = STEPS) -> list[float]:
    """Train the first steps of a curve in one process: it is killed after step `until`."""
    config = config_of(name, folder)
    with Gang(folder / "run", [config]) as gang:
        gang.wait_for(lambda progress: progress["step"] >= until if progress else False, seconds=600)
        ended = gang.kill()
    found = [float(ended.losses[step]) for step in sorted(ended.losses)][:until]
    assert len(found) == until, ended.text
    return found


def kept(name: str) -> list[float]:
    """The curve in the repository."""
    values: list[float] = json.loads((FOLDER / f"{name}.json").read_text())["loss"]
    return values


def furthest(found: list[float], golden: list[float]) -> tuple[int, float]:
    """The step, from 1, where a curve is furthest from the golden one, and how far, relative."""
    apart = [abs(one - other) / other for one, other in zip(found, golden, strict=True)]
    worst = max(range(len(apart)), key=apart.__getitem__)
    return worst + 1, apart[worst]


def main(arguments: list[str]) -> int:
    """Compare or write every curve."""
    failed = False
    for name in CURVES:
        with tempfile.TemporaryDirectory() as folder:
            found = losses(name, Path(folder))
        if "--write" in arguments:
            (FOLDER / f"{name}.json").write_text(json.dumps({"loss": found}, indent=0) + "\n")
            print(f"{name}: {found[0]:.4f} to {found[-1]:.4f} written")
            continue
        step, apart = furthest(found, kept(name))
        failed |= apart > CLOSE
        print(f"{name}: {found[0]:.4f} to {found[-1]:.4f}, furthest at step {step}: {apart:.1e}, allowed {CLOSE:.0e}"
              f"{'' if apart <= CLOSE else '; if that is intended: python -m golden.curves --write, and say why'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
