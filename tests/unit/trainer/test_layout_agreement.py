"""The planner's rules (trainyard.layout.legal) and the trainer's (trainer.parallel.layout) are the same: what one
plans the other runs, and what one refuses the other refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from math import prod
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trainer import config
from trainer.errors import ConfigError
from trainer.parallel import layout as trainers
from trainyard.api.train import TrainConfig
from trainyard.layout import HARDWARE, InvalidLayout, Workload, choose, of_train, settle

MODERATE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = st.sampled_from([1, 1, 2, 4])
SIZES = ("data", "shard", "tensor", "pipeline", "context")


def seldom(draw: Any, usual: Any, other: Any) -> Any:
    """What may be wrong: now and then, so that as much is accepted as refused."""
    return draw(other) if draw(st.integers(0, 5)) == 0 else usual


@st.composite
def models(draw: Any) -> dict[str, Any]:
    """A Hugging Face config whose sizes divide by some layouts and not by others."""
    kv_heads = draw(st.sampled_from([1, 2, 4, 4, 6]))
    heads = kv_heads * draw(st.sampled_from([1, 2]))
    experts = draw(st.sampled_from([0, 0, 4, 6]))
    return {"hidden_size": 16 * heads, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": seldom(draw, 192, st.sampled_from([66, 65])),
            "vocab_size": seldom(draw, 384, st.sampled_from([258, 385])),
            "num_hidden_layers": draw(st.integers(1, 12)), "max_position_embeddings": 4096,
            "tie_word_embeddings": seldom(draw, False, st.just(True)),
            **({"num_local_experts": experts, "num_experts_per_tok": 2} if experts else {})}


def train(model: dict[str, Any], sequence: int, **fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({
        "model": {"family": "mixtral" if "num_local_experts" in model else "llama2", "config": model},
        "data": {"sources": [{"path": "/data"}], "sequenceLength": sequence}, "steps": 1, **fields})


def planned(asked: TrainConfig, ranks: int) -> Workload:
    work = of_train(asked, ranks, ranks, replace(HARDWARE["CPU"], memory=0.0))
    assert work is not None
    return work


def accepted(asked: TrainConfig, ranks: int, model: dict[str, Any]) -> trainers.Layout:
    """The layout as the trainer runs it. Raises ConfigError."""
    found = trainers.fit(config.layout(asked, ranks), model, asked.data.sequence_length)
    config.batch_size(asked, found)
    return found


@MODERATE
@given(models(), st.sampled_from([2, 4, 6, 8]), st.sampled_from([12, 32, 64]), st.sampled_from([1, 2, 4]), st.data())
def test_the_trainer_runs_what_the_planner_lists(model: dict[str, Any], ranks: int, sequence: int, times: int,
                                                 data: st.DataObject) -> None:
    asked = train(model, sequence, batchSize=ranks * times)
    try:
        ranking = choose(planned(asked, ranks))
    except InvalidLayout:
        return
    first = data.draw(st.integers(0, max(0, len(ranking.estimates) - 20)))
    for each in islice(ranking.estimates, first, first + 20):
        want = each.layout
        found = accepted(settle(asked, ranking.work, want), ranks, model)
        names = (*SIZES, "expert", "zero", "schedule", "stage_layers", "ulysses")
        assert {name: getattr(found, name) for name in names} == {name: getattr(want, name) for name in names}


@st.composite
def complete(draw: Any) -> tuple[dict[str, Any], TrainConfig, int]:
    """A model, and a configuration that leaves no size open."""
    model = draw(models())
    parallel: dict[str, Any] = {name: draw(SMALL) for name in ("data", "shard", "context")}
    parallel["tensor"] = draw(st.sampled_from([n for n in (1, 2, 4) if model["num_key_value_heads"] % n == 0]))
    parallel["pipeline"] = draw(st.sampled_from([n for n in (1, 2, 2, 4) if n <= model["num_hidden_layers"]]))
    if "num_local_experts" in model:
        parallel.update(tensor=seldom(draw, 1, SMALL), pipeline=seldom(draw, 1, SMALL))
    for name in ("tensor", "pipeline"):
        parallel[name] = seldom(draw, parallel[name], st.sampled_from([2, 3, 8]))
    parallel["ulysses"] = seldom(draw, None, st.sampled_from([1, 2, 4]))
    expert = st.sampled_from([1, 1, 1, 2, 4, 3])
    parallel["expert"] = draw(expert) if "num_local_experts" in model else seldom(draw, None, expert)
    parallel["zero"] = draw(st.sampled_from([None, None, 2, 3]))
    if parallel["pipeline"] > 1 or seldom(draw, False, st.just(True)):
        parallel["schedule"] = draw(st.sampled_from([None, "1F1B", "Interleaved1F1B", "ZBV"]))
        if draw(st.booleans()):
            count = seldom(draw, parallel["pipeline"] * draw(st.sampled_from([1, 2])), st.integers(1, 9))
            layers = [1] * (count - 1)
            parallel["stageLayers"] = [*layers, seldom(draw, max(0, model["num_hidden_layers"] - sum(layers)),
                                                       st.integers(0, 4))]
    micro = draw(st.sampled_from([1, 2]))
    batch = micro * parallel["data"] * parallel["shard"] * draw(st.integers(1, 9))
    length = seldom(draw, draw(st.sampled_from([16, 32])), st.sampled_from([4, 12, 36, 63]))
    asked = train(model, length, parallel=parallel, batchSize=batch, microBatchSize=micro,
                  activationCheckpointing=draw(st.sampled_from(["none", "selective", "full"])))
    return model, asked, prod(parallel[name] for name in SIZES)


DENSE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 64,
         "vocab_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 4096}
ONE = dict.fromkeys(SIZES, 1)


@MANY
@given(complete())
@example((DENSE, train(DENSE, 12, parallel={**ONE, "context": 4, "ulysses": 2}, batchSize=1, microBatchSize=1), 4))
@example((DENSE, train(DENSE, 12, parallel={**ONE, "pipeline": 2, "stageLayers": [1, 1, 1, 1]}, batchSize=5,
                       microBatchSize=1), 2))  # five micro-batches: ZBV alone runs
@example((DENSE, train(DENSE, 12, parallel={**ONE, "schedule": "1F1B"}, batchSize=1, microBatchSize=1), 1))
def test_both_accept_and_refuse_the_same(case: tuple[dict[str, Any], TrainConfig, int]) -> None:
    model, asked, ranks = case
    try:
        trains: str = str(accepted(asked, ranks, model))
    except ConfigError as error:
        trains, why = "", str(error)
    try:
        plans: str = str(choose(planned(asked, ranks)).best.layout)
    except InvalidLayout as error:
        plans, why = "", str(error)
    assert bool(trains) == bool(plans), f"trainer: {trains or 'no'}; planner: {plans or 'no'}; {why}"
