"""`python -m supervisor.copies.copier FOLDER HOST`, the job's token on stdin: keeps and moves this pod's copies.

One a pod, started by the supervisor; it outlives the ranks. In FOLDER:

    copier.sock                      where ranks of this pod talk to it (one JSON object a line, one answer each)
    own/<layout>/<rank>.<slot>       written by ranks
    held/<layout>/<rank>.<slot>      for buddies in other pods
    acks/<layout>.<rank>             8 bytes: number of the newest content of that rank that all its buddies hold
    own/<layout>/<rank>.form         what that rank's files of a durable checkpoint are made of
    alive                            written every second

A copier never decides anything; ranks agree among themselves what is sent, loaded, saved and dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Callable, Dict, List, Tuple

from supervisor.copies import ALIVE, GONE
from supervisor.copies.courier import Broken, Courier
from supervisor.copies.keeper import Keeper, Message
from supervisor.copies.sender import Sender
from supervisor.copies.slot import Damaged
from supervisor.copies.sums import Sums
from supervisor.copies.writer import Writer
from supervisor.wire import join_address

ALIVE_EVERY = 1.0  # s between two signs of life for the supervisor
CONNECTIONS = 256  # at most at the same time
ACCEPT_PAUSE = 0.2  # s after a connection could not be taken (no descriptors or threads left)


class Copier:
    """Everything together."""

    def __init__(self, folder: str, host: str, token: str) -> None:
        self.keeper = Keeper(folder)
        self.sums = Sums(self.keeper)
        self._token = token
        self._senders: Dict[Tuple[str, int], Sender] = {}
        self._guard = threading.Lock()  # all ranks of the pod attach at the same time
        self._room = threading.Semaphore(CONNECTIONS)
        six = ":" in host
        self._listener = _listen("::" if six else "0.0.0.0", six, os.path.join(folder, "port"))
        self.address = join_address(host, self._listener.getsockname()[1])
        self.writer = Writer(self.keeper, self.sums, token, self.address)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, GONE))
        path = os.path.join(folder, "copier.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._local = socket.socket(socket.AF_UNIX)
        self._local.bind(path)
        self._local.listen(64)

    def run(self) -> None:
        """Serve for ever."""
        threading.Thread(target=self._live, daemon=True).start()
        threading.Thread(target=self.sums.catch_up, name="sums", daemon=True).start()
        threading.Thread(target=self._accept, args=(self._listener, self._remote), daemon=True).start()
        self._accept(self._local, self._rank)

    def _live(self) -> None:
        """Show that this process runs; the supervisor replaces one that does not."""
        while True:
            with contextlib.suppress(OSError), open(os.path.join(self.keeper.folder, ALIVE), "w") as file:
                file.write(str(time.monotonic_ns()))
            time.sleep(ALIVE_EVERY)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            self._room.acquire()
            try:
                sock, _ = listener.accept()
            except OSError as error:
                self._room.release()
                print(f"copier: cannot take a connection: {error}", file=sys.stderr, flush=True)
                time.sleep(ACCEPT_PAUSE)
                continue
            try:
                threading.Thread(target=self._conversation, args=(sock, serve), daemon=True).start()
            except RuntimeError as error:  # no more threads
                sock.close()
                self._room.release()
                print(f"copier: cannot serve a connection: {error}", file=sys.stderr, flush=True)
                time.sleep(ACCEPT_PAUSE)

    def _conversation(self, sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        try:
            serve(sock)
        except (OSError, Broken, Damaged, ValueError, KeyError, TypeError) as error:
            if not (isinstance(error, Broken) and "closed" in str(error)):
                print(f"copier: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            sock.close()
            self._room.release()

    def _remote(self, sock: socket.socket) -> None:
        self.keeper.serve(Courier(sock, self._token, server=True), part=self.writer.serve)

    # What ranks of this pod ask for -----------------------------------------------------------------------------------

    def _rank(self, sock: socket.socket) -> None:
        answers: Dict[str, Callable[[Message], Message]] = {
            "address": self._address,
            "inventory": lambda message: {"copies": self.keeper.inventory(int(message.get("part", 0)),
                                                                          int(message.get("parts", 1)))},
            "attach": self._attach, "send": self._send, "sum": self._sum, "fetch": self._fetch,
            "keep": self._keep, "state": self._state,
            "save": self.writer.save, "written": self.writer.written, "verdict": self.writer.verdict,
            "drop": self.writer.drop,
        }
        with sock.makefile("rwb") as stream:
            for line in stream:
                message = json.loads(line)
                try:
                    answer = answers[message["op"]](message)
                except (OSError, Broken, Damaged, ValueError, KeyError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()

    def _address(self, message: Message) -> Message:
        """The first question of a rank: from now on no other pod's copier takes the place of its generation."""
        self.keeper.meet(str(message["generation"]))
        return {"address": self.address}

    def _attach(self, message: Message) -> Message:
        """A rank of a new generation: nothing of an earlier one is acknowledged any more when this is answered."""
        layout, rank, generation = str(message["layout"]), int(message["rank"]), str(message["generation"])
        self.keeper.meet(generation)
        with self._guard:
            old = [key for key in self._senders if key[1] == rank or key[0] != layout]
            stopping = [self._senders.pop(key) for key in old]
            self._senders[layout, rank] = Sender(self.keeper, self.sums, self._token, generation, layout, rank,
                                                 list(message["buddies"]))
        for sender in stopping:
            sender.stop()
        return {"address": self.address, "pending": self.writer.pending(layout, rank)}

    def _send(self, message: Message) -> Message:
        sender = self._senders[str(message["layout"]), int(message["rank"])]
        sender.send(int(message["slot"]), int(message["number"]), message.get("keep"))
        return self._state(message)

    def _sum(self, message: Message) -> Message:
        """Of a copy that is not sent."""
        self.sums.order(str(message["layout"]), int(message["rank"]), int(message["slot"]), int(message["number"]))
        return {}

    def _state(self, message: Message) -> Message:
        layout, rank = str(message["layout"]), int(message["rank"])
        sender = self._senders[layout, rank]
        return {"problem": sender.problem, "seconds": sender.seconds, "summing": self.sums.seconds(layout, rank)}

    def _keep(self, message: Message) -> Message:
        self.keeper.keep_only(str(message["layout"]))
        return {}

    def _fetch(self, message: Message) -> Message:
        """Ranges of a copy that another copier has, one after the other into the file `to`."""
        courier = Courier.call(str(message["address"]), self._token)
        try:
            courier.send({"op": "get", **{key: message[key] for key in ("kind", "name", "number", "ranges")}})
            answer = courier.receive()
            if "error" in answer:
                return {"error": answer["error"]}
            _receive_file(courier, str(message["to"]), int(answer["bytes"]))
            return {"header": answer["header"], "seal": answer["seal"], "bytes": answer["bytes"]}
        finally:
            courier.close()


def _listen(host: str, six: bool, remembered: str) -> socket.socket:
    """A listener, on the port that an earlier copier of this pod had: the others know it."""
    family = socket.AF_INET6 if six else socket.AF_INET
    ports = [0]
    with contextlib.suppress(OSError, ValueError), open(remembered, encoding="ascii") as file:
        ports.insert(0, int(file.read()))
    for port in ports:
        with contextlib.suppress(OSError):
            listener = socket.create_server((host, port), backlog=128, family=family)
            with open(remembered, "w", encoding="ascii") as file:
                file.write(str(listener.getsockname()[1]))
            return listener
    raise OSError(f"no port of {host} can be listened on")


def _receive_file(courier: Courier, path: str, size: int) -> None:
    buffer = memoryview(bytearray(min(size, 16 << 20)))
    with open(path, "wb") as file:
        left = size
        while left:
            part = buffer[:min(left, len(buffer))]
            courier.receive_into(part)
            file.write(part)
            left -= len(part)


def main(arguments: List[str]) -> int:
    """Entry."""
    if len(arguments) != 2:
        print("usage: copier FOLDER HOST, and the job's token on stdin", file=sys.stderr)
        return 78
    token = sys.stdin.readline().strip()
    if not token:
        print("copier: expected the job's token on stdin", file=sys.stderr)
        return 78
    Copier(arguments[0], arguments[1], token).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
