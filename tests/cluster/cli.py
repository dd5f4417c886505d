"""The command line: ``python -m cluster --help``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from cluster import api, choice, gotools, images, state
from cluster.api import DEFAULT_NAME, Cluster
from cluster.errors import ClusterError
from cluster.images import build
from cluster.progress import Progress

_SERVICES = "kubelet, containerd or kube-proxy of a node; apiserver, scheduler or controller-manager without a node"


def main(argv: list[str]) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int | None = arguments.run(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was made so far is removed by the next `up` or by `down`", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Clusters to test on.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--name", default=DEFAULT_NAME, help=f"the cluster (default: {DEFAULT_NAME})")
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "bring a cluster up, or keep the one that is up and well")
    up.add_argument("--nodes", type=int, default=2, help="nodes that run pods (default: 2)")
    which = up.add_mutually_exclusive_group()
    which.add_argument("--existing", dest="provider", action="store_const", const="existing",
                       help="use the cluster of KUBECONFIG")  # fmt: skip
    which.add_argument("--provider", choices=["builtin", "kind", "existing"], help="default: what is there")
    down = command("down", _down, "take a cluster down, whatever state it is in")
    down.add_argument("--all", action="store_true", help="every cluster of this user on this machine")
    command("status", _status, "nodes, processes and where the kubeconfig is")
    command("env", _env, 'lines for a shell: eval "$(python -m cluster env)"')
    programs = command("programs", _programs, "build Go programs into the cache and print their folder")
    programs.add_argument("which", nargs="*", metavar="PROGRAM", help="default: all that a cluster needs")
    command("prepare", _prepare, "build the programs and images that a cluster of this machine needs")
    kubectl = command("kubectl", _kubectl, "kubectl on the cluster: python -m cluster kubectl -- get pods")
    kubectl.add_argument("argv", nargs="*")
    image = command("image", _image, "build images: operator, trainer or all")
    image.add_argument("which", choices=[*build.RECIPES, "all"])
    command("prune", _prune, "delete the caches of images")
    load = command("load", _load, "bring images onto every node, building our own if they changed")
    load.add_argument("image", nargs="+", help="operator, trainer, or an image of the build storage")
    _add_levers(command)
    return parser


def _add_levers(command: Callable[..., argparse.ArgumentParser]) -> None:
    for name, text in {
        "cut": "let no packet pass between a node and the rest",
        "mend": "undo cut",
        "remove-node": "switch a node off for good",
    }.items():
        lever = command(name, _node_lever, text)
        lever.add_argument("node")
        lever.set_defaults(verb=name)
    for name, text in {
        "stop": "SIGTERM a service",
        "kill": "SIGKILL a service",
        "start": "start a stopped service",
        "restart": "stop and start a service",
        "pause": "SIGSTOP a service",
        "resume": "SIGCONT a service",
    }.items():
        lever = command(name, _service_lever, text)
        lever.add_argument("service", help=_SERVICES)
        lever.add_argument("node", nargs="?", default="")
        lever.set_defaults(verb=name)
    command("add-node", _add_node, "add a node and wait until it is Ready")
    run = command("run", _run, "run a command on a node: python -m cluster run node-1 -- ip addr")
    run.add_argument("node", help="a node, or - for the control plane")
    run.add_argument("argv", nargs="+")


def _up(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    if arguments.nodes < 1:
        raise ClusterError(f"--nodes {arguments.nodes}: a cluster needs at least 1 node")
    cluster = Cluster.up(arguments.name, arguments.nodes, arguments.provider)
    seconds = time.monotonic() - began
    print(f"cluster {cluster.name} ({cluster.provider}) is up: {len(cluster.nodes)} nodes, {seconds:.1f} s")
    print(f"export KUBECONFIG={cluster.kubeconfig}")


def _down(arguments: argparse.Namespace) -> None:
    for name in state.names() if arguments.all else [arguments.name]:
        began = time.monotonic()
        if api.remove(name):
            print(f"cluster {name} is gone, {time.monotonic() - began:.1f} s")
        else:
            print(f"there is no cluster {name}")


def _status(arguments: argparse.Namespace) -> int:
    known = state.load(arguments.name)
    if known is None:
        have = ", ".join(state.names()) or "none"
        print(f"there is no cluster {arguments.name} (clusters here: {have})")
        return 1
    age = time.time() - known.created
    print(f"cluster {known.name}: provider {known.provider}, {known.phase}, {age / 60:.0f} min old")
    print(f"kubeconfig {known.kubeconfig}")
    if known.phase != "ready":
        print("it was never finished; run `up` to make it anew or `down` to remove it")
        return 1
    cluster = Cluster.open(arguments.name)
    for machine, service, word in cluster.describe():
        print(f"  {machine:10} {service:20} {word}")
    print(
        cluster.kubectl("get", "nodes", "--request-timeout=5s", check=False).rstrip()
        or "the API server does not answer"
    )
    return 0


def _env(arguments: argparse.Namespace) -> None:
    cluster = Cluster.open(arguments.name)
    print(f"export KUBECONFIG={cluster.kubeconfig}\nexport PATH={cluster.programs}:$PATH")


def _programs(arguments: argparse.Namespace) -> None:
    known = {name for module in gotools.MODULES for name in module.programs}
    if unknown := sorted(set(arguments.which) - known):
        raise ClusterError(f"expected programs from {', '.join(sorted(known))}; got {', '.join(unknown)}")
    print(gotools.binaries(Progress(), frozenset(arguments.which) or gotools.BUILTIN))


def _prepare(arguments: argparse.Namespace) -> None:
    gotools.binaries(Progress())
    images.prepare(choice.choose_here(), Progress())


def _kubectl(arguments: argparse.Namespace) -> int:
    cluster = Cluster.open(arguments.name)
    command = [str(cluster.programs / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), *arguments.argv]
    return subprocess.run(command).returncode


def _image(arguments: argparse.Namespace) -> None:
    for program in build.RECIPES if arguments.which == "all" else [arguments.which]:
        print(build.build(build.RECIPES[program], Progress()))


def _prune(arguments: argparse.Namespace) -> None:
    for path in build.prune():
        print(f"deleted {path}")


def _load(arguments: argparse.Namespace) -> None:
    cluster = Cluster.open(arguments.name)
    for image in arguments.image:
        print(cluster.load(image))


def _node_lever(arguments: argparse.Namespace) -> None:
    cluster = Cluster.open(arguments.name)
    levers = {"cut": cluster.cut_network, "mend": cluster.mend_network, "remove-node": cluster.remove_node}
    levers[arguments.verb](arguments.node)


def _service_lever(arguments: argparse.Namespace) -> None:
    cluster = Cluster.open(arguments.name)
    levers = {"stop": cluster.stop, "kill": cluster.kill, "start": cluster.start, "restart": cluster.restart,
              "pause": cluster.pause, "resume": cluster.resume}  # fmt: skip
    levers[arguments.verb](arguments.service, arguments.node)


def _add_node(arguments: argparse.Namespace) -> None:
    print(Cluster.open(arguments.name).add_node())


def _run(arguments: argparse.Namespace) -> None:
    node = "" if arguments.node == "-" else arguments.node
    print(Cluster.open(arguments.name).run_on(node, *arguments.argv), end="")
