"""From a placement to the devices of every rank: tensor groups lie in one node and one ring, pipelines and replicas
cross nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from trainyard.layout import choose
from trainyard.layout.ranks import groups
from trainyard.layout.types import Layout
from trainyard.placement import rings
from trainyard.placement.books import Books, DeviceView
from trainyard.placement.place import place
from unit.layout.workloads import workload
from unit.placement.clusters import NPU, books, demand, npus, seated

Seat = tuple[str, DeviceView]  # node, device
HALF = [4, 5, 6, 7]


def seats_of(cluster: Books, pods: int, devices: int) -> list[Seat]:
    """The device of every rank: pods as they are placed, devices as the plugin gives them out, ranks in their order."""
    found = place(cluster, demand({NPU: devices}), range(pods))
    assert isinstance(found, dict), found
    seats: list[Seat] = []
    for index in range(pods):
        view = cluster.nodes[found[index]].devices
        assert view is not None
        free = [one for one in view.devices if one.free and (found[index], one) not in seats]
        given = rings.choose(view.model, view.devices, [one.id for one in free], count=devices)
        assert len(given) == devices
        seats += [(found[index], one) for one in view.devices if one.id in given]
    return seats


def nodes_of(group: Sequence[int], seats: list[Seat]) -> set[str]:
    return {seats[rank][0] for rank in group}


@pytest.mark.parametrize(("device", "cluster", "pods", "devices", "tensor"), [
    ("910A", books(seated("a"), seated("b"), seated("c")), 2, 8, 4),
    ("910A", books(seated("a", free=HALF), seated("b", free=HALF), a=npus(4), b=npus(4)), 2, 4, 4),
    ("910A", books(seated("a", free=[0, 1, 4, 5]), seated("b"), a=npus(4)), 4, 2, 2),
    ("910A", books(*(seated(name, free=[0, 2, 5, 7]) for name in "ab"), a=npus(4), b=npus(4)), 4, 2, 2),
    ("910B", books(*(seated(name, "910B-16", free=range(6, 16)) for name in "ab"), a=npus(6), b=npus(6)), 2, 8, 8),
    ("A3", books(*(seated(name, "A3", free=[1, 2, 3, 6, 7]) for name in "ab"), a=npus(11), b=npus(11)), 2, 4, 2),
], ids=str)  # fmt: skip
def test_tensor_groups_stay_in_a_ring(device: str, cluster: Books, pods: int, devices: int, tensor: int) -> None:
    seats = seats_of(cluster, pods, devices)
    work = workload(None, pods * devices, device, devices, batchSize=16, parallel={"tensor": tensor},
                    config={"num_key_value_heads": 8})
    layout = choose(work).best.layout
    for group in groups(layout, "tensor"):
        assert len({(seats[rank][0], seats[rank][1].ring) for rank in group}) == 1
        if device == "A3" and tensor == 2:
            assert len({seats[rank][1].module for rank in group}) == 1


@pytest.mark.parametrize(("dimension", "layout"), [
    ("pipeline", Layout(pipeline=4, tensor=8)), ("data", Layout(data=4, tensor=8)),
    ("shard", Layout(shard=4, tensor=8)),
])  # fmt: skip
def test_the_outermost_groups_cross_nodes(dimension: str, layout: Layout) -> None:
    """A dimension with nothing but tensor groups inside it has a rank on every node."""
    seats = seats_of(books(seated("a"), seated("b"), seated("c"), seated("d")), 4, 8)
    for group in groups(layout, dimension):
        assert len(nodes_of(group, seats)) == 4
    for group in groups(layout, "tensor"):
        assert len(nodes_of(group, seats)) == 1
