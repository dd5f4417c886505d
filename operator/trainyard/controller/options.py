"""Flags of the operator; each can also be set by an environment variable."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How this operator was started. docs/operator.md explains each."""

    namespaces: tuple[str, ...]  # empty: all
    kubeconfig: str | None
    trainer_image: str
    supervisor_image: str
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]
    host: str
    port: int
    workers: int
    leader_election: bool
    lease_name: str
    lease_namespace: str
    identity: str
    log_level: str
    resync_seconds: float
    stuck_seconds: float
    pod_gone_seconds: float
    unready_node_seconds: float
    starvation_seconds: float
    quarantine_seconds: float


def parse(argv: Sequence[str] | None = None) -> Options:
    """Options from the command line and the environment; exits with code 2 and a sentence when they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m trainyard.controller", description="The Trainyard operator.")

    def option(flag: str, default: str, text: str) -> None:
        variable = "TRAINYARD_" + flag.removeprefix("--").upper().replace("-", "_")
        parser.add_argument(flag, default=os.environ.get(variable, default), help=f"{text} [${variable}]")

    option("--namespaces", "", "comma-separated namespaces whose jobs are looked after; empty: all")
    option("--trainer-image", "", "image of `train` jobs whose template names none")
    option("--supervisor-image", "", "image that brings the supervisor to `command` jobs; default: the trainer image")
    option("--image-pull-policy", "", "imagePullPolicy of these two images; empty: Kubernetes' default for their tags")
    option("--image-pull-secrets", "", "comma-separated secrets that these two images are pulled with")
    option("--host", "0.0.0.0", "address that /metrics, /healthz and /readyz are served on")
    option("--metrics-port", "8080", "their port; 0: any free one (it is logged)")
    option("--workers", "8", "jobs reconciled side by side")
    option("--lease-name", "trainyard-operator", "name of the Lease that leaders hold")
    option("--lease-namespace", _own_namespace(), "namespace of that Lease")
    option("--identity", os.environ.get("POD_NAME") or socket.gethostname(), "this operator's name in the Lease")
    option("--log-level", "info", "debug, info, warning or error")
    option("--resync-seconds", "300", "seconds between two full lists of everything that is watched")
    option("--stuck-seconds", "300", "seconds of one reconcile after which /healthz fails")
    option("--pod-gone-seconds", "5", "seconds after which a deleted pod that does not go is replaced")
    option("--unready-node-seconds", "40",
           "seconds after which the pods of a NotReady node are replaced, if their job finishes no steps either")
    option("--starvation-seconds", "300", "seconds after which a waiting job's places are kept from younger jobs")
    option("--quarantine-seconds", "600",
           "of the quarantine of a device that fails again within 24 h, doubled with each failure more; 0: none")
    parser.add_argument("--kubeconfig", default=None, help="default: $KUBECONFIG, else the pod's service account")
    parser.add_argument("--no-leader-election", action="store_true",
                        help="lead at once; only for one operator alone, such as a developer's")
    given = parser.parse_args(argv)
    if given.log_level.lower() not in ("debug", "info", "warning", "error"):
        parser.error(f"--log-level: expected debug, info, warning or error, found {given.log_level!r}")
    return Options(
        namespaces=_names(given.namespaces), kubeconfig=given.kubeconfig,
        trainer_image=given.trainer_image, supervisor_image=given.supervisor_image or given.trainer_image,
        image_pull_policy=given.image_pull_policy, image_pull_secrets=_names(given.image_pull_secrets),
        host=given.host, port=_number(parser, "--metrics-port", given.metrics_port, 0, 65535),
        workers=_number(parser, "--workers", given.workers, 1, 256),
        leader_election=not given.no_leader_election,
        lease_name=given.lease_name, lease_namespace=given.lease_namespace, identity=given.identity,
        log_level=given.log_level.upper(),
        resync_seconds=_number(parser, "--resync-seconds", given.resync_seconds, 5, 86400),
        stuck_seconds=_number(parser, "--stuck-seconds", given.stuck_seconds, 10, 86400),
        pod_gone_seconds=_number(parser, "--pod-gone-seconds", given.pod_gone_seconds, 0, 86400),
        unready_node_seconds=_number(parser, "--unready-node-seconds", given.unready_node_seconds, 1, 86400),
        starvation_seconds=_number(parser, "--starvation-seconds", given.starvation_seconds, 0, 86400),
        quarantine_seconds=_number(parser, "--quarantine-seconds", given.quarantine_seconds, 0, 86400))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number(parser: argparse.ArgumentParser, flag: str, text: str, low: int, high: int) -> int:
    if not text.isdigit() or not low <= int(text) <= high:
        parser.error(f"{flag}: expected a whole number from {low} to {high}, found {text!r}")
    return int(text)


def _own_namespace() -> str:
    if namespace := os.environ.get("POD_NAMESPACE"):
        return namespace
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return "default"
