"""Which node gets which index."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from trainyard.placement.books import Books, Demand, Obstacle
from trainyard.placement.place import check_quota, place
from unit.placement.clusters import GI, GPU, NPU, Claim, books, demand, node, npus, taint

CPU = {"cpu": 1000}


@pytest.mark.parametrize(("case", "cluster", "wanted", "indices", "options", "answer"), [
    ("one a node, in the order of their names", books(node("n-10"), node("n-9"), node("n-1")), demand(), [0, 1, 2], {},
     {0: "n-1", 1: "n-9", 2: "n-10"}),
    ("nothing to place", books(node("a")), demand(), [], {}, {}),
    ("full nodes are left out", books(node("a"), node("b"), b=npus(1)), demand(), [4], {}, {4: "a"}),
    ("small pods go where least is left", books(node("a"), node("b"), b=npus(4)), demand({NPU: 4}), [0], {}, {0: "b"}),
    ("cpu gangs leave devices alone", books(node("a"), node("b", npus=None)), demand(CPU), [0], {}, {0: "b"}),
    ("cpu gangs spread", books(node("a"), node("b", cpu=2)), demand(CPU), [0, 1], {}, {0: "a", 1: "b"}),
    ("too few nodes: shared evenly, neighbours together", books(node("a"), node("b")), demand(CPU), range(4), {},
     {0: "a", 1: "a", 2: "b", 3: "b"}),
    ("shared as evenly as room allows", books(node("a"), node("b", cpu=1)), demand(CPU), range(4), {},
     {0: "a", 1: "a", 2: "a", 3: "b"}),
    ("a replacement goes to a node without a member", books(node("a"), node("b")), demand(CPU), [1],
     {"taken": {0: "a"}}, {1: "b"}),
    ("a replacement shares if there is no other", books(node("a")), demand(CPU), [1], {"taken": {0: "a"}}, {1: "a"}),
    ("a node of the gang may be gone", books(node("a")), demand(CPU), [1], {"taken": {0: "lost"}}, {1: "a"}),
    ("avoided nodes come last", books(node("a"), node("b")), demand(), [0], {"avoid": {"a": "it failed"}}, {0: "b"}),
    ("avoided nodes are used if there is no other", books(node("a")), demand(), [0], {"avoid": {"a": "it failed"}},
     {0: "a"}),
    ("devices are packed", books(node("a"), node("b"), node("c")), demand({NPU: 2}), range(5), {},
     {0: "a", 1: "a", 2: "a", 3: "a", 4: "b"}),
    ("devices of pods that are better apart are not", books(node("a"), node("b", npus=2)),
     demand({NPU: 2}, apart="Preferred"), range(3), {}, {0: "a", 1: "a", 2: "b"}),
    ("one a node, if the template wants none beside another", books(node("a"), node("b")),
     demand({NPU: 2}, apart="Required"), range(2), {}, {0: "a", 1: "b"}),
    ("and so is a replacement", books(node("a"), node("b"), node("c"), a=npus(2)), demand({NPU: 2}, apart="Required"),
     [1], {"taken": {0: "a"}}, {1: "b"}),
    ("ranks of a zone follow each other", books(node("a", "y"), node("b", "x"), node("c", "y"), node("d", "x")),
     demand(), range(4), {}, {0: "b", 1: "d", 2: "a", 3: "c"}),
    ("one zone, the tightest", books(node("a", "x"), node("b", "y"), node("c", "x"), node("d", "y"), node("e", "x")),
     demand(), [0, 1], {}, {0: "b", 1: "d"}),
    ("few zones rather than many", books(*(node(f"{z}{i}", z) for z, n in (("x", 1), ("y", 2), ("z", 3))
                                           for i in range(n))),
     demand(), range(4), {}, {0: "x0", 1: "z0", 2: "z1", 3: "z2"}),
    ("near the rest of the gang", books(node("a", "x"), node("b", "y"), node("c", "y"), b=npus(8)), demand(), [1],
     {"taken": {0: "b"}}, {1: "c"}),
    ("PreferNoSchedule is shunned", books(node("a", taints=taint("old", "PreferNoSchedule")), node("b")), demand(),
     [0], {}, {0: "b"}),
    ("PreferNoSchedule is no refusal", books(node("a", taints=taint("old", "PreferNoSchedule"))), demand(), [0], {},
     {0: "a"}),
    ("preferred affinity", books(node("a"), node("b", labels={"new": "yes"})),
     demand(affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
         {"weight": 1, "preference": {"matchExpressions": [{"key": "new", "operator": "Exists"}]}}]}}),
     [0], {}, {0: "b"}),
    ("a claim that fits keeps its node", books(node("a"), node("b")), demand({NPU: 1}), [0],
     {"reserved": [Claim(demand(), 1)]}, {0: "b"}),
    ("a waiting claim keeps what is free", books(node("a"), node("b"), node("c"), a=npus(4), b=npus(8)),
     demand({NPU: 1}), [0], {"reserved": [Claim(demand(), 2)]},
     Obstacle("Reserved", "Needs room for 1 pod with 1 huawei.com/Ascend910: none of the 3 nodes has it; "
                          "2 are kept for jobs that come first, 1 lacks free huawei.com/Ascend910 "
                          "(best: b with 0 of 8 free).")),
    ("a claim that can never be met keeps nothing", books(node("a"), node("b")), demand(), [0],
     {"reserved": [Claim(demand(), 3)]}, {0: "a"}),
])  # fmt: skip
def test_places(case: str, cluster: Books, wanted: Demand, indices: Any, options: dict[str, Any], answer: Any) -> None:
    assert place(cluster, wanted, indices, **options) == answer, case


@pytest.mark.parametrize(("case", "cluster", "wanted", "count", "reason", "message"), [
    ("no nodes", books(), demand(), 1, "NoNodes", "The cluster has no nodes."),
    ("by cause, with the best of them",
     books(*(node(f"node-{number}") for number in range(1, 6)), node("node-6", cordoned=True),
           node_3=npus(2), node_4=npus(8), node_5=npus(8)),
     demand({NPU: 8, "cpu": 32000}), 4, "InsufficientResources",
     "Needs 4 nodes with 8 huawei.com/Ascend910, 32 cpu: 2 of 6 have it; "
     "3 lack free huawei.com/Ascend910 (best: node-3 with 6 of 8 free), 1 is cordoned."),
    ("no such device", books(node("a"), node("b")), demand({GPU: 1}), 1, "NoSuchDevice",
     "Needs nvidia.com/gpu, which no node has; the cluster has huawei.com/Ascend910 (on 2 nodes)."),
    ("no device at all", books(node("a", npus=None)), demand(), 1, "NoSuchDevice",
     "Needs huawei.com/Ascend910, which no node has; there are no devices."),
    ("a dead plugin", books(node("a", npus=0), node("b", npus=None)), demand(), 1, "NoSuchDevice",
     "Needs huawei.com/Ascend910: 1 of 2 nodes had it, but none has any left; its device plugin is not running, or no "
     "device is healthy."),
    ("nothing matches", books(node("a"), node("b", taints=taint("team", value="x"))),
     demand(node_selector={"kubernetes.io/hostname": "b"}), 1, "NoMatchingNode",
     "Needs 1 node with 8 huawei.com/Ascend910: none of the 2 nodes has it; "
     "1 is ruled out by the nodeSelector, 1 is tainted team=x:NoSchedule."),
    ("larger than the cluster", books(node("a"), node("b", npus=None), node("c", npus=4), a=npus(8)), demand(), 2,
     "InsufficientCapacity",
     "Needs 2 nodes with 8 huawei.com/Ascend910: none of the 3 nodes has it; "
     "1 has no huawei.com/Ascend910, 1 is too small (best: c with 4 huawei.com/Ascend910), "
     "1 lacks free huawei.com/Ascend910 (best: a with 0 of 8 free); "
     "even if they were empty, only 1 of 2 pods would fit."),
    ("nodes may come back", books(node("a"), node("b", ready=False)), demand(), 2, "InsufficientResources",
     "Needs 2 nodes with 8 huawei.com/Ascend910: 1 of 2 has it; 1 is not ready."),
    ("several a node", books(node("a", cpu=4), node("b", cpu=4), b={"cpu": 3500, "memory": GI, "pods": 1}),
     demand({"cpu": 1500, "memory": GI}), 5, "InsufficientCapacity",
     "Needs room for 5 pods with 1500m cpu, 1Gi memory each: 2 fit on 1 of 2 nodes; "
     "1 lacks free cpu (best: b with 500m of 4 free); even if they were empty, only 4 of 5 pods would fit."),
    ("none beside another", books(node("a"), node("b"), node("c"), c=npus(8)), demand({NPU: 2}, apart="Required"), 3,
     "InsufficientResources",
     "Needs 3 nodes with 2 huawei.com/Ascend910: 2 of 3 have it; "
     "1 lacks free huawei.com/Ascend910 (best: c with 0 of 8 free)."),
    ("more than nodes, none beside another", books(node("a"), node("b")), demand(CPU, apart="Required"), 3,
     "InsufficientCapacity",
     "Needs 3 nodes with 1 cpu: 2 of 2 have it; even if they were empty, only 2 of 3 pods would fit."),
    ("pods are a resource", books(node("a", pods=3), a={"pods": 3}), demand({}), 1, "InsufficientResources",
     "Needs room for 1 pod: the only node does not have it; 1 lacks free pods (best: a with 0 of 3 free)."),
])  # fmt: skip
def test_obstacles(case: str, cluster: Books, wanted: Demand, count: int, reason: str, message: str) -> None:
    assert place(cluster, wanted, range(count)) == Obstacle(reason, message), case


def test_a_node_beside_which_the_template_wants_none_is_named() -> None:
    found = place(books(node("a"), node("b", cordoned=True)), demand(CPU, apart="Required"), [1], {0: "a"})
    assert found == Obstacle(
        "InsufficientResources",
        "Needs 1 node with 1 cpu: none of the 2 nodes has it; 1 is cordoned, 1 is taken by another pod of the job, "
        "beside which the template wants none.")  # fmt: skip


@pytest.mark.parametrize(("case", "left", "count", "message"), [
    ("room", {"pods": 4, "requests.cpu": 8000}, 4, None),
    ("one pod short", {"pods": 3}, 4, "Quota q has 3 pods left and 4 pods need 4."),
    ("overdrawn", {"count/pods": -1}, 1, "Quota q has 0 count/pods left and 1 pod needs 1."),
    ("cpu means requests", {"cpu": 7500}, 4, "Quota q has 7500m cpu left and 4 pods need 8."),
    ("limits", {"limits.memory": 4 * GI}, 4, "Quota q has 4Gi limits.memory left and 4 pods need 8Gi."),
    ("devices", {f"requests.{NPU}": 8}, 4, "Quota q has 8 requests.huawei.com/Ascend910 left and 4 pods need 32."),
    ("other things", {"configmaps": 0, "requests.storage": 0, "count/secrets": 0}, 4, None),
])  # fmt: skip
def test_quota(case: str, left: dict[str, int], count: int, message: str | None) -> None:
    class Quota:
        name = "q"

        def __init__(self, left: dict[str, int]) -> None:
            self.left = left

    asked = demand({NPU: 8, "cpu": 2000, "memory": GI}, limits={"memory": 2 * GI})
    assert check_quota([Quota(left)], asked, count) == (message and Obstacle("QuotaExceeded", message)), case


def test_a_thousand_pods_on_five_thousand_nodes() -> None:
    nodes = [node(f"node-{i}", f"zone-{i % 10}") for i in range(5000)]
    cluster = Books({one.name: one for one in nodes}, {f"node-{i}": npus(8 if i % 3 else 4) for i in range(0, 5000, 2)})
    began = time.process_time()
    found = place(cluster, demand({NPU: 8, "cpu": 32000}), range(1000), reserved=[Claim(demand(), 500)] * 3)
    assert isinstance(found, dict)
    assert max(Counter(found.values()).values()) == 1
    assert time.process_time() - began < 1
