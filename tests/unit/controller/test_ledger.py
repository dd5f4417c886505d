"""The sums of the books are those of the pods, whatever came in which order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from trainyard.controller.ledger import Ledger
from trainyard.kube.views import OwnPod, Usage
from trainyard.plan.types import PodView


def usage(node: str, cpu: int) -> Usage:
    return Usage(node, {"cpu": cpu, "pods": 1}, 0)


def own(pinned: str | None, cpu: int, **more: Any) -> OwnPod:
    view = PodView("j-0-1", "u", 0, 1, "", datetime(2026, 1, 1, tzinfo=UTC), pinned=pinned, **more)
    return OwnPod("a", "j", "uid", view, {"cpu": cpu, "pods": 1})


def test_a_pod_counts_once_from_plan_to_bound_to_gone() -> None:
    ledger = Ledger()
    one = {"n1": {"cpu": 100, "pods": 1}}
    ledger.assume("a/j-0-1", "n1", {"cpu": 100, "pods": 1})
    assert ledger.used == one
    ledger.own("a/j-0-1", own("n1", 100))
    ledger.dismiss(["a/j-0-1"])
    assert ledger.used == one
    ledger.bound("a/j-0-1", usage("n1", 100))
    assert ledger.used == one
    ledger.own("a/j-0-1", None)
    assert ledger.used == one, "kubelet has not let go of it yet"
    ledger.bound("a/j-0-1", None)
    assert ledger.used == {}


def test_a_failed_create_gives_its_place_back() -> None:
    ledger = Ledger()
    ledger.assume("a/x", "n1", {"cpu": 1})
    ledger.dismiss(["a/x", "a/never"])
    assert ledger.used == {}
    assert ledger.assumed == {}


def test_where_a_pod_is_bound_wins_over_where_it_was_pinned() -> None:
    ledger = Ledger()
    ledger.own("a/x", own("n1", 5))
    ledger.bound("a/x", usage("n2", 5))
    assert ledger.used == {"n2": {"cpu": 5, "pods": 1}}


def test_a_finished_pod_takes_nothing() -> None:
    ledger = Ledger()
    ledger.own("a/x", own("n1", 5, phase="Succeeded"))
    assert ledger.used == {}


keys = st.sampled_from(["a", "b", "c"])
nodes = st.sampled_from(["n1", "n2"])
amounts = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("bound"), keys, st.none() | st.builds(usage, nodes, amounts)),
    st.tuples(st.just("own"), keys, st.none() | st.builds(own, nodes | st.none(), amounts)),
    st.tuples(st.just("assume"), keys, st.tuples(nodes, amounts)),
    st.tuples(st.just("dismiss"), keys, st.none()))


@given(st.lists(steps, max_size=40))
def test_sums_match_a_recount(history: list[tuple[str, str, Any]]) -> None:
    ledger = Ledger()
    layers: dict[str, dict[str, tuple[str, int]]] = {"bound": {}, "own": {}, "assume": {}}

    def put(layer: str, key: str, place: tuple[str, int] | None) -> None:
        layers[layer].pop(key, None)
        if place:
            layers[layer][key] = place

    for what, key, value in history:
        if what == "bound":
            ledger.bound(key, value)
            put("bound", key, (value.node, value.requests["cpu"]) if value else None)
        elif what == "own":
            ledger.own(key, value)
            put("own", key, (value.view.pinned, value.requests["cpu"]) if value and value.view.pinned else None)
        elif what == "assume":
            ledger.assume(key, value[0], {"cpu": value[1], "pods": 1})
            put("assume", key, value)
        else:
            ledger.dismiss([key])
            put("assume", key, None)
    expected: dict[str, dict[str, int]] = {}
    for key in "abc":
        place = layers["bound"].get(key) or layers["own"].get(key) or layers["assume"].get(key)
        if place:
            sums = expected.setdefault(place[0], {"cpu": 0, "pods": 0})
            sums["cpu"] += place[1]
            sums["pods"] += 1
    assert {n: {r: a for r, a in sums.items() if a} for n, sums in expected.items()} == ledger.used


def test_pods_with_devices_are_named() -> None:
    ledger = Ledger()
    ledger.assume("a/x", "n1", {"huawei.com/Ascend910": 8, "pods": 1})
    ledger.assume("a/y", "n1", {"cpu": 1})
    assert ledger.pods == {"n1": {"a/x": {"huawei.com/Ascend910": 8, "pods": 1}}}
    ledger.bound("a/x", Usage("n2", {"huawei.com/Ascend910": 8}, 0))
    ledger.dismiss(["a/x", "a/y"])
    assert ledger.pods == {"n2": {"a/x": {"huawei.com/Ascend910": 8}}}
    ledger.bound("a/x", None)
    assert ledger.pods == {}
