"""Authenticated frames over TCP, non-blocking, in the loop's selector.

A frame is 4 bytes of length, 32 bytes of HMAC-SHA256 and JSON. Both sides prove with a challenge that they know the
job's token; the frames that follow carry a MAC of a key made from both challenges, the direction and a running number.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import selectors
import socket
import struct
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

FRAME = 1 << 16  # bytes; ours are far smaller
MAC = hashlib.sha256().digest_size


def tune(sock: socket.socket) -> None:
    """A peer that is cut off shows within about 2 s, whether we send or not."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 1), ("TCP_USER_TIMEOUT", 2000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def split_address(address: str) -> Tuple[str, int]:
    """Host and port of `10.1.2.3:29500` or `[fd00::3]:29500`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The reverse."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Closed(Exception):
    """The connection has to end; why."""


class Channel:
    """Frames over one socket. `session` is set once both sides have proved to know the token."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector, ready: Callable[[int], None],
                 server: bool) -> None:
        self.sock = sock
        self.session: Optional[bytes] = None
        self._sides = (b"s", b"c") if server else (b"c", b"s")  # what we send, what we receive
        self._numbers = [0, 0]
        self._in = bytearray()
        self._out = bytearray()
        self._selector = selector
        self._ready = ready
        self._writing = True
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, ready)

    def send(self, message: Dict[str, Any]) -> None:
        """Queue a message and write what the socket takes."""
        body = json.dumps(message, separators=(",", ":")).encode()
        self._out += struct.pack(">I", len(body)) + self._mac(0, body) + body
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now."""
        try:
            while self._out:
                del self._out[:self.sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # still connecting
                self._out.clear()  # reading will say so, too, and end it
        if bool(self._out) != self._writing:
            self._writing = bool(self._out)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._writing else 0)
            self._selector.modify(self.sock, wanted, self._ready)

    def receive(self) -> Iterator[Dict[str, Any]]:
        """Messages that have come, one by one: what is done with one may set the session for the next. Closed when no
        more will come."""
        try:
            data = self.sock.recv(FRAME)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise Closed(f"connection lost: {error.strerror or error}") from None
        if not data:
            raise Closed("closed by the other side")
        self._in += data
        while len(self._in) >= 4:
            (length,) = struct.unpack_from(">I", self._in)
            if length > FRAME:
                raise Closed("not our protocol")
            end = 4 + MAC + length
            if len(self._in) < end:
                break
            mac, body = bytes(self._in[4:4 + MAC]), bytes(self._in[4 + MAC:end])
            del self._in[:end]
            if not hmac.compare_digest(mac, self._mac(1, body)):
                raise Closed("a frame is not authentic")
            try:
                message = json.loads(body)
            except (ValueError, RecursionError):
                raise Closed("a frame is no JSON") from None
            if not isinstance(message, dict):
                raise Closed("a frame is no object")
            yield message

    def _mac(self, direction: int, body: bytes) -> bytes:
        if self.session is None:
            return hashlib.sha256(body).digest()
        number = struct.pack(">Q", self._numbers[direction])
        self._numbers[direction] += 1
        return hmac.digest(self.session, self._sides[direction] + number + body, "sha256")

    def close(self) -> None:
        """End it."""
        self._selector.unregister(self.sock)
        self.sock.close()


def proof(token: str, role: str, server_nonce: str, client_nonce: str, hello: Any) -> str:
    """What only somebody who knows the token can say about these challenges and this hello."""
    text = json.dumps([role, server_nonce, client_nonce, hello], sort_keys=True).encode()
    return hmac.new(token.encode(), text, "sha256").hexdigest()


def session_key(token: str, server_nonce: str, client_nonce: str) -> bytes:
    """Key of the frames that follow the challenges."""
    return hmac.digest(token.encode(), f"session {server_nonce} {client_nonce}".encode(), "sha256")
