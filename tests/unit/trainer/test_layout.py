"""Layouts: completed, fitted to a model, refused with what would be legal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer import config, planned
from trainer.errors import ConfigError
from trainer.parallel import pipeline
from trainer.parallel.layout import Layout, check_micro_batches, complete, even_stages, fit
from trainyard.api.train import ParallelConfig, TrainConfig

TRAIN: dict[str, Any] = {"model": {"size": "tiny"}, "data": {"sources": [{"path": "/data"}]}, "steps": 10}
MODEL = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 256, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4}


def train(**fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({**TRAIN, **fields})


def layout_of(ranks: int, **fields: Any) -> Layout:
    return complete(ParallelConfig.model_validate(fields), ranks)


@pytest.mark.parametrize(("parallel", "ranks", "expected"), [
    ({}, 4, Layout(shard=4, ulysses=1)),
    ({"shard": 2}, 4, Layout(data=2, shard=2, ulysses=1)),
    ({"data": 4}, 4, Layout(data=4, ulysses=1)),
    ({"data": 2, "shard": 3}, 6, Layout(data=2, shard=3, ulysses=1)),
    ({"tensor": 2}, 8, Layout(shard=4, tensor=2, ulysses=1)),
    ({"tensor": 2, "data": 2}, 8, Layout(data=2, shard=2, tensor=2, ulysses=1)),
    ({"context": 4}, 8, Layout(shard=2, context=4)),
    ({"pipeline": 2}, 8, Layout(shard=4, pipeline=2, zero=2, ulysses=1)),
    ({"pipeline": 2, "zero": 3}, 2, Layout(pipeline=2, zero=3, ulysses=1)),
    ({"pipeline": 2, "stageLayers": [1, 2, 2, 1]}, 2,
     Layout(pipeline=2, zero=2, ulysses=1, schedule="Interleaved1F1B", stage_layers=(1, 2, 2, 1))),
])
def test_complete(parallel: dict[str, Any], ranks: int, expected: Layout) -> None:
    assert config.layout(train(parallel=parallel), ranks) == expected


@pytest.mark.parametrize(("parallel", "ranks", "message"), [
    ({"shard": 3}, 4, "train.parallel.shard is 3, but 4 ranks are not a multiple of it; legal values nearest to it: "
                      "2 and 4"),
    ({"data": 2, "shard": 2}, 6, "should be the number of ranks, 6 ranks, found 2 x 2 = 4"),
    ({"tensor": 3}, 8, "tensor 3 should divide the number of ranks, 8; tensor: legal values nearest to it: 2 and 4"),
    ({"tensor": 2, "pipeline": 3}, 8, "tensor 2 x pipeline 3 should divide the number of ranks, 8"),
    ({"tensor": 2, "shard": 3}, 8, "4 ranks (of 8, beside tensor, pipeline and context) are not a multiple of it"),
    ({"context": 4, "ulysses": 3}, 4, "ulysses should divide context, 4, found 3; legal values nearest to it: 2 and 4"),
    ({"schedule": "ZBV"}, 4, "schedule is for a pipeline, but train.parallel.pipeline is 1"),
    ({"pipeline": 2, "schedule": "ZBV", "stageLayers": [1, 2]}, 2, "should have 4 stages for ZBV on 2 ranks, found 2"),
    ({"pipeline": 2, "schedule": "ZBV", "zero": 3}, 2, "zero should be 2 with schedule ZBV, found 3"),
    ({"pipeline": 2, "schedule": "Interleaved1F1B", "stageLayers": [1, 2]}, 2, "should have 4, 6, ... stages"),
    ({"expert": 3}, 4, "expert should divide shard x context x tensor, 4, found 3; legal values nearest to it: 2 and "
                       "4"),
    ({"expert": 4, "pipeline": 2}, 4, "expert should divide shard x context x tensor, 2, found 4; legal values nearest "
                                      "to it: 2"),
])
def test_what_does_not_fit_the_ranks(parallel: dict[str, Any], ranks: int, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        layout_of(ranks, **parallel)
    assert message in str(raised.value)


@pytest.mark.parametrize(("parallel", "ranks", "model", "length", "message"), [
    ({"tensor": 8}, 8, {}, 64, "tensor should divide the model's key-value heads, 4, found 8; legal values nearest to "
                               "it: 4"),
    ({"tensor": 2}, 2, {"intermediate_size": 129}, 64, "tensor should divide the model's intermediate_size, 129"),
    ({"tensor": 2}, 2, {"vocab_size": 32001}, 64, "tensor should divide the model's vocab_size, 32001, found 2"),
    ({"tensor": 2, "context": 8, "ulysses": 8}, 16, {}, 64, "ulysses should divide the heads of a rank, 4, found 8"),
    ({"context": 4, "ulysses": 1}, 4, {}, 60, "sequenceLength should be a multiple of 8 for context 4"),
    ({"context": 4, "ulysses": 4}, 4, {}, 63, "multiple of 4 for context 4 (ulysses 4) and tensor 1, found 63; the "
                                              "nearest are 60 and 64"),
    ({"tensor": 2}, 2, {}, 33, "sequenceLength should be a multiple of 2"),
    ({"pipeline": 16}, 16, {}, 64, "a stage would be empty; the most pipeline can be is 8 with 1F1B"),
    ({"pipeline": 8, "schedule": "ZBV"}, 8, {}, 64, "8 ranks x 2 stages need at least 16 layers, found 8"),
    ({"pipeline": 2, "stageLayers": [0, 8]}, 2, {}, 64, "stage 0 is empty"),
    ({"pipeline": 2, "stageLayers": [3, 4]}, 2, {}, 64, "should add up to the model's 8 layers, found 7"),
    ({"pipeline": 2}, 2, {"tie_word_embeddings": True}, 64, "pipeline should be 1 for a model with tie_word_emb"),
    ({"expert": 2}, 2, {}, 64, "the model has no experts"),
    ({"expert": 4}, 4, {"num_local_experts": 6}, 64, "should divide the model's experts, 6, found 4; legal values "
                                                     "nearest to it: 3 and 6"),
    ({"tensor": 8}, 8, {"num_local_experts": 6}, 64, "tensor should divide the model's key-value heads, 4, found 8"),
    ({"pipeline": 16}, 16, {"num_local_experts": 6}, 64, "a stage would be empty; the most pipeline can be is 8"),
])
def test_what_does_not_fit_the_model(parallel: dict[str, Any], ranks: int, model: dict[str, Any], length: int,
                                     message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fit(layout_of(ranks, **parallel), {**MODEL, **model}, length)
    assert message in str(raised.value)


@pytest.mark.parametrize(("parallel", "ulysses"), [
    ({"context": 2}, 2), ({"context": 8}, 4), ({"context": 4, "tensor": 2}, 2), ({"context": 4, "ulysses": 1}, 1),
    ({"context": 8, "ulysses": 8}, 8), ({}, 1)])
def test_ulysses_unless_heads_would_be_copied(parallel: dict[str, Any], ulysses: int) -> None:
    assert fit(layout_of(8, **parallel), MODEL, 64).ulysses == ulysses


@given(st.integers(1, 12), st.integers(0, 40), st.integers(100, 200_000))
def test_even_stages(stages: int, more: int, vocabulary: int) -> None:
    """Every stage has a layer, the last is never the one with most, and no split is better by moving one layer."""
    model = {**MODEL, "num_hidden_layers": stages + more, "vocab_size": vocabulary}
    layers = even_stages(stages, model, 128)
    assert sum(layers) == stages + more
    assert min(layers) >= 1
    assert layers[-1] == min(layers)
    assert max(layers[:-1], default=0) - min(layers[:-1], default=0) <= 1


@pytest.mark.parametrize(("micro", "ranks", "parallel", "message"), [
    (4, 2, {"tensor": 2}, None),
    (2, 2, {"context": 2}, None),
    (2, 2, {"expert": 2}, None),
    (1, 2, {"tensor": 2}, "microBatchSize should be even with twoBatchOverlap, found 1; legal values nearest to it: 2"),
    (2, 2, {}, "needs tensor, context or expert parallelism"),
    (2, 4, {"tensor": 2, "pipeline": 2, "schedule": "ZBV"}, "schedule should be 1F1B or Interleaved1F1B"),
])
def test_what_overlaps(micro: int, ranks: int, parallel: dict[str, Any], message: str | None) -> None:
    fields = train(twoBatchOverlap=True, parallel=parallel)
    asked = fields.model_copy(update={"micro_batch_size": micro})
    if message is None:
        found = config.layout(asked, ranks)
        assert found.overlap
        assert "two-batch overlap" in str(found)
        return
    with pytest.raises(ConfigError) as raised:
        config.layout(asked, ranks)
    assert message in str(raised.value)


def test_dropout_does_not_overlap() -> None:
    layout = config.layout(train(twoBatchOverlap=True, microBatchSize=2, parallel={"tensor": 2}), 2)
    with pytest.raises(ConfigError, match=r"attention_dropout is 0\.1"):
        fit(layout, {**MODEL, "attention_dropout": 0.1}, 64)


def test_batch_size() -> None:
    assert config.batch_size(train(microBatchSize=2), layout_of(4)) == 8
    assert config.batch_size(train(batchSize=24, microBatchSize=2), layout_of(4)) == 24
    assert config.batch_size(train(microBatchSize=2), layout_of(8, tensor=2, context=2)) == 4
    assert config.batch_size(train(), layout_of(4, pipeline=2)) == 4
    assert config.batch_size(train(batchSize=12, microBatchSize=2), layout_of(4)) == 12, "the rest is padding"


@pytest.mark.parametrize(("batch", "ranks", "parallel", "count"), [
    (8, 4, {}, 2), (8, 3, {}, 3), (8, 2, {}, 4), (2, 4, {}, 1), (9, 2, {}, 5),
    (16, 4, {"pipeline": 2, "schedule": "Interleaved1F1B"}, 8),
    (10, 6, {"pipeline": 2, "schedule": "Interleaved1F1B"}, 4),
    (15, 2, {"pipeline": 2, "schedule": "Interleaved1F1B"}, 16),
])
def test_every_rank_computes_as_many_micro_batches(batch: int, ranks: int, parallel: dict[str, Any],
                                                  count: int) -> None:
    assert config.micro_batches(train(batchSize=batch), layout_of(ranks, **parallel), batch) == count


def test_a_smaller_gang_fills_up_the_rounds_of_its_schedule() -> None:
    asked = train(batchSize=30, microBatchSize=1)
    interleaved = {"pipeline": 2, "schedule": "Interleaved1F1B"}
    assert config.batch_size(asked, layout_of(6, **interleaved)) == 30  # 10 micro-batches
    with pytest.raises(ConfigError, match="a multiple of 2 micro-batches"):
        config.batch_size(asked, layout_of(4, **interleaved))  # 15
    assert config.batch_size(asked, layout_of(4, **interleaved), resized=True) == 30


@pytest.mark.parametrize(("parallel", "ranks", "data", "shard"), [
    ({"data": 1, "shard": 4}, 3, 1, 3), ({"data": 2, "shard": 2}, 2, 1, 2), ({"data": 2, "shard": 2}, 3, 1, 3),
    ({"data": 4, "shard": 1}, 3, 3, 1), ({"data": 2, "shard": 2, "tensor": 2}, 4, 1, 2),
    ({"data": 2, "shard": 2, "tensor": 2}, 5, None, None), ({"shard": 4}, 3, None, None),
])
def test_for_fewer_ranks_only_data_and_shard_change(parallel: dict[str, int], ranks: int, data: int | None,
                                                    shard: int | None) -> None:
    whole = {} if data is None and "data" not in parallel else {"tensor": 1, "pipeline": 1, "context": 1}
    asked = train(batchSize=8, microBatchSize=1, parallel={**whole, **parallel})
    made = planned.resized(asked, ranks)
    if data is None:
        assert made is None
    else:
        assert made is not None
        assert (made.parallel.data, made.parallel.shard) == (data, shard)
        assert planned.is_settled(made, ranks)
        assert made.batch_size == 8


@pytest.mark.parametrize(("parallel", "count", "message"), [
    ({"pipeline": 4}, 3, "at least 4 micro-batches, found 3"),
    ({"pipeline": 4, "schedule": "ZBV"}, 6, "at least 7 micro-batches, found 6"),
    ({"pipeline": 4, "schedule": "Interleaved1F1B"}, 10, None),
    ({"pipeline": 4, "schedule": "Interleaved1F1B"}, 9, "a multiple of"),
    ({"pipeline": 4}, 4, None),
])
def test_micro_batches_of_a_schedule(parallel: dict[str, Any], count: int, message: str | None) -> None:
    if message is None:
        check_micro_batches(layout_of(4, **parallel), count)
        return
    with pytest.raises(ConfigError, match=message):
        check_micro_batches(layout_of(4, **parallel), count)


def test_zbv_refuses_selective_checkpointing() -> None:
    given = train(parallel={"pipeline": 2, "schedule": "ZBV"}, activationCheckpointing="selective")
    with pytest.raises(ConfigError, match="should be none or full with schedule ZBV, found selective"):
        config.layout(given, 2)


@pytest.mark.parametrize(("schedule", "owners"), [
    ("1F1B", [0, 1]), ("Interleaved1F1B", [0, 1, 0, 1]), ("ZBV", [0, 1, 1, 0])])
def test_stages_of_a_schedule(schedule: str, owners: list[int]) -> None:
    layout = fit(layout_of(2, pipeline=2, schedule=schedule), MODEL, 64)
    assert [pipeline.owner(stage, layout) for stage in range(layout.stages)] == owners
    assert sorted(pipeline.stages_of(0, layout) + pipeline.stages_of(1, layout)) == list(range(layout.stages))
