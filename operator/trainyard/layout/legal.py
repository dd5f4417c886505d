"""Which sizes of each dimension a workload allows, and what to say about one that it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import lcm, prod

from trainyard.layout.problems import InvalidLayout, divisors, nearest
from trainyard.layout.types import Layout, Workload

PARALLEL = "train.parallel"
SIZES = ("data", "shard", "tensor", "pipeline", "context")
DETAILS = ("expert", "ulysses", "stage_layers", "schedule")  # rather wrong than a size, where either would do


def check(work: Workload) -> None:
    """Raise InvalidLayout for the first field that was set to what no layout can have, with the legal values next to
    it; fields are judged one by one, and then together."""
    asked = work.asked
    for name in SIZES:
        _divides(name, getattr(asked, name), work.ranks, "ranks")
    _check_tensor(work)
    _check_context(work)
    _check_pipeline(work)
    _check_expert(work)
    _check_product(work)
    _check_expert_ranks(work)
    _check_batch(work)
    _check_overlap(work)


def tensor_sizes(work: Workload) -> list[int]:
    """Tensor groups share key-value heads, the feed-forward, the vocabulary and the positions evenly; the experts of a
    mixture are not cut."""
    shape = work.shape
    return [n for n in divisors(shape.kv_heads)
            if shape.heads % n == 0 and (shape.experts or shape.inner % n == 0) and shape.vocabulary % n == 0
            and work.sequence % n == 0]


def context_sizes(work: Workload) -> list[int]:
    """Sizes that leave every rank as many positions as any other."""
    return divisors(work.sequence)


def ulysses_sizes(work: Workload, tensor: int, context: int) -> list[int]:
    """Parts of `context` that the heads of a tensor rank can be shared over, and with which the sequence divides: where
    keys go round a ring, each of its places holds two pieces, one from either end, which Ulysses shares out again."""
    return [n for n in divisors(context) if (work.shape.heads // tensor) % n == 0
            and work.sequence % (context if n == context else lcm(context, 2 * context // n)) == 0]  # fmt: skip


def legal(work: Workload, layout: Layout) -> bool:
    """Whether a complete layout holds to every rule."""
    micros = layout.micro_batches(work.batch)
    stages = layout.pipeline * layout.chunks
    return (
        layout.ranks == work.ranks
        and layout.tensor in tensor_sizes(work)
        and layout.context in context_sizes(work)
        and layout.ulysses in ulysses_sizes(work, layout.tensor, layout.context)
        and work.sequence // layout.context % layout.tensor == 0
        and work.batch % (layout.micro * layout.data * layout.shard) == 0
        and stages <= work.shape.layers
        and (layout.pipeline == 1 or not work.shape.tied)
        and (layout.pipeline == 1 or (sum(layout.stage_layers) == work.shape.layers and min(layout.stage_layers) > 0
                                      and len(layout.stage_layers) % layout.pipeline == 0))
        and schedule_works(layout.schedule, layout.pipeline, layout.chunks, micros)
        and (layout.schedule != "ZBV" or zbv_works(layout.zero, layout.recompute))
        and max(1, work.shape.experts) % layout.expert == 0
        and layout.expert_holders % layout.expert == 0
        and (not work.overlap or overlap_works(layout))
    )  # fmt: skip


def schedule_works(schedule: str, ranks: int, chunks: int, micros: int) -> bool:
    """Whether the schedule can be run: as many micro-batches as ranks at least, for the interleaved one in whole
    rounds of about as many as ranks."""
    if ranks == 1:
        return chunks == 1 and schedule == "1F1B"
    if micros < least_micro_batches(schedule, ranks):
        return False
    if schedule == "Interleaved1F1B":
        return chunks > 1 and micros % (micros // ranks) == 0
    return chunks == (2 if schedule == "ZBV" else 1)


def zbv_works(zero: int, recompute: str | None) -> bool:
    """Whether ZBV, which computes weight gradients later than those of activations, goes with these: ZeRO-3 would have
    let go of the parameters in between, selective recomputation of its results."""
    return zero == 2 and recompute != "selective"


def overlap_works(layout: Layout) -> bool:
    """Whether the halves of a micro-batch can overlap: there are two, their blocks communicate, and a block's backward
    pass is done at once."""
    communicates = layout.tensor * layout.context * layout.expert > 1
    return layout.micro % 2 == 0 and communicates and layout.schedule != "ZBV"


def least_micro_batches(schedule: str | None, ranks: int) -> int:
    """With fewer, torch refuses the schedule."""
    return 2 * ranks - 1 if schedule == "ZBV" else ranks


def _divides(name: str, value: int | None, whole: int, what: str) -> None:
    if value is not None and whole % value:
        raise InvalidLayout(f"{PARALLEL}.{name}", f"{value} does not divide the {whole} {what}; the nearest values "
                                                  f"that do are {nearest(value, divisors(whole))}")


def _check_tensor(work: Workload) -> None:
    value, legal_sizes = work.asked.tensor, tensor_sizes(work)
    if value is None or value in legal_sizes:
        return
    shape = work.shape
    what = {"key-value heads": shape.kv_heads, "attention heads": shape.heads,
            "feed-forward width": 0 if shape.experts else shape.inner,
            "vocabulary": shape.vocabulary, "sequence length": work.sequence}  # fmt: skip
    name, size = next((name, size) for name, size in what.items() if size % value)
    raise InvalidLayout(f"{PARALLEL}.tensor", f"{value} does not divide the model's {name}, {size}; the nearest values "
                                              f"that are legal here are {nearest(value, legal_sizes)}")


def _check_context(work: Workload) -> None:
    asked = work.asked
    if asked.context is not None and not ulysses_sizes(work, asked.tensor or 1, asked.context):
        sizes = [n for n in divisors(work.sequence) if ulysses_sizes(work, asked.tensor or 1, n)]
        raise InvalidLayout(f"{PARALLEL}.context",
                            f"sequenceLength {work.sequence} does not divide evenly over {asked.context} ranks, two "
                            f"pieces each where keys go round a ring; the nearest values that are legal here are "
                            f"{nearest(asked.context, sizes)}")
    if asked.ulysses is None:
        return
    if asked.context is not None and asked.context % asked.ulysses:
        raise InvalidLayout(f"{PARALLEL}.ulysses", f"{asked.ulysses} does not divide context, {asked.context}; the "
                            f"nearest values that do are {nearest(asked.ulysses, divisors(asked.context))}")
    heads = work.shape.heads // (asked.tensor or 1)
    if heads % asked.ulysses:
        raise InvalidLayout(f"{PARALLEL}.ulysses",
                            f"{asked.ulysses} does not divide the {heads} heads of a tensor rank; the "
                            f"nearest values that do are {nearest(asked.ulysses, divisors(heads))}")


def _check_pipeline(work: Workload) -> None:
    asked, layers = work.asked, work.shape.layers
    chunks = 2 if asked.schedule in ("ZBV", "Interleaved1F1B") else 1
    if asked.pipeline not in (None, 1) and work.shape.tied:
        raise InvalidLayout(f"{PARALLEL}.pipeline", f"{asked.pipeline}, but the model ties embedding and head, which "
                                                    f"would be on two ranks; the only legal value is 1")
    if asked.pipeline == 1 and (asked.schedule or asked.stage_layers):
        name = "schedule" if asked.schedule else "stageLayers"
        raise InvalidLayout(f"{PARALLEL}.{name}", "is for a pipeline, but pipeline is 1; leave it out")
    if asked.pipeline is not None and asked.pipeline * chunks > layers:
        sizes = [n for n in divisors(work.ranks) if n * chunks <= layers]
        raise InvalidLayout(f"{PARALLEL}.pipeline", f"{asked.pipeline} x {chunks} stages would leave some of them "
                            f"without one of the {layers} layers; the nearest legal values are "
                            f"{nearest(asked.pipeline, sizes)}")
    if asked.schedule == "ZBV" and asked.zero == 3:
        raise InvalidLayout(f"{PARALLEL}.zero", "3, but schedule ZBV computes weight gradients after ZeRO-3 would have "
                                                "let go of the parameters; the only legal value with it is 2")
    if asked.schedule == "ZBV" and work.recompute == "selective":
        raise InvalidLayout("train.activationCheckpointing", "selective, but schedule ZBV computes weight gradients "
                                                             "after its results are let go of; use none or full")
    given = asked.stage_layers
    if given is None:
        return
    if min(given) < 1:
        raise InvalidLayout(f"{PARALLEL}.stageLayers", f"stage {given.index(0)} is empty; every stage needs a layer")
    if sum(given) != layers:
        raise InvalidLayout(f"{PARALLEL}.stageLayers", f"the stages have {sum(given)} layers together, the model has "
                                                       f"{layers}")
    if asked.pipeline is not None and len(given) % asked.pipeline:
        counts = [n * asked.pipeline for n in (1, 2, 3, 4)]
        raise InvalidLayout(f"{PARALLEL}.stageLayers", f"{len(given)} stages do not go evenly over pipeline, "
                            f"{asked.pipeline}, ranks; the nearest numbers of stages that do are "
                            f"{nearest(len(given), counts)}")


def _check_expert(work: Workload) -> None:
    value, experts = work.asked.expert, work.shape.experts
    if value is None or value == 1:
        return
    if not experts:
        raise InvalidLayout(f"{PARALLEL}.expert", f"{value}, but the model has no experts; leave it out or set 1")
    if experts % value:
        raise InvalidLayout(f"{PARALLEL}.expert", f"{value} does not divide the model's {experts} experts; the nearest "
                                                  f"values that do are {nearest(value, divisors(experts))}")


def _check_expert_ranks(work: Workload) -> None:
    """Experts are shared out over ranks of shard x context x tensor: those of one replica and one pipeline rank."""
    asked, value = work.asked, work.asked.expert or 1
    holders, words = work.ranks // ((asked.data or 1) * (asked.pipeline or 1)), "can be"
    if asked.shard and asked.context and asked.tensor:
        holders, words = asked.shard * asked.context * asked.tensor, "are"
    if holders % value:
        sizes = [n for n in divisors(work.shape.experts) if holders % n == 0]
        raise InvalidLayout(f"{PARALLEL}.expert", f"{value} does not divide the {holders} ranks that shard x context x "
                                                  f"tensor {words}; the nearest legal values are "
                                                  f"{nearest(value, sizes)}")


def _check_product(work: Workload) -> None:
    sizes = {name: value for name in SIZES if (value := getattr(work.asked, name)) is not None}
    product = prod(sizes.values())
    words = " x ".join(f"{name} {value}" for name, value in sizes.items())
    if len(sizes) == len(SIZES) and product != work.ranks:
        fits = {name: work.ranks * value // product for name, value in sizes.items()
                if work.ranks * value % product == 0}  # fmt: skip
        name = max(fits or sizes, key=lambda each: sizes[each])
        would = (f"with the others as they are, {' or '.join(f'{each} {size}' for each, size in fits.items())} would do"
                 if fits else "leave one of them out")  # fmt: skip
        raise InvalidLayout(f"{PARALLEL}.{name}", f"{words} is {product}, but the job has {work.ranks} ranks; {would}")
    if work.ranks % product:
        name, value = max(sizes.items(), key=lambda each: each[1])
        rest = product // value
        fitting = divisors(work.ranks // rest) if work.ranks % rest == 0 else divisors(work.ranks)
        raise InvalidLayout(f"{PARALLEL}.{name}", f"{words} is {product}, which does not divide the {work.ranks} "
                            f"ranks; with the others as they are, the nearest legal values are "
                            f"{nearest(value, fitting)}")


def _check_batch(work: Workload) -> None:
    asked = work.asked
    unit = (work.micro or 1) * (asked.data or 1) * (asked.shard or 1)
    if work.batch % unit:
        near = nearest(work.batch, [n for n in (unit * (work.batch // unit), unit * (work.batch // unit + 1)) if n])
        raise InvalidLayout("train.batchSize",
                            f"{work.batch} does not divide over microBatchSize {work.micro or 1} x data "
                            f"{asked.data or 1} x shard {asked.shard or 1} = {unit} samples; the nearest that do "
                            f"are {near}")


def _check_overlap(work: Workload) -> None:
    asked, micro = work.asked, work.micro
    if not work.overlap:
        return
    if micro is not None and micro % 2:
        raise InvalidLayout("train.microBatchSize", f"{micro}, but twoBatchOverlap halves it; the nearest legal values "
                                                    f"are {nearest(micro, [n for n in (micro - 1, micro + 1) if n])}")
    if asked.schedule == "ZBV":
        raise InvalidLayout(f"{PARALLEL}.schedule", "ZBV, but twoBatchOverlap needs a block's backward pass to be done "
                                                    "at once; use 1F1B or Interleaved1F1B")
    if asked.tensor == asked.context == 1 and (asked.expert == 1 or not work.shape.experts):
        raise InvalidLayout("train.twoBatchOverlap", "hides the communication of tensor, context and expert "
                                                     "parallelism, but parallel has them at 1; leave one of them open "
                                                     "or twoBatchOverlap out")


def nothing_left(work: Workload, layouts: Callable[[Workload], Iterable[Layout]]) -> InvalidLayout:
    """Every field is good by itself, but no layout has them all: name the first that another value would do for, with
    the others as they are; `layouts` enumerates those of a workload. If no single change would do, say what may be
    changed."""
    asked = work.asked.model_dump(exclude_none=True)
    sizes = sorted((name for name in SIZES if name in asked), key=lambda name: -asked[name])
    for name in (*(name for name in DETAILS if name in asked), *sizes):
        relaxed = replace(work, asked=work.asked.model_copy(update={name: None}))
        if found := list(layouts(relaxed)):
            return _would_do(work, name, found)
    if work.micro and (would := {each.micro for each in layouts(replace(work, micro=None))}):
        return InvalidLayout("train.microBatchSize", f"{work.micro} cannot be had with "
                             f"{_others(work)}; the nearest legal values are {nearest(work.micro, would)}")
    return _no_single_change(work)


def _others(work: Workload, without: str = "") -> str:
    asked = work.asked.model_dump(exclude_none=True)
    said = [f"{name} {asked[name]}" for name in (*SIZES, "expert", "ulysses", "schedule")
            if name in asked and name != without]  # fmt: skip
    if work.overlap:
        said.append("twoBatchOverlap (an even micro-batch; tensor, context or expert above 1)")
    return ", ".join(said) or "nothing else set"


def _would_do(work: Workload, name: str, found: list[Layout]) -> InvalidLayout:
    """One field is at fault: the legal values next to it. A list of stages is told by how many there are."""
    value = getattr(work.asked, name)
    would = {getattr(each, name) for each in found}
    if name == "ulysses":  # of these only the best are enumerated
        would = {n for each in found for n in ulysses_sizes(work, each.tensor, each.context)}
    field, said, kind = name, str(value), "values"
    if name == "stage_layers":
        field, said, kind = "stageLayers", f"{len(value)} stages", "numbers of stages"
        value, would = len(value), {each.chunks * each.pipeline for each in found}
    near = " and ".join(sorted(would)) if name == "schedule" else nearest(value, would)
    return InvalidLayout(f"{PARALLEL}.{field}", f"{said} cannot be had with {_others(work, name)}; with the others as "
                                                f"they are, the nearest legal {kind} are {near}")


def _no_single_change(work: Workload) -> InvalidLayout:
    shape, asked = work.shape, work.asked
    said = {name: value for name in (*SIZES, "expert") if (value := getattr(asked, name)) is not None}
    stated = ", ".join(f"{name} {value}" for name, value in said.items()) or "nothing set"
    widest = max((n for n in divisors(work.batch // (work.micro or 1)) if work.ranks % n == 0), default=1)
    field = next(iter(said), "data") if said else ""
    if work.overlap:
        stated += ", twoBatchOverlap (an even micro-batch; tensor, context or expert above 1)"
    return InvalidLayout(
        f"{PARALLEL}.{field}" if field else "train.batchSize",
        f"no layout of {work.ranks} ranks is legal with {stated}: a batch of {work.batch} samples feeds at most "
        f"{widest} ranks of data x shard, tensor divides {shape.kv_heads} key-value heads (legal: "
        f"{', '.join(map(str, tensor_sizes(work)))}), pipeline is at most {shape.layers} with no fewer micro-batches "
        f"than that; a batchSize that is a multiple of {work.ranks} always works with nothing else set")
