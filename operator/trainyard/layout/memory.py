"""Memory of the fullest device, from formulas. What is kept for the backward pass is counted tensor by tensor for the
trainer's own model code (transformers' Llama in eager mode with flash or SDPA attention); tests/planner holds the sums
against the allocator's events of real runs."""

from __future__ import annotations

from trainyard.layout.shape import ModelShape
from trainyard.layout.split import in_flight, stages_of
from trainyard.layout.types import BYTES, Layout, Memory, Workload

MASTER = 4  # bytes of a parameter and of a reduced gradient: fp32
ADAM = 8  # bytes of both moments: fp32
HEAD_CHUNK = {True: 1 << 24, False: 1 << 25}  # logits that the trainer's head computes at a time, in fp32 or not


Peak = tuple[float, float, float, float, float, float, float, float]
"""A Memory without its overhead, as a plain tuple: a plan looks at tens of thousands of them."""


def memory(work: Workload, layout: Layout) -> Memory:
    """Bytes on the rank of the pipeline that needs most: the first has most in flight, the last has the head."""
    last = layout.pipeline - 1
    plain = layout if layout.recompute == "none" else _without_recompute(layout)
    kept = kept_bytes(work.shape, layout, work.precision)
    whole = kept if plain is layout else kept_bytes(work.shape, plain, work.precision)
    ranks = sorted({0, min(1, last), max(0, last - 1), last})  # larger stages come late
    peak = max((_on_rank(work, layout, rank, kept, whole) for rank in ranks), key=sum)
    return Memory(*peak, overhead(work, layout, sum(peak)))


def _without_recompute(layout: Layout) -> Layout:
    return Layout(tensor=layout.tensor)


def kept_bytes(shape: ModelShape, layout: Layout, precision: str) -> float:
    """Bytes a token of one layer that the forward pass keeps for the backward pass, on one rank.

    Per layer: both inputs of the norms (as fp32 where computed in half), what the norms normalised, their results
    (whole on every tensor rank: sequence parallel gathers them, but not for experts), queries, keys, values, the
    attention's result and its log-sum-exp, gate, its activation, up and their product."""
    size = BYTES[precision]
    small = 1.0 / layout.tensor
    if layout.recompute == "full":
        return size * shape.hidden * small
    residual = 2 * shape.hidden * 4 * small
    normalised = 2 * shape.hidden * size * small + 2 * 4 * small
    gathered = (1 + (small if shape.experts else 1)) * shape.hidden * size
    attention = (2 * shape.query + 2 * shape.key) * size * small + shape.heads * 4 * small
    experts = max(1, shape.chosen)
    inner = 4 * shape.inner * experts * size * small
    if shape.experts:  # tokens sorted by expert, and the experts' results before they are weighed
        inner += ((2 * shape.hidden * experts) * size + shape.experts * 4) * small
    if layout.recompute == "selective":
        return size * _products(shape, layout.tensor, experts) + shape.heads * 4 * small
    return residual + normalised + gathered + attention + inner


def _products(shape: ModelShape, tensor: int, experts: int) -> float:
    """Numbers a token that selective recomputation keeps: the block's input and every product of matrices and
    attention; with tensor parallelism the results of rows before they are summed, and what was gathered, too."""
    kept = shape.hidden + 2 * shape.query + 2 * shape.key + 2 * shape.inner * experts
    rows = shape.hidden * (1 + experts)
    if tensor == 1:
        return kept + rows
    if shape.experts:  # their tokens are not gathered, and their results not summed
        return (kept + shape.hidden * (1 + experts)) / tensor + 2 * shape.hidden
    return kept / tensor + rows + 2 * shape.hidden + 2 * shape.hidden / tensor


def logits_bytes(work: Workload, layout: Layout, tokens: float) -> float:
    """What head and loss need beside activations (trainer/parallel/loss.py).

    A rank that has the whole head computes a limited number of logits at a time, forward and backward at once: besides
    them there is the gradient of the head's weight already. Otherwise there are the logits of one micro-batch and, in
    the backward pass, their gradient, both in the type of computation; fp32 is used for 16 MB of them at a time."""
    size = BYTES[work.precision]
    numbers = tokens * work.shape.vocabulary / layout.tensor
    if layout.tensor == 1 and layout.pipeline == 1:
        chunk = min(numbers, HEAD_CHUNK[size == MASTER])
        weight = size if chunk == numbers else MASTER
        return chunk * size + weight * work.shape.embedding + min(4 * chunk, 16 * 2**20)
    return 2 * numbers * size + min(2 * 4 * numbers, 2 * 16 * 2**20)


def _on_rank(work: Workload, layout: Layout, rank: int, kept: float, whole: float) -> Peak:
    """The fuller of two moments: when the forward pass turns into the backward pass, with all activations there; and
    when the backward pass ends, with all gradients there and the root's on their way. `kept` and `whole`: bytes a
    token and layer that are kept, and that are there while a layer is computed again."""
    shape, size = work.shape, BYTES[work.precision]
    stages = stages_of(layout, rank)
    layers = sum(layout.stage_layers[stage] for stage in stages) if layout.stage_layers else shape.layers
    final = layout.pipeline * layout.chunks - 1
    ends = (0 in stages) + (final in stages and not shape.tied)
    tokens = layout.micro * work.sequence / layout.context
    micros = layout.micro_batches(work.batch)
    # numbers of parameters that one tensor rank holds before they are sharded
    block = shape.dense_layer / layout.tensor + shape.expert_layer / layout.expert
    root = ends * shape.embedding / layout.tensor + shape.hidden
    mine = _held(shape, layout, layers, root)

    stage = layers / len(stages)
    each = stage * kept
    if layout.pipeline > 1:  # what came from the stage before, and what went to the next
        each += 2 * shape.hidden * size / layout.tensor
    again = whole if layout.recompute != "none" else 0.0
    flying = in_flight(layout, rank, micros)
    activations = tokens * (flying * each + again)
    held = flying * stage if layout.recompute == "none" else min(1, layers)
    gathered = _gathered(layout, layers, held, block, root, size)
    gradients = MASTER * mine
    if layout.pipeline > 1 and layout.sharding > 1:  # added up whole, and reduced once, after the last micro-batch
        gradients += MASTER * (layers * block + root)
    optimizer = 0.0 if work.offload else ADAM * mine
    checkpoint = 0.0 if work.hardware.host_copies else (MASTER + ADAM) * mine
    logits = logits_bytes(work, layout, tokens) if final in stages else 0.0

    turning = (MASTER * mine, gathered, gradients if micros > 1 else 0.0, optimizer, activations, logits, 0.0,
               checkpoint)  # fmt: skip
    left = 0.0  # of what was gathered, when the root is reduced
    if layout.pipeline > 1 and layout.shares_parameters:  # torch's schedules free the root's, reduce it, then the rest
        left = size * layers * block
    elif gathered and not (layout.sharding == 1 and size == MASTER):  # those are freed for gradients of the same size
        left = size * root
    ending = (MASTER * mine, left, gradients, optimizer, 0.0, 0.0, _reducing(shape, layout, block, root, size, micros),
              checkpoint)  # fmt: skip
    return max(turning, ending, key=sum)


def _held(shape: ModelShape, layout: Layout, layers: int, root: float) -> float:
    """Numbers of parameters that a rank holds of these layers and the `root`, sharded."""
    return (layers * (shape.dense_layer + shape.expert_layer) / layout.tensor + root) / layout.sharding


def state_bytes(shape: ModelShape, layout: Layout) -> float:
    """Parameters and both moments in fp32 of the rank that has most of them: what a copy of its state holds."""
    last, most = layout.pipeline * layout.chunks - 1, 0.0
    for rank in range(layout.pipeline):
        stages = stages_of(layout, rank)
        layers = sum(layout.stage_layers[stage] for stage in stages) if layout.stage_layers else shape.layers
        ends = (0 in stages) + (last in stages and not shape.tied)
        most = max(most, _held(shape, layout, layers, ends * shape.embedding / layout.tensor + shape.hidden))
    return (MASTER + ADAM) * most


def _gathered(layout: Layout, layers: int, held: float, block: float, root: float, size: int) -> float:
    """Parameters in the type of computation between forward and backward pass: all with ZeRO-2, the root's and those
    of two blocks (one in use, one fetched ahead) with ZeRO-3.

    Without FSDP2 only what is cast is copied: of `held` layers, as each product keeps what its weight was converted to
    until the backward pass."""
    if layout.shares_parameters:
        held = layers if layout.zero == 2 else min(2, layers)
    elif size == MASTER:
        return 0.0
    return size * (held * block + root)


def _reducing(shape: ModelShape, layout: Layout, block: float, root: float, size: int, micros: int) -> float:
    """Gradients on their way from one rank's whole to its shard: as computed, and copied together in fp32.

    Where nothing is sharded that copy is reduced into another, which is the gradient; each half of the root is
    converted to be added to what is there. Experts are shards, too, if there are more ranks than parts of them."""
    if not layout.shares_parameters and size == MASTER:
        return 0.0
    sharded = layout.sharding > 1 or (shape.experts and layout.expert_holders > layout.expert)
    if sharded or not layout.shares_parameters:
        return (size + MASTER) * max(root, block)
    return max(size * root + (MASTER * root / 2 if size != MASTER and micros > 1 else 0.0), MASTER * block)


def communicators(layout: Layout) -> int:
    """Communicators a rank takes part in: the world's, and one for every dimension that is used."""
    dims = (layout.data, layout.shard, layout.tensor, layout.pipeline, layout.context, layout.expert)
    return 1 + sum(size > 1 for size in dims)


def overhead(work: Workload, layout: Layout, tensors: float) -> float:
    """What is not tensors."""
    hardware = work.hardware
    groups = communicators(layout) if layout.ranks > 1 else 0
    return (hardware.context + hardware.workspace + hardware.communicator * groups
            + hardware.fragmentation * tensors)
