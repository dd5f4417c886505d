"""The configuration documents of the cluster's programs; pure.

Inside a node, and inside the fabric, the same short paths hold whatever the host's are:

    /run/trainyard/bin   the Go programs        /run/trainyard/etc   credentials and these documents
    /var, /run           the node's own         /var/lib/trainyard/shared   one folder, the same in all nodes
"""

from __future__ import annotations

import json
from typing import Any

from cluster.builtin.addresses import (
    CLUSTER_DOMAIN,
    CONTROL_PLANE,
    CONTROL_PLANE_PORT,
    PODS,
    SERVICES,
    NodePlan,
    cgroup,
)

BIN = "/run/trainyard/bin"
ETC = "/run/trainyard/etc"
SHARED = "/var/lib/trainyard/shared"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_PROGRAMS = "/usr/lib/cni"

# A default cluster sees a lost node after 40 to 50 s. These make it about 8 s, so that tests need not wait; any figure
# that depends on them must say so.
NODE_MONITOR_PERIOD = "1s"
NODE_MONITOR_GRACE = "8s"
NODE_STATUS_FREQUENCY = "2s"
NODE_LEASE_SECONDS = 8

# kubelet insists on these kernel settings and would write them for the whole machine. Files with the wanted values
# are laid over them inside the node, so that the host keeps its own.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def etcd() -> list[str]:
    return [
        f"{BIN}/etcd",
        "--name=etcd",
        "--data-dir=/run/trainyard/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=etcd=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--auto-compaction-retention=10m",
        "--quota-backend-bytes=2147483648",
        "--log-level=warn",
    ]


def apiserver() -> list[str]:
    return [
        f"{BIN}/kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={CONTROL_PLANE}",
        f"--bind-address={CONTROL_PLANE}",
        f"--secure-port={CONTROL_PLANE_PORT}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={ETC}/apiserver.crt",
        f"--tls-private-key-file={ETC}/apiserver.key",
        f"--client-ca-file={ETC}/ca.crt",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={ETC}/service-account.pub",
        f"--service-account-signing-key-file={ETC}/service-account.key",
        f"--kubelet-certificate-authority={ETC}/ca.crt",
        f"--kubelet-client-certificate={ETC}/kubelet-client.crt",
        f"--kubelet-client-key={ETC}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={ETC}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={ETC}/front-proxy.crt",
        f"--proxy-client-key-file={ETC}/front-proxy.key",
        # No kube-proxy runs beside the API server: it reaches webhooks by pod address.
        "--enable-aggregator-routing=true",
        # Otherwise a terminated server waits a minute for watches that never end.
        "--shutdown-watch-termination-grace-period=1s",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        # Tests fire bursts that a default server of this size would queue.
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
        "--profiling=false",
    ]


def controllers() -> list[str]:
    return [
        f"{BIN}/kube-controller-manager",
        f"--kubeconfig={ETC}/kube-controller-manager.kubeconfig",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={ETC}/ca.crt",
        f"--service-account-private-key-file={ETC}/service-account.key",
        f"--cluster-signing-cert-file={ETC}/ca.crt",
        f"--cluster-signing-key-file={ETC}/ca.key",
        f"--node-monitor-period={NODE_MONITOR_PERIOD}",
        f"--node-monitor-grace-period={NODE_MONITOR_GRACE}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def scheduler() -> list[str]:
    return [
        f"{BIN}/kube-scheduler",
        f"--kubeconfig={ETC}/kube-scheduler.kubeconfig",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def coredns() -> list[str]:
    return [f"{BIN}/coredns", "-conf", f"{ETC}/Corefile"]


def corefile() -> str:
    """Names of the cluster only: there is no way out, so there is nothing to forward to."""
    return f""".:53 {{
    bind {CONTROL_PLANE}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {ETC}/coredns.kubeconfig
        pods insecure
        ttl 5
    }}
    loadbalance
}}
"""


def coredns_rights() -> str:
    """Objects that let CoreDNS read what it answers from."""
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    role = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": rules,
    }
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "system:coredns"}],
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [role, binding]})


def containerd(pause_image: str, snapshotter: str) -> str:
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # Without CAP_SYS_RESOURCE a score below our own cannot be set, and every sandbox would die of it.
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{ETC}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def cni(node: NodePlan) -> str:
    """Pods hang on routed point-to-point links: no bridge, so nothing depends on bridge netfilter settings."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam}]
    return json.dumps({"cniVersion": "0.4.0", "name": "trainyard", "plugins": plugins}, indent=1)


def kubelet_document(cluster: str, node: NodePlan) -> str:
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{ETC}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{ETC}/{node.name}-serving.crt",
        "tlsPrivateKeyFile": f"{ETC}/{node.name}-serving.key",
        "clusterDNS": [CONTROL_PLANE],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"{cgroup(cluster)}/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "nodeStatusUpdateFrequency": NODE_STATUS_FREQUENCY,
        "nodeLeaseDurationSeconds": NODE_LEASE_SECONDS,
        # The nodes share one disk with everything else on the machine: evict only when it is truly full.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                         "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 200,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "eventRecordQPS": 0,
        "serializeImagePulls": False,
    }  # fmt: skip
    return json.dumps(document, indent=1)


def kubelet(node: NodePlan) -> list[str]:
    return [
        f"{BIN}/kubelet",
        f"--config={ETC}/kubelet.json",
        f"--kubeconfig={ETC}/{node.name}.kubeconfig",
        f"--node-ip={node.ip}",
        f"--hostname-override={node.name}",
    ]


def kube_proxy_document(node: NodePlan) -> str:
    document: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{ETC}/kube-proxy.kubeconfig"},
        "hostnameOverride": node.name,
        "clusterCIDR": PODS,
        "bindAddress": node.ip,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Conntrack limits belong to the machine, not to a node; zero leaves them alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    return json.dumps(document, indent=1)


def kube_proxy() -> list[str]:
    return [f"{BIN}/kube-proxy", f"--config={ETC}/kube-proxy.json"]


def containerd_command() -> list[str]:
    return ["containerd", "--config", f"{ETC}/containerd.toml"]
