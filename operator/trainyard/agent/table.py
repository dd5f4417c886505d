"""The fault table in use: the shipped one, with the cluster's own laid over it while that is valid."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from trainyard.agent.faults import over_shipped, shipped
from trainyard.agent.types import Unreadable

log = logging.getLogger(__name__)


class OwnTable:
    """Follows the file of the cluster's own table, such as a mounted ConfigMap; without a file, the shipped table."""

    def __init__(self, file: Path | None) -> None:
        self.table = shipped()
        self.wrong: Unreadable | None = None  # the table in use is not the one in the file
        self._file = file
        self._text: str | None = None

    async def look(self) -> None:
        """Take the file in if it has changed. An invalid one leaves the last good one in force."""
        if self._file is None:
            return
        try:
            text = await asyncio.to_thread(self._file.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if self._text is not None or self.wrong is None:
                log.warning("InvalidFaultTable: %s: %s", self._file, error)
            self._text = None
            self.wrong = Unreadable("InvalidFaultTable", f"expected the cluster's fault table in {self._file}, and it "
                                    f"cannot be read ({error}). The last valid table stays in force until it can")
            return
        if text == self._text:
            return
        self._text = text
        try:
            self.table, self.wrong = await asyncio.to_thread(over_shipped, text), None
        except Unreadable as error:
            log.warning("%s: %s", error.reason, error.message)
            self.wrong = error
