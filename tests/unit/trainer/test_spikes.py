"""Which loss is a spike."""

from __future__ import annotations

from trainer.spikes import Spikes
from trainyard.api.train import SpikeConfig

CONFIG = SpikeConfig(factor=2.0, window=4, rewind=10)


def after(losses: list[float]) -> Spikes:
    spikes = Spikes(CONFIG)
    for loss in losses:
        spikes.add(loss)
    return spikes


def test_only_what_is_far_above_the_median_of_a_full_window() -> None:
    assert not after([1.0] * 3).is_one(100.0)
    assert not after([1.0] * 4).is_one(2.0)
    assert after([1.0] * 4).is_one(2.01)
    assert not after([9.0, 9.0, 9.0, 9.0, 4.0, 4.0, 4.0]).is_one(8.0), "the median, of the window alone"


def test_a_checkpoint_carries_it() -> None:
    before = after([1.0, 2.0, 3.0, 4.0])
    before.rewound()
    again = Spikes(CONFIG, before.dump()["spikes"])
    assert again.dump() == before.dump()
    assert again.is_one(5.1)
    assert not again.is_one(5.0)


def test_going_back_again_and_again_does_not_help() -> None:
    spikes = after([1.0] * 4)
    assert [spikes.rewound() for _ in range(4)] == [False, False, False, True]
    for _ in range(4):
        spikes.add(1.0)
    assert not spikes.rewound(), "a window of ordinary steps later it is counted anew"
