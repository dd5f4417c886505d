"""A MindSpore script for the end-to-end tests: all ranks add up a number each step, on CPU.

Rank 0 keeps the step on the checkpoint volume; after a restart the ranks go on from it.
"""

import json
import os
import pathlib
import time

import mindspore
import numpy
from mindspore import ops
from mindspore.communication import get_group_size, get_rank, init

mindspore.set_context(device_target="CPU")
init()
rank, size = get_rank(), get_group_size()
steps, kept = int(os.environ["STEPS"]), pathlib.Path("/checkpoint/step")
start = int(kept.read_text()) if kept.exists() else 0
print(f"rank {rank} of {size} goes on from step {start}, RANK is {os.environ['RANK']}", flush=True)
for step in range(start + 1, steps + 1):
    mine = mindspore.Tensor(numpy.array([step * 10.0**rank], numpy.float32))
    total = float(ops.AllReduce()(mine).asnumpy()[0])
    assert total == step * sum(10.0**other for other in range(size)), (step, total)
    print(f"rank {rank} finished step {step}, the sum is {total:.0f}", flush=True)
    if rank == 0:
        for path, text in ((kept, str(step)), (pathlib.Path(os.environ["TRAINYARD_PROGRESS"]),
                                               json.dumps({"step": step, "steps": steps, "durableStep": step}))):
            fresh = path.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(path)
    time.sleep(0.2)
