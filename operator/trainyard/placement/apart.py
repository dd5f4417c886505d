"""Whether a job's pods are to be on different nodes, as its template says it in Kubernetes' own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from trainyard.placement.matching import holds

Apart = Literal["", "Preferred", "Required"]
HOSTNAME = "kubernetes.io/hostname"


def apart(pod: Mapping[str, Any]) -> Apart:
    """Required: no two of them on one node, by their anti-affinity to each other, or because they want the same port of
    it. Preferred: as evenly over nodes as room allows. All pods of a job are like this one. What kube-scheduler makes
    of pods that are bound to their nodes says nothing of it: it counts over the nodes that a pod may be on, which is
    one."""
    meta, spec = pod.get("metadata") or {}, pod["spec"]
    anti = (spec.get("affinity") or {}).get("podAntiAffinity") or {}
    hard = anti.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
    preferred = anti.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    soft = [*(each.get("podAffinityTerm") or {} for each in preferred), *(spec.get("topologySpreadConstraints") or ())]
    never = _wants_port(spec) or any(_among_themselves(term, meta) for term in hard)
    return "Required" if never else "Preferred" if any(_among_themselves(term, meta) for term in soft) else ""


def _wants_port(spec: Mapping[str, Any]) -> bool:
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    return any(port.get("hostPort") for container in containers for port in container.get("ports") or ())


def _among_themselves(term: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Whether it is about nodes, and about pods with the labels and the namespace of this one."""
    own = meta.get("namespace", "")
    named, by_label = term.get("namespaces") or (), term.get("namespaceSelector")
    here = own in named or by_label == {} or (not named and by_label is None)
    of_nodes = term.get("topologyKey") == HOSTNAME
    return of_nodes and here and _selects(term.get("labelSelector"), meta.get("labels") or {})


def _selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """No selector selects nothing, an empty one everything."""
    if selector is None:
        return False
    expressions: Iterable[Mapping[str, Any]] = selector.get("matchExpressions") or ()
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return equal and all(holds(one, labels) for one in expressions)
