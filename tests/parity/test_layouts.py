"""Every layout trains like one process: loss, gradient norm and every parameter's gradient, step by step.

Bounds: fp32 sums made in another order. The loss of 5.7 has steps of 4.8e-7; gradients are compared with the largest
number of their parameter. Seen at worst: see docs/parallel.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parity.compare import run

LOSS = 3e-6
GRADIENT = 2e-4

# In bf16: loss, norm, and the distance of a parameter's gradient from the right one, relative to its length. A mixture
# sends tokens to all of its experts then: where the second and the third are alike, roundings choose.
BF16 = (5e-3, 2e-2, 6e-2)
ALL_EXPERTS: dict[str, Any] = {"family": "mixtral", "model": {"num_experts_per_tok": 4}}

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {"shard": 2}),
    (2, {"data": 2}),
    (4, {"data": 2, "shard": 2, "zero": 2}),
    (4, {"data": 2, "shard": 2}),
    (2, {"tensor": 2}),
    (4, {"tensor": 4}),
    (4, {"tensor": 2, "shard": 2}),
    (4, {"tensor": 2, "data": 2}),
    (2, {"pipeline": 2}),
    (2, {"pipeline": 2, "stageLayers": [3, 1]}),
    (2, {"pipeline": 2, "schedule": "Interleaved1F1B"}),
    (2, {"pipeline": 2, "schedule": "ZBV"}),
    (4, {"pipeline": 4}),
    (4, {"pipeline": 2, "shard": 2}),
    (4, {"pipeline": 2, "shard": 2, "schedule": "ZBV"}),
    (4, {"pipeline": 2, "shard": 2, "zero": 3, "schedule": "Interleaved1F1B"}),
    (4, {"pipeline": 2, "data": 2, "stageLayers": [1, 1, 1, 1]}),
    (4, {"pipeline": 2, "tensor": 2}),
    (2, {"context": 2}),
    (2, {"context": 2, "ulysses": 1}),
    (4, {"context": 4, "ulysses": 1}),
    (4, {"context": 4, "ulysses": 2}),
    (4, {"context": 2, "shard": 2}),
    (4, {"context": 2, "ulysses": 1, "data": 2}),
    (4, {"context": 2, "tensor": 2}),
    (4, {"context": 2, "ulysses": 1, "tensor": 2}),
    (4, {"context": 2, "pipeline": 2}),
    (8, {"tensor": 2, "data": 2, "shard": 2}),
    (8, {"pipeline": 2, "data": 2, "shard": 2}),
    (8, {"pipeline": 2, "tensor": 2, "shard": 2}),
    (8, {"pipeline": 2, "context": 2, "tensor": 2}),
    (8, {"context": 4, "ulysses": 2, "shard": 2}),
]

# A mixture of experts; `parts`: into how many micro-batches its batch is divided.
MIXTURES: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (1, {}, {}),
    (2, {"shard": 2}, {}),
    (2, {"shard": 2}, {"parts": 2}),
    (2, {"expert": 2}, {}),
    (2, {"context": 2, "expert": 2}, {}),
    (4, {"data": 2, "shard": 2, "expert": 2}, {}),
    (4, {"shard": 4, "expert": 2}, {"parts": 2}),
    (4, {"expert": 4, "zero": 2}, {}),
    (4, {"context": 2, "shard": 2, "expert": 4}, {}),
    (2, {"expert": 2}, {"activationCheckpointing": "full"}),
    (2, {"expert": 2}, {"activationCheckpointing": "selective"}),
    (1, {}, {"experts": {"capacityFactor": 0.8}}),
    (2, {"expert": 2}, {"experts": {"capacityFactor": 0.8}}),
    (4, {"context": 2, "shard": 2, "expert": 2}, {"experts": {"capacityFactor": 0.8},
                                                   "activationCheckpointing": "selective"}),
    (2, {"expert": 2}, {"twoBatchOverlap": True}),
    (4, {"shard": 4}, {"model": {"num_local_experts": 3}}),  # they do not go evenly over ranks: each is cut
    (2, {"pipeline": 2}, {"parts": 4}),
    (2, {"pipeline": 2, "schedule": "ZBV"}, {"parts": 4}),
    (4, {"pipeline": 2, "shard": 2, "expert": 2, "schedule": "Interleaved1F1B"}, {
        "parts": 4, "experts": {"capacityFactor": 0.8}, "activationCheckpointing": "full"}),
    (2, {"tensor": 2}, {"parts": 2}),  # experts are shards, and nothing else is
    (2, {"tensor": 2, "expert": 2}, {"parts": 2, "activationCheckpointing": "selective"}),
    (4, {"tensor": 2, "shard": 2, "expert": 2}, {"experts": {"capacityFactor": 0.8}}),
    (4, {"tensor": 2, "context": 2, "expert": 4}, {}),
    (4, {"data": 2, "tensor": 2, "expert": 2}, {"parts": 2}),
    (4, {"pipeline": 2, "tensor": 2, "expert": 2}, {"parts": 4}),
    (8, {"pipeline": 2, "tensor": 2, "shard": 2, "expert": 2}, {"parts": 4}),
]

# What else changes how gradients are made, on the layouts that it meets differently.
VARIANTS: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (2, {"shard": 2}, {"documents": True}),
    (2, {"tensor": 2}, {"documents": True}),
    (2, {"context": 2}, {"documents": True}),
    (4, {"context": 4, "ulysses": 2}, {"documents": True}),
    (4, {"context": 4, "ulysses": 1}, {"documents": True}),
    (2, {"pipeline": 2, "schedule": "ZBV"}, {"documents": True}),
    (2, {"shard": 2}, {"activationCheckpointing": "selective"}),
    (2, {"context": 2, "ulysses": 1}, {"activationCheckpointing": "full"}),
    (2, {"tensor": 2}, {"activationCheckpointing": "selective"}),
    (2, {"pipeline": 2}, {"activationCheckpointing": "selective"}),
    (2, {"pipeline": 2, "schedule": "ZBV"}, {"activationCheckpointing": "full"}),
    (2, {"shard": 2}, {"model": {"tie_word_embeddings": True}}),
    (4, {"tensor": 2, "shard": 2}, {"model": {"tie_word_embeddings": True}}),
    (2, {"tensor": 2}, {"model": {"pad_token_id": 200}}),  # whose vector is not trained, and which the second rank has
    (2, {"shard": 2}, {"optimizer": {"learningRate": 1e-3, "warmupSteps": 1, "offload": True}}),
    (4, {"context": 4, "ulysses": 4}, {"model": {"num_key_value_heads": 2}}),  # key-value heads are copied
    (2, {"tensor": 2}, {"twoBatchOverlap": True, "microBatchSize": 4}),
    (2, {"context": 2}, {"twoBatchOverlap": True, "microBatchSize": 4, "documents": True,
                         "activationCheckpointing": "selective"}),
]


def name_of(case: Any) -> str:
    if isinstance(case, dict):
        return " ".join(f"{key}{value}" for key, value in case.items()) or "one"
    return str(case)


@pytest.fixture(scope="session")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where references are kept."""
    return tmp_path_factory.mktemp("truths")


@pytest.mark.parametrize(("ranks", "parallel"), LAYOUTS, ids=name_of)
def test_layout(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any]) -> None:
    off = run(tmp_path, truths, ranks, parallel=parallel)
    print(off.text)
    assert off.within(LOSS, GRADIENT), off.text


@pytest.mark.parametrize(("ranks", "parallel", "fields"), VARIANTS, ids=name_of)
def test_variant(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any], fields: dict[str, Any]) -> None:
    off = run(tmp_path, truths, ranks, parallel=parallel, **fields)
    print(off.text)
    assert off.within(LOSS, GRADIENT), off.text


@pytest.mark.parametrize(("ranks", "parallel", "fields"), MIXTURES, ids=name_of)
def test_mixture(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any], fields: dict[str, Any]) -> None:
    off = run(tmp_path, truths, ranks, family="mixtral", parallel=parallel, **fields)
    print(off.text)
    assert off.within(LOSS, GRADIENT), off.text


@pytest.mark.parametrize(("ranks", "parallel", "fields"), [
    (1, {}, {}), (1, {}, {"activationCheckpointing": "full"}), (2, {"shard": 2}, {}), (2, {"tensor": 2}, {}),
    (2, {"pipeline": 2}, {"activationCheckpointing": "selective"}), (2, {"pipeline": 2, "schedule": "ZBV"}, {}),
    (2, {"context": 2, "ulysses": 1}, {}), (2, {"expert": 2}, ALL_EXPERTS)], ids=name_of)
def test_bf16_stays_near(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any],
                         fields: dict[str, Any]) -> None:
    """Computed in bf16, which has 8 bits, compared with fp32: weights, reduction and optimizer stay fp32."""
    off = run(tmp_path, truths, ranks, parallel=parallel, precision="bf16", **fields)
    print(off.text)
    assert off.near(*BF16), off.text


@pytest.mark.parametrize(("ranks", "parallel", "damage", "fields"), [
    (2, {"tensor": 2}, "no_reduce_in_attention", {}),
    (2, {"expert": 2}, "experts_not_averaged", ALL_EXPERTS)], ids=name_of)
def test_bf16_that_is_broken_is_not_near(tmp_path: Path, truths: Path, ranks: int, parallel: dict[str, Any],
                                         damage: str, fields: dict[str, Any]) -> None:
    """A mistake in the gradients alone is told from roundings."""
    off = run(tmp_path, truths, ranks, damage, parallel=parallel, precision="bf16", **fields)
    print(off.text)
    assert off.distance > 5 * BF16[2], off.text


@pytest.mark.parametrize("damage_of", [
    (4, {"data": 2, "shard": 2}, "no_reduce_of_replicas"),
    (2, {"shard": 2}, "wrong_scale"),
    (2, {"shard": 2}, "same_samples_everywhere"),
    (2, {"tensor": 2}, "no_reduce_in_attention"),
    (2, {"tensor": 2}, "norms_counted_by_every_rank"),
    (2, {"tensor": 2}, "loss_of_a_part_of_the_vocabulary"),
    (1, {}, "dead_embedding"),
    (2, {"context": 2}, "positions_from_zero"),
    (2, {"context": 2, "ulysses": 1}, "ring_without_causal_order"),
    (2, {"pipeline": 2}, "gradients_divided_by_micro_batches"),
    (2, {"shard": 2}, "experts_balanced_by_each_rank"),
    (2, {"expert": 2}, "experts_not_averaged"),
    (2, {"expert": 2}, "experts_limited_by_each_rank"),
    (2, {"context": 2}, "halves_in_an_order_of_each_rank"),
    (2, {"pipeline": 2}, "experts_of_other_stages_not_balanced"),
    (2, {"tensor": 2}, "experts_router_learns_of_its_rank"),
    (2, {"tensor": 2}, "experts_averaged_over_tensor_ranks"),
], ids=lambda case: case[2])
def test_a_broken_layout_is_noticed(tmp_path: Path, truths: Path, damage_of: tuple[int, dict[str, Any], str]) -> None:
    ranks, parallel, damage = damage_of
    family = "mixtral" if damage.startswith("experts") else "llama2"
    fields: dict[str, Any] = {"experts": {"capacityFactor": 0.8}} if "limited" in damage else {}
    if damage.startswith("halves"):
        fields = {"twoBatchOverlap": True, "microBatchSize": 4}
    if family == "mixtral" and "pipeline" in parallel:
        fields = {"parts": 4}
    off = run(tmp_path, truths, ranks, damage, family=family, parallel=parallel, **fields)
    print(off.text)
    assert not off.within(LOSS * 10, GRADIENT * 10), off.text
