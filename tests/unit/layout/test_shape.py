"""Shapes count what transformers makes."""

from __future__ import annotations

import pytest
from trainyard.api.train import ModelConfig
from trainyard.layout import HARDWARE
from trainyard.layout.hardware import for_resource, named
from trainyard.layout.shape import MIXTRALS, PRESETS, fields_of, shape_of
from trainyard.layout.split import in_flight, split, stages_of
from trainyard.layout.types import Layout


@pytest.mark.parametrize(("size", "parameters"), [
    ("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192),  # as Meta's checkpoints have them
])  # fmt: skip
def test_parameters_of_the_published_shapes(size: str, parameters: int) -> None:
    assert shape_of(PRESETS[size]).parameters == parameters


def test_a_mixture() -> None:
    assert shape_of(MIXTRALS["8x7b"]).parameters == 46_702_792_704  # as Mistral's checkpoint has them
    fields = fields_of(ModelConfig.model_validate({"family": "mixtral", "config": PRESETS["7b"]}))
    assert fields is not None
    assert (shape_of(fields).experts, shape_of(fields).chosen) == (8, 2)


def test_flops_of_seven_billion() -> None:
    shape = shape_of(PRESETS["7b"])
    known = 6 * (shape.parameters - shape.embedding) + 12 * 32 * 4096 * 4096
    assert shape.flops(4096) == pytest.approx(known, rel=1e-3)  # norms are no products


@pytest.mark.parametrize(("name", "row"), [
    ("910B", "910B"), ("Ascend910B3", "910B"), ("910B-16", "910B"), ("910A", "910A"), ("Ascend910PremiumA", "910A"),
    ("A3", "A3"), ("Ascend 910_9392", None), ("NVIDIA A100-SXM4-80GB", "A100"), ("h100", "H100"), ("TPU v5", None),
])  # fmt: skip
def test_devices_by_the_names_that_tools_print(name: str, row: str | None) -> None:
    found = named(name)
    assert (found.name if found else None) == row or (row is None and name.startswith("Ascend 910_93"))


def test_devices_by_resource() -> None:
    assert for_resource(None).name == "CPU"
    assert for_resource("huawei.com/Ascend910").name == "910B"
    assert for_resource("huawei.com/Ascend910", "910A").name == "910A"
    assert for_resource("huawei.com/Ascend910", "Other").name == "910B"
    assert for_resource("nvidia.com/gpu", "NVIDIA H100 80GB HBM3").name == "H100"
    assert for_resource("example.com/unheard-of").name == "CPU"


def test_every_row_has_a_source_and_ends_in_a_link_for_all() -> None:
    for row in HARDWARE.values():
        assert row.source
        assert row.links[-1].size >= 1 << 16
        assert row.with_node(2).node == 2


def test_stages_account_for_the_head() -> None:
    shape = shape_of(PRESETS["7b"])
    assert split(shape, 4096, 1) == (32,)
    for stages in range(2, 33):
        layers = split(shape, 4096, stages)
        assert len(layers) == stages
        assert sum(layers) == 32
        assert min(layers) >= 1
    small = shape_of(PRESETS["tiny"])  # the head costs as much as many layers
    assert split(small, 256, 2) == (5, 1)


def test_stages_of_ranks() -> None:
    zbv = Layout(pipeline=4, schedule="ZBV", stage_layers=(1,) * 8)
    assert [stages_of(zbv, rank) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    turns = Layout(pipeline=2, schedule="Interleaved1F1B", stage_layers=(1,) * 6)
    assert [stages_of(turns, rank) for rank in range(2)] == [(0, 2, 4), (1, 3, 5)]
    assert in_flight(Layout(pipeline=4, stage_layers=(1,) * 4), 0, 8) == 4
    assert in_flight(Layout(pipeline=4, stage_layers=(1,) * 4), 3, 8) == 1
