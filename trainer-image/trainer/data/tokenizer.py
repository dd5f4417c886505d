"""Tokenizers: a Hugging Face folder, a tokenizer.json, or a SentencePiece model."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import ConfigError, one_line

HF_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
            "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")
BEGIN = ("<s>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]")
END = ("</s>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")


class Tokenizer(Protocol):
    """What this trainer needs of one."""

    vocab_size: int
    bos: int | None
    eos: int | None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, without begin and end."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens."""
        ...


class SentencePiece:
    """Llama's kind."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model: Any = SentencePieceProcessor(model_file=str(path))
        self.vocab_size: int = self._model.vocab_size()
        self.bos: int | None = _valid(self._model.bos_id())
        self.eos: int | None = _valid(self._model.eos_id())

    def encode(self, texts: list[str]) -> list[list[int]]:
        tokens: list[list[int]] = self._model.encode(texts, out_type=int, num_threads=1)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        return str(self._model.decode(tokens))


class Fast:
    """A tokenizer.json, with the names of its special tokens from the files beside it."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are our parallelism
        from tokenizers import Tokenizer as Rust

        self._model: Any = Rust.from_file(str(path))
        self._model.no_truncation()
        self._model.no_padding()
        self.vocab_size: int = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        named = _special_tokens(path.parent)
        self.bos = self._find("bos_token", named, BEGIN)
        self.eos = self._find("eos_token", named, END)

    def _find(self, kind: str, named: dict[str, str], usual: tuple[str, ...]) -> int | None:
        for text in (named[kind],) if kind in named else usual:
            token: int | None = self._model.token_to_id(text)
            if token is not None:
                return token
        return None

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [one.ids for one in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: list[int]) -> str:
        return str(self._model.decode(tokens))


def _valid(token: int) -> int | None:
    return token if token >= 0 else None


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token and eos_token as the Hugging Face files name them, where there are such files."""
    named: dict[str, str] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        for kind in ("bos_token", "eos_token"):
            token = content.get(kind)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                named.setdefault(kind, text)
    return named


def find(path: Path) -> Path:
    """The file to open: `path` itself, or what a Hugging Face folder holds. Raises ConfigError."""
    if path.is_dir():
        for name in ("tokenizer.json", "tokenizer.model"):
            if (path / name).is_file():
                return path / name
        raise ConfigError(f"train.data.tokenizer: the folder {path} should hold tokenizer.json or tokenizer.model, "
                          f"found neither")
    if not path.is_file():
        raise ConfigError(f"train.data.tokenizer: {path} does not exist; it should be a Hugging Face folder, a "
                          f"tokenizer.json or a SentencePiece .model file that every pod can read")
    return path


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer. Raises ConfigError if it is missing or cannot be read."""
    file = find(path)
    try:
        return Fast(file) if file.suffix == ".json" else SentencePiece(file)
    except Exception as error:  # two libraries, many kinds of bad files
        raise ConfigError(f"train.data.tokenizer: cannot read {file} as a "
                          f"{'tokenizer.json' if file.suffix == '.json' else 'SentencePiece model'}: "
                          f"{one_line(error, 300)}") from None


def digest(path: Path) -> str:
    """Hash of everything that decides the tokens."""
    file = find(path)
    total = hashlib.sha256()
    beside = [file.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    for part in [file, *(beside if file.suffix == ".json" else [])]:
        if part.exists():
            total.update(part.read_bytes())
    return total.hexdigest()
