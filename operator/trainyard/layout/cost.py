"""Seconds of one optimizer step on the slowest rank: computation, communication that it cannot hide, bubble."""

from __future__ import annotations

from functools import lru_cache

from trainyard.layout.hardware import Hardware
from trainyard.layout.memory import kept_bytes
from trainyard.layout.split import stages_of
from trainyard.layout.types import BYTES, Layout, Seconds, Workload

KERNELS = 40  # of one layer's forward pass in eager mode; twice as many in the backward pass
ACHIEVED = 0.8  # share of a link's bandwidth that collectives reach, as nccl-tests print it for large messages
GATHERED = 2
"""Times that FSDP2 reads or writes each gathered parameter: what arrives is copied into the parameters. Tensor
parallelism does the same with activations."""
REDUCED = 3
"""The same of gradients before they are reduced: they are copied into one tensor, and summed up to be watched. What
replicas copy, and shards besides on CPUs, is in the CPU row's fitted links."""
HOST = 0.45
"""Share of its memory's bandwidth that a host's AdamW reaches, and of its link that copies of ordinary memory do.
ZeRO-Offload (https://arxiv.org/abs/2101.06840, table 4) updates 1, 4 and 10 billion parameters in 0.22, 1.03 and 2.57 s
on two Xeons of 256 GB/s together, 28 bytes each; copies from memory that is not pinned run at about half of PCIe's
rate (8.3 GB/s of 15.8, as CUDA's bandwidthTest prints them)."""


@lru_cache(maxsize=65536)
def link(hardware: Hardware, stride: int, size: int) -> tuple[float, float]:
    """(bytes/s, seconds) of a ring through `size` ranks that are `stride` apart: what each of them can pass on, and
    what one trip round it takes with nothing to carry.

    Ranks of one group inside a node use the node's network ports side by side; the slowest link sets the pace."""
    bandwidth, trip, inside = 0.0, 0.0, 1
    for level in hardware.links:
        # `inside` members share the way out of the level below, each with a port of its own
        bandwidth = min(bandwidth, level.bandwidth * inside) if inside > 1 else level.bandwidth
        reached = min(size, max(1, level.size // stride))
        trip += (size // inside - size // reached) * level.latency
        inside = reached
        if reached == size:
            break
    return bandwidth * ACHIEVED, trip


def moved(hardware: Hardware, stride: int, size: int, amount: float, messages: int = 1) -> float:
    """Seconds of all-gathers or reduce-scatters, `messages` of them, whose whole is `amount` bytes together."""
    if size == 1:
        return 0.0
    bandwidth, trip = link(hardware, stride, size)
    return amount * (size - 1) / size / bandwidth + messages * trip


def seconds(work: Workload, layout: Layout) -> Seconds:
    """Where the time of a step goes."""
    shape = work.shape
    tokens = layout.micro * work.sequence / layout.context
    micros = layout.micro_batches(work.batch)
    ranks = layout.pipeline

    layer = _layer(work, layout, tokens)
    head = 3 * tokens * shape.head_flops / layout.tensor / _rate(work, layout)
    again = {"none": 0.0, "selective": 0.12, "full": 1.0 / 3}[layout.recompute]
    tensor = _tensor(work, layout, tokens) * (1 + again)
    context = _context(work, layout, tokens) * (1 + again)
    expert = _expert(work, layout, tokens) * (1 + again)
    per_layer = layer * (1 + again) + tensor + context + expert

    # one micro-batch on every rank of the pipeline, and on the slowest
    layers = [sum(layout.stage_layers[stage] for stage in stages_of(layout, rank)) if layout.stage_layers
              else shape.layers for rank in sorted({0, min(1, ranks - 1), max(0, ranks - 2), ranks - 1})]
    last = 0 if layout.schedule == "ZBV" else len(layers) - 1
    times = [count * per_layer + (head if at == last else 0.0) for at, count in enumerate(layers)]
    slowest = max(times)
    most, has_head = max(layers), times[last] == slowest
    total = shape.layers * per_layer + head
    bubble = _bubble(layout, micros, slowest, total, again)
    message = _message(work, layout, tokens)
    shard = _sharding(work, layout, max(layers), micros, slowest)
    mine = shape.parameters / (layout.tensor * ranks * layout.sharding)
    return Seconds(
        compute=micros * (most * layer + (head if has_head else 0.0)), recompute=micros * most * layer * again,
        shard=shard, tensor=micros * most * tensor, context=micros * most * context, expert=micros * most * expert,
        pipeline=2 * (micros + ranks - 2) * layout.chunks * message if ranks > 1 else 0.0, bubble=bubble,
        optimizer=_update(work, mine))  # fmt: skip


def _update(work: Workload, mine: float) -> float:
    """The norm of the gradients and the update of `mine` numbers in fp32, of which parameter, gradient and both moments
    are read, all but the gradient written. Offloaded, parameter and gradient of one tensor after the other go to the
    host, and the parameter back."""
    hardware, norm, touched, copied = work.hardware, 4, 28, 12  # bytes a number
    if not work.offload:
        return mine * (norm + touched) / hardware.stream
    return mine * (norm / hardware.stream + touched / (HOST * hardware.host_stream)
                   + copied / (HOST * hardware.host_link))  # fmt: skip


def _rate(work: Workload, layout: Layout) -> float:
    """FLOP/s of a matrix product of this model: narrow ones are slower."""
    hardware, shape = work.hardware, work.shape
    inner = shape.inner if shape.experts else shape.inner / layout.tensor
    narrow = min(shape.hidden, inner, shape.query / layout.tensor)
    peak = hardware.peak.get(work.precision) or hardware.peak["fp16"]
    return peak * hardware.efficiency * narrow / (narrow + hardware.matrix)


def _layer(work: Workload, layout: Layout, tokens: float) -> float:
    """Forward and backward pass of one layer over one micro-batch: products of matrices at the device's rate, what
    lies between them at the speed of its memory, and no less than the host takes to launch the kernels."""
    hardware, shape = work.hardware, work.shape
    flops = 3 * tokens * (shape.layer_flops + shape.attention_flops(work.sequence)) / layout.tensor
    products = flops / _rate(work, layout)
    plain = layout if layout.recompute == "none" else _without_recompute(layout)
    between = 3 * tokens * kept_bytes(shape, plain, work.precision) / hardware.stream
    launches = 3 * KERNELS * hardware.launch
    device = products + between
    return device + launches if hardware.overlap == 0 else max(device, launches)


@lru_cache(maxsize=65536)
def _without_recompute(layout: Layout) -> Layout:
    return Layout(tensor=layout.tensor)


def _tensor(work: Workload, layout: Layout, tokens: float) -> float:
    """Sequence parallel gathers and scatters twice a layer in the forward pass, and as often in the backward pass; for
    experts it does not."""
    if layout.tensor == 1:
        return 0.0
    amount = tokens * work.shape.hidden * BYTES[work.precision]
    messages = 4 if work.shape.experts else 8
    return (moved(work.hardware, 1, layout.tensor, messages * amount, messages)
            + GATHERED * messages * amount / work.hardware.stream)


def _context(work: Workload, layout: Layout, tokens: float) -> float:
    """Ulysses: queries, keys, values and the result change places, forward and back. Ring: keys and values go round
    once, and again with their gradients, while attention computes."""
    if layout.context == 1:
        return 0.0
    shape, hardware, size = work.shape, work.hardware, BYTES[work.precision]
    time = 0.0
    if layout.ulysses > 1:
        amount = tokens * (2 * shape.query + 2 * shape.key) * size / layout.tensor
        time += moved(hardware, layout.tensor, layout.ulysses, 2 * amount, 8)
    around = layout.context // layout.ulysses
    if around > 1:
        bandwidth, trip = link(hardware, layout.tensor * layout.ulysses, around)
        amount = 2 * tokens * shape.key * size / layout.tensor
        hop = 3 * (amount / bandwidth + trip / (around - 1))
        hidden = 3 * tokens * shape.attention_flops(work.sequence) / layout.tensor / around / _rate(work, layout)
        time += (around - 1) * max(0.0, hop - hardware.overlap * hidden) + hop
    return time


def _expert(work: Workload, layout: Layout, tokens: float) -> float:
    """All-to-all of tokens to their experts and back, in both passes."""
    if layout.expert == 1:
        return 0.0
    amount = tokens * work.shape.chosen * work.shape.hidden * BYTES[work.precision] / layout.tensor
    return moved(work.hardware, 1, layout.expert, 4 * amount, 4)


def _sharding(work: Workload, layout: Layout, layers: int, micros: int, busy: float) -> float:
    """Exposed part of gathering parameters, reducing gradients and adding up replicas, a step. `busy`: seconds of one
    micro-batch, which hide it but for the first and last block."""
    shape, hardware, size = work.shape, work.hardware, BYTES[work.precision]
    units, others = layers + 1, layout.expert_holders // layout.expert  # that have the same experts
    whole = layers * shape.dense_layer / layout.tensor + 2 * shape.embedding / layout.tensor / layout.pipeline
    experts = layers * shape.expert_layer / layout.expert
    apart = layers if layout.expert * layout.tensor > 1 else 0  # messages: else they go with the rest of their layer

    def spread(amount: int, touched: int) -> float:
        copied = (whole if layout.sharding > 1 else 0.0) + (experts if others > 1 else 0.0)
        return (moved(hardware, layout.tensor, layout.sharding, whole * amount, units)
                + (moved(hardware, layout.expert, others, experts * amount, apart) if experts else 0.0)
                + touched * amount * copied / hardware.stream)

    gather, scatter = spread(size, GATHERED), spread(work.reduced, REDUCED)
    if layout.pipeline > 1:  # whole gradients are added up; ZeRO-2 keeps what it has gathered for the whole step
        each = 2 * gather if layout.zero == 3 else 0.0
        time = micros * max(each - hardware.overlap * busy, each / (units + 1)) + scatter
        time += gather if layout.zero == 2 else 0.0
    else:
        each = (2 if layout.zero == 3 else 1) * gather + scatter
        time = micros * max(each - hardware.overlap * busy, each / (units + 1))
    if layout.data > 1:
        mine = whole / layout.sharding + experts / others
        replicas = 2 * moved(hardware, layout.expert_holders, layout.data, mine * work.reduced, units)
        replicas *= hardware.all_reduce
        time += max(replicas - hardware.overlap * busy * 2 / 3, replicas / (units + 1))
    return time


def _message(work: Workload, layout: Layout, tokens: float) -> float:
    """One activation to the next stage; with sequence parallel every tensor rank sends its part."""
    if layout.pipeline == 1:
        return 0.0
    hardware = work.hardware
    bandwidth, trip = link(hardware, layout.ranks // layout.pipeline, layout.pipeline)
    amount = tokens * work.shape.hidden * BYTES[work.precision] / layout.tensor
    return amount / bandwidth * (1 - hardware.overlap) + trip / (layout.pipeline - 1)


def _bubble(layout: Layout, micros: int, slowest: float, total: float, again: float) -> float:
    """Seconds that the slowest rank waits, a step. `slowest`: forward and backward of one micro-batch on it; `total`:
    on all ranks together."""
    ranks = layout.pipeline
    if ranks == 1:
        return 0.0
    if layout.schedule == "ZBV":
        # None between a rank's first and last work if forward, gradient of the input and gradient of the weights cost
        # the same; recomputation makes the second longer. The last rank begins when the first half of all layers but
        # its own have passed, and ends as much later.
        forward, backward, weight = 1 / 3, 1 / 3 + again, 1 / 3
        within = total / ranks * (ranks - 1) / ranks * max(0.0, forward + backward - 2 * weight)
        return within + total * forward / layout.chunks * (ranks - 1) / ranks
    return max(0.0, (total - slowest) / layout.chunks if layout.chunks > 1 else total - slowest)
