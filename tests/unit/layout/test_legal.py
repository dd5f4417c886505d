"""What does not divide is refused by the name of its field, with the legal values nearest to it."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.layout import InvalidLayout, choose
from unit.layout.workloads import workload

REFUSED: list[tuple[dict[str, Any], int, dict[str, Any], str, str]] = [
    # parallel, ranks, other fields, field, what is told
    ({"tensor": 3}, 6, {}, "train.parallel.tensor", "key-value heads, 4; .* are 2 and 4"),
    ({"tensor": 8}, 8, {}, "train.parallel.tensor", "key-value heads, 4; .* are 4"),
    ({"shard": 3}, 8, {}, "train.parallel.shard", "does not divide the 8 ranks; .* 2 and 4"),
    ({"data": 5}, 8, {}, "train.parallel.data", "does not divide the 8 ranks; .* 4 and 8"),
    ({"pipeline": 8}, 8, {}, "train.parallel.pipeline", "4 layers; .* are 4"),
    ({"pipeline": 4, "schedule": "ZBV"}, 8, {}, "train.parallel.pipeline", "4 x 2 stages .* are 2"),
    ({"pipeline": 2, "stageLayers": [4, 0]}, 8, {}, "train.parallel.stageLayers", "stage 1 is empty"),
    ({"pipeline": 2, "stageLayers": [2, 3]}, 8, {}, "train.parallel.stageLayers", "have 5 layers .* the model has 4"),
    ({"pipeline": 2, "stageLayers": [1, 1, 2]}, 8, {}, "train.parallel.stageLayers", "3 stages .* are 2 and 4"),
    ({"pipeline": 1, "schedule": "ZBV"}, 8, {}, "train.parallel.schedule", "pipeline is 1"),
    ({"pipeline": 2, "schedule": "ZBV", "zero": 3}, 8, {}, "train.parallel.zero", "only legal value with it is 2"),
    ({"pipeline": 2, "schedule": "ZBV"}, 8, {"activationCheckpointing": "selective"}, "train.activationCheckpointing",
     "use none or full"),
    ({"context": 8}, 8, {"sequence": 36}, "train.parallel.context", "sequenceLength 36 .* are 6 and 9"),
    ({"context": 8, "ulysses": 3}, 8, {}, "train.parallel.ulysses", "does not divide context, 8; .* 2 and 4"),
    ({"context": 8, "ulysses": 8, "tensor": 2}, 16, {}, "train.parallel.ulysses", "4 heads of a tensor rank"),
    ({"expert": 2}, 8, {}, "train.parallel.expert", "no experts"),
    ({"expert": 4}, 8, {"config": {"num_local_experts": 6}}, "train.parallel.expert", "6 experts; .* are 3 and 6"),
    ({"tensor": 3}, 6, {"config": {"num_local_experts": 6}}, "train.parallel.tensor", "key-value heads, 4; .* 2 and 4"),
    ({"pipeline": 8}, 8, {"config": {"num_local_experts": 8}}, "train.parallel.pipeline", "4 layers; .* are 4"),
    ({"expert": 8, "pipeline": 2}, 8, {"config": {"num_local_experts": 8}}, "train.parallel.expert",
     "the 4 ranks that shard x context x tensor can be; .* are 4"),
    ({"expert": 4, "shard": 1, "context": 1, "tensor": 2}, 8, {"config": {"num_local_experts": 8}},
     "train.parallel.expert", "the 2 ranks that shard x context x tensor are; .* are 2"),
    ({"data": 4, "shard": 4}, 8, {}, "train.parallel.data", "is 16, which does not divide the 8 ranks; .* 2"),
    ({"data": 2, "shard": 2, "tensor": 1, "pipeline": 1, "context": 1}, 8, {}, "train.parallel.data",
     "has 8 ranks; .* data 4 or shard 4 or tensor 2 or pipeline 2 or context 2 would do"),
    ({"expert": 4, "shard": 2, "context": 1}, 2, {"config": {"num_local_experts": 8}}, "train.parallel.expert",
     "2 ranks that shard x context x tensor can be; .* are 2$"),
    ({"pipeline": 4, "data": 1}, 4, {"batchSize": 2}, "train.parallel.pipeline",
     "4 cannot be had with data 1; .* are 2$"),
    ({"pipeline": 2, "schedule": "1F1B", "stageLayers": [1, 1, 1, 1]}, 8, {}, "train.parallel.stageLayers",
     "4 stages cannot be had with pipeline 2, schedule 1F1B; .* numbers of stages are 2$"),
    ({"pipeline": 2, "shard": 1, "schedule": "ZBV"}, 2, {"batchSize": 2}, "train.parallel.schedule",
     "shard 1, pipeline 2; .* are 1F1B and Interleaved1F1B$"),
    ({"context": 4, "ulysses": 1}, 4, {"sequence": 36}, "train.parallel.ulysses", "are 2$"),
    ({"context": 2, "shard": 4}, 8, {"sequence": 36, "batchSize": 4, "microBatchSize": 2}, "train.batchSize",
     "samples; the nearest that do are 8$"),
    ({"shard": 8}, 8, {"batchSize": 12}, "train.batchSize", "12 does not divide .* are 8 and 16"),
    ({"shard": 2}, 2, {"batchSize": 6, "microBatchSize": 2}, "train.batchSize", "6 does not divide .* are 4 and 8"),
    ({"pipeline": 2}, 2, {"config": {"tie_word_embeddings": True}}, "train.parallel.pipeline", "the only legal value"),
    ({}, 8, {"sequence": 8192}, "train.data.sequenceLength", "at most .* 4096, found 8192"),
    ({}, 8, {"config": {"num_key_value_heads": 3}}, "train.model.config.num_key_value_heads", "should divide"),
    ({"pipeline": 2, "schedule": "ZBV"}, 8, {"twoBatchOverlap": True}, "train.parallel.schedule", "use 1F1B"),
    ({"tensor": 1, "context": 1}, 8, {"twoBatchOverlap": True}, "train.twoBatchOverlap", "hides the communication"),
    ({"shard": 8}, 8, {"twoBatchOverlap": True, "batchSize": 64}, "train.parallel.shard", "tensor, context or expert "),
    ({"tensor": 2}, 2, {"twoBatchOverlap": True, "batchSize": 3}, "train.parallel.tensor", "an even micro-batch"),
    ({"tensor": 2}, 2, {"twoBatchOverlap": True, "config": {"attention_dropout": 0.1}}, "train.twoBatchOverlap",
     "its attention_dropout is 0.1"),
    ({}, 7, {"batchSize": 5, "sequence": 64}, "train.batchSize", "a batchSize that is a multiple of 7 always works"),
]


@pytest.mark.parametrize(("parallel", "ranks", "fields", "field", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(parallel: dict[str, Any], ranks: int, fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidLayout, match=words) as told:
        choose(workload(None, ranks, "CPU", parallel=parallel, **fields))
    assert told.value.field == field


KEPT: list[tuple[dict[str, Any], int, dict[str, Any]]] = [
    ({"tensor": 2, "pipeline": 2}, 8, {}),
    ({"pipeline": 2, "stageLayers": [3, 1]}, 4, {}),
    ({"pipeline": 2, "schedule": "ZBV"}, 2, {}),
    ({"pipeline": 2, "schedule": "Interleaved1F1B", "stageLayers": [1, 1, 1, 1]}, 2, {}),
    ({"context": 8, "ulysses": 2}, 8, {}),
    ({"context": 4, "tensor": 2, "shard": 1}, 8, {}),
    ({"expert": 2, "shard": 4}, 4, {"config": {"num_local_experts": 4}}),
    ({"tensor": 2}, 4, {"twoBatchOverlap": True}),
    ({"expert": 2, "shard": 2, "pipeline": 2}, 4, {"config": {"num_local_experts": 4}}),
    ({"expert": 4, "tensor": 2, "pipeline": 2, "shard": 2}, 8, {"config": {"num_local_experts": 4}}),
    ({"tensor": 2}, 2, {"config": {"num_local_experts": 4, "intermediate_size": 129}}),
]


@pytest.mark.parametrize(("parallel", "ranks", "fields"), KEPT, ids=lambda value: str(value)[:60])
def test_kept(parallel: dict[str, Any], ranks: int, fields: dict[str, Any]) -> None:
    work = workload(None, ranks, "CPU", parallel=parallel, **fields)
    said = work.asked.model_dump(exclude_none=True)
    best = choose(work).best.layout
    found = {name: list(value) if isinstance(value := getattr(best, name), tuple) else value for name in said}
    assert found == said
    assert not work.overlap or best.micro % 2 == 0
