"""The door into a cluster: accepts on a loopback port of the host, connects to the API server inside.

Run by the cluster with the listening socket, opened in the host's network namespace, as an inherited descriptor; the
process itself has entered the fabric's, so its connections start there. A socket keeps the namespace it was made in.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys

_CHUNK = 1 << 16


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, port: int) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection(address, port)
    except OSError:
        writer.transport.abort()
        return
    pumps = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
    try:
        await asyncio.gather(*pumps)
    except OSError:
        pass
    finally:
        for pump in pumps:
            pump.cancel()
        inner_writer.transport.abort()
        # What was written is flushed; a reset towards the client would lose the tail of an answer.
        writer.close()


async def _main(descriptor: int, address: str, port: int) -> None:
    listener = socket.socket(fileno=descriptor)
    server = await asyncio.start_server(lambda r, w: _serve(r, w, address, port), sock=listener, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
