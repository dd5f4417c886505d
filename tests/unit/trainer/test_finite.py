"""What becomes of batches that are not finite, and who is named."""

from __future__ import annotations

import math

import pytest
from trainer.errors import ConfigError
from trainer.finite import First, Record, Verdict, earliest
from trainer.inject import Injection, LayoutFault


def test_again_then_skipped_then_given_up() -> None:
    record = Record()
    assert record.judge(True, 1) is Verdict.UPDATE
    for step in (5, 6):
        assert record.judge(False, 1) is Verdict.AGAIN
        assert record.judge(True, 2) is Verdict.UPDATE
        assert record.judge(False, 2) is Verdict.SKIP
        record.skip(step)
    assert record.judge(False, 1) is Verdict.AGAIN
    assert record.judge(False, 2) is Verdict.FAIL
    record.updated()
    assert record.judge(False, 2) is Verdict.SKIP


def test_a_checkpoint_carries_it() -> None:
    record = Record()
    assert record.dump() == {}
    assert Record.read({"samples": 8}) == record
    record.skip(7)
    assert [record.blame("node-1 npu 3"), record.blame("node-1 npu 3")] == [False, True]
    assert Record.read({"samples": 8, **record.dump()}) == record


@pytest.mark.parametrize(("moments", "ranks"), [
    ([None, None], []),
    ([None, 3], [1]),
    ([4, 3, 3], [1, 2]),
    ([2, 0, None], [1]),  # its loss, before any gradient
])
def test_who_was_first(moments: list[int | None], ranks: list[int]) -> None:
    assert earliest([(moment, f"n{rank}") for rank, moment in enumerate(moments)]) == [
        First(rank, f"n{rank}") for rank in ranks]


def test_injected_faults_of_layouts() -> None:
    found = Injection.read("layout:number=2,slow=0.5; layout:number=3,fails,rank=1; nan:step=1;layout:number=1,dies; "
                           "layout:number=4,waits=5,rank=2")
    assert found.layouts == (LayoutFault(2, 0, 0.5), LayoutFault(3, 1, what="fails"), LayoutFault(1, 0, what="dies"),
                             LayoutFault(4, 2, waits=5.0))


def test_injected_faults() -> None:
    found = Injection.read("nan:step=5,rank=1,times=2; nan:step=9; spike:step=7; check:pod=j-2-1,how=sum")
    assert [math.isnan(found.factor(5, 1, tries)) for tries in (1, 2, 3)] == [True, True, False]
    assert [math.isnan(found.factor(9, rank, 1)) for rank in (0, 1)] == [True, False]
    assert found.factor(6, 1, 1) == Injection.read("").factor(5, 1, 1) == 1.0
    assert [found.spike(step) for step in (6, 7, 8)] == [1.0, 10.0, 1.0]
    with pytest.raises(ConfigError, match=r"like nan:step=5,.* spike:step=7, layout:.*, found 'inf:step=1'"):
        Injection.read("inf:step=1")
