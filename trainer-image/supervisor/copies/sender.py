"""Sending one rank's copies to the copiers of its buddies, in a thread of its own."""

from __future__ import annotations

import queue
import sys
import threading
import time
from typing import Dict, List, Optional, Tuple

from supervisor.copies.courier import Broken, Courier
from supervisor.copies.keeper import Keeper, Message
from supervisor.copies.slot import Damaged, Slot
from supervisor.copies.sums import Sums

TRIES = 3  # to reach a buddy, before a copy counts as not made
PAUSE = 0.5  # s between them
SENDING_ERRORS = (OSError, Broken, Damaged, ValueError, KeyError)


class Sender:
    """Sends one rank's copies to its buddies."""

    def __init__(self, keeper: Keeper, sums: Sums, token: str, generation: str, layout: str, rank: int,
                 buddies: List[str]) -> None:
        self._keeper = keeper
        self._sums = sums
        self._token = token
        self._generation = generation
        self._layout, self._rank, self._buddies = layout, rank, buddies
        self._couriers: Dict[str, Courier] = {}
        self._guard = threading.Lock()  # once stop() had it, nothing more is written or connected
        self._orders: "queue.Queue[Optional[Tuple[int, int, Optional[int]]]]" = queue.Queue()
        self.stopped = threading.Event()
        self.problem = ""
        self.seconds = 0.0  # cpu of the newest, its sum left out
        threading.Thread(target=self._run, name=f"send {rank}", daemon=True).start()

    def send(self, slot: int, number: int, keep: Optional[int] = None) -> None:
        """Send what is in this slot, as long as it is the content with this number. What the buddies hold of the step
        `keep` must stay."""
        self._orders.put((slot, number, keep))

    def stop(self) -> None:
        """No acknowledgement of this rank is written any more when this returns. Does not wait for the network: a new
        generation does, and a buddy that is gone answers nothing for seconds."""
        with self._guard:
            self.stopped.set()
            couriers = list(self._couriers.values())
        self._orders.put(None)
        for courier in couriers:
            courier.interrupt()

    def _run(self) -> None:
        while True:
            order = self._orders.get()
            if order is None or self.stopped.is_set():
                break
            try:
                self._send(*order)
                self.problem = ""
            except SENDING_ERRORS as error:
                self.problem = f"copy of rank {self._rank}: {error}"
                if not self.stopped.is_set():
                    print(f"copier: {self.problem}", file=sys.stderr, flush=True)
        for courier in self._couriers.values():
            courier.close()

    def _send(self, place: int, number: int, keep: Optional[int]) -> None:
        slot = Slot.open(self._keeper.path("own", f"{self._layout}/{self._rank}.{place}"), write=True)
        try:
            seal = slot.seal()
            if seal is None or seal["number"] != number:
                return  # an order that was given twice; the rank writes something else there by now
            total = self._sums.of(slot, number, self.stopped.is_set)
            if total is None:
                return
            before = time.thread_time()
            try:
                for buddy in self._buddies:
                    self._deliver(buddy, slot, seal, total, keep)
            finally:
                self.seconds = time.thread_time() - before
            with self._guard:
                if not self.stopped.is_set():
                    self._keeper.acknowledge(self._layout, self._rank, number)
        finally:
            slot.close()

    def _courier(self, buddy: str) -> Courier:
        known = self._couriers.get(buddy)
        if known is not None:
            return known
        courier = Courier.call(buddy, self._token)
        with self._guard:
            if self.stopped.is_set():
                courier.close()
                raise Broken("not needed any more")
            self._couriers[buddy] = courier
        return courier

    def _deliver(self, buddy: str, slot: Slot, seal: Message, total: int, keep: Optional[int]) -> None:
        for attempt in range(TRIES):
            try:
                courier = self._courier(buddy)
                courier.send({"op": "put", "name": f"{self._layout}/{self._rank}", "header": slot.header, "seal": seal,
                              "sum": total, "bytes": len(slot.data), "generation": self._generation, "keep": keep})
                answer = courier.receive()
                self.problem = ""  # it answers: this may take its time
                if not answer.get("have"):
                    courier.send_raw(slot.data)
                    courier.receive()
                return
            except (OSError, Broken) as error:
                with self._guard:
                    broken = self._couriers.pop(buddy, None)
                if broken is not None:
                    broken.close()
                if self.stopped.is_set() or attempt == TRIES - 1:
                    raise Broken(f"cannot be brought to {buddy}: {error}") from None
                self.stopped.wait(PAUSE)
