"""The built-in cluster itself: up, down, crashes in between, neighbours, and every lever."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, Progress, remove, state
from cluster.builtin import addresses, cgroups
from cluster.images import seed
from cluster.images.layout import Layout, pause_image, pause_layer
from cluster.ledger import Ledger, alive, start_time
from cluster.paths import REPOSITORY, cache_root, cluster_dir

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="the built-in cluster needs root"),
]
NAME = "levers"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    remove(NAME)
    made = Cluster.up(NAME, nodes=2, provider="builtin")
    yield made
    made.down()


def wait_for(what: str, check: Callable[[], bool], seconds: float = 90) -> float:
    """Wait until ``check`` holds; returns how long it took. The wait is bounded by how long a slow machine needs."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if check():
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def ready(cluster: Cluster, node: str) -> str:
    """The node's Ready condition: True, False or Unknown."""
    document = json.loads(cluster.kubectl("get", "node", node, "-o", "json"))
    return next(str(entry["status"]) for entry in document["status"]["conditions"] if entry["type"] == "Ready")


def run_pod(cluster: Cluster, name: str, node: str) -> str:
    """Run the sandbox's own image, which every node has, as an ordinary pod; returns its address."""
    image = pause_image(Layout(cache_root() / "images" / "pause"))
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{"name": "pause", "image": image}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}}, "spec": spec}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")
    return cluster.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")


def pings(cluster: Cluster, node: str, address: str) -> bool:
    """Whether a packet from the node reaches the address and its answer comes back."""
    code = (
        "import socket,sys\ns = socket.socket()\ns.settimeout(2)\n"
        f"try: s.connect(({address!r}, 9))\nexcept ConnectionRefusedError: print('answered')\nexcept OSError: pass\n"
    )
    # A closed port answers with a reset: that is an answer from the other side.
    return "answered" in cluster.run_on(node, "/usr/bin/python3", "-c", code)


def test_pods_of_both_nodes_reach_each_other_and_the_names(cluster: Cluster) -> None:
    one, two = run_pod(cluster, "one", "node-1"), run_pod(cluster, "two", "node-2")
    assert pings(cluster, "node-1", two)
    assert pings(cluster, "node-2", one)
    cluster.kubectl("expose", "pod", "two", "--port=9", "--cluster-ip=None")
    ask = f"print(ask('two.default.svc.cluster.local', {addresses.CONTROL_PLANE!r}))"
    resolve = f"import socket,struct\n{_QUERY}\n{ask}"
    wait_for("the headless service resolves to its pod", lambda: (
        cluster.run_on("node-1", "/usr/bin/python3", "-c", resolve).strip() == two))  # fmt: skip


# A DNS question for one A record, without any resolver library or the node's resolv.conf.
_QUERY = '''
def ask(name, server):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(2)
    s.sendto(struct.pack(">6H", 1, 256, 1, 0, 0, 0) + labels + b"\\\\0" + struct.pack(">2H", 1, 1), (server, 53))
    try: answer = s.recv(512)
    except TimeoutError: return ""  # not served yet, or lost: like any resolver, the caller asks again
    return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else ""
'''.replace("\\\\0", "\\0")


def test_logs_and_exec_work_from_outside(cluster: Cluster) -> None:
    run_pod(cluster, "talk", "node-2")
    assert cluster.kubectl("logs", "talk") == ""
    with pytest.raises(ClusterError, match="no such file"):  # the image holds one program
        cluster.kubectl("exec", "talk", "--", "/bin/true")


def test_the_shared_folder_is_one_folder(cluster: Cluster) -> None:
    (cluster.shared / "hello").write_text("from the host")
    for node in cluster.nodes:
        assert cluster.run_on(node, "cat", f"{cluster.shared_path}/hello") == "from the host"
    cluster.run_on("node-1", "sh", "-c", f"echo -n from node-1 > {cluster.shared_path}/hello")
    assert (cluster.shared / "hello").read_text() == "from node-1"


def test_a_cut_node_is_lost_and_comes_back(cluster: Cluster) -> None:
    assert pings(cluster, "node-1", addresses.CONTROL_PLANE)
    cluster.cut_network("node-1")
    try:
        assert not pings(cluster, "node-1", addresses.CONTROL_PLANE)
        assert pings(cluster, "node-2", addresses.CONTROL_PLANE)
        wait_for("node-1 is Unknown", lambda: ready(cluster, "node-1") == "Unknown")
        assert ready(cluster, "node-2") == "True"
    finally:
        cluster.mend_network("node-1")
    wait_for("node-1 is Ready again", lambda: ready(cluster, "node-1") == "True")
    assert pings(cluster, "node-1", addresses.CONTROL_PLANE)


def test_pods_outlive_containerd_and_kubelet(cluster: Cluster) -> None:
    address = run_pod(cluster, "lives", "node-2")
    before = cluster.run_on("node-2", "pidof", "pause")
    cluster.kill("kubelet", "node-2")
    cluster.kill("containerd", "node-2")
    assert cluster.run_on("node-2", "pidof", "pause") == before
    assert pings(cluster, "node-1", address)
    cluster.start("containerd", "node-2")
    cluster.start("kubelet", "node-2")
    wait_for("node-2 is Ready again", lambda: ready(cluster, "node-2") == "True")
    run_pod(cluster, "after", "node-2")
    assert set(before.split()) <= set(cluster.run_on("node-2", "pidof", "pause").split())


def test_stopped_and_paused_services_say_so(cluster: Cluster) -> None:
    cluster.stop("kubelet", "node-1")
    assert ("node-1", "kubelet", "stopped") in cluster.describe()
    with pytest.raises(ClusterError, match="kubelet node-1 is not running"):
        cluster.stop("kubelet", "node-1")
    cluster.start("kubelet", "node-1")
    cluster.pause("apiserver")
    try:
        assert any(row[1] == "apiserver" and row[2].startswith("paused") for row in cluster.describe())
        with pytest.raises(ClusterError):
            cluster.kubectl("get", "nodes", "--request-timeout=2s")
    finally:
        cluster.resume("apiserver")
    assert "node-1" in cluster.kubectl("get", "nodes")
    cluster.restart("apiserver")
    wait_for("node-1 is Ready", lambda: ready(cluster, "node-1") == "True")


def test_nodes_come_and_go(cluster: Cluster) -> None:
    name = cluster.add_node()
    assert name == "node-3"
    assert cluster.nodes == ["node-1", "node-2", "node-3"]
    address = run_pod(cluster, "third", name)
    assert pings(cluster, "node-1", address)
    cluster.remove_node(name)
    assert cluster.nodes == ["node-1", "node-2"]
    assert "node-3" not in cluster.kubectl("get", "nodes")
    assert not (cluster_dir(NAME) / "nodes" / name).exists()
    assert not any("node-3" in entry.node for entry in Ledger(cluster_dir(NAME) / "ledger").entries())


def test_what_is_not_there_is_refused_with_what_is(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="has node-1, node-2"):
        cluster.cut_network("node-9")
    with pytest.raises(ClusterError, match=r"it offers: .*kubelet"):
        cluster.stop("etcdd")


def test_up_again_keeps_a_cluster_that_is_well(cluster: Cluster) -> None:
    processes = {entry.pid for entry in Ledger(cluster_dir(NAME) / "ledger").processes()}
    again = Cluster.up(NAME, nodes=2)
    assert again.provider == "builtin"
    assert {entry.pid for entry in Ledger(cluster_dir(NAME) / "ledger").processes()} == processes


def test_two_clusters_live_side_by_side(cluster: Cluster) -> None:
    remove("beside")
    other = Cluster.up("beside", nodes=1, provider="builtin")
    try:
        other.kubectl("create", "namespace", "only-here")
        assert "only-here" not in cluster.kubectl("get", "namespaces")
        run_pod(other, "pod", "node-1")
    finally:
        other.down()
    assert_nothing_left("beside")
    assert ready(cluster, "node-1") == "True"
    run_pod(cluster, "still-works", "node-1")


def assert_nothing_left(name: str, pids: set[int] | None = None) -> None:
    """No folder, no cgroup, no mount, none of the processes."""
    assert not cluster_dir(name).exists()
    for tree in cgroups.hierarchies():
        assert not (tree.root / addresses.cgroup(name).strip("/")).exists()
    assert str(cluster_dir(name)) not in Path("/proc/self/mountinfo").read_text()
    for pid in pids or ():
        assert start_time(pid) is None  # at most a zombie that the machine's init has not collected yet


def command(*argv: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    return subprocess.Popen([sys.executable, "-m", "cluster", *argv], env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def living(name: str) -> set[int]:
    """All processes with a file of this cluster open or in their command line: found independently of the ledger."""
    wanted = f"{cluster_dir(name)}/".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "mountinfo").read_bytes() or wanted in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found - {os.getpid()}


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0, 5.0])
def test_up_after_kill_9_in_the_middle_of_up(seconds: float) -> None:
    """Killed at four moments: with the first process made, the network, the control plane, the nodes."""
    name = "killed"
    remove(name)
    process = command("up", "--name", name, "--nodes", "2", "--provider", "builtin")
    wait_for("the run has begun", lambda: state.load(name) is not None)
    time.sleep(seconds)  # not a wait for anything: the moment of the kill is the parameter
    process.send_signal(signal.SIGKILL)
    process.wait()
    book = Ledger(cluster_dir(name) / "ledger")
    recorded = {entry.pid for entry in book.entries() if entry.kind == "process" and alive(entry)}
    assert remove(name)
    assert_nothing_left(name, recorded)
    wait_for("no process of the cluster is left", lambda: not living(name), seconds=5)


def test_up_after_kill_9_in_the_middle_of_down() -> None:
    name = "killed"
    made = Cluster.up(name, nodes=2, provider="builtin")
    before = {entry.pid for entry in Ledger(cluster_dir(name) / "ledger").processes()}
    process = command("down", "--name", name)
    wait_for("the first process is gone", lambda: len(Ledger(cluster_dir(name) / "ledger").processes()) < len(before))
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = Cluster.up(name, nodes=1, provider="builtin")
    assert again.nodes == ["node-1"]
    assert not before & {entry.pid for entry in Ledger(cluster_dir(name) / "ledger").processes()}
    run_pod(again, "works", "node-1")
    made.down()
    assert_nothing_left(name)
    assert not made.kubeconfig.exists()


def test_what_old_and_new_images_share_stays_in_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image store for new nodes, made anew: the old image goes, the layer that the new one shares does not."""
    monkeypatch.setattr(seed, "_root", lambda: tmp_path / "seed")
    monkeypatch.setattr(seed, "_WORTHWHILE", 1)
    layout = Layout(tmp_path / "oci")
    layer = pause_layer(b"program")
    for name, path in (("localhost/a:old", "/a"), ("localhost/a:new", "/b")):
        layout.add(name, layer, {"Entrypoint": [path]})
        seed.refresh(layout, [name], Progress(quiet=True))
    node = tmp_path / "node"
    assert seed.plant(node)
    blobs = {path.name for path in (node / "io.containerd.content.v1.content/blobs/sha256").iterdir()}
    entry = layout.descriptor("localhost/a:new")
    assert entry is not None
    assert blobs == {digest.removeprefix("sha256:") for digest in layout.blobs(entry["digest"])}
    files = "io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/pause"
    unpacked, seeded = list(node.glob(files)), list((tmp_path / "seed/root").glob(files))
    assert [path.read_bytes() for path in unpacked] == [b"program"]
    assert [path.stat().st_ino for path in seeded] == [unpacked[0].stat().st_ino], "shared with the seed, not copied"


def test_times_are_within_what_is_promised() -> None:
    """With a warm cache: up with two nodes within 20 s, down within 5 s; printed, since machines differ."""
    remove("timed")
    began = time.monotonic()
    made = Cluster.up("timed", nodes=2, provider="builtin")
    up = time.monotonic() - began
    began = time.monotonic()
    made.down()
    down = time.monotonic() - began
    print(f"up {up:.1f} s, down {down:.1f} s")
    assert not made.kubeconfig.exists()
    assert up < 60, "three times what an idle machine of 2 cores takes"
    assert down < 15


def test_the_command_line_says_what_is_wrong() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run([sys.executable, "-m", "cluster", "cut", "node-1", "--name", "no-such"], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"error: cluster 'no-such' is not up .*python -m cluster up --name no-such", done.stderr)
