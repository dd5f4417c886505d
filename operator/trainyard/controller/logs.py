"""JSON logs on stdout, one object a line, with the job they are about."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

job: ContextVar[str] = ContextVar("job", default="")
"""namespace/name of the job that the current task is about; every line logged in it carries it."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """ts, level, logger, msg, job, then whatever `extra` had, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage(),
        }
        if key := getattr(record, "job", None) or job.get() or _kopf_key(record):
            line["job"] = key
        line |= {name: value for name, value in vars(record).items()
                 if name not in _STANDARD and name not in ("job", "k8s_ref", "k8s_skip", "settings")}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _kopf_key(record: logging.LogRecord) -> str:
    """The object that a line of kopf's is about."""
    ref = getattr(record, "k8s_ref", None) or {}
    return f"{ref.get('namespace')}/{ref['name']}" if ref.get("name") else ""


def set_up(level: str) -> None:
    """Everything that is logged in this process goes to stdout as JSON; libraries from warning on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("kopf._core.reactor.running").setLevel("ERROR")  # warns that it leaves signals alone
    for noisy in ("kopf", "aiohttp", "asyncio", "kubernetes"):
        logging.getLogger(noisy).setLevel(level if level == "DEBUG" and noisy == "kopf" else "WARNING")
