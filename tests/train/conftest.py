"""A small text and tokenizer, and a model that trains in milliseconds a step."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
from unit.supervisor.conftest import api, start  # noqa: F401  (fixtures of test_supervisor.py)


def write_text(path: Path, sentences: int, seed: int) -> None:
    """Text with something to learn: words that follow each other more often than by chance."""
    draw = random.Random(seed)
    subjects, verbs, objects = ["the king", "a prophet", "the people", "my son"], ["saw", "heard", "loved", "left"], [
        "the city", "a great river", "the mountain", "their fathers", "the temple"]
    lines = (f"And {draw.choice(subjects)} {draw.choice(verbs)} {draw.choice(objects)}.\n" for _ in range(sentences))
    path.write_text("".join(lines))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt, held-out.txt and tokenizer.json (BPE, 384 tokens, <s> and </s>)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("corpus")
    write_text(folder / "train.txt", 6000, 1)
    write_text(folder / "held-out.txt", 500, 2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([str(folder / "train.txt")], trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def config(corpus: Path) -> dict[str, Any]:
    """A TrainConfig of about 150,000 parameters, 8 samples of 32 tokens a step."""
    return copy.deepcopy({
        "model": {"size": "tiny", "config": {
            "vocab_size": 384, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}},
        "data": {"sources": [{"path": str(corpus / "train.txt")}], "tokenizer": str(corpus / "tokenizer.json"),
                 "sequenceLength": 32, "cache": str(corpus / "cache")},
        "steps": 30, "batchSize": 8, "microBatchSize": 1, "optimizer": {"learningRate": 3e-3}, "seed": 7,
    })
