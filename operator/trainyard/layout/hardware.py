"""Devices as the planner counts with them: one row a model, each with its source.

`efficiency` is the share of the peak that a matrix product of training reaches once communication, bubble and
recomputation are counted apart; it is fitted to the published runs in docs/planner.md, one factor a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

GB = 1e9
GIB = float(1 << 30)
MIB = float(1 << 20)
INFINITE = 1 << 30


@dataclass(frozen=True, slots=True)
class Link:
    """What joins `size` neighbouring devices (by rank); each sends and receives `bandwidth` bytes/s at once."""

    name: str
    size: int
    bandwidth: float
    latency: float  # seconds a message


@dataclass(frozen=True, slots=True, eq=False)  # hashed by identity: links are looked up a million times
class Hardware:
    """One model of device."""

    name: str
    memory: float  # bytes; 0: not known, nothing is refused for it
    peak: Mapping[str, float]  # FLOP/s of dense matrix products by type
    stream: float  # bytes/s of its memory
    efficiency: float  # see above
    links: tuple[Link, ...]  # narrowest first; the last joins everything
    source: str
    host_link: float = 31.5 * GB  # bytes/s each way between a device and its host's memory: PCIe 4.0 x16
    host_stream: float = 50.0 * GB  # bytes/s of the host's memory, a device's share
    context: float = 1.0 * GIB  # driver, runtime, compiled kernels
    workspace: float = 0.25 * GIB  # scratch memory of matrix and attention kernels
    communicator: float = 0.0  # bytes a communicator
    fragmentation: float = 0.05  # share of the tensors' bytes that the allocator cannot use
    overlap: float = 0.9  # share of sharding's communication that computation can hide
    all_reduce: float = 1.0  # its time, as a share of that of a reduce-scatter and an all-gather
    launch: float = 8e-6  # seconds of the host a kernel; what the device hides of it counts nothing
    matrix: float = 0.0  # width at which a matrix product reaches half of its rate
    host_copies: bool = True  # checkpoints are copied to the host's memory, not the device's
    aliases: tuple[str, ...] = field(default=())

    @property
    def node(self) -> int:
        """Devices a node."""
        return next((link.size for link in self.links if link.name == "node"), 1)

    @property
    def ring(self) -> int:
        """Devices that the fastest links join."""
        return self.links[0].size

    def with_node(self, devices: int) -> Hardware:
        """The same with so many devices of each node in use: links inside a node join no more than these."""
        kept = tuple(replace(link, size=min(link.size, devices)) if link.size <= self.node else link
                     for link in self.links)
        return replace(self, links=kept)


_HCCL = 2 * 200 * MIB  # HCCL_BUFFSIZE is 200 MB, and a communicator takes two (send and receive)
_NCCL = 32 * MIB  # channels' buffers of one NCCL communicator over eight GPUs, about
_KUNPENG = 188 * GB  # bytes/s of the memory of one Kunpeng 920: eight channels of DDR4-2933

HARDWARE: dict[str, Hardware] = {
    row.name: row
    for row in (
        Hardware(
            "910A", 32 * GIB, {"fp16": 256e12, "fp32": 32e12}, 1.2e12, 0.55,
            (Link("ring", 4, 30 * GB, 4e-6), Link("node", 8, 16 * GB, 8e-6),
             Link("network", INFINITE, 12.5 * GB, 12e-6)),
            "Ascend 910 at Hot Chips 31 (2019): 256 TFLOPS fp16, 32 GB HBM2 of 1.2 TB/s; Atlas 800 (model 9000): two "
            "HCCS rings of four (30 GB/s a link), PCIe 4.0 between the rings, one 100 Gb/s RoCE port a device; no "
            "bf16, fp32 taken as an eighth of fp16. Efficiency: not published, that of 910B less a tenth. Host: four "
            "Kunpeng 920 of eight channels DDR4-2933 and PCIe 4.0 x16 for eight devices",
            host_stream=_KUNPENG / 2, communicator=_HCCL, matrix=512,
            aliases=("910A", "910PremiumA", "910ProA", "910ProB")),
        Hardware(
            "910B", 64 * GIB, {"bf16": 313e12, "fp16": 313e12, "fp32": 78e12}, 1.6e12, 0.67,
            (Link("node", 8, 196 * GB, 4e-6), Link("network", INFINITE, 25 * GB, 10e-6)),
            "Atlas 800T A2 (910B3): 313 TFLOPS fp16 and bf16, 64 GB HBM of 1.6 TB/s, full mesh of seven 56 GB/s HCCS "
            "links (28 GB/s a direction), one 200 Gb/s RoCE port a device; fp32 taken as a quarter of fp16. Host: as "
            "the 910A's",
            host_stream=_KUNPENG / 2, communicator=_HCCL, matrix=512,
            aliases=("910B1", "910B2", "910B3", "910B4", "910B-8", "910B-16")),
        Hardware(
            "A3", 64 * GIB, {"bf16": 376e12, "fp16": 376e12, "fp32": 94e12}, 1.6e12, 0.67,
            (Link("ring", 2, 270 * GB, 3e-6), Link("node", 16, 196 * GB, 4e-6), Link("superpod", 384, 196 * GB, 6e-6),
             Link("network", INFINITE, 25 * GB, 10e-6)),
            "one die of an Ascend 910C, as arXiv 2506.12708 (CloudMatrix384) describes it: 376 TFLOPS bf16, 64 GB of "
            "1.6 TB/s, 270 GB/s to its twin, 196 GB/s to the super-pod, 200 Gb/s RDMA outside; fp32 taken as a "
            "quarter. Efficiency: not published, that of 910B. Host, from the same paper: four Kunpeng for sixteen "
            "dies, each with 160 GB/s of the unified bus; their memory taken as the 910B's",
            host_link=40 * GB, host_stream=_KUNPENG / 4, communicator=_HCCL, matrix=512,
            aliases=("910C", "910_93", "A3")),
        Hardware(
            "A100", 80 * GB, {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}, 2.0e12, 0.71,
            (Link("node", 8, 300 * GB, 3e-6), Link("network", INFINITE, 25 * GB, 7e-6)),
            "A100 SXM 80 GB data sheet: 312 TFLOPS bf16, 19.5 fp32, 2.0 TB/s, NVLink 600 GB/s both ways; DGX A100: one "
            "200 Gb/s InfiniBand port a GPU, PCIe 4.0 x16, two EPYC 7742 of eight channels DDR4-3200 for eight GPUs",
            host_stream=2 * 205 * GB / 8, communicator=_NCCL, matrix=512, aliases=("A100", "A800")),
        Hardware(
            "H100", 80 * GB, {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}, 3.35e12, 0.47,
            (Link("node", 8, 450 * GB, 3e-6), Link("network", INFINITE, 50 * GB, 7e-6)),
            "H100 SXM data sheet: 989 TFLOPS bf16 dense, 67 fp32, 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100: one "
            "400 Gb/s InfiniBand port a GPU, PCIe 5.0 x16, two Xeon 8480C of eight channels DDR5-4800 for eight GPUs",
            host_link=63 * GB, host_stream=2 * 307 * GB / 8, communicator=_NCCL, matrix=512,
            aliases=("H100", "H800")),
        Hardware(
            "CPU", 0, {"fp32": 155e9, "bf16": 83e9, "fp16": 1e9}, 20e9, 0.74,
            (Link("node", 256, 0.65 * GB, 1.5e-3), Link("network", INFINITE, 0.65 * GB, 1.8e-3)),
            "one core a rank of a Xeon with AVX-512 but without AMX, torch 2.13: products of matrices 155 GFLOP/s in "
            "fp32 and 83 in bf16, fp16 without hardware 1; the rest fitted to python -m planner.seconds, gloo over "
            "loopback between processes that have a core each. Memory is the pod's limit, where it has one",
            context=0.45 * GIB, workspace=0.0, fragmentation=0.05, overlap=0.0, all_reduce=0.75, launch=6e-6,
            matrix=72, host_copies=False, aliases=("cpu",)),
    )
}  # fmt: skip

RESOURCES = {"huawei.com/Ascend910": "910B", "huawei.com/Ascend910A": "910A", "huawei.com/Ascend910B": "910B",
             "nvidia.com/gpu": "A100"}  # fmt: skip
"""What a resource is taken for where no agent has told its model: the smaller of what it may be, but for the 910A,
whose resource has the same name as that of the far more common 910B."""


def named(name: str) -> Hardware | None:
    """The row of a device as people, agents and tools name it: 910B, Ascend910B3, NVIDIA A100-SXM4-80GB."""
    text = name.upper().replace("ASCEND", "").replace(" ", "").replace("_", "-")
    for row in HARDWARE.values():
        if text == row.name.upper() or text in (alias.upper().replace("_", "-") for alias in row.aliases):
            return row
    for row in HARDWARE.values():
        if any(alias.upper().replace("_", "-") in text for alias in row.aliases):
            return row
    return None


def for_resource(resource: str | None, model: str = "") -> Hardware:
    """The row for devices of an extended resource: by the model or chip that their agent tells, else by the
    resource's name, else the CPU's."""
    if resource is None:
        return HARDWARE["CPU"]
    found = named(model) if model and model != "Other" else None
    if found is None and resource in RESOURCES:
        found = HARDWARE[RESOURCES[resource]]
    return found or named(resource.rpartition("/")[2]) or HARDWARE["CPU"]
