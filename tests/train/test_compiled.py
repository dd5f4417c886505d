"""train.compile: the same losses, and a warning where it cannot be done.

Blocks are traced and differentiated as ever, but torch's own operators run what comes out: the C++ compiler would take
minutes of every test run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train.gang import Gang, train

STEPS = 3
PROGRAM = """
import functools, runpy, torch
from torch._dynamo.backends.debugging import aot_eager
def backend(graph, inputs):
    print("compiled a graph", flush=True)
    return aot_eager(graph, inputs)
torch.compile = functools.partial(torch.compile, backend=backend)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("ranks", "precision"), [(1, "bf16"), (2, "fp32")])
def test_compiled_blocks_train_alike(tmp_path: Path, config: dict[str, Any], ranks: int, precision: str) -> None:
    config |= {"steps": STEPS, "precision": precision, "export": False}
    plain = train(tmp_path / "plain", config, ranks)
    with Gang(tmp_path / "compiled", [{**config, "compile": True}] * ranks, program=("-c", PROGRAM)) as gang:
        compiled = gang.wait(280)
    assert compiled.codes == [0] * ranks, compiled.text
    assert "compiled a graph" in compiled.out[0], compiled.text  # not silently as it is
    found, expected = ({step: float(loss) for step, loss in one.losses.items()} for one in (compiled, plain))
    assert len(found) == STEPS
    assert found == pytest.approx(expected, abs=5e-3 if precision == "bf16" else 1e-5)


def test_without_a_compiler(tmp_path: Path, config: dict[str, Any]) -> None:
    config |= {"steps": 1, "compile": True, "export": False}
    ended = train(tmp_path / "run", config, 1, environment={"CXX": "/none", "PATH": "/none"})
    assert ended.codes == [0], ended.text
    assert "warning: train.compile: there is no C++ compiler" in ended.out[0]
