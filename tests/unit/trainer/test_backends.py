"""Which backend for which device, and whose packages are imported for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from supervisor import collective
from trainer import regroup
from trainer.distributed import BACKENDS, find_device, on_cpu


def test_the_check_of_nodes_uses_the_trainers_backends() -> None:
    trainers = {kind: backends.rpartition(":")[2] for kind, backends in BACKENDS.items()}
    assert trainers == collective.BACKENDS == regroup.COLLECTIVES
    assert set(trainers.values()) <= set(regroup.CUTS)


@pytest.mark.skipif(Path("/dev/davinci_manager").exists(), reason="there are NPUs here")
def test_a_vendors_package_is_imported_for_its_device_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_npu.py").write_text("raise ImportError('torch_npu was asked for')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ASCEND_VISIBLE_DEVICES", raising=False)
    assert find_device(0).type != "npu"
    assert collective.devices(torch, 1)[0] != "npu"
    monkeypatch.setenv("ASCEND_VISIBLE_DEVICES", "0")
    assert not on_cpu()
    with pytest.raises(ImportError, match="was asked for"):
        find_device(0)
    with pytest.raises(ImportError, match="was asked for"):
        collective.devices(torch, 1)
