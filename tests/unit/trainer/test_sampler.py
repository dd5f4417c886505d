"""The order of the data: a permutation, seekable, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer.data.batches import numbers_of
from trainer.data.sampler import CYCLE, Mixture, Permutation


@given(size=st.integers(1, 5000), key=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_permutation_holds_every_number_once(size: int, key: int) -> None:
    placed = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(placed), np.arange(size))


@given(size=st.integers(1, 2**50), places=st.lists(st.integers(0, 2**50), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_place_does_not_depend_on_what_was_asked_before(size: int, places: list[int]) -> None:
    numbers = np.asarray(places) % size
    together = Permutation(size, 1)(numbers)
    assert [int(Permutation(size, 1)(np.asarray([number]))[0]) for number in numbers] == together.tolist()
    assert ((together >= 0) & (together < size)).all()


def test_orders_of_seeds_and_epochs_differ() -> None:
    numbers = np.arange(1000)
    orders = {tuple(Permutation(1000, seed, epoch)(numbers).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    displaced = np.abs(Permutation(1000, 0)(numbers) - numbers)
    assert displaced.mean() == pytest.approx(1000 / 3, rel=0.15)  # what a random order has


@given(sizes=st.lists(st.integers(5, 300), min_size=1, max_size=4), seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=25, deadline=None)
def test_each_source_is_gone_through_once_an_epoch(sizes: list[int], seed: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    sources, samples = Mixture(sizes, weights, seed).locate(np.arange(600))
    for source, size in enumerate(sizes):
        drawn = samples[sources == source]
        for epoch in range(len(drawn) // size):
            assert sorted(drawn[epoch * size:(epoch + 1) * size]) == list(range(size))


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8))
@settings(max_examples=20, deadline=None)
def test_weights_are_met(weights: list[float]) -> None:
    sources, _ = Mixture([10**6] * len(weights), weights, 0).locate(np.arange(CYCLE))
    shares = np.bincount(sources, minlength=len(weights)) / CYCLE
    assert shares == pytest.approx(np.asarray(weights) / sum(weights), abs=len(weights) / CYCLE)


def test_weights_are_met_in_any_stretch() -> None:
    sources, _ = Mixture([10**6] * 2, [3, 1], 0).locate(np.arange(10_000, 10_400))
    assert (sources == 0).sum() == pytest.approx(300, abs=1)


def test_a_million_sources_apart_weights_still_give_each_a_slot() -> None:
    sources, _ = Mixture([10**6, 10], [1e9, 1e-9], 0).locate(np.arange(CYCLE))
    assert (sources == 1).sum() == 1


@given(world=st.sampled_from([1, 2, 3, 4, 6, 12]), micro=st.sampled_from([1, 2, 4]), step=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_batch_is_the_same_for_any_number_of_ranks(world: int, micro: int, step: int) -> None:
    batch = 48
    first = step * batch
    micro_batches = batch // (world * micro)
    dealt = [number for part in range(micro_batches) for rank in range(world)
             for number in numbers_of(first, part, micro, rank, world).tolist()]
    assert dealt == list(range(first, first + batch))
