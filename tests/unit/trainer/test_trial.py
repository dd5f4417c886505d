"""What is left of a layout that was tried out."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, _collective_utils
from torch.testing._internal.distributed.fake_pg import FakeStore
from trainer.trial import groups, take_down


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This process thinks that it is rank 0 of 4; its collectives move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_ranks")
def test_nothing_remembers_its_mesh() -> None:
    """A mesh holds its groups, and gloo's connections are closed with the last that holds a group: while a rank that
    failed remembers one, the others wait for it."""
    before = groups()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    part = DTensor.from_local(torch.ones(2, 4), mesh["tensor"], [Shard(0)])
    assert (part.redistribute(placements=[Replicate()]) + 1).shape == (4, 4)
    assert torch.mm(part, DTensor.from_local(torch.ones(2, 4), mesh["tensor"], [Shard(0)])).shape == (4, 4)
    assert _collective_utils.MeshTopoInfo.build_from_mesh.cache_info().currsize
    assert len(groups()) > len(before)
    held = weakref.ref(mesh)
    del mesh, part
    take_down(before, True, torch.device("cpu"))
    assert groups() == before
    assert held() is None
