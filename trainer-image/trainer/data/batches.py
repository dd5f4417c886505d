"""The training samples: sources opened, mixed, packed to the sequence length and dealt out to the ranks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.prepare import Cache, Say, prepare
from trainer.data.sampler import Mixture
from trainer.data.sources import SMALL, Files
from trainer.data.tokens import Stream, open_stream
from trainer.distributed import Gang, tell_all, tell_all_after_long_work
from trainer.errors import ConfigError


class Packed:
    """Samples of one stream: sample i is sequence_length + 1 tokens from token i x sequence_length on, so that every
    token but the first is a target once an epoch. Documents are not padded; they follow each other."""

    def __init__(self, stream: Stream, sequence_length: int, where: str) -> None:
        self._stream = stream
        self._length = sequence_length
        self.where = where
        self.samples = (stream.tokens - 1) // sequence_length
        if self.samples < 1:
            raise ConfigError(f"{where}: {stream.tokens} tokens are fewer than one sample of sequenceLength "
                              f"{sequence_length} (and the token after it)")

    def __getitem__(self, sample: int) -> NDArray[np.int64]:
        return self._stream.read(sample * self._length, self._length + 1)

    def documents(self, sample: int) -> NDArray[np.int64]:
        """Which document each of the sample's inputs is of, counted from 0."""
        return self._stream.documents(sample * self._length, self._length)


class Batches:
    """Batches of the whole gang, of which each rank takes its part. The batch that begins with sample n holds samples
    n .. n + batch_size - 1 in this order, whatever the number of ranks."""

    def __init__(self, packed: Sequence[Packed], weights: Sequence[float], seed: int, vocab_size: int) -> None:
        self._packed = packed
        self._mixture = Mixture([one.samples for one in packed], weights, seed)
        self._vocab_size = vocab_size

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(one.samples for one in self._packed)

    def take(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets (len(numbers), sequence_length), int64, of the samples with these numbers.

        Raises ConfigError if the data has a token that the model does not know."""
        origins, samples = self._mixture.locate(numbers)
        rows = [self._packed[origin][sample] for origin, sample in zip(origins.tolist(), samples.tolist(), strict=True)]
        tokens = torch.from_numpy(np.stack(rows))
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._vocab_size:
            raise ConfigError(f"{self._packed[int(origins[0])].where}: the data has token {high if low >= 0 else low}, "
                              f"but the model's vocab_size is {self._vocab_size}")
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, numbers: NDArray[np.int64]) -> torch.Tensor | None:
        """Which document each input is of, (len(numbers), sequence_length), counted from 0 in each sample; None if no
        sample has more than one, so that attention need not look."""
        origins, samples = self._mixture.locate(numbers)
        rows = [self._packed[origin].documents(sample)
                for origin, sample in zip(origins.tolist(), samples.tolist(), strict=True)]
        return torch.from_numpy(np.stack(rows)) if any(row[-1] for row in rows) else None


def numbers_of(first: int, micro_batch: int, size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Samples of one micro-batch of one rank, in the batch that begins with sample `first`."""
    start = first + (micro_batch * world_size + rank) * size
    return np.arange(start, start + size, dtype=np.int64)


def open_all(found: Sequence[Files], tokenizer: Path | None, cache: Path | None, gang: Gang, threads: int,
             ranks_per_node: int, stop: Callable[[], bool]) -> list[Files]:
    """Tokenise what has to be, once, and return the sources as tokenised ones.

    With `cache`, a folder that all ranks share, rank 0 does it and the others wait; without, the first rank of every
    node does it in a temporary folder. Raises ConfigError on every rank if one cannot, Drained once `stop` says so."""
    raw = [files for files in found if files.raw]
    if not raw:
        return list(found)
    assert tokenizer is not None  # checked before
    store = Cache(cache or Path(tempfile.gettempdir()) / "trainyard-data")
    teller = None if cache else ranks_per_node
    places = tell_all_after_long_work(gang, lambda: [store.folder(files, tokenizer) for files in raw], stop, teller)
    ready = tell_all(gang, lambda: [store.ready(folder) for folder, _ in places], teller)
    if not all(ready):
        works = gang.rank % (teller or gang.world_size) == 0
        if not works:
            print(f"rank {gang.rank} waits while rank {gang.rank - gang.rank % (teller or gang.world_size)} prepares "
                  f"data", flush=True)
        tell_all_after_long_work(gang, lambda: _prepare_missing(raw, places, ready, tokenizer, threads), stop, teller)
    done = iter(places)
    return [Files(files.where, "prepared", files.field, files.weight, (next(done)[0],)) if files.raw else files
            for files in found]


def _prepare_missing(raw: list[Files], places: list[tuple[Path, str]], ready: list[bool], tokenizer: Path,
                     threads: int) -> None:
    for files, (folder, key), done in zip(raw, places, ready, strict=True):
        if not done:
            print(f"preparing {files.where}: {files.bytes / 1e6:.1f} MB in {len(files.paths)} files", flush=True)
            index = prepare(files, tokenizer, folder, threads, _say(files.where), key)
            print(f"prepared {files.where}: {index.tokens} tokens", flush=True)


def _say(where: str) -> Say:
    def say(text: str) -> None:
        print(f"preparing {where}: {text}", flush=True)

    return say


def check(found: Sequence[Files], tokenizer: str | None) -> None:
    """What can be seen of the data without reading it. Raises ConfigError."""
    raw = [files for files in found if files.raw]
    if not raw:
        return
    if tokenizer is None:
        raise ConfigError(f"train.data.tokenizer is needed to read {raw[0].where} (format {raw[0].format})")
    total = sum(files.bytes for files in raw)
    if total > SMALL:
        raise ConfigError(f"train.data has {total / 1e9:.1f} GB of text; above {SMALL / 1e9:.0f} GB prepare it first: "
                          f"python -m trainer.prepare --input ... --tokenizer {tokenizer} --output FOLDER, then use "
                          f"FOLDER as path")


def batches(found: Sequence[Files], sequence_length: int, seed: int, vocab_size: int) -> Batches:
    """Open tokenised sources. Raises ConfigError."""
    packed = [Packed(open_stream(files), sequence_length, f"{files.where}.path") for files in found]
    return Batches(packed, [files.weight for files in found], seed, vocab_size)
