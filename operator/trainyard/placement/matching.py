"""Whether a node may take a pod at all, whatever is free on it: what kube-scheduler's node filters ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from trainyard.placement.books import Demand, NodeView, Taint

Requirement = Mapping[str, Any]

UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable", "NoSchedule")
# Unreadiness and cordons are judged by NodeView.ready and .cordoned; what the node controller adds to them, in its own
# time, is no cause of its own.
_SHADOWS = frozenset({
    "node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
})  # fmt: skip


def hindrance(node: NodeView, demand: Demand) -> str | None:
    """Why this node is out, in words that follow "is" or "are"; None if it is not."""
    if any(node.labels.get(key) != value for key, value in demand.node_selector.items()):
        return "ruled out by the nodeSelector"
    if not _affinity_matches(node, demand.affinity):
        return "ruled out by the node affinity"
    if not node.ready:
        return "not ready"
    if node.cordoned and not tolerated(UNSCHEDULABLE, demand.tolerations):
        return "cordoned"
    for taint in node.taints:
        if taint.effect == "PreferNoSchedule" or taint.key in _SHADOWS:
            continue
        if not tolerated(taint, demand.tolerations):
            return f"tainted {taint.key}{'=' if taint.value else ''}{taint.value}:{taint.effect}"
    return None


def reluctance(node: NodeView, demand: Demand) -> int:
    """How little the pod wants this node: 1,000 a PreferNoSchedule taint that it does not tolerate, less the weights of
    the preferred node affinity."""
    unwanted = sum(
        1000
        for taint in node.taints
        if taint.effect == "PreferNoSchedule" and not tolerated(taint, demand.tolerations)
    )
    for weighted in _node_affinity(demand.affinity).get("preferredDuringSchedulingIgnoredDuringExecution") or ():
        preference = weighted.get("preference") or {}
        if _term_matches(node, preference):
            unwanted -= int(weighted.get("weight") or 0)
    return unwanted


def tolerated(taint: Taint, tolerations: Sequence[Mapping[str, object]]) -> bool:
    """Whether one of the tolerations covers the taint."""
    return any(_covers(toleration, taint) for toleration in tolerations)


def _covers(toleration: Mapping[str, object], taint: Taint) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.effect:
        return False
    operator = toleration.get("operator") or "Equal"
    if not toleration.get("key"):
        return operator == "Exists"
    if toleration["key"] != taint.key:
        return False
    return operator == "Exists" or (operator == "Equal" and (toleration.get("value") or "") == taint.value)


def _node_affinity(affinity: Mapping[str, object]) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", affinity.get("nodeAffinity") or {})


def _affinity_matches(node: NodeView, affinity: Mapping[str, object]) -> bool:
    required = _node_affinity(affinity).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(node, term) for term in required.get("nodeSelectorTerms") or ())


def _term_matches(node: NodeView, term: Mapping[str, Any]) -> bool:
    """All of its expressions and fields hold; a term without any matches nothing."""
    expressions: Sequence[Requirement] = term.get("matchExpressions") or ()
    fields: Sequence[Requirement] = term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(holds(one, node.labels) for one in expressions) and all(
        holds(one, {"metadata.name": node.name}) for one in fields
    )


def holds(requirement: Requirement, values: Mapping[str, str]) -> bool:
    """Whether labels, or fields, satisfy one of matchExpressions or matchFields."""
    found = values.get(requirement["key"])
    wanted: Sequence[str] = requirement.get("values") or ()
    match requirement.get("operator"):
        case "In":
            return found in wanted
        case "NotIn":
            return found not in wanted
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator:
            return found is not None and _compares(found, wanted, operator)
    return False


def _compares(found: str, wanted: Sequence[str], operator: str) -> bool:
    try:
        value, bound = int(found), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return value > bound if operator == "Gt" else value < bound
