"""A rank's line to a copier that is late, hangs, or is gone for good."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervisor.copies import GONE
from trainer.checkpoint.copier import Copier

Answer = Callable[[bytes], bytes]


def listen(folder: Path, answer: Answer) -> socket.socket:
    """Something in the place of a copier."""
    path = folder / "copier.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    def talk(sock: socket.socket) -> None:
        with sock, sock.makefile("r") as lines, contextlib.suppress(BrokenPipeError):  # the rank has hung up
            for line in lines:
                sock.sendall(answer(line.encode()))

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_a_copier_that_died_with_the_ranks_is_waited_for(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "copier.sock"))
    dead.close()  # its file is still there; a connection is refused
    made: list[socket.socket] = []
    later = threading.Timer(0.5, lambda: made.append(listen(tmp_path, lambda _: b'{"address": "1.2.3.4:5"}\n')))
    later.start()
    assert Copier(tmp_path).meet("2") == "1.2.3.4:5"
    later.join()
    made[0].close()


def test_one_that_is_gone_for_good_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / GONE).touch()
    before = time.monotonic()
    with pytest.raises(OSError):
        Copier(tmp_path).meet("2")
    assert time.monotonic() - before < 5


def test_a_late_answer_is_not_taken_for_that_to_another_question(tmp_path: Path) -> None:
    hang = threading.Event()

    def answer(line: bytes) -> bytes:
        if b"slow" in line:
            hang.wait(10)
            return b'{"answer": "slow"}\n'
        return b'{"answer": "quick"}\n'

    listener = listen(tmp_path, answer)
    copier = Copier(tmp_path)
    with pytest.raises(TimeoutError):
        copier.ask("slow", 0.2)
    hang.set()
    assert copier.ask("quick") == {"answer": "quick"}
    assert copier.try_to("slow", 0.2) == {"answer": "slow"}
    listener.close()


def test_an_error_is_told_and_the_line_stays(tmp_path: Path) -> None:
    listener = listen(tmp_path, lambda line: b'{"error": "KeyError: 7"}\n' if b"bad" in line else b"{}\n")
    copier = Copier(tmp_path)
    with pytest.raises(OSError, match="KeyError: 7"):
        copier.ask("bad")
    assert copier.try_to("bad") == {}
    assert copier.ask("good") == {}
    listener.close()
