"""Ranks are ordered so that what talks most is nearest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard.layout import HARDWARE, choose
from trainyard.layout.ranks import ORDER, coordinates, groups, nodes_of
from trainyard.layout.types import Layout
from unit.layout.workloads import workload

SIZES = st.sampled_from([1, 2, 3, 4])


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_groups_share_out_the_ranks(data: int, shard: int, tensor: int, pipeline: int, context: int) -> None:
    layout = Layout(data, shard, tensor, pipeline, context)
    for name in ORDER:
        found = groups(layout, name)
        assert sorted(rank for group in found for rank in group) == list(range(layout.ranks))
        for group in found:
            places = [coordinates(layout, rank) for rank in group]
            assert [place[name] for place in places] == list(range(len(group)))
            assert len({tuple(place[other] for other in ORDER if other != name) for place in places}) == 1


@pytest.mark.parametrize(("size", "nodes", "device"), [("70b", 8, "910B"), ("70b", 32, "910A"), ("13b", 4, "910A")])
def test_chosen_tensor_groups_stay_inside_a_node(size: str, nodes: int, device: str) -> None:
    for tensor in (2, 4):
        work = workload(size, nodes * 8, device, batchSize=512, parallel={"tensor": tensor})
        layout = choose(work).best.layout
        for group in groups(layout, "tensor"):
            assert len(nodes_of(group, 8)) == 1
            ring = HARDWARE[device].ring
            assert len({rank % 8 // ring for rank in group}) == 1
        if layout.pipeline > 1 and layout.ranks // layout.pipeline >= 8:
            assert all(len(nodes_of(group, 8)) == layout.pipeline for group in groups(layout, "pipeline"))
