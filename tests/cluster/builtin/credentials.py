"""The cluster's certificates and kubeconfigs, made with the openssl program."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cluster.builtin.addresses import CONTROL_PLANE, CONTROL_PLANE_PORT, KUBERNETES_SERVICE, NodePlan
from cluster.launch import run

_DAYS = "3650"
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Credentials:
    """Files ``<name>.crt``, ``<name>.key`` and ``<name>.kubeconfig`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Everything the control plane needs."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._authority()
        key, public = self.folder / "service-account.key", self.folder / "service-account.pub"
        run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key])
        run(["openssl", "pkey", "-in", key, "-pubout", "-out", public])
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        self._issue("apiserver", "kube-apiserver", dns=[*names, "localhost"],
                    ips=["127.0.0.1", CONTROL_PLANE, KUBERNETES_SERVICE])  # fmt: skip
        self._issue("kubelet-client", "kube-apiserver-kubelet-client", group="system:masters")
        self._issue("front-proxy", "front-proxy-client")
        for user in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"):
            self._issue(user, f"system:{user}")
            self.kubeconfig(user)
        self._issue("admin", "kubernetes-admin", group="system:masters")

    def make_node(self, node: NodePlan) -> None:
        """The node's client certificate (for the API server) and serving certificate (for logs and exec)."""
        self._issue(node.name, f"system:node:{node.name}", group="system:nodes")
        self._issue(f"{node.name}-serving", f"system:node:{node.name}", group="system:nodes",
                    dns=[node.name], ips=[node.ip])  # fmt: skip
        self.kubeconfig(node.name)

    def kubeconfig(self, user: str, server: str | None = None, path: Path | None = None) -> Path:
        """Write a kubeconfig with everything inlined, for use in any namespace and container."""
        target = path or self.folder / f"{user}.kubeconfig"
        cluster = {
            "server": server or f"https://{CONTROL_PLANE}:{CONTROL_PLANE_PORT}",
            "certificate-authority-data": self._base64("ca.crt"),
        }
        identity = {
            "client-certificate-data": self._base64(f"{user}.crt"),
            "client-key-data": self._base64(f"{user}.key"),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "trainyard", "cluster": cluster}],
            "users": [{"name": user, "user": identity}],
            "contexts": [{"name": "trainyard", "context": {"cluster": "trainyard", "user": user}}],
            "current-context": "trainyard",
        }
        fresh = target.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(document, indent=1))
        fresh.replace(target)
        return target

    def _base64(self, name: str) -> str:
        return base64.b64encode((self.folder / name).read_bytes()).decode()

    def _authority(self) -> None:
        config = self._config("ca", ["basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign,cRLSign"])
        run(["openssl", "req", "-x509", *_KEY, "-config", config, "-subj", "/CN=trainyard-cluster-ca", "-days", _DAYS,
             "-keyout", self.folder / "ca.key", "-out", self.folder / "ca.crt"])  # fmt: skip

    def _issue(
        self, name: str, user: str, *, group: str = "", dns: list[str] | None = None, ips: list[str] | None = None
    ) -> None:
        usage = "serverAuth" if dns or ips else "clientAuth"
        extensions = ["basicConstraints=critical,CA:false", f"extendedKeyUsage={usage}"]
        names = [f"DNS:{entry}" for entry in dns or []] + [f"IP:{entry}" for entry in ips or []]
        if names:
            extensions.append("subjectAltName=" + ",".join(names))
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        run(["openssl", "req", "-x509", *_KEY, "-config", self._config(name, extensions), "-subj", subject,
             "-days", _DAYS, "-CA", self.folder / "ca.crt", "-CAkey", self.folder / "ca.key",
             "-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.crt"],
            what=f"making the certificate of {name}")  # fmt: skip

    def _config(self, name: str, extensions: list[str]) -> Path:
        path = self.folder / f"{name}.cnf"
        lines = ["[req]", "distinguished_name=subject", "x509_extensions=extensions", "[subject]", "[extensions]"]
        path.write_text("\n".join([*lines, *extensions, ""]))
        return path
