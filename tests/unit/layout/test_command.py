"""`python -m trainyard.layout`."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainyard.api.generate import REPOSITORY
from trainyard.cli import __main__ as command_line
from trainyard.layout.__main__ import main

EXAMPLE = str(REPOSITORY / "examples" / "llama2-7b-ascend.yaml")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([EXAMPLE, "--rows", "3"]) == 0
    out = capsys.readouterr().out
    assert "6.74 billion parameters" in out
    assert "32 x 910B, 8 a node" in out
    assert out.count("chosen") == 1
    assert "more meshes" in out


def test_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([EXAMPLE, "--device", "A100", "--nodes", "8", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "64 x A100" in out
    for kind in ("parameters", "optimizer", "activations", "logits", "overhead"):
        assert kind in out


@pytest.mark.parametrize(("arguments", "words"), [
    (["--device", "abacus"], "unknown device 'abacus'"),
    (["--memory", "2"], "no legal layout of 32 x 910B fits"),
    (["--nodes", "37"], "train.parallel.shard"),  # 37 > 32 layers, and no divisor of the batch
])  # fmt: skip
def test_one_line_says_what_is_wrong(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([EXAMPLE, *arguments]) == 1
    assert words in capsys.readouterr().err


def test_what_is_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: Pod")
    assert main([str(path)]) == 1
    assert "expected one TrainingJob, found 0" in capsys.readouterr().err


def test_kubectl_trainyard_plan_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["plan", EXAMPLE, "--rows", "2"]) == 0
    assert "32 x 910B" in capsys.readouterr().out
    assert command_line.main(["plan", EXAMPLE, "--device", "abacus"]) == 1
    assert "unknown device" in capsys.readouterr().err
