"""One side of the check of two nodes: a process group of two over the job's backend, and a few all-reduces whose sums
are known beforehand.

Not imported by the supervisor: this file is run by the program's own Python, as `python collective.py HOST PORT NAME
RANK SECONDS`, and needs nothing beside it but torch. HOST and PORT are of a TCPStore that serves others as well, NAME
is the pair's own in it. It ends with 0 if all sums are right; else the last line on stderr says what was wrong."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import os
import re
import sys
import time
from typing import Any, List, Tuple

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
ELEMENTS = 1 << 20  # float32: 4 MiB, more than what backends send in one piece
MODULUS = 4093  # keeps every sum a whole number that float32 holds exactly
TURNS = 4
FAREWELL = 10.0  # s for which the partner's last word is awaited: who leaves first must not break the other's sum
INJECTION = re.compile(r"check:pod=([^,;]+),how=(hang|sum)")


class Wrong(Exception):
    """What the check has found."""


def injected(text: str, pod: str) -> str:
    """What $TRAINYARD_INJECT wants of this pod: `hang`, `sum` or nothing."""
    return next((how for name, how in INJECTION.findall(text) if name == pod), "")


def devices(torch: Any, ranks: int) -> Tuple[str, List[Any]]:
    """The kind of this pod's devices, as the trainer finds it, and those that its ranks use."""
    if (os.environ.get("ASCEND_VISIBLE_DEVICES") or os.path.exists("/dev/davinci_manager")) \
            and importlib.util.find_spec("torch_npu"):
        importlib.import_module("torch_npu")
        kind, count = "npu", torch.npu.device_count()
    elif torch.cuda.is_available():
        kind, count = "cuda", torch.cuda.device_count()
    else:
        return "cpu", [torch.device("cpu")]
    if count < ranks:
        raise Wrong(f"expected {ranks} devices of kind {kind}, one a rank, found {count}")
    return kind, [torch.device(kind, number) for number in range(ranks)]


def reduce(torch: Any, device: Any, rank: int, turn: int, spoil: bool) -> None:
    """One all-reduce on a device; Wrong if the sum is not what it must be."""
    base = torch.arange(ELEMENTS, dtype=torch.float32) % MODULUS
    mine = (base * (rank + 1) + turn).to(device)
    if spoil:
        mine[ELEMENTS // 2] += 1
    torch.distributed.all_reduce(mine)
    expected = base * 3 + 2 * turn
    found = mine.cpu()
    bad = (found != expected).nonzero().flatten().tolist()
    if bad:
        at = int(bad[0])
        raise Wrong(f"wrong sum on {device}: {len(bad)} of {ELEMENTS} elements, at {at} expected "
                    f"{expected[at].item():g}, found {found[at].item():g}")


def check(host: str, port: int, name: str, rank: int, seconds: float) -> None:
    """Meet the partner and reduce together on every device, all within so many seconds."""
    ends = time.monotonic() + seconds
    how = injected(os.environ.get("TRAINYARD_INJECT", ""), os.environ.get("TRAINYARD_POD", ""))
    if how == "hang":
        time.sleep(3600)  # until it is killed
    torch = importlib.import_module("torch")
    distributed = importlib.import_module("torch.distributed")
    kind, mine = devices(torch, int(os.environ.get("TRAINYARD_NUM_PROC") or 1))
    left = datetime.timedelta(seconds=max(1.0, ends - time.monotonic()))
    store = distributed.PrefixStore(name, distributed.TCPStore(host, port, None, False, left))
    distributed.init_process_group(BACKENDS[kind], store=store, rank=rank, world_size=2, timeout=left)
    for device in mine:
        if kind != "cpu":
            getattr(torch, kind).set_device(device)
        for turn in range(TURNS):
            reduce(torch, device, rank, turn, how == "sum")
    store.set(f"end/{rank}", "1")
    try:
        store.wait([f"end/{1 - rank}"], datetime.timedelta(seconds=FAREWELL))
    except RuntimeError:
        pass  # its own sums are the partner's to tell


def main() -> None:
    """By the arguments above. Ends at once: taking groups apart may wait for a partner that is gone."""
    host, port, name, rank, seconds = sys.argv[1:]
    code = 0
    try:
        check(host, int(port), name, int(rank), float(seconds))
    except Exception as error:  # whatever it is, it is the finding
        code = 1
        line = " ".join(str(error).split())
        print(line if isinstance(error, Wrong) else f"{type(error).__name__}: {line}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
