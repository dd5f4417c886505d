"""Programs of the driver, which may be missing, hang, or print anything: one at a time, never for long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping

from trainyard.agent.host import Host
from trainyard.agent.types import Unreadable

_LONGEST = 1 << 20  # bytes; the longest table known has 10 KB
_NO_PROGRAM = 127  # what chroot, like a shell, ends with when there is no such program
_REAP_SECONDS = 2.0  # a killed process is gone at once, unless it hangs inside the driver


class Tool:
    """One program. Each run ends within its time or is killed; what cannot be killed is waited for, so that hanging
    runs never pile up in the driver."""

    def __init__(self, program: str, environment: Mapping[str, str] | None = None, host: Host | None = None) -> None:
        self.program = program
        self._host = host or Host()
        self.name = os.path.basename(program)
        self._environment = {**os.environ, **(environment or {}), "LC_ALL": "C"}
        self._stuck: asyncio.subprocess.Process | None = None
        self._since = 0.0

    async def run(self, *arguments: str, seconds: float) -> str:
        """What it prints. Raises Unreadable: it is missing, fails, hangs or prints too much."""
        line = " ".join((self.name, *arguments))
        if self._stuck is not None and self._stuck.returncode is None:
            raise Unreadable("ToolHangs", f"{self.name} was killed {time.monotonic() - self._since:.0f} s ago and is "
                             f"not gone (process {self._stuck.pid} hangs in the driver); it is not started again "
                             "before. If it stays so, the node has to be restarted")
        self._stuck = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._host.command(self.program, *arguments), stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=self._environment,
                start_new_session=True)
        except FileNotFoundError as error:
            raise self._missing() from error
        except OSError as error:
            raise Unreadable("ToolFails", f"{line} cannot be started: {error}") from error
        try:
            async with asyncio.timeout(seconds):
                printed = await _printed(process)
                code = await process.wait() if len(printed) <= _LONGEST else 0
        except TimeoutError:
            raise Unreadable("ToolHangs", f"{line} has not ended within {seconds:.0f} s and was killed; it is tried "
                             "again") from None
        finally:
            await self._end(process)
        text = printed.decode(errors="replace")
        if len(printed) > _LONGEST:
            raise Unreadable("ToolUnreadable", f"{line} printed more than {_LONGEST} bytes, beginning with "
                             f"{text[:80]!r}")
        if code == _NO_PROGRAM and text.startswith("chroot:"):
            raise self._missing()
        if code != 0:
            raise Unreadable("ToolFails", f"{line} ended with code {code}: {' '.join(text.split())[:400] or 'no word'}")
        return text

    def _missing(self) -> Unreadable:
        return Unreadable("ToolMissing", f"expected {self.program} on the node, found none: install the driver, or say "
                          "where it is (agent.hostPaths)")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill it with its children if it has not ended, and wait a moment for its end."""
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._stuck, self._since = process, time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                await process.communicate()  # wait() alone would wait for ever for a pipe that nobody empties


async def _printed(process: asyncio.subprocess.Process) -> bytes:
    """All that it prints, or the first of too much."""
    assert process.stdout is not None
    printed = bytearray()
    while len(printed) <= _LONGEST and (chunk := await process.stdout.read(65536)):
        printed += chunk
    return bytes(printed)
