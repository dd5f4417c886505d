"""Why a rank ended: root or consequence, and the one line that says so. Pure."""

from __future__ import annotations

import json
import re
import signal
from typing import List, NamedTuple, Optional, Sequence

SUSPECT_DEVICE = 76  # this pod should have other devices
CONFIGURATION = 78  # exit code of a program that was given something it cannot work with
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit|Warning|Failure|Timeout)\b(?::.*)?$")

# The error comes out of a collective or of the store that collectives meet in: this rank only noticed another's loss.
# One pattern a line, each with the library that says so.
CONSEQUENCES = [
    r"\[[^\]]*gloo/[^\]]*\]",  # gloo names its source file in every error
    r"\bgloo\b.*(?:error|exception|fail|closed|timed out|timeout)",
    r"Connection closed by peer",  # gloo
    r"Connection reset by peer|Connection reset\b",  # gloo, TCPStore
    r"Broken pipe.*(?:gloo|store)|writev? .*Broken pipe",  # gloo
    r"Timed out waiting \d+ ?ms for (?:recv|send) operation",  # gloo
    r"timed out waiting for (?:clients|.*store|.*key|.*peer)",  # store, gloo
    r"\bDist(?:Backend|Store|Network)Error\b",  # torch.distributed
    r"wait timeout after \d+ms",  # TCPStore
    r"\bstore->(?:get|wait)|TCPStore.*(?:timed? ?out|closed|reset|failed)",  # torch
    r"\bNCCL\b.*(?:error|timed? ?out|timeout|abort|remote|unhandled)|\bnccl\w*Error\b",  # NVIDIA
    r"\bProcessGroup(?:NCCL|Gloo|HCCL|XCCL|MPI|Wrapper)?\b.*(?:timed? ?out|timeout|abort|terminat|exception|heartbeat)",
    r"Watchdog caught collective operation timeout",  # NCCL, HCCL
    r"\bHCCL\b.*(?:error|timed? ?out|timeout|abort|fail)|\bHCCL_E_\w+|\bEI00(?:02|04|05|06|11)\b",  # Ascend
    r"number of timed out node is|abnormal compute graph node",  # MindSpore's scheduler
    r"socket (?:times? ?out|timeout|disconnect)",  # HCCL
]
# Stronger than the above: the cause is here, whatever the message goes on to say.
ROOTS = [
    r"out of memory|OutOfMemoryError|\bENOMEM\b|cannot allocate memory",
    r"device-side assert|illegal memory access|\bXid\b|uncorrectable ECC|hardware error|device fault|"
    r"\bECC\b.*error|CUDA error(?!.*NCCL)|\b507\d{3}\b|AI ?Core.*(?:error|exception)",
]
ENDED_ITSELF = "Kill this process with SIGTERM"  # MindSpore, when its cluster has lost somebody
CONSEQUENCE = re.compile("|".join(CONSEQUENCES), re.IGNORECASE)
ROOT = re.compile("|".join(ROOTS), re.IGNORECASE)


class ErrorFile(NamedTuple):
    """What torchelastic's @record wrote."""

    message: str
    callstack: str


class Verdict(NamedTuple):
    """What to say of a failed rank."""

    root: bool
    reason: str  # one line
    text: str


def plain(text: str) -> str:
    """Without colours, cursor movements and other control characters."""
    return ANSI.sub("", text)


def read_error_file(content: str) -> Optional[ErrorFile]:
    """torchelastic's JSON, in its long or its short form; None if it is neither."""
    try:
        message = json.loads(content)["message"]
        if isinstance(message, str):
            return ErrorFile(plain(message), "")
        extra = message.get("extraInfo") or {}
        return ErrorFile(plain(str(message["message"])), plain(str(extra.get("py_callstack") or "")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def last_line(lines: Sequence[str]) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def exception_line(lines: Sequence[str]) -> str:
    """The exception that ends the last traceback among these lines, or an empty string."""
    start = next((at for at in range(len(lines) - 1, -1, -1) if lines[at].startswith("Traceback (most recent")), None)
    after: List[str] = list(lines[start + 1:]) if start is not None else []
    for line in after:
        if line and not line[0].isspace() and not line.startswith(("Traceback", "During handling", "The above")):
            return line.strip()
    return next((line.strip() for line in reversed(lines) if EXCEPTION.match(line.strip())), "")


def signal_name(code: int) -> str:
    """SIGKILL for -9."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def judge(code: int, lines: Sequence[str], errors: Sequence[str], error_file: str = "", oom: bool = False) -> Verdict:
    """Judge a rank that ended with `code` (-N: signal N) after printing `lines`, of which `errors` on stderr.

    A signal is a root, except SIGABRT by a library's watchdog over a collective. Exit code 78 is always a root.
    """
    lines, errors = [plain(line) for line in lines], [plain(line) for line in errors]
    recorded = read_error_file(error_file) if error_file else None
    text = recorded.callstack if recorded is not None and recorded.callstack else "\n".join(lines)
    said = recorded.message.strip() if recorded is not None else ""
    if code < 0:
        name = signal_name(code)
        if code == -signal.SIGTERM and any(ENDED_ITSELF in line for line in lines[-20:]):
            return Verdict(False, f"{name}: MindSpore missed a peer", text)
        if code != -signal.SIGABRT:
            return Verdict(True, f"{name} (out of memory)" if oom else name, text)
        cause = said or exception_line(errors) or last_line(errors)
        root = not is_consequence("\n".join([cause, *errors[-20:]]))
        return Verdict(root, f"{name}: {cause}" if cause else name, text)
    if code == CONFIGURATION:
        return Verdict(True, first_line(said) or last_line(errors) or last_line(lines) or "bad configuration", text)
    reason = first_line(said) or exception_line(errors) or last_line(errors) or last_line(lines)
    evidence = said or "\n".join([exception_line(errors), *errors[-6:]])
    return Verdict(not is_consequence(evidence), reason or f"exit code {code}", text)


def first_line(text: str) -> str:
    return text.splitlines()[0].strip() if text else ""


def is_consequence(text: str) -> bool:
    """Whether an error comes out of a collective."""
    return bool(CONSEQUENCE.search(text)) and not ROOT.search(text)
