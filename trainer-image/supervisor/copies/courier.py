"""How copiers talk to each other: blocking sockets, proved by the job's token, JSON frames with a MAC, raw tensors."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
import struct
from typing import Any, Dict, Optional

from supervisor.wire import proof, session_key, split_address

FRAME = 64 << 20  # bytes of JSON at most: an inventory with headers
MAC = hashlib.sha256().digest_size
CHUNK = 4 << 20
PATIENCE = 20.0  # s without a byte
CUT = 2000  # ms that sent data may stay unacknowledged


class Broken(Exception):
    """The conversation cannot go on; why."""


class Courier:
    """One connection. Frames are authentic; raw data that follows one is covered by a checksum in the frame."""

    def __init__(self, sock: socket.socket, token: str, server: bool) -> None:
        self._sock = sock
        self._sides = (b"s", b"c") if server else (b"c", b"s")
        self._numbers = [0, 0]
        self._session: Optional[bytes] = None
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", CUT)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if server:
            self._greet(token)
        else:
            self._present(token)

    @classmethod
    def call(cls, address: str, token: str, timeout: float = 3.0) -> "Courier":
        """Connect to another copier. Raises Broken, OSError."""
        sock = socket.create_connection(split_address(address), timeout=timeout)
        try:
            return cls(sock, token, server=False)
        except BaseException:
            sock.close()
            raise

    def _greet(self, token: str) -> None:
        nonce = os.urandom(16).hex()
        self.send({"nonce": nonce})
        hello = self.receive()
        theirs = str(hello.get("nonce"))
        if not hmac.compare_digest(str(hello.get("proof")), proof(token, "copier", nonce, theirs, None)):
            raise Broken("the other side does not know the job's token")
        self.send({"proof": proof(token, "keeper", nonce, theirs, None)})
        self._session = session_key(token, nonce, theirs)

    def _present(self, token: str) -> None:
        nonce = str(self.receive().get("nonce"))
        mine = os.urandom(16).hex()
        self.send({"nonce": mine, "proof": proof(token, "copier", nonce, mine, None)})
        if not hmac.compare_digest(str(self.receive().get("proof")), proof(token, "keeper", nonce, mine, None)):
            raise Broken("the other side does not know the job's token")
        self._session = session_key(token, nonce, mine)

    def send(self, message: Dict[str, Any]) -> None:
        """One frame. Raises OSError."""
        body = json.dumps(message, separators=(",", ":")).encode()
        self._sock.sendall(struct.pack(">I", len(body)) + self._mac(0, body) + body)

    def receive(self) -> Dict[str, Any]:
        """One frame. Raises Broken, OSError."""
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > FRAME or (self._session is None and length > 4096):
            raise Broken("not our protocol")
        mac, body = self._exactly(MAC), self._exactly(length)
        if not hmac.compare_digest(mac, self._mac(1, body)):
            raise Broken("a frame is not authentic")
        message = json.loads(body)
        if not isinstance(message, dict):
            raise Broken("a frame is no object")
        return message

    def _mac(self, direction: int, body: bytes) -> bytes:
        if self._session is None:
            return hashlib.sha256(body).digest()
        number = struct.pack(">Q", self._numbers[direction])
        self._numbers[direction] += 1
        return hmac.digest(self._session, self._sides[direction] + number + body, "sha256")

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        self.receive_into(memoryview(data))
        return bytes(data)

    def send_raw(self, data: memoryview) -> None:
        """Raw bytes, in pieces that each have the whole patience. Raises OSError."""
        for start in range(0, len(data), CHUNK):
            self._sock.sendall(data[start:start + CHUNK])

    def receive_into(self, target: memoryview) -> None:
        """Fill it. Raises Broken at the end of the connection, OSError."""
        done = 0
        while done < len(target):
            count = self._sock.recv_into(target[done:done + CHUNK])
            if not count:
                raise Broken("closed by the other side")
            done += count

    def await_more(self) -> None:
        """Until the other side speaks or has gone, however long; keepalive tells when its machine has."""
        self._sock.settimeout(None)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        finally:
            self._sock.settimeout(PATIENCE)

    def interrupt(self) -> None:
        """Make whoever waits in it give up, from another thread: closing alone would not wake them."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._sock.close()
