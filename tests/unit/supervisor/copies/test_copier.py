"""Copiers as processes, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from supervisor.copies.courier import Broken, Courier
from supervisor.copies.keeper import Keeper
from supervisor.copies.process import CopierProcess
from supervisor.copies.slot import Slot

TOKEN = "t" * 32
LAYOUT = "0123456789abcdef"


class Line:
    """What a rank has to a copier."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sock = socket.socket(socket.AF_UNIX)
        until(lambda: (folder / "copier.sock").exists())
        until(lambda: sock.connect_ex(str(folder / "copier.sock")) == 0)
        self.stream = sock.makefile("rwb")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.stream.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self.stream.flush()
        answer: dict[str, Any] = json.loads(self.stream.readline())
        return answer


class Pod(Line):
    """A copier and one rank's line to it."""

    def __init__(self, folder: Path, token: str = TOKEN) -> None:
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen([sys.executable, "-m", "supervisor.copies.copier", str(folder), "127.0.0.1"],
                                        stdin=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(token + "\n")
        self.process.stdin.close()
        super().__init__(folder)
        self.address: str = self.ask("address", generation="1")["address"]

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
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 7, 70, b"state of step 7")
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
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
        here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
        here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
        until(lambda: here.acknowledged() == 70)
    before = (there.folder / "held" / LAYOUT / "0.0").stat().st_mtime_ns
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    time.sleep(0.2)
    assert (there.folder / "held" / LAYOUT / "0.0").stat().st_mtime_ns == before


def test_a_copy_damaged_at_the_buddy_is_not_given_out(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 7, 70, b"state")
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    until(lambda: here.acknowledged() == 70)
    held = Slot.open(str(there.folder / "held" / LAYOUT / "0.0"), write=True)
    held.data[50_000] ^= 4
    answer = here.ask("fetch", address=there.address, kind="held", name=f"{LAYOUT}/0.0", number=70, ranges=[[0, 9]],
                      to=str(here.folder / "fetched"))
    assert "damaged" in answer["error"]


def test_a_buddy_killed_in_the_middle_leaves_nothing_that_looks_whole(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot(size=64 << 20)
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 7, 70, b"state")
    there.process.send_signal(signal.SIGSTOP)
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    time.sleep(0.3)
    os.kill(there.process.pid, signal.SIGKILL)
    until(lambda: "brought" in here.ask("state", layout=LAYOUT, rank=0)["problem"])
    assert here.acknowledged() == 0
    path = there.folder / "held" / LAYOUT / "0.0"
    assert not path.exists() or Slot.open(str(path)).seal() is None


def test_after_attach_nothing_of_the_earlier_generation_is_sent(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=["127.0.0.1:1"], generation="1")
    fill(slot, 7, 70, b"state")
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 8, 80, b"other")
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=80)
    until(lambda: here.acknowledged() == 80)


def test_who_does_not_know_the_token_gets_nothing(pods: tuple[Pod, Pod]) -> None:
    with pytest.raises((Broken, OSError)):
        Courier.call(pods[0].address, "another token")
    with socket.create_connection(("127.0.0.1", int(pods[0].address.rpartition(":")[2]))) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 5000)
    assert pods[0].ask("address", generation="1")["address"] == pods[0].address


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


def test_ranks_that_attach_at_once_all_replace_the_former_layouts_senders(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    lines = [here, *(Line(here.folder) for _ in range(7))]
    for layout in ("a" * 16, "b" * 16, "c" * 16):
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(line.ask, "attach", layout=layout, rank=rank, buddies=[there.address], generation="1")
                     for rank, line in enumerate(lines)]
        answers = [one.result() for one in asked]
        assert answers == [{"address": here.address, "pending": None}] * 8


def test_a_buddy_that_hangs_does_not_keep_the_next_generation_waiting(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 7, 70, b"state")
    there.process.send_signal(signal.SIGSTOP)
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    time.sleep(0.3)  # it waits for the buddy's answer now
    before = time.monotonic()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="2")
    assert time.monotonic() - before < 5
    there.process.send_signal(signal.SIGCONT)
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    until(lambda: here.acknowledged() == 70)


def test_a_pod_of_an_earlier_generation_overwrites_nothing(pods: tuple[Pod, Pod], tmp_path: Path) -> None:
    cut_off, there = pods
    replacement = Pod(tmp_path / "c")
    try:
        replacement.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="2")
        fill(replacement.slot(), 7, 71, b"the state that the job went on from")
        replacement.ask("send", layout=LAYOUT, rank=0, slot=0, number=71)
        until(lambda: replacement.acknowledged() == 71)
        cut_off.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
        fill(cut_off.slot(), 8, 80, b"what nobody else has")
        cut_off.ask("send", layout=LAYOUT, rank=0, slot=0, number=80)
        until(lambda: "brought" in cut_off.ask("state", layout=LAYOUT, rank=0)["problem"])
        assert [copy["number"] for copy in there.ask("inventory")["copies"]] == [71]
        assert cut_off.acknowledged() == 0
    finally:
        replacement.process.kill()
        replacement.process.wait()


def test_an_order_for_content_that_is_gone_sends_nothing(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    fill(slot, 8, 80, b"own copy, may be overwritten while it is read")
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    time.sleep(0.3)
    assert there.ask("inventory")["copies"] == []
    assert slot.known_sum() is None


def test_a_copy_that_is_not_sent_is_summed_all_the_same(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot()
    fill(slot, 7, 70, b"own copy")
    here.ask("sum", layout=LAYOUT, rank=0, slot=0, number=69)  # overwritten by now
    here.ask("sum", layout=LAYOUT, rank=0, slot=0, number=70)
    until(lambda: slot.known_sum() is not None)
    assert slot.check() == ""
    slot.data[50_000] ^= 1
    answer = there.ask("fetch", address=here.address, kind="own", name=f"{LAYOUT}/0.0", number=70, ranges=[[0, 1]],
                       to=str(there.folder / "fetched"))
    assert "damaged" in answer["error"]


def test_what_it_costs_to_sum_and_to_send_is_told_apart(pods: tuple[Pod, Pod]) -> None:
    here, there = pods
    slot = here.slot(size=8 << 20)
    here.ask("attach", layout=LAYOUT, rank=0, buddies=[there.address], generation="1")
    assert here.ask("state", layout=LAYOUT, rank=0) == {"problem": "", "seconds": 0.0, "summing": 0.0}
    fill(slot, 7, 70, b"own copy")
    here.ask("sum", layout=LAYOUT, rank=0, slot=0, number=70)
    until(lambda: here.ask("state", layout=LAYOUT, rank=0)["summing"] > 0)
    before = here.ask("state", layout=LAYOUT, rank=0)
    assert before["seconds"] == 0
    here.ask("send", layout=LAYOUT, rank=0, slot=0, number=70)
    until(lambda: here.ask("state", layout=LAYOUT, rank=0)["seconds"] > 0)
    assert here.ask("state", layout=LAYOUT, rank=0)["summing"] == before["summing"], "it has its sum already"


def test_a_copier_that_begins_sums_what_it_finds_without(tmp_path: Path) -> None:
    path = tmp_path / "own" / LAYOUT / "0.1"
    path.parent.mkdir(parents=True)
    slot = Slot.create(str(path), {"world": 2, "rank": 0, "tensors": []}, 100_000)
    fill(slot, 7, 70, b"state")
    pod = Pod(tmp_path)
    try:
        until(lambda: slot.known_sum() is not None)
        assert slot.check() == ""
    finally:
        pod.process.kill()
        pod.process.wait()


def test_the_shares_of_a_pods_ranks_are_all_there_is(pods: tuple[Pod, Pod]) -> None:
    here, _ = pods
    for rank in range(6):
        fill(here.slot(rank), 7, 70 + rank, b"state")
    shares = [here.ask("inventory", part=part, parts=3)["copies"] for part in range(3)]
    assert sorted(copy["rank"] for share in shares for copy in share) == list(range(6))


def test_a_connection_may_rest_for_long_between_copies(pods: tuple[Pod, Pod], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    monkeypatch.setattr("supervisor.copies.courier.PATIENCE", 0.2)
    theirs.connect(ours.getsockname())
    accepted, _ = ours.accept()
    served: list[BaseException] = []
    keeper = Keeper(str(pods[0].folder))

    def serve() -> None:
        try:
            keeper.serve(Courier(accepted, TOKEN, server=True))
        except (Broken, OSError) as error:
            served.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    courier = Courier(theirs, TOKEN, server=False)
    time.sleep(0.6)
    assert not served
    courier.close()
    thread.join(10)
    assert "closed" in str(served[0])
    accepted.close()
    ours.close()


def test_a_copier_that_hangs_is_replaced_and_its_copies_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.copies.process.LOOK_EVERY", 0.2)
    monkeypatch.setattr("supervisor.copies.process.HANGS_AFTER", 3.0)
    said: list[str] = []
    copier = CopierProcess(str(tmp_path), "127.0.0.1", {**os.environ, "PYTHONPATH": ""}, said.append)
    copier.open(TOKEN)
    try:
        [first] = copier.pids()
        until(lambda: (tmp_path / "alive").exists())
        os.kill(first, signal.SIGSTOP)

        def replaced() -> bool:
            copier.step()
            pid, _ = os.waitpid(-1, os.WNOHANG) if copier.pids() == {first} else (0, 0)
            copier.ended(pid)
            return copier.pids() not in ({first}, set())

        until(replaced)
        assert said == ["the copier hangs; it is replaced", "the copier has ended; starting it again"]
        assert Line(tmp_path).ask("address", generation="1")["address"].startswith("127.0.0.1:")
        for _ in range(10):
            time.sleep(0.25)
            copier.step()
        assert len(said) == 2
    finally:
        copier.close()
        for pid in copier.pids():
            os.waitpid(pid, 0)
