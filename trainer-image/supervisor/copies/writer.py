"""Durable checkpoints written by copiers, each its ranks' files from a pinned slot; the ranks may be dead by then.

A rank's *form* (trainer.checkpoint.form) says what its files are made of: bytes as they are, and parts of the slot's
data. The copier of rank 0's pod gathers sizes and hashes of all ranks' files and writes the marker when all are there.
A save has a name that is the same at all ranks; nothing of it is known any more to a copier that was started anew."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import struct
import threading
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

from supervisor.copies import marker
from supervisor.copies.courier import Broken, Courier
from supervisor.copies.keeper import Keeper, Message
from supervisor.copies.slot import CHUNK, Damaged, Slot
from supervisor.copies.sums import Sums

TRIES = 3  # to reach the copier that writes the marker
PAUSE = 0.5  # s between them
LOOK = 20.0  # s that a rank's question for the end of something waits at most
REMEMBERED = 4  # saves of which a copier knows the end
WRITING, HANDED_IN, LOST, UNKNOWN = "writing", "handed in", "lost", "unknown"
DROPPED = "given up: the ranks have gone on without it"

Files = Dict[str, Dict[str, Any]]  # by name: bytes, sha256


@dataclass
class Part:
    """One rank's files of a save."""

    order: Message
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    state: str = WRITING
    problem: str = ""


@dataclass
class Whole:
    """All ranks' files of a save, at the copier that writes the marker."""

    order: Optional[Message] = None  # rank 0's
    parts: Dict[int, Tuple[Files, str]] = field(default_factory=dict)
    closed: bool = False  # nothing more is taken: the marker is being written, or it was dropped
    verdict: Optional[str] = None  # empty: committed; else why not


class Writer:
    """What a pod's copier writes."""

    def __init__(self, keeper: Keeper, sums: Sums, token: str, address: str) -> None:
        self._keeper, self._sums, self._token, self._address = keeper, sums, token, address
        self._changed = threading.Condition()
        self._parts: Dict[Tuple[str, int], Part] = {}  # the newest of each rank
        self._wholes: "OrderedDict[str, Whole]" = OrderedDict()

    # What ranks ask for -----------------------------------------------------------------------------------------------

    def save(self, order: Message) -> Message:
        """Write this rank's files, once, however often it is asked for."""
        key = str(order["layout"]), int(order["rank"])
        with self._changed:
            before = self._parts.get(key)
            if before is not None and before.order["save"] == order["save"] and before.state != LOST:
                return {}
            part = self._parts[key] = Part(order)
            if "marker" in order:
                self._whole(order["save"]).order = order
        threading.Thread(target=self._run, args=(part, before), name=f"write {key[1]}", daemon=True).start()
        return {}

    def pending(self, layout: str, rank: int) -> Optional[Message]:
        """The newest save of this rank, whether it has ended or not."""
        with self._changed:
            part = self._parts.get((layout, rank))
            return None if part is None else {name: part.order[name] for name in ("save", "slot", "number", "folder",
                                                                                  "step", "generation")}

    def written(self, question: Message) -> Message:
        """How far this rank's files are; waits a while for their end."""
        with self._changed:
            part = self._parts.get((str(question["layout"]), int(question["rank"])))
            if part is None or part.order["save"] != question["save"]:
                return {"state": UNKNOWN, "problem": "the copier was replaced"}
            self._changed.wait_for(lambda: part.state != WRITING, LOOK)
            return {"state": part.state, "problem": part.problem}

    def verdict(self, question: Message) -> Message:
        """What became of the whole: `verdict` is absent while that is open (it waits a while), empty once the marker is
        written."""
        with self._changed:
            whole = self._wholes.get(question["save"])
            if whole is None or whole.order is None:
                return {"verdict": "the copier was replaced", "copiers": True}
            self._changed.wait_for(lambda: whole.verdict is not None, LOOK)
            return {} if whole.verdict is None else {"verdict": whole.verdict}

    def drop(self, question: Message) -> Message:
        """Stop it here and never write its marker; if that is too late, `verdict` is empty."""
        with self._changed:
            for part in self._parts.values():
                if part.order["save"] == question["save"]:
                    part.stop.set()
            whole = self._whole(question["save"])
            self._changed.wait_for(lambda: not whole.closed or whole.verdict is not None)
            if whole.verdict is None:
                whole.closed, whole.verdict = True, DROPPED
                self._changed.notify_all()
            return {"verdict": whole.verdict}

    # One rank's files -------------------------------------------------------------------------------------------------

    def _run(self, part: Part, before: Optional[Part]) -> None:
        order, sums, problem = part.order, {}, ""
        if before is not None:
            before.stop.set()
            before.ended.wait()  # two must not write the same files
        try:
            sums = write_part(self._keeper, self._sums, order, part.stop.is_set)
        except (OSError, Damaged, ValueError, KeyError, TypeError) as error:
            problem = str(error) or type(error).__name__
        state, why = HANDED_IN, ""
        try:
            self._hand_in(order, sums, problem)
        except (OSError, Broken, ValueError, KeyError) as error:
            state, why = LOST, f"{order['head']} cannot be told that rank {order['rank']} is done: {error}"
        with self._changed:
            part.state, part.problem = state, why
            part.ended.set()
            self._changed.notify_all()

    def _hand_in(self, order: Message, sums: Files, problem: str) -> None:
        message = {"op": "part", "save": order["save"], "rank": order["rank"], "sums": sums, "problem": problem}
        if order["head"] == self._address:
            self.take(message)
            return
        for attempt in range(TRIES):
            try:
                courier = Courier.call(str(order["head"]), self._token)
                try:
                    courier.send(message)
                    courier.receive()
                    return
                finally:
                    courier.close()
            except (OSError, Broken):
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE)

    # All ranks' -------------------------------------------------------------------------------------------------------

    def serve(self, courier: Courier, message: Message) -> None:
        """Another pod's copier hands in what it wrote."""
        courier.send({})  # before the marker is written, which may take long
        self.take(message)

    def take(self, message: Message) -> None:
        """One rank's files are written, or not to be had. The last one's make the marker."""
        with self._changed:
            whole = self._whole(message["save"])
            if not whole.closed:
                whole.parts[int(message["rank"])] = message["sums"], str(message["problem"])
        self._conclude(whole)

    def _whole(self, save: str) -> Whole:
        whole = self._wholes.setdefault(save, Whole())
        self._wholes.move_to_end(save)
        for old in [name for name, one in self._wholes.items() if one.verdict is not None][:-REMEMBERED]:
            del self._wholes[old]
        return whole

    def _conclude(self, whole: Whole) -> None:
        with self._changed:
            order = whole.order
            if whole.closed or order is None or len(whole.parts) < int(order["marker"]["worldSize"]):
                return
            whole.closed = True
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in sorted(whole.parts.items()) if problem]
        verdict = problems[0] if problems else ""
        if not problems:
            sums = {name: one for part, _ in whole.parts.values() for name, one in part.items()}
            try:
                commit(str(order["folder"]), {**order["marker"], "files": dict(sorted(sums.items()))})
            except OSError as error:
                verdict = f"rank 0: {error}"
        with self._changed:
            whole.verdict = verdict
            self._changed.notify_all()


def write_part(keeper: Keeper, sums: Sums, order: Message, stop: Callable[[], bool]) -> Files:
    """This rank's files, durably. Raises OSError, ValueError, Damaged: also if a bit of the slot has flipped between
    its sum and the last byte that was read."""
    slot = Slot.open(keeper.path("own", f"{order['layout']}/{order['rank']}.{order['slot']}"), write=True)
    try:
        with open(keeper.form(str(order["layout"]), int(order["rank"])), encoding="ascii") as file:
            form = json.load(file)
        sums.of(slot, int(order["number"]), stop)  # it may be new, and for this alone
        _check(slot, order)
        folder = str(order["folder"])
        os.makedirs(folder, exist_ok=True)
        files = {name: _write(os.path.join(folder, name), parts, slot, stop) for name, parts in form["files"].items()}
        marker.sync_folder(folder)
        _check(slot, order)
        wrong = slot.check()
        if wrong:
            raise Damaged(wrong)
        return files
    finally:
        slot.close()


def _check(slot: Slot, order: Message) -> None:
    seal = slot.seal()
    if seal is None or seal["number"] != order["number"]:
        raise Damaged(f"{slot.path} holds something else by now")


def _write(path: str, parts: List[Any], slot: Slot, stop: Callable[[], bool]) -> Dict[str, Any]:
    """A file of a form: [place, bytes] of the slot's data, or {"text": base64, "sums": places in it where the CRC-32 of
    the data before belongs}."""
    digest, size, total = hashlib.sha256(), 0, 0
    with open(path, "wb") as file:
        for part in parts:
            if isinstance(part, dict):
                text = bytearray(base64.b64decode(part["text"]))
                for place in part["sums"]:
                    struct.pack_into("<I", text, place, total)
                pieces = [memoryview(text)]
            else:
                at, count = part
                pieces = [slot.data[start:min(start + CHUNK, at + count)] for start in range(at, at + count, CHUNK)]
                total = 0
            for piece in pieces:
                if stop():
                    raise OSError(DROPPED)
                file.write(piece)
                digest.update(piece)
                if not isinstance(part, dict):
                    total = zlib.crc32(piece, total)
                size += len(piece)
                piece.release()
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def commit(folder: str, content: Dict[str, Any]) -> None:
    """Write the marker durably. Raises OSError; then there is none."""
    path = os.path.join(folder, marker.NAME)
    try:
        with open(path, "wb") as file:
            file.write(marker.dump(content))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    marker.sync_folder(folder)
    marker.sync_folder(os.path.dirname(folder))
