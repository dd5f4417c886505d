"""From raw Kubernetes objects to the whole numbers of the books.

cpu is counted in millicores, everything else in its own unit (bytes, devices, pods); fractions are rounded up, as
kube-scheduler does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from trainyard.placement.apart import apart
from trainyard.placement.books import Demand, NodeView, Resources, Taint

LARGEST = 2**63 - 1  # where Kubernetes caps a quantity
_FORM = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:(n|u|m|k|[MGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,9}))?", re.ASCII)
_SUFFIXES: dict[str, Fraction] = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "k": Fraction(1000),
    **{letter: Fraction(1000**power) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}  # fmt: skip
# Only these pod-level resources exist; the rest of a pod's requests always comes from its containers.
_POD_LEVEL = ("cpu", "memory")


@lru_cache(maxsize=4096)
def quantity(text: str | int | float) -> Fraction:
    """The exact value of a Kubernetes quantity ("100m", "1Gi", "1e3", "0.5", "1E").

    Raises ValueError for what is none.
    """
    form = _FORM.fullmatch(str(text))
    if form is None:
        raise ValueError(f"expected a quantity such as 500m, 2 or 1Gi, found {text!r}")
    sign, digits, suffix, exponent = form.groups()
    power = int(exponent or 0)
    if abs(power) > 40:  # beyond every cap; not worth numbers of a million digits
        value = Fraction(LARGEST) if power > 0 and float(digits) else Fraction(0)
    else:
        value = Fraction(digits) * (_SUFFIXES[suffix] if suffix else Fraction(10) ** power)
    value = min(value, Fraction(LARGEST))
    return -value if sign == "-" else value


def whole(resource: str, text: str | int | float) -> int:
    """A quantity of that resource in the unit of the books, rounded up."""
    value = quantity(text) * 1000 if _is_cpu(resource) else quantity(text)
    return -((-value.numerator) // value.denominator)


def resources(raw: Mapping[str, Any] | None) -> dict[str, int]:
    """A Kubernetes resource list (`requests`, `allocatable`, `hard`) in the units of the books."""
    return {name: whole(name, text) for name, text in (raw or {}).items()}


def show(resource: str, amount: int) -> str:
    """An amount as people write it: "32 cpu", "64Gi memory", "8 huawei.com/Ascend910"."""
    return f"{show_amount(resource, amount)} {resource}"


def show_amount(resource: str, amount: int) -> str:
    """The number of `show`."""
    if _is_cpu(resource):
        return f"{amount // 1000}" if amount % 1000 == 0 else f"{amount}m"
    if resource.rpartition(".")[2] in ("memory", "ephemeral-storage", "storage") or "hugepages-" in resource:
        for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
            if amount and abs(amount) >= 1024**power:
                return f"{amount / 1024**power:.1f}".removesuffix(".0") + unit
    return str(amount)


def demand_of(pod: Mapping[str, Any]) -> Demand:
    """What a pod like this one needs of a node. Best given what the API server's dry run answered, so that LimitRanges,
    webhooks and defaults are counted."""
    spec = pod["spec"]
    return Demand(
        requests=effective(spec, "requests") | {"pods": 1},
        limits=effective(spec, "limits"),
        node_selector=dict(spec.get("nodeSelector") or {}),
        affinity=dict(spec.get("affinity") or {}),
        tolerations=tuple(spec.get("tolerations") or ()),
        apart=apart(pod),
        priority_class=spec.get("priorityClassName") or "",
    )


def node_view(node: Mapping[str, Any]) -> NodeView:
    """What placement knows of a Node. A node that is being deleted counts as cordoned."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
    return NodeView(
        name=metadata["name"],
        allocatable=resources(status.get("allocatable")),
        labels=dict(metadata.get("labels") or {}),
        taints=tuple(Taint(t["key"], t["effect"], t.get("value") or "") for t in spec.get("taints") or ()),
        cordoned=bool(spec.get("unschedulable") or metadata.get("deletionTimestamp")),
        ready=ready,
    )


def pod_usage(pod: Mapping[str, Any]) -> Resources:
    """What a pod takes from the node it is bound to; nothing once it has finished."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return {}
    return effective(pod["spec"], "requests", pod.get("status")) | {"pods": 1}


def effective(spec: Mapping[str, Any], kind: str, status: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Effective `requests` or `limits` of a pod spec, by the rules of kube-scheduler: what all containers and sidecars
    take together, or the moment of initialisation that takes most, or the pod's own statement; plus overhead.

    With the pod's status, a container that is being resized counts as the larger of the two sizes.
    """
    allocated = _allocated(status or {}, kind)
    running = _sum(_container(c, kind, allocated) for c in spec.get("containers") or ())
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for init in spec.get("initContainers") or ():
        needs = _container(init, kind, allocated)
        if init.get("restartPolicy") == "Always":
            sidecars = _sum((sidecars, needs))
            peak = _maximum(peak, sidecars)
        else:
            peak = _maximum(peak, _sum((sidecars, needs)))
    total = _maximum(_sum((running, sidecars)), peak)
    stated = resources((spec.get("resources") or {}).get(kind))
    total |= {name: amount for name, amount in stated.items() if name in _POD_LEVEL or name.startswith("hugepages-")}
    overhead = resources(spec.get("overhead"))
    if kind == "limits":  # no limit stays no limit
        overhead = {name: amount for name, amount in overhead.items() if name in total}
    return {name: amount for name, amount in _sum((total, overhead)).items() if amount}


def quota_left(quota: Mapping[str, Any], demand: Demand) -> dict[str, int] | None:
    """What a raw ResourceQuota still allows, by its own resource names; None if its scopes leave such pods out."""
    spec, status = quota.get("spec") or {}, quota.get("status") or {}
    selectors = [{"scopeName": scope, "operator": "Exists"} for scope in spec.get("scopes") or ()]
    selectors += (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    if not all(_in_scope(selector, demand) for selector in selectors):
        return None
    hard = resources(status.get("hard") or spec.get("hard"))
    used = resources(status.get("used"))
    return {name: amount - used.get(name, 0) for name, amount in hard.items()}


def _in_scope(selector: Mapping[str, Any], demand: Demand) -> bool:
    scope, operator, values = selector["scopeName"], selector.get("operator"), selector.get("values") or ()
    if scope == "PriorityClass":
        name = demand.priority_class
        return {"In": name in values, "NotIn": name not in values,
                "Exists": bool(name), "DoesNotExist": not name}.get(str(operator), False)  # fmt: skip
    best_effort = not any(amounts.get(r) for amounts in (demand.requests, demand.limits) for r in ("cpu", "memory"))
    across = any(
        "namespaces" in term or "namespaceSelector" in term for term in _pod_affinity_terms(demand.affinity)
    )
    # Our pods never have activeDeadlineSeconds.
    return {"Terminating": False, "NotTerminating": True, "BestEffort": best_effort,
            "NotBestEffort": not best_effort, "CrossNamespacePodAffinity": across}.get(scope, False)  # fmt: skip


def _pod_affinity_terms(affinity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for kind in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(kind) or {}
        found += part.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
        found += [
            weighted.get("podAffinityTerm") or {}
            for weighted in part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        ]
    return found


def _is_cpu(resource: str) -> bool:
    return resource in ("cpu", "requests.cpu", "limits.cpu")


def _container(container: Mapping[str, Any], kind: str, allocated: Mapping[str, dict[str, int]]) -> dict[str, int]:
    given = container.get("resources") or {}
    amounts = resources(given.get(kind))
    if kind == "requests":  # the API server's own default
        amounts = resources(given.get("limits")) | amounts
    return _maximum(amounts, allocated.get(container.get("name") or "", {}))


def _allocated(status: Mapping[str, Any], kind: str) -> dict[str, dict[str, int]]:
    """What kubelet has given each container, by its name."""
    entries: Sequence[Mapping[str, Any]] = [
        *(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())
    ]  # fmt: skip
    return {
        entry["name"]: _maximum(
            resources(entry.get("allocatedResources") if kind == "requests" else None),
            resources((entry.get("resources") or {}).get(kind)),
        )
        for entry in entries
    }


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def _maximum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in one.keys() | other.keys()}
