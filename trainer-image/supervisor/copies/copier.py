"""`python -m supervisor.copies.copier FOLDER HOST`, the job's token on stdin: keeps and moves this pod's copies.

One a pod, started by the supervisor; it outlives the ranks. In FOLDER:

    copier.sock                      where ranks of this pod talk to it (one JSON object a line, one answer each)
    own/<layout>/<rank>.<slot>       written by ranks
    held/<layout>/<rank>.<slot>      for buddies in other pods
    acks/<layout>.<rank>             8 bytes: number of the newest content of that rank that all its buddies hold

A copier never decides anything; ranks agree among themselves what is sent, loaded and dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import socket
import struct
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from supervisor.copies.courier import Broken, Courier
from supervisor.copies.slot import Damaged, Slot
from supervisor.wire import join_address

_NAME = re.compile(r"^[0-9a-f]{8,64}/\d{1,8}\.\d$")  # layout / rank . slot
CONNECTIONS = 256  # at most at the same time
TRIES = 3  # to reach a buddy, before a copy counts as not made
PAUSE = 0.5  # s between them

Message = Dict[str, Any]
SENDING_ERRORS = (OSError, Broken, Damaged, ValueError, KeyError)


class Keeper:
    """The folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.locks: Dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        for part in ("own", "held", "acks"):
            os.makedirs(os.path.join(folder, part), exist_ok=True)

    def path(self, kind: str, name: str) -> str:
        """Where that slot is; ValueError if the name is none of ours."""
        if kind not in ("own", "held") or not _NAME.match(name):
            raise ValueError(f"expected own or held and LAYOUT/RANK.SLOT, found {kind!r} and {name!r}")
        return os.path.join(self.folder, kind, name)

    def lock(self, path: str) -> threading.Lock:
        """Only one writes a file at a time."""
        with self._guard:
            return self.locks.setdefault(path, threading.Lock())

    def slots(self) -> Iterator[Tuple[str, str]]:
        """(kind, name) of all files."""
        for kind in ("own", "held"):
            top = os.path.join(self.folder, kind)
            for layout in sorted(os.listdir(top)):
                for name in sorted(os.listdir(os.path.join(top, layout))):
                    if _NAME.match(f"{layout}/{name}"):
                        yield kind, f"{layout}/{name}"

    def inventory(self, headers: bool) -> List[Message]:
        """All that is whole."""
        found = []
        for kind, name in self.slots():
            with contextlib.suppress(OSError, Damaged):
                slot = Slot.open(self.path(kind, name))
                seal = slot.seal()
                if seal is not None:
                    layout, _, rest = name.partition("/")
                    entry = {"kind": kind, "name": name, "layout": layout, "rank": int(rest.partition(".")[0]),
                             "step": seal["step"], "run": seal["run"], "number": seal["number"],
                             "world": slot.header["world"], "model": slot.header.get("model", ""),
                             "bytes": len(slot.data)}
                    found.append({**entry, "header": slot.header, "seal": seal} if headers else entry)
                slot.close()
        return found

    def keep_only(self, layout: str) -> None:
        """Drop the copies of every other layout."""
        for kind in ("own", "held"):
            top = os.path.join(self.folder, kind)
            for other in os.listdir(top):
                if other != layout:
                    shutil.rmtree(os.path.join(top, other), ignore_errors=True)

    def acknowledge(self, layout: str, rank: int, number: int) -> None:
        """Tell the rank."""
        path = os.path.join(self.folder, "acks", f"{layout}.{rank}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, struct.pack("<Q", number), 0)
        finally:
            os.close(descriptor)

    # What other copiers ask for ---------------------------------------------------------------------------------------

    def serve(self, courier: Courier) -> None:
        """Answer until the other side hangs up. Raises Broken, OSError."""
        answers = {"put": self._take, "get": self._give, "list": self._list}
        while True:
            message = courier.receive()
            answers[str(message["op"])](courier, message)

    def _list(self, courier: Courier, message: Message) -> None:
        courier.send({"copies": self.inventory(bool(message.get("headers")))})

    def _take(self, courier: Courier, message: Message) -> None:
        """A buddy's copy. Its seal comes last, and only if the data's sum is right."""
        path, seal, total, size = self.path("held", message["name"]), message["seal"], message["sum"], message["bytes"]
        with self.lock(path):
            slot = self._ready(path, message["header"], size)
            try:
                if slot.seal() == seal and slot.known_sum() == total:
                    courier.send({"have": True})
                    return
                courier.send({"have": False})
                slot.break_seal()
                courier.receive_into(slot.data)
                found = slot.compute_sum()
                if found != total:
                    raise Broken(f"{message['name']}: data with CRC-32 {total:08x} was announced, {found:08x} came")
                slot.note_sum(seal["number"], total)
                slot.set_seal(seal)
            finally:
                slot.close()
        courier.send({"held": True})

    def _ready(self, path: str, header: Message, size: int) -> Slot:
        with contextlib.suppress(OSError, Damaged):
            slot = Slot.open(path, write=True)
            if slot.header == header and len(slot.data) == size:
                return slot
            slot.close()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return Slot.create(path, header, size)

    def _give(self, courier: Courier, message: Message) -> None:
        """Ranges of a copy, if it is still the content with that number; checked first."""
        slot = Slot.open(self.path(message["kind"], message["name"]))
        try:
            seal = slot.seal()
            wrong = slot.check() if message.get("check", True) else ""
            if wrong or seal is None or seal["number"] != message["number"]:
                courier.send({"error": wrong or f"{message['name']} holds something else by now"})
                return
            pieces = [slot.data[at:at + size] for at, size in message["ranges"]]
            courier.send({"header": slot.header, "seal": seal, "bytes": sum(len(piece) for piece in pieces)})
            for piece in pieces:
                courier.send_raw(piece)
                piece.release()
        finally:
            slot.close()


class Sender:
    """Sends one rank's copies to its buddies, the newest only."""

    def __init__(self, keeper: Keeper, token: str, layout: str, rank: int, buddies: List[str]) -> None:
        self._keeper = keeper
        self._token = token
        self._layout, self._rank, self._buddies = layout, rank, buddies
        self._couriers: Dict[str, Courier] = {}
        self._orders: "queue.Queue[Optional[int]]" = queue.Queue()
        self.stopped = threading.Event()
        self.problem = ""
        self.seconds = 0.0  # cpu of the newest
        self._thread = threading.Thread(target=self._run, name=f"send {rank}", daemon=True)
        self._thread.start()

    def send(self, slot: int) -> None:
        """Send what is in this slot."""
        self._orders.put(slot)

    def stop(self) -> None:
        """Nothing of this rank is read or sent any more when this returns."""
        self.stopped.set()
        self._orders.put(None)
        for courier in list(self._couriers.values()):
            courier.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            order = self._orders.get()
            if order is None or self.stopped.is_set():
                return
            before = time.thread_time()
            try:
                self._send(order)
                self.problem = ""
            except SENDING_ERRORS as error:
                self.problem = f"copy of rank {self._rank}: {error}"
                if not self.stopped.is_set():
                    print(f"copier: {self.problem}", file=sys.stderr, flush=True)
            self.seconds = time.thread_time() - before

    def _send(self, number: int) -> None:
        name = f"{self._layout}/{self._rank}.{number}"
        slot = Slot.open(self._keeper.path("own", name), write=True)
        try:
            seal = slot.seal()
            if seal is None:
                return
            total = slot.known_sum()
            if total is None:
                total = slot.compute_sum()
                slot.note_sum(seal["number"], total)
            for buddy in self._buddies:
                self._deliver(buddy, name, slot, seal, total)
            self._keeper.acknowledge(self._layout, self._rank, seal["number"])
        finally:
            slot.close()

    def _deliver(self, buddy: str, name: str, slot: Slot, seal: Message, total: int) -> None:
        for attempt in range(TRIES):
            try:
                courier = self._couriers.get(buddy) or Courier.call(buddy, self._token)
                self._couriers[buddy] = courier
                courier.send({"op": "put", "name": name, "header": slot.header, "seal": seal, "sum": total,
                              "bytes": len(slot.data)})
                if not courier.receive().get("have"):
                    courier.send_raw(slot.data)
                    courier.receive()
                return
            except (OSError, Broken) as error:
                broken = self._couriers.pop(buddy, None)
                if broken is not None:
                    broken.close()
                if self.stopped.is_set() or attempt == TRIES - 1:
                    raise Broken(f"cannot be brought to {buddy}: {error}") from None
                self.stopped.wait(PAUSE)


class Copier:
    """Everything together."""

    def __init__(self, folder: str, host: str, token: str) -> None:
        self.keeper = Keeper(folder)
        self._token = token
        self._senders: Dict[Tuple[str, int], Sender] = {}
        self._room = threading.Semaphore(CONNECTIONS)
        six = ":" in host
        self._listener = _listen("::" if six else "0.0.0.0", six, os.path.join(folder, "port"))
        self.address = join_address(host, self._listener.getsockname()[1])
        path = os.path.join(folder, "copier.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._local = socket.socket(socket.AF_UNIX)
        self._local.bind(path)
        self._local.listen(64)

    def run(self) -> None:
        """Serve for ever."""
        threading.Thread(target=self._accept, args=(self._listener, self._remote), daemon=True).start()
        self._accept(self._local, self._rank)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            sock, _ = listener.accept()
            self._room.acquire()
            threading.Thread(target=self._conversation, args=(sock, serve), daemon=True).start()

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
        self.keeper.serve(Courier(sock, self._token, server=True))

    # What ranks of this pod ask for -----------------------------------------------------------------------------------

    def _rank(self, sock: socket.socket) -> None:
        answers: Dict[str, Callable[[Message], Message]] = {
            "address": lambda message: {"address": self.address},
            "inventory": lambda message: {"copies": self.keeper.inventory(bool(message.get("headers")))},
            "attach": self._attach, "send": self._send, "fetch": self._fetch,
            "keep": self._keep, "state": self._state,
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

    def _attach(self, message: Message) -> Message:
        """A rank of a new generation: nothing of an earlier one is sent any more when this is answered."""
        layout, rank = str(message["layout"]), int(message["rank"])
        for key in [key for key in self._senders if key[1] == rank or key[0] != layout]:
            self._senders.pop(key).stop()
        self._senders[layout, rank] = Sender(self.keeper, self._token, layout, rank, list(message["buddies"]))
        return {"address": self.address}

    def _send(self, message: Message) -> Message:
        self._senders[str(message["layout"]), int(message["rank"])].send(int(message["slot"]))
        return {}

    def _state(self, message: Message) -> Message:
        sender = self._senders[str(message["layout"]), int(message["rank"])]
        return {"problem": sender.problem, "seconds": sender.seconds}

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
