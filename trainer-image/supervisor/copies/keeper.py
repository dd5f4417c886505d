"""The copier's folder: copies of this pod's ranks and of buddies in other pods, and what other copiers ask of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import threading
import time
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from supervisor.copies.courier import Broken, Courier
from supervisor.copies.slot import Damaged, Slot

_NAME = re.compile(r"^[0-9a-f]{8,64}/\d{1,8}\.\d$")  # layout / rank . slot
HELD = 2  # files a rank of another pod: what was whole last, and what is arriving
CHECKED_FOR = 60.0  # s that a copy which was found good is not checked again

Message = Dict[str, Any]


class Keeper:
    """The folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.generation: Tuple[int, ...] = ()
        self._locks: Dict[str, threading.Lock] = {}
        self._checked: Dict[str, Tuple[int, float]] = {}  # path: number of its content, when it was found good
        self._guard = threading.Lock()
        for part in ("own", "held", "acks"):
            os.makedirs(os.path.join(folder, part), exist_ok=True)

    def path(self, kind: str, name: str) -> str:
        """Where that slot is; ValueError if the name is none of ours."""
        if kind not in ("own", "held") or not _NAME.match(name):
            raise ValueError(f"expected own or held and LAYOUT/RANK.SLOT, found {kind!r} and {name!r}")
        return os.path.join(self.folder, kind, name)

    def form(self, layout: str, rank: int) -> str:
        """Where it is said what that rank's files of a checkpoint are made of; it goes with the layout's copies."""
        return f"{self.path('own', f'{layout}/{rank}.0')[:-2]}.form"

    def lock(self, path: str) -> threading.Lock:
        """Only one writes a file at a time."""
        with self._guard:
            return self._locks.setdefault(path, threading.Lock())

    def meet(self, generation: str) -> None:
        """Somebody of this generation of the job spoke. Raises Broken if a newer one has: a pod that was cut off and
        comes back must not write over what its replacement has sent."""
        found = tuple(int(part) for part in generation.split("."))
        with self._guard:
            if found < self.generation:
                newest = ".".join(map(str, self.generation))
                raise Broken(f"a copy of generation {generation} came when generation {newest} had begun")
            self.generation = found

    def slots(self) -> Iterator[Tuple[str, str]]:
        """(kind, name) of all files."""
        for kind in ("own", "held"):
            top = os.path.join(self.folder, kind)
            for layout in sorted(os.listdir(top)):
                for name in sorted(os.listdir(os.path.join(top, layout))):
                    if _NAME.match(f"{layout}/{name}"):
                        yield kind, f"{layout}/{name}"

    def inventory(self, part: int = 0, parts: int = 1) -> List[Message]:
        """All that is whole, or the `part`th of `parts` shares of it: those are the same whoever asks, and when."""
        found = []
        for kind, name in self.slots():
            if zlib.crc32(f"{kind}/{name}".encode()) % parts != part:
                continue
            with contextlib.suppress(OSError, Damaged):
                slot = Slot.open(self.path(kind, name))
                seal = slot.seal()
                if seal is not None:
                    layout, _, rest = name.partition("/")
                    found.append({"kind": kind, "name": name, "layout": layout, "rank": int(rest.partition(".")[0]),
                                  "step": seal["step"], "run": seal["run"], "number": seal["number"],
                                  "world": slot.header["world"], "model": slot.header.get("model", ""),
                                  "replicas": slot.header.get("replicas", [1, 1])})
                slot.close()
        return found

    def keep_only(self, layout: str) -> None:
        """Drop the copies of every other layout, and what else was left of it."""
        acks = os.path.join(self.folder, "acks")
        for name in os.listdir(acks):
            if name.partition(".")[0] != layout:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(acks, name))
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

    def serve(self, courier: Courier, **others: Callable[[Courier, Message], None]) -> None:
        """Answer until the other side hangs up; `others` answer what a keeper does not. Raises Broken, OSError."""
        answers = {"put": self._take, "get": self._give, **others}
        while True:
            courier.await_more()  # the next copy may be minutes away
            message = courier.receive()
            answers[str(message["op"])](courier, message)

    def _take(self, courier: Courier, message: Message) -> None:
        """A buddy's copy. Its seal comes last, and only if the data's sum is right."""
        seal, total, size = message["seal"], message["sum"], message["bytes"]
        both = self.path("held", f"{message['name']}.0")[:-2]
        with self.lock(both), contextlib.ExitStack() as stack:
            self.meet(str(message["generation"]))
            path = self._place(message)
            stack.enter_context(self.lock(path))
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

    def _place(self, message: Message) -> str:
        """Which of the two files of a rank: the one that has this content already, else the one that may go. Their
        numbers are none of the sender's slots: it may have more, or have been replaced."""
        paths = [self.path("held", f"{message['name']}.{place}") for place in range(HELD)]
        seals = [self._seal(path) for path in paths]
        for path, seal in zip(paths, seals):
            if seal == message["seal"]:
                return path
        kept = [seal is not None and seal["step"] == message["keep"] for seal in seals]
        ages = [-1 if seal is None else seal["step"] for seal in seals]
        return paths[min(range(HELD), key=lambda place: (kept[place], ages[place]))]

    def _seal(self, path: str) -> Optional[Message]:
        with contextlib.suppress(OSError, Damaged):
            slot = Slot.open(path)
            try:
                return slot.seal()
            finally:
                slot.close()
        return None

    def _ready(self, path: str, header: Message, size: int) -> Slot:
        with contextlib.suppress(OSError, Damaged):
            slot = Slot.open(path, write=True)
            if slot.header == header and len(slot.data) == size:
                return slot
            slot.close()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return Slot.create(path, header, size)

    def _check(self, path: str, slot: Slot, number: int) -> str:
        """What is wrong with it. When a gang of another layout loads, every rank of it asks for parts of every copy:
        reading them all through each time would take hours."""
        with self.lock(path):
            known, when = self._checked.get(path, (0, 0.0))
            if known == number and time.monotonic() - when < CHECKED_FOR:
                return ""
            wrong = slot.check()
            if not wrong:
                self._checked[path] = number, time.monotonic()
            return wrong

    def _give(self, courier: Courier, message: Message) -> None:
        """Ranges of a copy, if it is still the content with that number; checked first."""
        path = self.path(message["kind"], message["name"])
        slot = Slot.open(path)
        try:
            seal = slot.seal()
            wrong = self._check(path, slot, message["number"])
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
