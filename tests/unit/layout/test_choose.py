"""What is enumerated is legal, what is chosen fits and keeps what was set."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainyard.api.train import ParallelConfig
from trainyard.layout import HARDWARE, InvalidLayout, LayoutDoesNotFit, Workload, choose, settle
from trainyard.layout.choose import estimate, meshes
from trainyard.layout.legal import legal
from trainyard.layout.memory import memory
from trainyard.layout.shape import ModelShape
from trainyard.layout.types import Layout
from unit.layout.workloads import train, workload

SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def workloads(draw: Any, memory_known: bool = True) -> Workload:
    kv_heads = draw(st.sampled_from([1, 2, 4, 6, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    head = draw(st.sampled_from([16, 64, 128]))
    experts = draw(st.sampled_from([0, 0, 0, 8]))
    shape = ModelShape(heads * head, draw(st.sampled_from([256, 1408, 11008])), draw(st.integers(1, 48)), heads,
                       kv_heads, head, draw(st.sampled_from([1000, 32000])), 1 << 20, draw(st.booleans()), experts,
                       2 if experts else 0)  # fmt: skip
    per_node = draw(st.sampled_from([1, 2, 4, 8]))
    ranks = per_node * draw(st.sampled_from([1, 2, 3, 4, 8]))
    row = HARDWARE[draw(st.sampled_from(sorted(HARDWARE)))].with_node(per_node)
    if memory_known:
        row = replace(row, memory=draw(st.sampled_from([2e9, 16e9, 64e9])))
    asked = draw(st.fixed_dictionaries({}, optional={
        "data": st.sampled_from([1, 2, 3]), "shard": st.sampled_from([1, 2, 4]), "tensor": st.sampled_from([1, 2, 4]),
        "pipeline": st.sampled_from([1, 2, 4]), "context": st.sampled_from([1, 2, 4]), "zero": st.sampled_from([2, 3]),
        "schedule": st.sampled_from(["1F1B", "Interleaved1F1B", "ZBV"]), "expert": st.sampled_from([1, 2]),
        "ulysses": st.sampled_from([1, 2]),
    }))  # fmt: skip
    batch = ranks * draw(st.sampled_from([1, 2, 4, 6]))
    return Workload(shape, ranks, row, draw(st.sampled_from([256, 1024, 4096])), batch, "fp32", ParallelConfig(**asked),
                    draw(st.sampled_from([None, None, 1, 2])), draw(st.sampled_from([None, None, "none", "full"])))


@SLOW
@given(workloads())
def test_layouts_are_legal_and_keep_what_was_set(work: Workload) -> None:
    try:
        ranking = choose(work)
    except InvalidLayout:
        return
    said = work.asked.model_dump(exclude_none=True)
    for each in ranking.estimates:
        assert legal(work, each.layout), each.layout
        assert {name: getattr(each.layout, name) for name in said} == said
        assert work.micro in (None, each.layout.micro)
        assert work.recompute in (None, each.layout.recompute)


@SLOW
@given(workloads())
def test_what_is_chosen_fits_and_nothing_that_fits_is_faster(work: Workload) -> None:
    try:
        ranking = choose(work)
    except InvalidLayout:
        return
    if not ranking.fitting:
        assert all(each.memory.total > work.hardware.memory for each in ranking.estimates)
        return
    best = ranking.best
    assert best.memory.total <= work.hardware.memory
    assert best.seconds.total <= 1.011 * min(each.seconds.total for each in ranking.fitting)


@SLOW
@given(workloads(memory_known=False))
def test_more_shards_take_less_memory(work: Workload) -> None:
    asked = work.asked.model_copy(update={"data": None, "shard": None})
    work = replace(work, asked=asked, micro=None)
    for mesh in meshes(work):
        layout = replace(mesh, stage_layers=()) if mesh.pipeline == 1 else None
        if layout is None or layout.shard % 2 or layout.expert > 1:
            continue
        fewer = replace(layout, shard=layout.shard // 2, data=layout.data * 2)
        more_states = memory(work, fewer)
        fewer_states = memory(work, layout)
        for kind in ("parameters", "optimizer", "gradients"):
            assert getattr(fewer_states, kind) <= getattr(more_states, kind)
        if fewer.sharding > 1:
            assert fewer_states.tensors <= more_states.tensors * 1.0001  # a communicator more may be overhead


@SLOW
@given(workloads(memory_known=False))
def test_recomputation_takes_less_memory(work: Workload) -> None:
    for mesh in list(meshes(work))[:20]:
        if mesh.pipeline > 1:
            continue
        sizes = [memory(work, replace(mesh, recompute=mode)).activations for mode in ("none", "full")]
        if work.shape.layers > 1:
            assert sizes[1] < sizes[0] * 1.0001 + work.sequence * work.shape.hidden * 4 * mesh.micro


def test_seventy_billion_on_4096_devices_in_two_seconds() -> None:
    for device in ("910B", "A100"):
        work = workload("70b", 4096, device, batchSize=4096)
        start = time.process_time()
        best = choose(work).best
        assert time.process_time() - start < 2.0
        assert best.fits


def test_a_job_that_cannot_fit_is_told_what_would() -> None:
    with pytest.raises(LayoutDoesNotFit) as told:
        _ = choose(workload("70b", 8, "910B", batchSize=64)).best
    text = str(told.value)
    assert "no legal layout of 8 x 910B fits" in text
    assert "Would fit: 2 nodes" in text or "Would fit: 4 nodes" in text


def test_what_was_set_is_dropped_in_what_would_fit() -> None:
    one = dict.fromkeys(("shard", "tensor", "pipeline", "context"), 1)
    with pytest.raises(LayoutDoesNotFit, match=r"without parallel\.shard"):
        _ = choose(workload("13b", 8, "910B", batchSize=64, parallel=one)).best


def test_an_unknown_memory_refuses_nothing() -> None:
    assert choose(workload("70b", 2, "CPU", 2, batchSize=4)).best.fits


def test_settled_leaves_nothing_open() -> None:
    work = workload(None, 8, "CPU", batchSize=16)
    best = choose(work).best.layout
    settled = settle(train(), work, best)
    assert settled.batch_size == 16
    assert settled.micro_batch_size == best.micro
    assert settled.activation_checkpointing == best.recompute
    missing = {name for name, value in settled.parallel.model_dump().items() if value is None}
    assert missing <= ({"stage_layers", "schedule"} if best.pipeline == 1 else set())
    assert settled.parallel.pipeline == best.pipeline


def test_settled_is_chosen_again_as_it_is() -> None:
    work = workload("70b", 64, "910B", batchSize=512)
    best = choose(work).best
    settled = settle(train("70b"), work, best.layout)
    again = replace(work, asked=settled.parallel, micro=settled.micro_batch_size, recompute=best.layout.recompute)
    assert choose(again).best.layout == best.layout


@pytest.mark.parametrize(("device", "spared"), [("910B", True), ("CPU", False)])
def test_optimizer_state_in_the_hosts_memory_takes_none_of_the_devices(device: str, spared: bool) -> None:
    """On a CPU it is the same memory."""
    kept, offloaded = (choose(workload("7b", 8, device, batchSize=64, optimizer={"offload": offload})).best.memory
                       for offload in (False, True))  # fmt: skip
    assert kept.optimizer > 0
    assert offloaded.optimizer == (0 if spared else kept.optimizer)


def test_an_estimate_of_a_given_layout() -> None:
    work = workload("7b", 8, "A100", batchSize=64)
    each = estimate(work, Layout(shard=8, micro=1))
    assert each.memory.total == pytest.approx(sum(value for _, value in each.memory.items()))
    assert each.memory.parameters == pytest.approx(4 * work.shape.parameters / 8)
    assert each.memory.optimizer == pytest.approx(8 * work.shape.parameters / 8)
