"""Programs in the control plane's own network, as in a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from cluster import Cluster
from cluster.builtin.control import ControlPlane
from cluster.ledger import Ledger
from cluster.state import load
from harness.job import Api

from scale.fleet import raw


@dataclass(frozen=True)
class Inside:
    """A way to the API server without the relay of the host's loopback, one Python process for all of its clients: what
    it takes for each pod is as much as the operator."""

    words: tuple[str, ...]  # to put before a command
    kubeconfig: Path


def inside(cluster: Cluster, folder: Path) -> Inside:
    """Of a built-in cluster; the kubeconfig is written into `folder`."""
    state = load(cluster.name)
    assert state is not None, f"cluster {cluster.name} is up, but not on record"
    plane = ControlPlane(state.folder, Ledger(state.folder / "ledger"), state.port)
    kubeconfig = plane.credentials.kubeconfig("admin", path=folder / "inside.kubeconfig")
    known = yaml.safe_load(kubeconfig.read_text())
    known["users"][0]["user"] = {"token": token(Api(cluster.kubeconfig))}
    kubeconfig.write_text(yaml.safe_dump(known))
    return Inside(("nsenter", "-t", str(plane.machine.init), "-n", "--"), kubeconfig)


def token(api: Api) -> str:
    """What the operator has in a cluster: the token of a service account. An API server checks a client certificate's
    signature anew with each request, which costs it more than many a request itself."""
    about = {"name": "scale", "namespace": "default"}
    raw(api, "POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": about})
    raw(api, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {
        "metadata": {"name": "scale"}, "subjects": [{"kind": "ServiceAccount", **about}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}})
    answer = raw(api, "POST", "/api/v1/namespaces/default/serviceaccounts/scale/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 36000}})
    return str(answer["status"]["token"])
