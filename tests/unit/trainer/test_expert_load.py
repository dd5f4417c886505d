"""How evenly experts are busy, from the tokens that each got."""

from __future__ import annotations

import pytest
from trainer.parallel.load import Balance, LayerLoad, layer_load


@pytest.mark.parametrize(("tokens", "ranks", "expected"), [
    ([10, 10, 10, 10], [0, 0, 1, 1], LayerLoad(0, 1.0, 0, 0.25, 0)),
    ([30, 10, 0, 0], [0, 0, 1, 1], LayerLoad(0, 2.0, 0, 0.75, 2)),
    ([30, 10, 0, 0], [0, 1, 1, 0], LayerLoad(0, 1.5, 0, 0.75, 2)),  # an expert has moved
    ([1, 5, 5, 1], [0, 1, 2, 3], LayerLoad(0, 5 / 3, 1, 5 / 12, 0)),
    ([1, 9], [0, 0], LayerLoad(0, 1.0, 1, 0.9, 0)),  # nobody shares them
    ([0, 0], [0, 1], LayerLoad(0, 1.0, 0, 0.0, 2)),
])
def test_layer_load(tokens: list[float], ranks: list[int], expected: LayerLoad) -> None:
    assert layer_load(0, tokens, ranks) == expected


def test_words() -> None:
    even, skewed = layer_load(0, [10, 10, 10, 10], [0, 0, 1, 1]), layer_load(1, [26, 10, 4, 0], [0, 0, 1, 1])
    assert str(Balance((even, skewed))) == "experts 1.40 x, layer 1 1.80 x, its expert 0 got 65.0%, 1 got nothing"
    limited = layer_load(0, [10, 10, 10, 10], [0, 0, 1, 1], 10)
    assert str(Balance((limited, even))) == "experts 1.00 x, layer 0 1.00 x, its expert 0 got 25.0%, dropped 10.00%"
    assert str(Balance((even,))) == "experts 1.00 x, layer 0 1.00 x, its expert 0 got 25.0%"
    assert "| 1 | 1.80 | 0 | 65.0% | 1 | 0.00% |" in Balance((even, skewed)).page()
