"""How a template says that a job's pods are to be on different nodes."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.placement.quantities import demand_of

META = {"namespace": "ns", "labels": {"app": "llama", "tier": "gold"}}
MINE = {"matchLabels": {"app": "llama"}}
HOST = {"topologyKey": "kubernetes.io/hostname", "labelSelector": MINE}


def required(**changes: Any) -> dict[str, Any]:
    term = {**HOST, **changes}
    return {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def preferred(**changes: Any) -> dict[str, Any]:
    term = {"weight": 1, "podAffinityTerm": {**HOST, **changes}}
    return {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}}


def spread(**changes: Any) -> dict[str, Any]:
    return {"topologySpreadConstraints": [{**HOST, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", **changes}]}


def expressions(*operators: str) -> dict[str, Any]:
    values = {"In": ["llama"], "NotIn": ["bert"], "Exists": [], "DoesNotExist": []}
    return {"matchExpressions": [{"key": "app", "operator": one, "values": values[one]} for one in operators]}


@pytest.mark.parametrize(("case", "spec", "answer"), [
    ("nothing said", {}, ""),
    ("none beside another", required(), "Required"),
    ("by zone", required(topologyKey="topology.kubernetes.io/zone"), ""),
    ("other pods", required(labelSelector={"matchLabels": {"app": "web"}}), ""),
    ("all of the labels count", required(labelSelector={"matchLabels": {"app": "llama", "tier": "tin"}}), ""),
    ("no pods", required(labelSelector=None), ""),
    ("all pods", required(labelSelector={}), "Required"),
    ("expressions", required(labelSelector=expressions("In", "NotIn", "Exists")), "Required"),
    ("all expressions count", required(labelSelector=expressions("In", "DoesNotExist")), ""),
    ("this namespace", required(namespaces=["other", "ns"]), "Required"),
    ("another namespace", required(namespaces=["other"]), ""),
    ("all namespaces", required(namespaceSelector={}), "Required"),
    ("namespaces by label", required(namespaceSelector={"matchLabels": {"a": "b"}}), ""),
    ("better not beside another", preferred(), "Preferred"),
    ("spread over nodes", spread(), "Preferred"),
    ("spread over nodes, if possible", spread(whenUnsatisfiable="ScheduleAnyway"), "Preferred"),
    ("spread over zones", spread(topologyKey="topology.kubernetes.io/zone"), ""),
    ("affinity is none", {"affinity": {"podAffinity": required()["affinity"]["podAntiAffinity"]}}, ""),
    ("a port of the node", {"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]}, "Required"),
    ("a port of the pod", {"containers": [{"ports": [{"containerPort": 80}]}]}, ""),
    ("both", {**required(), **spread()}, "Required"),
])  # fmt: skip
def test_apart(case: str, spec: dict[str, Any], answer: str) -> None:
    assert demand_of({"metadata": META, "spec": spec}).apart == answer, case
