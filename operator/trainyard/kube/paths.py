"""Where objects live in the API."""

from __future__ import annotations

from trainyard.kube.client import Object

_PLURALS = {
    "Pod": "pods", "ConfigMap": "configmaps", "ServiceAccount": "serviceaccounts", "Event": "events",
    "RoleBinding": "rolebindings", "NetworkPolicy": "networkpolicies", "World": "worlds", "Report": "reports",
    "TrainingJob": "trainingjobs",
}


def path_of(raw: Object) -> tuple[str, str]:
    """Path of the collection that a namespaced object belongs to, and its name (empty with generateName).

    Raises KeyError for a kind that the operator never writes."""
    version = raw["apiVersion"]
    base = f"/apis/{version}" if "/" in version else f"/api/{version}"
    metadata = raw["metadata"]
    return f"{base}/namespaces/{metadata['namespace']}/{_PLURALS[raw['kind']]}", str(metadata.get("name", ""))
