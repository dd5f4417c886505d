"""The record of what a cluster has made: it survives crashes, and only what is in it is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import launch, ledger
from cluster.ledger import Entry, Ledger, alive, boot_id, kill_all, process_entry, start_time


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_entries_come_back_in_order(book: Ledger) -> None:
    made = [Entry("cgroup", "cgroup", "node-1", path="/a"), Entry("process", "kubelet", "node-1", 7, 8, "boot")]
    for entry in made:
        book.add(entry)
    assert Ledger(book.path).entries() == made


def test_no_file_is_no_entries(book: Ledger) -> None:
    assert book.entries() == []


def test_a_torn_line_is_skipped_and_the_rest_kept(book: Ledger) -> None:
    book.add(Entry("cgroup", "cgroup", path="/a"))
    with book.path.open("a") as file:
        file.write('{"kind": "process", "ro')
    assert [entry.path for entry in book.entries()] == ["/a"]


def test_an_entry_after_a_torn_line_is_not_lost(book: Ledger) -> None:
    book.path.write_text('{"kind": "cgr')
    book.add(Entry("cgroup", "cgroup", path="/b"))
    assert [entry.path for entry in book.entries()] == ["/b"]


def test_forget_drops_only_what_matches(book: Ledger) -> None:
    for node in ("node-1", "node-2"):
        book.add(Entry("cgroup", "cgroup", node, path=f"/{node}"))
    book.forget(lambda entry: entry.node == "node-1")
    assert [entry.node for entry in book.entries()] == ["node-2"]


def test_a_process_is_known_by_pid_start_and_boot(sleeper: subprocess.Popen[bytes]) -> None:
    entry = process_entry("sleep", sleeper.pid)
    assert entry.boot == boot_id()
    assert alive(entry)
    assert not alive(replace(entry, start=entry.start + 1))
    assert not alive(replace(entry, boot="another"))


def test_a_process_with_a_recycled_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    entry = process_entry("sleep", sleeper.pid)
    kill_all([replace(entry, start=entry.start - 1), replace(entry, boot="before the reboot")])
    assert sleeper.poll() is None
    kill_all([entry])
    assert sleeper.wait(5) == -signal.SIGKILL


def test_a_pid_that_a_thread_has_since_is_left_alone() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        number = thread.native_id
        assert number is not None
        kill_all([Entry("process", "kubelet", pid=number, start=1, boot=boot_id())])
        assert thread.is_alive()
    finally:
        ended.set()
        thread.join()


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(process.pid) is None
    process.wait()


def test_a_name_with_spaces_and_brackets_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    try:
        assert start_time(process.pid) == start_time(process.pid) != 0
    finally:
        process.kill()
        process.wait()


def test_a_process_is_on_record_before_it_does_anything(book: Ledger, tmp_path: Path) -> None:
    """The started program reads the ledger itself and must find its own pid there."""
    code = f"import os; assert f'\"pid\": {{os.getpid()}},' in open({str(book.path)!r}).read(); print('on record')"
    log = tmp_path / "log"
    entry = launch.start([sys.executable, "-c", code], ledger=book, role="probe", log=log)
    assert ledger.wait_gone([entry]) == []
    assert log.read_text() == "on record\n"


def test_a_process_whose_starter_dies_at_the_gate_never_runs(tmp_path: Path) -> None:
    """kill -9 between fork and record: the child sees the pipe close and ends."""
    witness = tmp_path / "ran"
    code = f"""
import os, signal
from pathlib import Path
from cluster import launch, ledger
book = ledger.Ledger(Path({str(tmp_path / "ledger")!r}))
book.add = lambda entry: os.kill(os.getpid(), signal.SIGKILL)
launch.start(["touch", {str(witness)!r}], ledger=book, role="probe", log=Path({str(tmp_path / "log")!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ledger.__file__).parents[1])}
    read, write = os.pipe()
    done = subprocess.run([sys.executable, "-c", code], env=environment, pass_fds=[write], stdout=write)
    os.close(write)
    assert done.returncode == -signal.SIGKILL
    with os.fdopen(read) as pipe:  # ends when the last process of the run has ended
        assert pipe.read() == ""
    assert not witness.exists()


def test_a_process_is_paused_when_all_its_threads_stand_still() -> None:
    busy = "import threading\nfor _ in range(20): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    process = subprocess.Popen([sys.executable, "-c", busy + "\nprint('all run', flush=True)"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        entry = process_entry("threads", process.pid)
        assert ledger.wait_stopped([entry], seconds=0) == [entry]
        for _ in range(10):
            ledger.send(entry, signal.SIGSTOP)
            assert ledger.wait_stopped([entry]) == []
            ledger.send(entry, signal.SIGCONT)
    finally:
        process.kill()
        process.communicate()
    assert ledger.wait_stopped([entry], seconds=0) == [], "one that has ended does nothing"
