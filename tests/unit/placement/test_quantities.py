"""Raw Kubernetes objects into whole numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainyard.placement.books import Demand, NodeView, Taint
from trainyard.placement.quantities import (
    LARGEST,
    demand_of,
    effective,
    node_view,
    pod_usage,
    quantity,
    quota_left,
    show,
    whole,
)

MI = 1 << 20


@pytest.mark.parametrize(("text", "value"), [
    ("100m", Fraction(1, 10)), ("1Gi", 1 << 30), ("1e3", 1000), ("1E3", 1000), ("0.5", Fraction(1, 2)), ("1E", 10**18),
    (".5", Fraction(1, 2)), ("1.", 1), ("+2", 2), ("-1", -1), ("1n", Fraction(1, 10**9)), ("3u", Fraction(3, 10**6)),
    ("1k", 1000), ("1Ki", 1024), ("2M", 2 * 10**6), ("1.5Gi", 3 << 29), ("1e-3", Fraction(1, 1000)), ("0", 0), (4, 4),
    (0.1, Fraction(1, 10)), ("9Ei", LARGEST), ("1e999999999", LARGEST), ("0e999999999", 0), ("1e-999999999", 0),
])  # fmt: skip
def test_quantities_are_exact(text: str | float, value: Fraction | int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1K", "1gi", "0x1", "1e", "1,5", "nan", "1mm", "--1", "1\n", "¼"])
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity such as"):
        quantity(text)


@pytest.mark.parametrize(("resource", "text", "amount"), [
    ("cpu", "100m", 100), ("cpu", "0.1m", 1), ("cpu", 2, 2000), ("limits.cpu", "1", 1000), ("memory", "1.5", 2),
    ("memory", "1Gi", 1 << 30), ("memory", "1m", 1), ("nvidia.com/gpu", "8", 8), ("pods", "110", 110),
])  # fmt: skip
def test_fractions_are_rounded_up(resource: str, text: str | int, amount: int) -> None:
    assert whole(resource, text) == amount


@given(st.integers(0, 10**9), st.sampled_from(["cpu", "memory"]))
def test_what_is_shown_can_be_read(amount: int, resource: str) -> None:
    number = show(resource, amount).split()[0]
    assert abs(whole(resource, number) - amount) <= amount * 0.06


@pytest.mark.parametrize(("resource", "amount", "text"), [
    ("cpu", 32000, "32 cpu"), ("cpu", 1500, "1500m cpu"), ("memory", 64 << 30, "64Gi memory"),
    ("memory", 3 << 29, "1.5Gi memory"), ("memory", 500, "500 memory"), ("nvidia.com/gpu", 8, "8 nvidia.com/gpu"),
    ("requests.memory", 1 << 40, "1Ti requests.memory"),
])  # fmt: skip
def test_amounts_as_people_write_them(resource: str, amount: int, text: str) -> None:
    assert show(resource, amount) == text


Raw = dict[str, Any]


def container(name: str = "c", limits: Raw | None = None, always: bool = False, **requests: Any) -> Raw:
    made: Raw = {"name": name, "resources": {"requests": requests}}
    if limits:
        made["resources"]["limits"] = limits
    return made | ({"restartPolicy": "Always"} if always else {})


@pytest.mark.parametrize(("case", "spec", "requests"), [
    ("containers add up", {"containers": [container(cpu="1"), container(cpu="500m", memory="1Mi")]},
     {"cpu": 1500, "memory": MI}),
    ("nothing asked", {"containers": [{"name": "c"}]}, {}),
    ("zero is nothing", {"containers": [container(cpu=0)]}, {}),
    ("limits stand in for requests", {"containers": [container(limits={"cpu": "2", "x.y/z": "8"}, cpu="1")]},
     {"cpu": 1000, "x.y/z": 8}),
    ("the larger init container counts alone", {"initContainers": [container(cpu="3"), container(cpu="2")],
                                                "containers": [container(cpu="1", memory="1Mi")]},
     {"cpu": 3000, "memory": MI}),
    ("sidecars run beside the containers", {"initContainers": [container(cpu="1", always=True)],
                                            "containers": [container(cpu="2")]}, {"cpu": 3000}),
    ("an init container runs beside earlier sidecars only",
     {"initContainers": [container(cpu="4"), container(cpu="2", always=True), container(cpu="3"),
                         container(cpu="1", always=True)],
      "containers": [container(cpu="1")]}, {"cpu": 5000}),
    ("overhead is added", {"overhead": {"cpu": "250m", "memory": "1Mi"}, "containers": [container(cpu="1")]},
     {"cpu": 1250, "memory": MI}),
    ("the pod's own statement wins", {"resources": {"requests": {"cpu": "8"}},
                                      "containers": [container(cpu="1", memory="1Mi", limits={"x.y/z": 1})]},
     {"cpu": 8000, "memory": MI, "x.y/z": 1}),
])  # fmt: skip
def test_effective_requests(case: str, spec: dict[str, Any], requests: dict[str, int]) -> None:
    assert effective(spec, "requests") == requests, case


def test_limits_are_not_made_up() -> None:
    containers = [container(limits={"cpu": "2"}), container(cpu="9")]
    spec = {"overhead": {"cpu": "1", "memory": "1Mi"}, "containers": containers}
    assert effective(spec, "limits") == {"cpu": 3000}


def test_a_demand() -> None:
    affinity: Raw = {"nodeAffinity": {}}
    tolerations = [{"operator": "Exists"}]
    spec = {"containers": [container(cpu="1", limits={"cpu": "2"})], "nodeSelector": {"a": "b"}, "affinity": affinity,
            "tolerations": tolerations, "priorityClassName": "high"}  # fmt: skip
    assert demand_of({"spec": spec}) == Demand(
        requests={"cpu": 1000, "pods": 1}, limits={"cpu": 2000}, node_selector={"a": "b"}, affinity=affinity,
        tolerations=({"operator": "Exists"},), priority_class="high",
    )  # fmt: skip


def test_what_a_pod_takes() -> None:
    spec = {"containers": [container("a", cpu="1"), container("b", cpu="1")]}
    assert pod_usage({"spec": spec, "status": {"phase": "Running"}}) == {"cpu": 2000, "pods": 1}
    assert pod_usage({"spec": spec}) == {"cpu": 2000, "pods": 1}
    assert pod_usage({"spec": spec, "status": {"phase": "Succeeded"}}) == {}
    resized = {"containerStatuses": [{"name": "a", "allocatedResources": {"cpu": "3"}}, {"name": "b"}]}
    assert pod_usage({"spec": spec, "status": resized}) == {"cpu": 4000, "pods": 1}


@pytest.mark.parametrize(("case", "node", "view"), [
    ("ready",
     {"metadata": {"name": "a", "labels": {"l": "1"}},
      "spec": {"taints": [{"key": "t", "effect": "NoSchedule"}, {"key": "u", "value": "v", "effect": "NoExecute"}]},
      "status": {"allocatable": {"cpu": "3920m", "memory": "1Mi", "pods": "110"},
                 "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}},
     NodeView("a", {"cpu": 3920, "memory": MI, "pods": 110}, {"l": "1"},
              (Taint("t", "NoSchedule"), Taint("u", "NoExecute", "v")))),
    ("cordoned and out of reach",
     {"metadata": {"name": "a"}, "spec": {"unschedulable": True},
      "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}},
     NodeView("a", {}, cordoned=True, ready=False)),
    ("on its way out", {"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
     NodeView("a", {}, cordoned=True, ready=False)),
])  # fmt: skip
def test_nodes(case: str, node: dict[str, Any], view: NodeView) -> None:
    assert node_view(node) == view, case


PLAIN = Demand({"cpu": 1000, "pods": 1}, priority_class="high")


@pytest.mark.parametrize(("case", "spec", "applies"), [
    ("no scope", {}, True),
    ("not terminating", {"scopes": ["NotTerminating"]}, True),
    ("terminating", {"scopes": ["Terminating"]}, False),
    ("best effort", {"scopes": ["BestEffort"]}, False),
    ("all must hold", {"scopes": ["NotBestEffort", "Terminating"]}, False),
    ("its class", {"scopeSelector": {"matchExpressions": [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["high", "low"]}]}}, True),
    ("another class", {"scopeSelector": {"matchExpressions": [
        {"scopeName": "PriorityClass", "operator": "NotIn", "values": ["high"]}]}}, False),
])  # fmt: skip
def test_quotas_of_other_pods_do_not_count(case: str, spec: dict[str, Any], applies: bool) -> None:
    status = {"hard": {"pods": "3", "requests.cpu": "4"}, "used": {"pods": "1", "requests.cpu": "500m"}}
    left = quota_left({"spec": spec | {"hard": {"pods": "9"}}, "status": status}, PLAIN)
    assert left == ({"pods": 2, "requests.cpu": 3500} if applies else None), case


def test_a_quota_that_nobody_has_counted_yet() -> None:
    assert quota_left({"spec": {"hard": {"pods": "9"}}}, PLAIN) == {"pods": 9}
