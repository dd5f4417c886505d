"""Which sample comes when: a pure function of (seed, number of the sample), for any number of ranks.

Nothing is stored and nothing is shuffled in memory: sample n's place is computed, so a run goes on at any step at
once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

ROUNDS = 6
CYCLE = 1 << 16  # slots over which weights are met exactly; a source has at least one of them


def _key(*parts: object) -> int:
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Permutation:
    """A pseudorandom permutation of 0 .. size-1, computed number by number (a Feistel network on the next power of
    four; numbers beyond `size` are sent through again until they fall inside)."""

    def __init__(self, size: int, *key: object) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one number, found {size}")
        self.size = size
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._keys = [np.uint64(_key(*key, size, number)) for number in range(ROUNDS)]

    def __call__(self, numbers: Numbers) -> Numbers:
        """The places of these numbers; same shape."""
        placed = self._pass(numbers.astype(np.uint64))
        outside = placed >= np.uint64(self.size)
        while outside.any():
            placed[outside] = self._pass(placed[outside])
            outside = placed >= np.uint64(self.size)
        return placed.astype(np.int64)

    def _pass(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the number."""
    with np.errstate(over="ignore"):
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class Mixture:
    """Samples of several sources, mixed by weight. Each source is gone through in a new order every epoch of its own.

    Sources take turns in a fixed cycle that spreads each one evenly, so the mix is right in any stretch of it."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._sizes = list(sizes)
        self._seed = seed
        self._slots = _share_out(weights)
        self._turns = _interleave(self._slots)
        self._nth = np.zeros_like(self._turns)
        for source, count in enumerate(self._slots):
            self._nth[self._turns == source] = np.arange(count)

    def locate(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source and sample within the source of the samples with these numbers (0, 1, 2, ... without end)."""
        cycle, slot = np.divmod(numbers, len(self._turns))
        sources = self._turns[slot]
        samples = np.empty_like(numbers)
        for source in np.unique(sources):
            mine = sources == source
            drawn = cycle[mine] * self._slots[source] + self._nth[slot[mine]]
            samples[mine] = self._in_order(int(source), drawn)
        return sources, samples

    def _in_order(self, source: int, drawn: Numbers) -> Numbers:
        epochs, places = np.divmod(drawn, self._sizes[source])
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            permutation = Permutation(self._sizes[source], self._seed, source, int(epoch))
            places[mine] = permutation(places[mine])
        return places


def _share_out(weights: Sequence[float]) -> list[int]:
    """Slots of a cycle for each weight, by largest remainder, at least one each."""
    if len(weights) == 1:
        return [1]
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * CYCLE
    slots = np.maximum(np.floor(exact), 1).astype(np.int64)
    while slots.sum() < CYCLE:
        slots[np.argmax(exact - slots)] += 1
    while slots.sum() > CYCLE:
        slots[np.argmax(slots)] -= 1
    return [int(count) for count in slots]


def _interleave(slots: list[int]) -> Numbers:
    """Whose turn it is in each slot: the k-th of m turns of a source belongs at (k + 1/2) / m of the cycle."""
    positions = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
    sources = np.repeat(np.arange(len(slots)), slots)
    turns: Numbers = sources[np.lexsort((sources, positions))].astype(np.int64)
    return turns
