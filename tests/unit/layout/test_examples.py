"""LLaMA2 on 8 to 512 NPUs: the examples fit, on the layouts that the planner names."""

from __future__ import annotations

import pytest
from trainyard.api.generate import REPOSITORY
from trainyard.layout import choose
from trainyard.layout.__main__ import job_in
from trainyard.layout.job import of_job


@pytest.mark.parametrize(("size", "nodes"), [("7b", 1), ("7b", 4), ("13b", 2), ("13b", 8), ("70b", 8), ("70b", 64)])
def test_an_example_fits(size: str, nodes: int) -> None:
    spec = job_in((REPOSITORY / "examples" / f"llama2-{size}-ascend.yaml").read_text())
    work = of_job(spec, nodes=nodes)
    assert work is not None
    best = choose(work).best
    print(f"{size} on {work.ranks} x {work.hardware.name}: {best.layout}; {best.memory.total / 2**30:.1f} GiB, "
          f"{best.seconds.total:.1f} s a step")  # fmt: skip
    assert best.fits
    assert best.layout.ranks == work.ranks
