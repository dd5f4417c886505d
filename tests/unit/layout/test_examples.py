"""LLaMA2 on 8 to 512 NPUs: the examples fit, and on these layouts; whoever moves one says so."""

from __future__ import annotations

import pytest
from trainyard.api.generate import REPOSITORY
from trainyard.layout import choose
from trainyard.layout.__main__ import job_in
from trainyard.layout.job import of_job


@pytest.mark.parametrize(("example", "nodes", "ranks", "layout"), [
    ("llama2-7b-ascend", 1, 8, "shard 8, ZeRO-2, micro-batch 2, full recomputation"),
    ("llama2-7b-ascend", None, 32, "data 4, shard 8, ZeRO-2, micro-batch 2, full recomputation"),
    ("llama2-13b-ascend", 2, 16, "shard 16, ZeRO-3, micro-batch 1"),
    ("llama2-13b-ascend", None, 64, "shard 64, ZeRO-3, micro-batch 1"),
    ("llama2-70b-ascend", 8, 64,
     "shard 32, context 2, ulysses 2, ZeRO-3, micro-batch 1, selective recomputation"),
    ("llama2-70b-ascend", None, 512,
     "data 4, shard 64, context 2, ulysses 2, ZeRO-3, micro-batch 1, selective recomputation"),
    ("llama2-tiny-cpu", None, 4, "data 4, micro-batch 4"),
], ids=str)  # fmt: skip
def test_an_example_fits(example: str, nodes: int | None, ranks: int, layout: str) -> None:
    work = of_job(job_in((REPOSITORY / "examples" / f"{example}.yaml").read_text()), nodes=nodes)
    assert work is not None
    assert work.ranks == ranks
    best = choose(work).best
    assert best.fits
    assert best.layout.ranks == work.ranks
    assert str(best.layout) == layout, f"{best.memory.total / 2**30:.1f} GiB, {best.seconds.total:.1f} s a step"
