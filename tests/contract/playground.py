"""A namespace of its own for a test of the running operator, with nodes that only its jobs fit on."""

from __future__ import annotations

import itertools
from typing import Any

from contract.apiserver import ApiServer
from contract.manifests import command_job
from contract.operator_process import until
from contract.rest import GROUP, Rest

_numbers = itertools.count()


class Playground:
    """A namespace and a set of nodes that only this test's jobs fit on."""

    def __init__(self, server: ApiServer, rest: Rest) -> None:
        self.server = server
        self.rest = rest
        self.name = server.namespace(f"run-{next(_numbers)}")

    def node(self, name: str, cpu: str = "4") -> None:
        """A Ready node with a label of this playground's own."""
        name = f"{self.name}-{name}"
        self.rest.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": name, "labels": {"playground": self.name}}, "spec": {}})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                 "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
        room = {"cpu": cpu, "memory": "8Gi", "pods": "10"}
        answer = self.rest.patch(f"/api/v1/nodes/{name}/status", {"status": {
            "allocatable": room, "capacity": room, "conditions": [ready]}})
        assert answer.ok, answer
        answer = self.rest.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})  # TaintNodesByCondition's
        assert answer.ok, answer

    def submit(self, name: str, cpu: str | None = "1", **changes: Any) -> None:
        """A job that fits only on this playground's nodes."""
        container: dict[str, Any] = {"name": "trainer", "image": "python:3.11"}
        if cpu:
            container["resources"] = {"requests": {"cpu": cpu, "memory": "1Gi"}}
        template = {"spec": {"containers": [container], "nodeSelector": {"playground": self.name}}}
        answer = self.rest.create(f"{GROUP}/namespaces/{self.name}/trainingjobs",
                                  command_job(name, **({"template": template} | changes)))
        assert answer.ok, answer

    def job(self, name: str) -> dict[str, Any]:
        """As stored."""
        return self.rest.get(f"{GROUP}/namespaces/{self.name}/trainingjobs/{name}").body

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of a job; empty if it has none of that type."""
        found = self.job(name).get("status", {}).get("conditions", ())
        return next((dict(c) for c in found if c["type"] == kind), {})

    def until_condition(self, name: str, kind: str, status: str, seconds: float = 10) -> dict[str, Any]:
        """Once the condition has that status."""
        return until(f"{name}: {kind}={status}", seconds,
                     lambda: c if (c := self.condition(name, kind)).get("status") == status else {})

    def pods(self) -> list[dict[str, Any]]:
        """All pods here."""
        return list(self.rest.get(f"/api/v1/namespaces/{self.name}/pods").body["items"])

    def until_pods(self, count: int, seconds: float = 10) -> list[dict[str, Any]]:
        """Once there are that many."""
        return until(f"{count} pods", seconds, lambda: pods if len(pods := self.pods()) == count else [])
