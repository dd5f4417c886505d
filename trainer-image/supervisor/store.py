"""How members meet at the master: the server on its pod, the link that every member has to it (frames: wire.py)."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hmac
import os
import random
import selectors
import socket
import time
from typing import Any, Callable, Dict, Optional

from supervisor import events as e
from supervisor.ranktable import Part
from supervisor.wire import Channel, Closed, join_address, proof, session_key, split_address, tune

HANDSHAKE = 10.0  # s
RECONNECT = (0.1, 5.0)  # s: first and longest range of the jitter
BEAT = 2.0  # s between heartbeats; more in gangs of more than MEMBERS_A_BEAT
NEAR_BEAT = 0.5  # s between those of the master's neighbours: TCP notices a cut 2 s after the first that has no answer
MEMBERS_A_BEAT = 1000
SILENCE = 5  # heartbeats without a word: the other side is gone
NONSENSE = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError)  # what messages of others may raise
STRANGERS = 1024  # connections that have not proved anything yet


def beat_seconds(size: int) -> float:
    """Time between heartbeats, so that the master of a large gang has no more than about 500 a second."""
    return BEAT * max(1.0, size / MEMBERS_A_BEAT)


def status_from(message: Dict[str, Any]) -> e.Status:
    """A Status as the other side wrote it; KeyError, TypeError or ValueError if it is none."""
    step = message.get("step")
    return e.Status(int(message["generation"]), int(message["attempt"]), str(message["state"]),
                    None if step is None else int(step), bool(message.get("saved")), str(message.get("host", "")),
                    int(message.get("port", 0)), checked_from(message.get("checked")), progress_from(message))


def checked_from(told: Optional[Dict[str, Any]]) -> Optional[e.Checked]:
    """How a check in a Status went, likewise."""
    return e.Checked(int(told["round"]), bool(told["passed"]), str(told.get("why", ""))) if told else None


def progress_from(message: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """What rank 0 said last, likewise."""
    told = message.get("progress")
    if told is not None and not isinstance(told, dict):
        raise TypeError(f"progress should be an object, found {type(told).__name__}")
    return told


def gang_from(message: Dict[str, Any]) -> e.GangState:
    """A GangState, likewise."""
    start, check = message.get("start"), message.get("check")
    return e.GangState(int(message["generation"]), int(message["attempt"]),
                       e.Start(str(start["host"]), int(start["port"]), bool(start["agent_store"]),
                               str(start.get("table", ""))) if start else None,
                       str(message.get("ended", "")),
                       e.PairOrder(int(check["round"]), int(check["rank"]), int(check["peer"]), str(check["host"]),
                                   int(check["port"])) if check else None)


class Guest:
    """One connection at the server."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.channel: Optional[Channel] = None
        self.nonce = os.urandom(16).hex()
        self.known = False
        self.refused = False
        self.heard = time.monotonic()


class StoreServer:
    """The master's side. Posts MemberHello, MemberStatus, MemberBeat, MemberGone."""

    def __init__(self, selector: selectors.BaseSelector, token: str, pod_ip: str, size: Callable[[], int],
                 post: Callable[[e.Event], None]) -> None:
        six = ":" in pod_ip
        self._listener = socket.create_server(("::" if six else "0.0.0.0", 0), backlog=4096,
                                              family=socket.AF_INET6 if six else socket.AF_INET,
                                              dualstack_ipv6=six and socket.has_dualstack_ipv6())
        self._listener.setblocking(False)
        self.address = join_address(pod_ip, self._listener.getsockname()[1])
        self._selector = selector
        self._token = token
        self._size = size
        self._post = post
        self._guests: Dict[int, Guest] = {}
        self._next = 1
        self._look = time.monotonic() + BEAT
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock, _peer = self._listener.accept()
            except OSError:
                return
            if sum(not guest.known for guest in self._guests.values()) >= STRANGERS:
                sock.close()
                continue
            tune(sock)
            guest = Guest(self._next)
            self._next += 1
            self._guests[guest.number] = guest
            guest.channel = Channel(sock, self._selector, functools.partial(self._ready, guest), True)
            guest.channel.send({"nonce": guest.nonce})

    def _ready(self, guest: Guest, mask: int) -> None:
        assert guest.channel is not None
        guest.channel.flush()
        if mask & selectors.EVENT_READ:
            try:
                for message in guest.channel.receive():
                    self._message(guest, message)
            except (Closed, *NONSENSE):
                self._drop(guest)

    def _message(self, guest: Guest, message: Dict[str, Any]) -> None:
        assert guest.channel is not None
        if guest.refused:
            return
        guest.heard = time.monotonic()
        if not guest.known:
            hello = message["hello"]
            nonce = str(message["nonce"])
            if not hmac.compare_digest(str(message["proof"]), proof(self._token, "member", guest.nonce, nonce, hello)):
                raise Closed("wrong token")
            guest.channel.send({"proof": proof(self._token, "master", guest.nonce, nonce, hello)})
            guest.channel.session = session_key(self._token, guest.nonce, nonce)
            guest.known = True
            self._post(e.MemberHello(guest.number, e.Hello(int(hello["index"]), int(hello["incarnation"]),
                                                           str(hello["podUid"]), str(hello.get("place", "")),
                                                           bool(hello.get("checks")))))
        elif "state" in message:
            self._post(e.MemberStatus(guest.number, status_from(message)))
        elif "table" in message:
            self._post(e.MemberAsks(guest.number, str(message["table"]), str(message["have"]), int(message["at"])))
        else:
            self._post(e.MemberBeat(guest.number, int(message["generation"])))

    def tell(self, connection: int, gang: e.GangState) -> None:
        """Send to a member, if it is still there."""
        guest = self._guests.get(connection)
        if guest is not None and guest.channel is not None:
            guest.channel.send(dataclasses.asdict(gang))

    def send_part(self, connection: int, part: Part) -> None:
        """A piece of the rank table to a member, if it is still there."""
        guest = self._guests.get(connection)
        if guest is not None and guest.channel is not None:
            guest.channel.send(part._asdict())

    def refuse(self, connection: int, reason: str) -> None:
        """Say why. The member closes; if it does not, its silence ends the connection."""
        guest = self._guests.get(connection)
        if guest is not None and guest.channel is not None:
            guest.channel.send({"refused": reason})
            guest.refused = True

    def _drop(self, guest: Guest) -> None:
        if self._guests.pop(guest.number, None) is not None and guest.channel is not None:
            guest.channel.close()
            if guest.known:
                self._post(e.MemberGone(guest.number))

    def deadline(self) -> float:
        """When step() is due."""
        return self._look

    def step(self) -> None:
        """End connections that have been silent for too long."""
        now = time.monotonic()
        if now < self._look:
            return
        self._look = now + BEAT
        longest = SILENCE * beat_seconds(self._size())
        for guest in list(self._guests.values()):
            if now - guest.heard > (longest if guest.known else HANDSHAKE):
                self._drop(guest)

    def close(self) -> None:
        """End the store and all connections."""
        self._selector.unregister(self._listener)
        self._listener.close()
        for guest in list(self._guests.values()):
            self._drop(guest)


class StoreLink:
    """A member's connection to the master's store, made again for as long as it is wanted. Posts Linked, Unlinked,
    GangSeen, TablePart. `place` says what is known of the pod's devices."""

    def __init__(self, selector: selectors.BaseSelector, link: e.Link, me: e.Member, place: Callable[[], str],
                 post: Callable[[e.Event], None], say: Callable[[str], None]) -> None:
        self._selector = selector
        self._link = link
        self._hello: Dict[str, Any] = {"index": me.index, "incarnation": me.incarnation, "podUid": me.pod_uid,
                                       "checks": True}
        self._place = place
        self._post = post
        self._say = say
        self._status: Optional[e.Status] = None
        self._channel: Optional[Channel] = None
        self._linked = False
        self._nonces = ("", "")
        self._failures = 0
        self._heard = 0.0
        self._due = time.monotonic()  # next try, next heartbeat
        self._told = ""

    def send(self, status: e.Status) -> None:
        """Tell the master now, and after every new connection."""
        self._status = status
        if self._linked and self._channel is not None:
            self._channel.send(dataclasses.asdict(status))

    def ask(self, order: e.AskTable) -> None:
        """Ask for a rank table. Not kept: the core asks again."""
        if self._linked and self._channel is not None:
            self._channel.send(dataclasses.asdict(order))

    def deadline(self) -> float:
        """When step() is due."""
        return self._due

    def step(self) -> None:
        """Connect, or send a heartbeat, or give a silent master up."""
        now = time.monotonic()
        if now < self._due:
            return
        if self._channel is None:
            self._due = now + HANDSHAKE
            self._connect()
            return
        if not self._linked or now - self._heard > SILENCE * beat_seconds(self._link.size):
            self._lost("no answer")
            return
        self._due = now + self._beat() * random.uniform(0.9, 1.0)
        self._channel.send({"generation": self._status.generation if self._status is not None else 0})

    def _beat(self) -> float:
        """Keepalive alone would show a cut in 2 s. A heartbeat on the way makes TCP wait for its acknowledgement
        instead, another 2 s from then on: so those who tell of the loss send them often."""
        return NEAR_BEAT if self._link.near else beat_seconds(self._link.size)

    def _connect(self) -> None:
        sock: Optional[socket.socket] = None
        try:
            host, port = split_address(self._link.address)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            tune(sock)
            code = sock.connect_ex((host, port))
        except (OSError, ValueError, OverflowError) as error:  # the last: a port above 65535
            if sock is not None:
                sock.close()
            self._lost(str(error))
            return
        self._channel = Channel(sock, self._selector, self._ready, False)
        if code not in (0, errno.EINPROGRESS, errno.EINTR):
            self._lost(os.strerror(code))

    def _ready(self, mask: int) -> None:
        channel = self._channel
        assert channel is not None
        channel.flush()
        code = channel.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lost(os.strerror(code))
            return
        if not mask & selectors.EVENT_READ:
            return
        try:
            for message in channel.receive():
                self._message(channel, message)
        except Closed as closed:
            self._lost(str(closed))
        except NONSENSE as error:
            self._lost(f"not understood: {error!r}")

    def _message(self, channel: Channel, message: Dict[str, Any]) -> None:
        self._heard = time.monotonic()
        if "nonce" in message:
            self._nonces = (str(message["nonce"]), os.urandom(16).hex())
            self._hello["place"] = self._place()
            channel.send({"nonce": self._nonces[1], "hello": self._hello,
                          "proof": proof(self._link.token, "member", *self._nonces, self._hello)})
        elif "proof" in message:
            wanted = proof(self._link.token, "master", *self._nonces, self._hello)
            if not hmac.compare_digest(str(message["proof"]), wanted):
                raise Closed("the master does not know the job's token")
            channel.session = session_key(self._link.token, *self._nonces)
            self._linked = True
            self._due = time.monotonic() + self._beat()
            if self._status is not None:
                channel.send(dataclasses.asdict(self._status))
            self._post(e.Linked())
        elif "refused" in message:
            raise Closed(f"refused: {message['refused']}")
        elif self._linked and "data" in message:
            self._post(e.TablePart(Part(str(message["table"]), int(message["at"]), int(message["size"]),
                                        str(message["data"]))))
        elif self._linked:
            self._failures = 0
            self._told = ""
            self._post(e.GangSeen(gang_from(message)))
        else:
            raise Closed("not our protocol")

    def _lost(self, reason: str) -> None:
        linked, self._linked = self._linked, False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._failures += 1
        low, high = RECONNECT
        self._due = time.monotonic() + random.uniform(0.2 * low, min(high, low * 2 ** min(self._failures, 10)))
        if reason != self._told:
            self._told = reason
            self._say(f"master's store at {self._link.address}: {reason}; trying again")
        if linked:
            self._post(e.Unlinked(reason))

    def close(self) -> None:
        """End it without a word."""
        self._linked = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None
