"""What every thread of a rank makes of numbers near zero."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
from trainer.precision import flush_denormals
torch.set_num_threads(4)
if {flush}:
    flush_denormals()
small = torch.full((1 << 22,), 2e-38)  # enough that all threads have a part
print(int(torch.count_nonzero(small * 0.25)))
import warnings
warnings.simplefilter("error")
import numpy
numpy.finfo(numpy.float32), numpy.finfo(numpy.float64)  # which warn where they are looked up first
"""


def left(flush: bool) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(flush=flush)], text=True, capture_output=True,
                          check=True)  # fmt: skip
    return int(done.stdout)


def test_no_thread_computes_with_denormal_numbers() -> None:
    assert left(flush=False) == 1 << 22
    assert left(flush=True) == 0
