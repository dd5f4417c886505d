"""Which experts change places, and how that is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer.parallel import places
from trainer.parallel.load import layer_load
from trainer.parallel.places import plan


@pytest.mark.parametrize(("tokens", "ranks", "expected"), [
    ([5, 5, 5, 5], 2, [0, 1, 2, 3]),
    ([9, 8, 1, 2], 2, [3, 1, 2, 0]),  # 17 and 3; with one exchange 10 and 10
    ([9, 1, 8, 2], 2, [0, 1, 2, 3]),  # 10 and 10 already
    ([40, 1, 1, 1], 2, [0, 1, 2, 3]),  # one expert alone is too busy, its rank has the idlest beside it
    ([40, 5, 1, 1], 2, [2, 1, 0, 3]),  # 41 and 6, whichever goes
    ([7, 3, 2, 1], 4, [0, 1, 2, 3]),  # one each: nothing to change
    ([0, 0, 0, 0], 2, [0, 1, 2, 3]),
    ([4, 4, 4, 4, 0, 0, 0, 0], 4, [4, 1, 6, 3, 0, 5, 2, 7]),
])
def test_plan(tokens: list[float], ranks: int, expected: list[int]) -> None:
    assert plan(tokens, list(range(len(tokens))), ranks, 1.1) == expected


def test_little_gain_is_not_worth_a_move() -> None:
    assert plan([1000, 999, 1001, 1000], [0, 1, 2, 3], 2, 1.0) == [0, 1, 2, 3]


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_plans_only_improve(ranks: int, each: int, data: st.DataObject) -> None:
    count = ranks * each
    tokens = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    before = data.draw(st.permutations(range(count)))
    after = plan(tokens, before, ranks, 1.05)
    assert sorted(after) == list(range(count))
    was, now = (layer_load(0, tokens, [place // each for place in layer]).imbalance for layer in (before, after))
    assert now <= was
    if was <= 1.05:
        assert after == before
    assert plan(tokens, after, ranks, 1.05) == after  # nothing is left to do


def test_places_are_kept_in_few_bytes() -> None:
    layers = [plan([(7 * expert + layer) % 256 for expert in range(256)], range(256), 16, 1.0) for layer in range(64)]
    text = places.dump(layers)
    assert places.read(text, 64, 256) == layers
    assert len(text) < 48 << 10  # a copy in memory has 64 KiB for all counters
    with pytest.raises(ValueError, match="63 x 256"):
        places.read(text, 63, 256)
    with pytest.raises(ValueError, match="128 x 128"):
        places.read(text, 128, 128)
