"""What an optimizer costs whose state is in the host's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainyard.layout import HARDWARE, Layout, Workload, choose
from trainyard.layout.cost import seconds
from unit.layout.workloads import workload

DEVICES = [name for name in HARDWARE if name != "CPU"]


def offloaded(device: str, batch: int = 64) -> tuple[Workload, Workload]:
    """A job whose optimizer stays, and the same with it offloaded."""
    kept, away = (workload("7b", 8, device, batchSize=batch, optimizer={"offload": offload})
                  for offload in (False, True))  # fmt: skip
    return kept, away


@pytest.mark.parametrize("device", DEVICES)
def test_the_update_takes_no_less_than_the_host_can(device: str) -> None:
    kept, away = offloaded(device)
    layout, mine, row = Layout(shard=8), kept.shape.parameters / 8, HARDWARE[device]
    here, there = seconds(kept, layout), seconds(away, layout)
    assert there.optimizer > mine * 28 / row.host_stream + mine * 12 / row.host_link
    assert there.optimizer > 5 * here.optimizer
    assert there.total - there.optimizer == pytest.approx(here.total - here.optimizer)


@pytest.mark.parametrize(("billions", "published"), [(1, 0.22), (4, 1.03), (10, 2.57)])
def test_the_hosts_part_is_what_was_published(billions: int, published: float) -> None:
    """ZeRO-Offload's table 4: Adam on a DGX-2's two Xeons, all of it for one process, nothing copied."""
    _, away = offloaded("A100")
    row = replace(away.hardware, host_stream=256e9, host_link=1e30, stream=1e30)
    layout = Layout()
    shape = replace(away.shape, layers=1)
    said = seconds(replace(away, shape=shape, hardware=row), layout).optimizer * billions * 1e9 / shape.parameters
    assert said == pytest.approx(published, rel=0.15)


def test_replicas_that_would_all_update_the_same_lose_to_shards() -> None:
    """Four times the numbers a rank, four times the update: free, it would have been the choice for less talk."""
    _, away = offloaded("A100", batch=8)
    away = replace(away, hardware=replace(away.hardware, memory=0.0))
    best = choose(away).best.layout
    assert best.data == 1
    replicated = Layout(data=8 // 2, shard=2, micro=1)
    assert seconds(away, replicated).optimizer == pytest.approx(4 * seconds(away, Layout(shard=8)).optimizer)
