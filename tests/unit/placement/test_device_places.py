"""Places by devices: rings, health, super-pods and racks, what is not told yet."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from trainyard.placement.books import Books, Demand, Nearness, Obstacle
from trainyard.placement.place import place
from trainyard.placement.seats import fit
from unit.placement.clusters import NPU, Claim, books, busy_cluster, demand, node, npus, seated, seats

RINGS = [0, 1, 2, 3], [4, 5, 6, 7]


def told(cluster: Books, **holders: str) -> Books:
    """NodeDevices of node a shows these pods' devices."""
    view = cluster.nodes["a"].devices
    assert view is not None
    names = {each: f"ns/{pod}" for pod, ids in holders.items() for each in ids.split()}
    shown = tuple(replace(d, holder=names.get(d.id, ""), free=d.free and d.id not in names) for d in view.devices)
    made = replace(cluster.nodes["a"], devices=replace(view, devices=shown))
    return replace(cluster, nodes={**cluster.nodes, "a": made})


def beside(cluster: Books, on: str, **amounts: int) -> Books:
    """With these pods, which NodeDevices does not show yet."""
    for name, amount in amounts.items():
        cluster = cluster.take({f"ns/{name}": on}, npus(amount))
    return cluster


@pytest.mark.parametrize(("case", "cluster", "wanted", "indices", "options", "answer"), [
    ("1 where a ring has 1 free, not where 3 have", books(seated("a", free=[0, 1, 2]), seated("b", free=[0, 4, 5])),
     1, [0], {}, {0: "b"}),
    ("1 breaks no whole ring", books(seated("a", free=range(8)), seated("b", free=[0, 1, 4, 5])), 1, [0], {}, {0: "b"}),
    ("2 rather of a whole ring than leave one of three", books(seated("a", free=[0, 1, 2]), seated("b", free=RINGS[0])),
     2, [0], {}, {0: "b"}),
    ("4 where the other ring is broken already", books(seated("a"), seated("b", free=[0, 4, 5, 6, 7])), 4, [0], {},
     {0: "b"}),
    ("4 free of two rings are none of one", books(seated("a", free=[0, 1, 4, 5]), seated("b")), 4, [0], {}, {0: "b"}),
    ("fully connected: packed tightly", books(seated("a", "910B-8", [0, 1, 2, 3]), seated("b", "910B-8", [0, 5, 7])),
     3, [0], {}, {0: "b"}),
    ("A3: two halves are no module", books(seated("a", "A3", [1, 2]), seated("b", "A3")), 2, [0], {}, {0: "b"}),
    ("A3: the node is filled first", books(seated("a", "A3"), seated("b", "A3", [0, 1, 4, 5])), 4, [0], {}, {0: "b"}),
    ("16: 10 of two rings at the same places", books(seated("a", "910B-16", range(10)), seated("b", "910B-16")), 10,
     [0], {}, {0: "b"}),
    ("what is bound but not told yet is foretold", beside(books(seated("a"), seated("b")), "a", x=1), 8, [0], {},
     {0: "b"}),
    ("it is foretold where: 1 and 1 leave a whole ring", beside(books(seated("a")), "a", x=1, y=1), 4, [0], {},
     {0: "a"}),
    ("a pod that is told takes nothing twice",
     told(beside(books(seated("a")), "a", x=4), x="d0 d1 d2 d3"), 4, [0], {}, {0: "a"}),
    ("models that cannot serve it are left out", books(seated("a"), seated("b", "910B-8")), 3, [0], {}, {0: "b"}),
    ("unknown health is no place", books(seated("a", known=False), seated("b")), 1, [0], {}, {0: "b"}),
    ("unhealthy devices are none", books(seated("a", ill=[0, 4]), seated("b")), 4, [0], {}, {0: "b"}),
    ("sub-healthy ones come last", books(seated("a", sub=[0]), seated("b")), 8, [0], {}, {0: "b"}),
    ("sub-healthy ones come, if there is no other", books(seated("a", sub=[0])), 8, [0], {}, {0: "a"}),
    ("the plugin leaves sub-healthy ones alone by itself", books(seated("a", sub=[0]), seated("b", free=range(4, 8))),
     4, [0], {}, {0: "b"}),
    ("avoided devices come last", books(seated("a"), seated("b")), 8, [0], {"spoiled": {"a": {"d3"}}}, {0: "b"}),
    ("avoided devices come, if there is no other", books(seated("a")), 8, [0], {"spoiled": {"a": {"d3"}}}, {0: "a"}),
    ("a job of one node needs no network", books(seated("a", cut=[0])), 8, [0], {}, {0: "a"}),
    ("a job of several needs it", books(seated("a", cut=[0]), seated("b"), seated("c")), 8, [0, 1], {},
     {0: "b", 1: "c"}),
    ("half a node has it, and the plugin prefers that half", books(seated("a", cut=[0]), seated("b", free=RINGS[1])),
     4, [0, 1], {}, {0: "a", 1: "b"}),
    ("a replacement needs it too", books(seated("a", cut=[0]), seated("b"), seated("c"), c=npus(8)), 8, [1],
     {"taken": {0: "c"}}, {1: "b"}),
    ("one super-pod, though it is used", books(*(seated(f"{p}{i}", super_pod=p) for p in "xyz" for i in range(2)),
                                            x0=npus(8), y1=npus(8)), 8, [0, 1], {}, {0: "z0", 1: "z1"}),
    ("few racks of one super-pod",
     books(*(seated(f"n{i}", super_pod="s", rack=rack) for i, rack in enumerate("abccb"))), 8, range(3), {},
     {0: "n0", 1: "n1", 2: "n4"}),
    ("labels tell super-pods where NodeDevices do not",
     books(*(node(f"n{i}", labels={"huawei.com/topotree.superpodid": p}) for i, p in enumerate("xyzy"))), 8, [0, 1], {},
     {0: "n1", 1: "n3"}),
    ("ranks by super-pod, rack, node",
     books(seated("a", super_pod="10", rack="1"), seated("b", super_pod="9", rack="10"),
           seated("c", super_pod="9", rack="9")), 8, range(3), {}, {0: "c", 1: "b", 2: "a"}),
    ("few nodes", books(seated("a"), seated("b")), 2, range(4), {}, dict.fromkeys(range(4), "a")),
    ("few nodes, and of these the ones that break least",
     books(seated("a"), seated("b"), seated("c", free=RINGS[1]), seated("d", free=[0, 1])), 4, range(3), {},
     {0: "a", 1: "a", 2: "c"}),
    ("two broken rings rather than a whole one more",
     books(seated("a", free=[0, 1, 4, 5]), seated("b"), seated("c", free=[2, 3, 4, 5, 6, 7])), 2, range(2), {},
     {0: "a", 1: "a"}),
    ("few super-pods before few nodes",
     books(*(seated(f"{p}{i}", super_pod=p, free=free) for p, free in (("x", RINGS[0]), ("y", range(8)))
             for i in range(2)), seated("z", super_pod="x", free=RINGS[1]), y1=npus(8)), 4, range(3), {},
     {0: "x0", 1: "x1", 2: "z"}),
    ("few racks before few nodes",
     books(seated("a", rack="a"), seated("b", rack="b", free=RINGS[0]), seated("c", rack="b", free=RINGS[0]),
           seated("d", rack="b", free=RINGS[0])), 4, range(3), {}, {0: "b", 1: "c", 2: "d"}),
    ("a replacement goes where the gang is", beside(books(seated("a"), seated("b"), seated("c")), "b", m=4), 4, [1],
     {"taken": {0: "b"}}, {1: "b"}),
    ("a spare does not", beside(books(seated("a"), seated("b"), seated("c")), "a", m=4), 4, [1],
     {"taken": {0: "a"}, "loose": True}, {1: "b"}),
    ("a spare is beside the gang if there is no other node", beside(books(seated("a")), "a", m=4), 4, [1],
     {"taken": {0: "a"}, "loose": True}, {1: "a"}),
    ("topology node", books(seated("a"), seated("b")), 2, [0, 1], {"nearness": Nearness("node")}, {0: "a", 1: "a"}),
    ("topology node, as few as will do", books(seated("a", free=RINGS[0]), seated("b"), seated("c")), 4, range(3),
     {"nearness": Nearness("node")}, {0: "a", 1: "b", 2: "b"}),
    ("topology ring", books(seated("a", free=[0, 1, 4, 5]), seated("b")), 2, [0, 1],
     {"nearness": Nearness("ring", True)}, {0: "b", 1: "b"}),
    ("topology rack goes before spreading", books(*(seated(f"n{i}", rack=rack) for i, rack in enumerate("abb"))), 4,
     range(3), {"nearness": Nearness("rack", True)}, {0: "n1", 1: "n1", 2: "n2"}),
    ("any label is a level", books(*(seated(f"n{i}", labels={"row": row}) for i, row in enumerate("abb"))), 8, [0, 1],
     {"nearness": Nearness("row", True)}, {0: "n1", 1: "n2"}),
    ("a replacement stays in the super-pod",
     books(*(seated(f"n{i}", super_pod=p) for i, p in enumerate("xyyx")), n3=npus(8)), 8, [1],
     {"taken": {0: "n3"}, "nearness": Nearness("superpod", True)}, {1: "n0"}),
    ("a replacement stays on the node", beside(books(seated("a"), seated("b")), "a", m=2), 2, [1],
     {"taken": {0: "a"}, "nearness": Nearness("ring", True)}, {1: "a"}),
])  # fmt: skip
def test_places(case: str, cluster: Books, wanted: int, indices: Any, options: dict[str, Any], answer: Any) -> None:
    assert place(cluster, demand({NPU: wanted}), indices, **options) == answer, case


@pytest.mark.parametrize(("case", "cluster", "wanted", "count", "options", "reason", "message"), [
    ("no model allows it", books(seated("a"), seated("b", "A3")), 3, 1, {}, "IllegalDeviceCount",
     "Needs 3 huawei.com/Ascend910 a pod, which no model here allows: 910A (on 1 node) takes 1, 2, 4 or 8; "
     "A3 (on 1 node) takes 1, 2, 4, 6, 8, 10, 12, 14 or 16."),
    ("devices held, unhealthy, not told, not to be used together",
     books(seated("a", free=[0, 1, 2, 4, 5, 6]), seated("b", ill=[2, 6]), seated("c"), seated("d", known=False,
           trouble="HealthUnreadable"), c=npus(6)), 4, 1, {}, "InsufficientResources",
     "Needs room for 1 pod with 4 huawei.com/Ascend910: none of the 4 nodes has it; "
     "1 has unhealthy huawei.com/Ascend910 (best: b, d2: 80E01801, RestartBusiness; d6: 80E01801, RestartBusiness), "
     "1 is without word on the health of huawei.com/Ascend910 (HealthUnreadable), "
     "1 lacks free huawei.com/Ascend910 (best: c with 2 of 8 free), "
     "1 lacks free huawei.com/Ascend910 that may be used together (best: a with 3+3 free)."),
    ("another scheduler's", books(seated("a", elsewhere="another scheduler's"), seated("b", free=[1])), 8, 1, {},
     "InsufficientResources",
     "Needs 1 node with 8 huawei.com/Ascend910: none of the 2 nodes has it; 1 is another scheduler's, "
     "1 lacks free huawei.com/Ascend910 that may be used together (best: b with 1+0 free)."),
    ("one of several models", books(seated("a"), seated("b", "910B-8", []), b=npus(8)), 3, 1, {},
     "InsufficientResources",
     "Needs room for 1 pod with 3 huawei.com/Ascend910: none of the 2 nodes has it; "
     "1 is of model 910A, where a pod may ask for 1, 2, 4 or 8, "
     "1 lacks free huawei.com/Ascend910 (best: b with 0 of 8 free)."),
    ("no network", books(seated("a", cut=[1]), seated("b")), 8, 2, {}, "InsufficientResources",
     "Needs 2 nodes with 8 huawei.com/Ascend910: 1 of 2 has it; "
     "1 has unhealthy huawei.com/Ascend910 (best: a, d1: no network)."),
    ("no such topology", books(seated("a", super_pod="s"), seated("b", labels={"row": "1"})), 8, 1,
     {"nearness": Nearness("rack", True)}, "NoSuchTopology",
     "Needs all pods in one rack, which no node is in; what there is: node, superpod (1), label row (on 1 node)."),
    ("too far apart", books(*(seated(f"n{i}", super_pod=p) for i, p in enumerate("xxyy")), n1=npus(8)), 8, 2,
     {"nearness": Nearness("superpod", True), "without": ["n3"]}, "InsufficientResources",
     "Needs 2 nodes with 8 huawei.com/Ascend910 in one super-pod: 2 of 4 have it; no super-pod has room for all "
     "(best: x for 1 of 2), 1 is avoided by the job for now, "
     "1 lacks free huawei.com/Ascend910 (best: n1 with 0 of 8 free)."),
    ("larger than any super-pod", books(*(seated(f"n{i}", super_pod=p) for i, p in enumerate("xxyy"))), 8, 3,
     {"nearness": Nearness("superpod", True)}, "InsufficientCapacity",
     "Needs 3 nodes with 8 huawei.com/Ascend910 in one super-pod: 4 of 4 have it; no super-pod has room for all "
     "(best: x for 2 of 3); even if they were empty, only 2 of 3 pods would fit."),
    ("a ring is never so large", books(seated("a")), 4, 2, {"nearness": Nearness("ring", True)},
     "InsufficientCapacity",
     "Needs room for 2 pods with 4 huawei.com/Ascend910 each in one ring: 1 of 1 has it; "
     "even if they were empty, only 1 of 2 pods would fit."),
])  # fmt: skip
def test_obstacles(
    case: str, cluster: Books, wanted: int, count: int, options: dict[str, Any], reason: str, message: str
) -> None:
    assert place(cluster, demand({NPU: wanted}), range(count), **options) == Obstacle(reason, message), case


@pytest.mark.parametrize(("model", "free", "count", "ranks", "broken"), [
    ("910A", range(8), 1, (3, 4, 6, 6, 9, 10, 12, 12), (1, 1, 1, 0, 1, 1, 1, 0)),  # one ring after the other
    ("910A", range(8), 2, (1, 1, 2, 2), (1, 0, 1, 0)),
    ("910A", [0, 1, 4, 5, 6, 7], 2, (0, 1, 1), (0, 1, 0)),
    ("910A", range(8), 4, (0, 0), (0, 0)),
    ("910A", [0, 1, 2, 4, 5, 6], 4, (), ()),
    ("910B-16", range(10), 2, (2, 10, 16, 20, 22), (0, 1, 1, 1, 0)),
    ("A3", range(4), 2, (0, 0), (0, 0)),
])  # fmt: skip
def test_what_the_first_pods_on_a_node_cost(model: str, free: Any, count: int, ranks: Any, broken: Any) -> None:
    found = fit(seats(model, free), {}, count)
    assert (found.sets, found.ranks, found.broken) == (len(ranks), ranks, broken)


def test_the_ring_of_the_gang_is_kept() -> None:
    """The member holds d4 and d5; the ring of d0 to d3 has room for two, but is another one."""
    cluster = told(beside(books(seated("a", free=[0, 1, 4, 5, 6])), "a", m=2), m="d4 d5")
    options: dict[str, Any] = {"taken": {0: "a"}, "mates": {"ns/m"}, "nearness": Nearness("ring", True)}
    assert isinstance(place(cluster, demand({NPU: 2}), [1], **options), Obstacle)
    assert place(cluster, demand({NPU: 1}), [1], **options) == {1: "a"}


def test_a_holder_that_is_gone_has_left_its_devices() -> None:
    """NodeDevices tells of holders a few seconds late."""
    cluster = told(books(seated("a")), gone="d0 d1 d2 d3 d4 d5 d6 d7")
    assert place(cluster, demand({NPU: 8}), [0]) == {0: "a"}


def test_a_claim_keeps_whole_rings() -> None:
    cluster = books(seated("a"))
    claim = Claim(demand({NPU: 4}), 1)
    assert place(cluster, demand({NPU: 4}), [0], reserved=[claim]) == {0: "a"}
    found = place(cluster, demand({NPU: 4}), [0, 1], reserved=[claim], nearness=Nearness("node"))
    assert isinstance(found, Obstacle)
    assert found.reason == "Reserved"


def test_a_thousand_pods_beside_a_thousand_jobs() -> None:
    """The bound is that of the design; a quiet machine needs about a third of it."""
    cluster = busy_cluster()
    began = time.process_time()
    found = place(cluster, Demand({NPU: 8, "cpu": 32000, "pods": 1}), range(1000))
    spent = time.process_time() - began
    assert isinstance(found, dict)
    assert max(Counter(found.values()).values()) == 1
    assert spent < 1
