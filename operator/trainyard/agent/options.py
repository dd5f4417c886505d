"""Flags of the agent; each can also be set by an environment variable."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.agent import plugin
from trainyard.agent.host import Host
from trainyard.agent.serving import Runtime

BACKENDS = ("auto", "npu-smi", "observe", "simulated")
_RUNTIMES: tuple[Runtime, ...] = ("ascend", "plain", "none")


@dataclass(frozen=True, slots=True)
class Options:
    """How this agent was started. docs/devices.md explains each."""

    node: str
    backend: str
    resource: str
    runtime: Runtime
    simulated_file: Path
    fault_table: Path | None
    plugins: Path
    pod_resources: Path
    hardware: Host
    host: str
    port: int
    kubeconfig: str | None
    log_level: str


def parse(argv: Sequence[str] | None = None) -> Options:
    """Options from the command line and the environment; exits with code 2 and a sentence when they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m trainyard.agent", description="The Trainyard agent of one node.")

    def option(flag: str, default: str, text: str, choices: Sequence[str] | None = None) -> None:
        variable = "TRAINYARD_" + flag.removeprefix("--").upper().replace("-", "_")
        value = os.environ.get(variable, default)
        if choices and value not in choices:  # argparse does not look at defaults
            parser.error(f"{variable}: expected one of {', '.join(choices)}, found {value!r}")
        parser.add_argument(flag, default=value, choices=choices, help=f"{text} [${variable}]")

    option("--node", os.environ.get("NODE_NAME") or socket.gethostname(), "the node's name")
    option("--backend", "auto", "where devices and their health come from", BACKENDS)
    option("--resource", "huawei.com/Ascend910", "extended resource of the devices")
    option("--container-runtime", "ascend", "ascend: ascend-docker-runtime brings devices into containers; plain: the "
           "agent names device nodes and mounts; none: an environment variable alone", _RUNTIMES)
    option("--simulated-file", "/etc/trainyard/simulated/devices.yaml", "description of simulated devices")
    option("--fault-table", "", "the cluster's own table of faults, laid over the shipped one; empty: none")
    option("--plugins-folder", str(plugin.FOLDER), "kubelet's folder of device plugins")
    option("--pod-resources-socket", "/var/lib/kubelet/pod-resources/kubelet.sock", "kubelet's PodResources")
    usual = Host()
    option("--host-root", "/", "where the node's root is mounted; the driver's tools run inside it")
    option("--npu-smi", usual.npu_smi, "npu-smi on the node")
    option("--driver", usual.driver, "Ascend's driver on the node")
    option("--dcmi", usual.dcmi, "the driver's management library on the node")
    option("--hccn-conf", usual.hccn_conf, "addresses of the devices, on the node")
    option("--host", "0.0.0.0", "address that /metrics, /healthz and /readyz are served on")
    option("--metrics-port", "8080", "their port; 0: any free one (it is logged)")
    option("--log-level", "info", "how much is logged", ("debug", "info", "warning", "error"))
    parser.add_argument("--kubeconfig", default=None, help="default: $KUBECONFIG, else the pod's service account")
    given = parser.parse_args(argv)
    if not given.metrics_port.isdigit() or int(given.metrics_port) > 65535:
        parser.error(f"--metrics-port: expected a whole number from 0 to 65535, found {given.metrics_port!r}")
    # Simulated devices have no nodes and no driver, whatever the cluster's real ones need.
    runtime: Runtime = "none" if given.backend == "simulated" else given.container_runtime
    return Options(
        node=given.node, backend=given.backend, resource=given.resource, runtime=runtime,
        simulated_file=Path(given.simulated_file), fault_table=Path(given.fault_table) if given.fault_table else None,
        plugins=Path(given.plugins_folder), pod_resources=Path(given.pod_resources_socket),
        hardware=Host(Path(given.host_root), given.npu_smi, given.driver, given.dcmi, given.hccn_conf), host=given.host,
        port=int(given.metrics_port), kubeconfig=given.kubeconfig, log_level=given.log_level.upper())
