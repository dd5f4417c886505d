"""How a rank says why it ended: a one-line reason on stderr, torchelastic's error file, an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path


class ConfigError(Exception):
    """A mistake in the configuration or its data: no restart can help. One line: what was expected, what was found
    and what to do. The rank exits with 78."""


class Drained(Exception):
    """Told to stop before there was anything to save. The rank exits with 75."""


def one_line(text: object, limit: int = 1000) -> str:
    """`text` with all white space, line breaks included, made into single spaces, cut to `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def describe(error: BaseException) -> str:
    """One line for a person: the message, with the exception's type unless the message was written for users."""
    if isinstance(error, ConfigError):
        return one_line(error)
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def report(error: BaseException) -> None:
    """Write the error file that torchelastic's agents and Trainyard's supervisor read, then the last line on stderr.

    A configuration error is told in one line; anything else comes with its traceback."""
    reason = describe(error)
    expected = isinstance(error, ConfigError)
    stack = reason if expected else "".join(traceback.format_exception(error))
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": stack, "timestamp": str(int(time.time()))}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({"message": {"message": reason, "extraInfo": extra}}))
        except OSError as unwritable:
            print(f"cannot write {path}: {unwritable.strerror}", file=sys.stderr)
    sys.stdout.flush()
    if not expected:
        sys.stderr.write(stack)
    print(reason, file=sys.stderr, flush=True)
