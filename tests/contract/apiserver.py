"""A private Kubernetes API server for contract tests: etcd and kube-apiserver on loopback, nothing else.

No controllers and no nodes run: objects are stored, validated, authorised and admitted exactly as in a cluster, and
then nothing happens to them. Authentication by client certificate or service account token; authorisation Node and
RBAC; the default admission plugins, ValidatingAdmissionPolicy, LimitRanger, ResourceQuota and Pod Security among them.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
_START_SECONDS = 60.0
_PORT_ATTEMPTS = 3  # a port that was free when we looked may be taken when etcd binds it


class NoBinaries(Exception):
    """kube-apiserver, etcd or kubectl is not there; the message says where they were looked for."""


def find_programs() -> dict[str, Path]:
    """Paths of etcd, kube-apiserver and kubectl: from $KUBEBUILDER_ASSETS (as envtest has it), else from the cache of
    the built-in test cluster. Raises NoBinaries."""
    folders: list[Path] = []
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        folders.append(Path(assets))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainyard" / "bin"
    if cache.is_dir():
        kept = [folder for folder in cache.iterdir() if folder.is_dir()]
        folders += sorted(kept, key=lambda folder: folder.stat().st_mtime, reverse=True)
    found: dict[str, Path] = {}
    for program in _PROGRAMS:
        for folder in folders:
            if os.access(folder / program, os.X_OK):
                found[program] = folder / program
                break
    if missing := [program for program in _PROGRAMS if program not in found]:
        raise NoBinaries(
            f"{', '.join(missing)} not found in {', '.join(map(str, folders)) or cache}; build the test cluster's "
            "programs with `make contract`, or point KUBEBUILDER_ASSETS at a folder that has them")
    return found


def _die_with_parent() -> None:
    """Run in the child: ask the kernel for SIGKILL when the test process is gone, however it went."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Credentials:
    """Key material of one server: a CA that signs both sides, the server's pair, the service account signing key."""

    folder: Path

    def _openssl(self, *args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=self.folder, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"openssl {' '.join(args)} failed: {done.stderr.strip()}")

    def make(self) -> None:
        """Write ca.{crt,key}, server.{crt,key}, sa.{key,pub}."""
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                      "-subj", "/CN=contract-test-ca", "-keyout", "ca.key", "-out", "ca.crt",
                      "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
        self.sign("server", "/CN=kube-apiserver",
                  "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
        self._openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "sa.key")
        self._openssl("pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def sign(self, name: str, subject: str, extensions: str) -> None:
        """Write NAME.key and a NAME.crt for `subject` that the CA signed."""
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.folder / f"{name}.ext").write_text(extensions)
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                      "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")


@dataclass
class ApiServer:
    """A running server. `kubeconfig` and `env` are the cluster administrator's (group system:masters)."""

    url: str
    folder: Path
    programs: Mapping[str, Path]
    credentials: Credentials
    process: subprocess.Popen[bytes]
    command: list[str] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.folder / "admin.kubeconfig"

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with KUBECONFIG set to the administrator's."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None,
                timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or as whom `kubeconfig` names. With `check` a failure raises RuntimeError
        that quotes kubectl's answer."""
        argv = [str(self.programs["kubectl"]), f"--kubeconfig={kubeconfig or self.kubeconfig}", *args]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=self.env)
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(args)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def apply(self, *manifests: Mapping[str, Any], kubeconfig: Path | None = None) -> None:
        """Server-side apply of objects as the administrator (or as whom `kubeconfig` names)."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text, kubeconfig=kubeconfig)

    def get(self, *args: str) -> Any:
        """`kubectl get ARGS -o json`, parsed."""
        return json.loads(self.kubectl("get", *args, "-o", "json").stdout)

    def install_crds(self, folder: Path) -> None:
        """Apply every CRD in `folder` and wait until they are served."""
        self.kubectl("apply", "--server-side", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")

    def user(self, name: str, groups: Sequence[str] = ()) -> Path:
        """Kubeconfig of a user with a client certificate for `name` and `groups`."""
        file = "user-" + "".join(c if c.isalnum() or c in ".-" else "-" for c in name)
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        self.credentials.sign(file, subject, "extendedKeyUsage=clientAuth\n")
        pair = {kind: (self.credentials.folder / f"{file}.{end}").read_bytes()
                for kind, end in (("certificate", "crt"), ("key", "key"))}
        inline = {f"client-{kind}-data": base64.b64encode(content).decode() for kind, content in pair.items()}
        return self._write_kubeconfig(f"{file}.kubeconfig", inline)

    def token(self, namespace: str, service_account: str, pod: str = "", pod_uid: str = "") -> str:
        """A service account token from the TokenRequest API, bound to a pod if one is named, as kubelet mounts them."""
        args = ["create", "token", service_account, "-n", namespace]
        if pod:
            args += ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
        if pod_uid:
            args += [f"--bound-object-uid={pod_uid}"]
        return self.kubectl(*args).stdout.strip()

    def service_account(self, namespace: str, name: str, pod: str = "") -> Path:
        """Kubeconfig with a token of that service account (which must exist), bound to `pod` if one is named."""
        token = self.token(namespace, name, pod)
        return self._write_kubeconfig(f"sa-{namespace}-{name}-{pod}.kubeconfig", {"token": token})

    def namespace(self, name: str, labels: Mapping[str, str] | None = None) -> str:
        """Make a namespace with its `default` service account (no controller would) and return its name."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
        self.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}})
        return name

    def pause(self) -> None:
        """Stop answering, connections stay open: an API server that hangs."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of the API server; etcd stays."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start the killed API server again on the same port with the same data and wait until it is ready."""
        with (self.folder / "kube-apiserver.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when /readyz answers 200. Raises RuntimeError with the end of the log otherwise."""
        context = ssl.create_default_context(cafile=str(self.credentials.folder / "ca.crt"))
        context.load_cert_chain(self.credentials.folder / "user-admin.crt", self.credentials.folder / "user-admin.key")
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(
                    f"{self.url}/readyz", context=context, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        tail = (self.folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"kube-apiserver was not ready within {_START_SECONDS:.0f} s, "
                           f"exit code {self.process.poll()}:\n{tail}")

    def _write_kubeconfig(self, file: str, user: Mapping[str, str]) -> Path:
        ca = base64.b64encode((self.credentials.folder / "ca.crt").read_bytes()).decode()
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "contract",
            "clusters": [{"name": "contract", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "user", "user": dict(user)}],
            "contexts": [{"name": "contract", "context": {"cluster": "contract", "user": "user"}}],
        }
        path = self.folder / file
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path


def _start_etcd(program: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start etcd on free ports; returns the process and its client URL once it answers."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        client, peer = f"http://127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
        with (folder / "etcd.log").open("ab") as log:
            process = subprocess.Popen(
                [str(program), "--name=contract", f"--data-dir={folder / f'etcd-{attempt}'}", "--unsafe-no-fsync",
                 f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
                 f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=contract={peer}", "--log-level=warn"],
                stdout=log, stderr=log, preexec_fn=_die_with_parent)
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{client}/health", timeout=2) as answer:
                if answer.status == 200:
                    return process, client
            time.sleep(0.05)
        process.kill()
        process.wait()
    raise RuntimeError(f"etcd did not start in {_PORT_ATTEMPTS} attempts:\n{(folder / 'etcd.log').read_text()[-2000:]}")


def _apiserver_command(program: Path, port: int, etcd: str, keys: Path) -> list[str]:
    return [
        str(program), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}",
        "--advertise-address=127.0.0.1",
        f"--tls-cert-file={keys / 'server.crt'}", f"--tls-private-key-file={keys / 'server.key'}",
        f"--client-ca-file={keys / 'ca.crt'}", "--authorization-mode=Node,RBAC", "--anonymous-auth=false",
        "--service-account-issuer=https://contract.test", "--api-audiences=https://contract.test",
        f"--service-account-key-file={keys / 'sa.pub'}", f"--service-account-signing-key-file={keys / 'sa.key'}",
        "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none", "--profiling=false",
        "--enable-admission-plugins=NodeRestriction",
    ]


@contextlib.contextmanager
def run_apiserver() -> Iterator[ApiServer]:
    """A fresh server with empty storage in a temporary folder; gone with all its files afterwards."""
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="trainyard-contract-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        credentials = Credentials(folder / "pki")
        credentials.folder.mkdir()
        credentials.make()
        etcd, etcd_url = _start_etcd(programs["etcd"], folder)
        stack.callback(_end, etcd)
        port = _free_port()
        command = _apiserver_command(programs["kube-apiserver"], port, etcd_url, credentials.folder)
        with (folder / "kube-apiserver.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        server = ApiServer(f"https://127.0.0.1:{port}", folder, programs, credentials, process, command)
        stack.callback(lambda: _end(server.process))
        server.user("admin", ["system:masters"]).rename(server.kubeconfig)
        server.wait_ready()
        yield server


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a child that holds nothing worth keeping."""
    process.kill()
    process.wait()
