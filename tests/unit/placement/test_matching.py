"""Which nodes may take a pod at all."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.placement.books import NodeView
from trainyard.placement.matching import hindrance
from unit.placement.clusters import demand, node, taint

AFFINITY = "ruled out by the node affinity"


def required(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def field(operator: str, name: str) -> dict[str, Any]:
    return {"matchFields": [{"key": "metadata.name", "operator": operator, "values": [name]}]}


@pytest.mark.parametrize(("term", "matches"), [
    (expression("l", "In", "5", "6"), True), (expression("l", "In", "6"), False), (expression("no", "In", "5"), False),
    (expression("l", "NotIn", "6"), True), (expression("l", "NotIn", "5"), False),
    (expression("no", "NotIn", "5"), True),
    (expression("l", "Exists"), True), (expression("no", "Exists"), False),
    (expression("l", "DoesNotExist"), False), (expression("no", "DoesNotExist"), True),
    (expression("l", "Gt", "4"), True), (expression("l", "Gt", "5"), False), (expression("no", "Gt", "4"), False),
    (expression("l", "Lt", "10"), True), (expression("l", "Lt", "5"), False), (expression("w", "Lt", "5"), False),
    (field("In", "a"), True), (field("In", "b"), False), (field("NotIn", "a"), False), (field("NotIn", "b"), True),
    (expression("l", "Exists") | field("In", "b"), False), (expression("l", "Exists") | field("In", "a"), True),
    ({}, False), (expression("l", "Newer", "5"), False),
])  # fmt: skip
def test_affinity(term: dict[str, Any], matches: bool) -> None:
    one = node("a", labels={"l": "5", "w": "word"})
    assert hindrance(one, demand(affinity=required(term))) == (None if matches else AFFINITY)


def test_one_alternative_is_enough() -> None:
    terms = expression("no", "Exists"), expression("kubernetes.io/hostname", "Exists")
    assert hindrance(node("a"), demand(affinity=required(*terms))) is None


@pytest.mark.parametrize(("toleration", "tolerates"), [
    ({"operator": "Exists"}, True), ({"key": "k", "operator": "Exists"}, True), ({"key": "k", "value": "v"}, True),
    ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True),
    ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False), ({"key": "k"}, False),
    ({"key": "k", "value": "w"}, False), ({"key": "other", "operator": "Exists"}, False), ({}, False),
])  # fmt: skip
def test_tolerations(toleration: dict[str, str], tolerates: bool) -> None:
    tainted = node("a", taints=taint("k", value="v"))
    expected = None if tolerates else "tainted k=v:NoSchedule"
    assert hindrance(tainted, demand(tolerations=(toleration,))) == expected


UNSCHEDULABLE = taint("node.kubernetes.io/unschedulable")
NOT_READY = taint("node.kubernetes.io/not-ready", "NoExecute")


@pytest.mark.parametrize(("case", "view", "fields", "why"), [
    ("fine", node("a"), {}, None),
    ("selector", node("a"), {"node_selector": {"pool": "b"}}, "ruled out by the nodeSelector"),
    ("cordoned", node("a", cordoned=True, taints=UNSCHEDULABLE), {}, "cordoned"),
    ("a cordon can be tolerated", node("a", cordoned=True, taints=UNSCHEDULABLE),
     {"tolerations": ({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},)}, None),
    ("not ready", node("a", ready=False, taints=NOT_READY), {}, "not ready"),
    ("unreadiness cannot be tolerated", node("a", ready=False, taints=NOT_READY),
     {"tolerations": ({"operator": "Exists"},)}, "not ready"),
    ("ready again, the taint still there", node("a", taints=NOT_READY), {}, None),
    ("a mere preference", node("a", taints=taint("k", "PreferNoSchedule")), {}, None),
])  # fmt: skip
def test_hindrances(case: str, view: NodeView, fields: dict[str, Any], why: str | None) -> None:
    assert hindrance(view, demand(**fields)) == why, case
