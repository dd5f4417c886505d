"""The supervisor's end of the lines by which ranks are told to leave their groups and which run is next.

A rank that can do that connects to the socket that $TRAINYARD_REGROUP names; others are never asked. Lines of JSON:

    rank        {"pid": 12}  first;  {"left": true}, or {"stay": why}, to `leave`;  {"joined": true}, to `environment`
    supervisor  {"leave": true};  {"environment": {"NAME": "value"}}, of the next run, instead of what it had
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from typing import Any, Callable, Dict, Iterable, Mapping, Optional

VARIABLE = "TRAINYARD_REGROUP"
LINE = 1 << 16  # bytes at most of what a rank says


class Guest:
    """A rank's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid: Optional[int] = None  # not told yet
        self.rest = b""


class RegroupLines:
    """`heard(pid, message)` is told what a rank says."""

    def __init__(self, selector: selectors.BaseSelector, folder: str, say: Callable[[str], None]) -> None:
        self._selector = selector
        self._guests: Dict[int, Guest] = {}  # by descriptor
        self.heard: Callable[[int, Mapping[str, Any]], None] = lambda pid, message: None
        self.path = ""  # empty: no rank is kept
        path = os.path.join(folder, "regroup.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(path)
            self._listener.listen(128)
        except OSError as error:  # the path may be too long for a socket
            say(f"ranks cannot be kept over a generation: {path}: {error}")
            self._listener.close()
            return
        self.path = path
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def leave(self, pids: Iterable[int]) -> bool:
        """Ask all of these; False if one has no line, or none that takes anything."""
        return sum(not self._send(pid, {"leave": True}) for pid in pids) == 0

    def join(self, pid: int, environment: Mapping[str, str]) -> bool:
        """Tell a rank of its next run. False: it has no line any more."""
        return self._send(pid, {"environment": dict(environment)})

    def _send(self, pid: int, message: Mapping[str, Any]) -> bool:
        guest = next((one for one in self._guests.values() if one.pid == pid), None)
        content = json.dumps(message).encode() + b"\n"
        try:
            return guest is not None and guest.sock.send(content) == len(content)
        except OSError:
            return False

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._guests[sock.fileno()] = guest = Guest(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda _: self._read(guest))

    def _read(self, guest: Guest) -> None:
        try:
            data = guest.sock.recv(LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, guest.rest = (guest.rest + data).split(b"\n")
        if not data or len(guest.rest) > LINE or not all(self._take(guest, line) for line in lines):
            self._selector.unregister(guest.sock)
            del self._guests[guest.sock.fileno()]
            guest.sock.close()

    def _take(self, guest: Guest, line: bytes) -> bool:
        """False for what no rank of ours says."""
        try:
            message = json.loads(line)
            if guest.pid is None:
                guest.pid = int(message["pid"])
            else:
                self.heard(guest.pid, message)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        return True
