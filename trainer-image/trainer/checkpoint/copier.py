"""A rank's line to its pod's copier."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from supervisor.copies import GONE

STARTS = 15.0  # s: a copier that hangs is replaced within these, too
PAUSE = 0.02  # s between two tries
ANSWERS = 60.0  # s
FETCHES = 3600.0  # s for a copy from another pod; the copier itself gives up when nothing comes any more


class Copier:
    """One connection, made again when it breaks. Raises OSError when the copier is gone or does not answer."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "copier.sock")
        self._gone = folder / GONE
        self._stream: Any = None

    def meet(self, generation: str) -> str:
        """Its address. It is started together with the first ranks, and anew when it died with them."""
        end = time.monotonic() + STARTS
        while True:
            try:
                address: str = self.ask("address", max(PAUSE, end - time.monotonic()), generation=generation)["address"]
                return address
            except OSError:
                if time.monotonic() > end or self._gone.exists():
                    raise
                time.sleep(PAUSE)  # polled: nobody tells when another program listens

    def ask(self, op: str, patience: float = ANSWERS, **fields: Any) -> dict[str, Any]:
        """One question. The copier may have been started anew in between: then it is asked a second time."""
        for attempt in range(2):
            try:
                answer = self._ask({"op": op, **fields}, patience)
                break
            except (ConnectionError, FileNotFoundError):
                self._hang_up()
                if attempt:
                    raise
            except OSError:
                self._hang_up()  # a late answer must not be taken for that to another question
                raise
        if "error" in answer:
            raise OSError(answer["error"])
        return answer

    def try_to(self, op: str, patience: float = ANSWERS, **fields: Any) -> dict[str, Any]:
        """The same for what can be done without: no answer is an empty one."""
        try:
            return self.ask(op, patience, **fields)
        except OSError:
            return {}

    def _ask(self, question: dict[str, Any], patience: float) -> dict[str, Any]:
        if self._stream is None:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.settimeout(patience)
                self._socket.connect(self._path)
            except OSError:
                self._socket.close()
                raise
            self._stream = self._socket.makefile("rwb")
        self._socket.settimeout(patience)
        self._stream.write(json.dumps(question).encode() + b"\n")
        self._stream.flush()
        line = self._stream.readline()
        if not line:
            raise ConnectionResetError("the copier is gone")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _hang_up(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._socket.close()
            try:
                stream.close()
            except OSError:
                pass  # what could not be sent
