"""Copiers as processes, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.copies.courier import Broken, Courier
from supervisor.copies.slot import Slot

TOKEN = "t" * 32
LAYOUT = "0123456789abcdef"


class Pod:
    """A copier and one rank's line to it."""

    def __init__(self, folder: Path, token: str = TOKEN) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen([sys.executable, "-m", "supervisor.copies.copier", str(folder), "127.0.0.1"],
                                        stdin=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(token + "\n")
        self.process.stdin.close()
        until(lambda: (folder / "copier.sock").exists())
        sock = socket.socket(socket.AF_UNIX)
        until(lambda: sock.connect_ex(str(folder / "copier.sock")) == 0)
        self.stream = sock.makefile("rwb")
        self.address: str = self.ask("address")["address"]

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.stream.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self.stream.flush()
        answer: dict[str, Any] = json.loads(self.stream.readline())
        return answer

    def slot(self, rank: int = 0, number: int = 0, size: int = 100_000) -> Slot:
        path = self.folder / "own" / LAYOUT / f"{rank}.{number}"
        path.parent.mkdir(exist_ok=True)
        return Slot.create(str(path), {"world": 2, "rank": rank, "tensors": []}, size)

    def acknowledged(self, rank: int = 0) -> int:
        path = self.folder / "acks" / f"{LAYOUT}.{rank}"
        return int(struct.unpack("<Q", path.read_bytes())[0]) if path.exists() else 0


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def fill(slot: Slot, step: int, number: int, text: bytes) -> None:
    slot.break_seal()
    slot.data[:len(text)] = text
    slot.set_seal({"step": step, "run": "1", "number": number, "training": {}})


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[tuple[Pod, Pod]]:
    made = Pod(tmp_path / "a"), Pod(tmp_path / "b")
    yield made
    for pod in made:
        if pod.process.poll() is None:
            pod.process.send_signal(signal.SIGCONT)
            pod.process.kill()
        pod.process.wait()


def test_a_copy_is_held_by_the_buddy_and_comes_back_from_there(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address])
    fill(slot, 7, 70, b"state of step 7")
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    until(lambda: here.acknowledged() == 70)
    [held] = there.ask("inventory")["copies"]
    assert (held["kind"], held["rank"], held["step"], held["number"], held["world"]) == ("held", 0, 7, 70, 2)
    target = here.folder / "fetched"
    answer = here.ask("fetch", address=there.address, kind="held", name=held["name"], number=70, ranges=[[9, 6]],
                      to=str(target))
    assert target.read_bytes() == b"step 7"
    assert answer["seal"]["step"] == 7
    gone = here.ask("fetch", address=there.address, kind="held", name=held["name"], number=71, ranges=[[0, 1]],
                    to=str(target))
    assert "something else by now" in gone["error"]


def test_what_the_buddy_has_already_is_not_sent_again(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    fill(slot, 7, 70, b"state")
    for _ in range(2):
        here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address])
        here.ask("send", layout=LAYOUT, rank=0, slot=0)
        until(lambda: here.acknowledged() == 70)
    before = (there.folder / "held" / LAYOUT / "0.0").stat().st_mtime_ns
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    time.sleep(0.2)
    assert (there.folder / "held" / LAYOUT / "0.0").stat().st_mtime_ns == before


def test_a_copy_damaged_at_the_buddy_is_not_given_out(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address])
    fill(slot, 7, 70, b"state")
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    until(lambda: here.acknowledged() == 70)
    held = Slot.open(str(there.folder / "held" / LAYOUT / "0.0"), write=True)
    held.data[50_000] ^= 4
    answer = here.ask("fetch", address=there.address, kind="held", name=f"{LAYOUT}/0.0", number=70, ranges=[[0, 9]],
                      to=str(here.folder / "fetched"))
    assert "damaged" in answer["error"]


def test_a_buddy_killed_in_the_middle_leaves_nothing_that_looks_whole(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot(size=64 << 20)
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address])
    fill(slot, 7, 70, b"state")
    there.process.send_signal(signal.SIGSTOP)
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    time.sleep(0.3)
    os.kill(there.process.pid, signal.SIGKILL)
    until(lambda: "brought" in here.ask("state", layout=LAYOUT, rank=0)["problem"])
    assert here.acknowledged() == 0
    path = there.folder / "held" / LAYOUT / "0.0"
    assert not path.exists() or Slot.open(str(path)).seal() is None


def test_after_attach_nothing_of_the_earlier_generation_is_sent(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=["127.0.0.1:1"])
    fill(slot, 7, 70, b"state")
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address])
    fill(slot, 8, 80, b"other")
    here.ask("send", layout=LAYOUT, rank=0, slot=0)
    until(lambda: here.acknowledged() == 80)


def test_who_does_not_know_the_token_gets_nothing(pods: tuple[Pod, Pod]) -> None:
    with pytest.raises((Broken, OSError)):
        Courier.call(pods[0].address, "another token")
    with socket.create_connection(("127.0.0.1", int(pods[0].address.rpartition(":")[2]))) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 5000)
    assert pods[0].ask("address")["address"] == pods[0].address


@pytest.mark.parametrize("name", ["../../etc/passwd", f"{LAYOUT}/0", f"{LAYOUT}/0.0/x", "", "/abs/0.0"])
def test_names_that_lead_elsewhere_are_refused(pods: tuple[Pod, Pod], name: str) -> None:
    answer = pods[0].ask("fetch", address=pods[1].address, kind="held", name=name, number=1, ranges=[[0, 1]],
                         to=str(pods[0].folder / "x"))
    assert "error" in answer


def test_copies_of_other_layouts_go_when_told(pods: tuple[Pod, Pod]) -> None:
    here, _ = pods
    fill(here.slot(), 7, 70, b"state")
    here.ask("keep", layout="fedcba9876543210")
    assert here.ask("inventory")["copies"] == []
