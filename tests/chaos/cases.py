"""What is broken, one entry a case: the fault, what must hold afterwards, and how fast it should be."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.devices import RESOURCE

from chaos import disk, faults, memory, nodes
from chaos.faults import Fault
from chaos.jobs import CHECKPOINT, EVERY
from chaos.scene import Scene
from chaos.torchrun import Torchrun

LOST_NODE = ("PeerLost", "NodeLost", "PodLost")


@dataclass(frozen=True)
class Case:
    """One of them. After each fault exactly one recovery follows, or none where `causes` is empty; whatever happens,
    the job ends with the losses of a run that nothing happened to."""

    key: str
    name: str
    fault: Fault
    causes: tuple[str, ...]  # of the recovery in status.recoveries
    told: bool = True  # False: ranks start again, but status does not know of it
    counted: int | None = 0  # restarts that a fault adds to status.restarts.counted; None: either
    total: int = 1  # and to status.restarts.total
    pods: int = 0  # at most that are replaced; all others stay
    lost: int = 0  # finished steps at most that are computed again
    within: float = 30.0  # s after which it has failed
    aim: float | None = None  # s, median
    beyond: str = ""  # the aim is so much more than the median of this case
    apart: bool = False  # only while no two members share a node; what replaces a lost one may have no other place
    nodes: int = 2
    spares: int = 0
    steps: int = 0  # that the job takes a fault, beside those in which it settles
    seconds: float = 0.0  # that a fault lasts while steps go on
    spec: Mapping[str, Any] = field(default_factory=dict)
    environment: Callable[[int], Mapping[str, str]] | None = None  # of the ranks, by the number of faults
    check: Callable[[Scene], None] | None = None  # once training goes on
    beside: Callable[[Torchrun], float] | None = None  # the same fault under torchrun
    small_disk: bool = False  # checkpoints go to a disk that can be filled
    devices: bool = False  # the nodes have simulated accelerators
    every: float = 0.0  # s between two faults; then throughput is measured, too
    throughput: float = 0.0  # aim, as a share of the undisturbed


CASES = (
    Case("1", "SIGKILL of a rank", faults.kill_rank(1), ("RankFailed",), counted=1, aim=1.0,
         beside=lambda other: other.signal(1, signal.SIGKILL)),
    Case("2", "SIGKILL of rank 0", faults.kill_rank(0), ("RankFailed",), counted=1, aim=1.0,
         beside=lambda other: other.signal(0, signal.SIGKILL)),
    Case("3", "a pod deleted by force, with a spare", faults.delete_pod(1), ("PodLost",), lost=1, pods=1, aim=1.5,
         spares=1, beside=lambda other: other.delete_pod(1)),
    Case("3b", "a pod deleted by force, no spare", faults.delete_pod(1), ("PodLost",), lost=1, pods=1),
    Case("4", "SIGSTOP of a rank, hangSeconds 5", faults.stop_rank(1), ("Hang",), aim=7.0,
         spec={"failurePolicy": {"hangSeconds": 5}}, beside=lambda other: other.signal(1, signal.SIGSTOP)),
    Case("5", "a node cut from the network, with a spare", nodes.cut(1), LOST_NODE, lost=1, pods=1, aim=6.0,
         spares=1, apart=True, beside=lambda other: other.cut(1)),
    Case("5b", "a node cut from the network, no spare", nodes.cut(1), LOST_NODE, lost=1, pods=1, aim=15.0,
         apart=True),
    Case("6", "a node's kubelet dead for 20 s", nodes.kill_kubelet, (), total=0, seconds=20, check=nodes.goes_on(20)),
    Case("7", "an NPU in use becomes unhealthy (simulated)", nodes.device_fault, ("DeviceFault",), lost=1, pods=1,
         devices=True, spec={"devices": {"resource": RESOURCE, "perNode": 1}}),
    Case("8", "a rank killed for want of memory", memory.run_out(False), ("RankFailed",), counted=1),
    Case("8b", "a container killed for want of memory", memory.run_out(True), ("RankFailed", "PeerLost"), lost=1,
         pods=1, counted=None),  # kubelet says why the container ended, if it is faster than its peers
    Case("9", "a bit flipped on disk, memory lost", memory.flip_on_disk, ("PodLost",), lost=3 * EVERY, pods=2,
         steps=2 * EVERY, check=memory.older_was_used),
    Case("9b", "a bit flipped in memory", memory.flip_in_memory, ("RankFailed",), counted=1,
         check=memory.memory_was_used),
    Case("10", "the checkpoint's disk full for a while", disk.fill, (), total=0, steps=2 * EVERY, small_disk=True,
         check=disk.saved_again, spec={"checkpoint": {**CHECKPOINT, "volume": {"hostPath": {"path": disk.PATH}}}}),
    Case("11", "NaN in the gradients of a rank, once", faults.wait_for_nan, (), total=0, within=20,
         environment=faults.nan_every),
    Case("12", "a rank slowed three times for a minute and more", faults.slow_rank(1), (), total=0,
         seconds=faults.NAMED_WITHIN, check=faults.straggler_is_named),
    Case("13", "SIGKILL of a rank, then of the leading operator", faults.kill_rank_and_operator, ("RankFailed",),
         counted=1, lost=1, within=60),
    Case("14", "SIGKILL of a rank while the API server is away for 30 s", nodes.kill_rank_without_api, ("RankFailed",),
         told=False, total=0, aim=3.0, beyond="1", seconds=nodes.AWAY, check=nodes.told_without_api),
    Case("15", "two of three nodes cut from the network at once", nodes.cut(2), LOST_NODE, lost=3 * EVERY,
         pods=2, nodes=3, apart=True, within=60),
    Case("16", "a fault every minute: rank, rank 0, pod", faults.in_turn(
        faults.kill_rank(1), faults.kill_rank(0), faults.delete_pod(1)), ("RankFailed", "PodLost"), lost=1, pods=1,
         counted=None, spares=1, every=60, throughput=0.97),
    Case("17", "kubectl drain of a member's node", nodes.drain, ("Moved",), total=0, pods=1,
         beside=lambda other: other.evict_pod(1)),
    Case("18", "the spare lost, then a worker", faults.delete_spare_and_pod, ("PodLost",), lost=1, pods=2,
         spares=1),
    Case("19", "all kubelets cut from the API server for 20 s", nodes.cut_kubelets, (), total=0, seconds=20,
         check=nodes.goes_on(20)),
)  # fmt: skip
