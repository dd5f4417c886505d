"""The pod's Report: state, not a log. Every write says all that is true now."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from supervisor.events import Exit, HangSeen, Member, Run

REASON = 1024  # characters, as the API allows
TEXT = 4096
WARNINGS = 5
POSITIONS = 256
LATEST = 253402300799.0  # the year 9999
# Of progress: what is not said in words.
NUMBERS = ("step", "steps", "durableStep", "memoryStep", "resumedStep", "finishedStep", "connectedAt", "restoredAt",
           "firstStepAt")
# Characters that YAML 1.1 (section 5.1) takes for line breaks, or not at all.
_UNPRINTABLE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


def timestamp(wall: float) -> str:
    """RFC 3339 with microseconds, from seconds since 1970; the nearest that can be said: a program may give its
    files any time."""
    moment = datetime.datetime.fromtimestamp(min(max(0.0, wall), LATEST), datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_yaml(manifest: Mapping[str, Any]) -> bytes:
    """JSON that is YAML as well, which server-side apply is read as: there a character beyond 16 bits cannot be escaped
    by halves, as JSON does, nor may some others stand for themselves. What is no character becomes `?`."""
    text = json.dumps(manifest, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode("utf-8", "replace")


def wordless(spec: Mapping[str, Any]) -> Dict[str, Any]:
    """The same without all that was said by others than the supervisor: what the gang needs to go on."""
    bare = {name: value for name, value in spec.items() if name != "warnings"}
    for name, words in (("failure", ("reason", "text")), ("hang", ("reason", "text", "positions")),
                        ("check", ("reason",))):
        if name in bare:
            bare[name] = {key: value for key, value in bare[name].items() if key not in words}
    if "progress" in bare:
        bare["progress"] = {key: bare["progress"][key] for key in NUMBERS if key in bare["progress"]}
    return bare


def stepped(progress: Mapping[str, Any], start: int) -> bool:
    """Whether a step was finished in this run, whose first line told step `start`: a program that resumes may begin
    with where it stands. Without a pace, a line of a program that tells when it has restored its state, or one that
    only repeats what is durable, is such a beginning."""
    if "secondsPerStep" in progress:
        return bool(progress["step"] > 0)
    if "connectedAt" in progress and "restoredAt" not in progress:
        return False
    resumed = "restoredAt" in progress or progress.get("durableStep") == progress["step"]
    return bool(progress["step"] > (start if resumed else 0))


class Report:
    """What this pod has to say about the run it is in."""

    def __init__(self, me: Member, first_sequence: int) -> None:
        self._me = me
        self._sequence = first_sequence - 1
        self._run: Run = (0, 0)
        self._warnings: List[Dict[str, str]] = []
        self.address = ""
        self.kind = ""
        self.missing: List[int] = []
        self.lost: List[int] = []
        self.lost_at = 0.0
        self.stalled = False
        self.drained_step: Optional[int] = None
        self._failure: Optional[Exit] = None
        self._formed_at = ""
        self._hang: Optional[Dict[str, Any]] = None
        self.check: Optional[Dict[str, Any]] = None  # of nodes in pairs, on the master's pod
        self.progress: Optional[Mapping[str, Any]] = None
        self._first_step_at = ""
        self._start: Optional[int] = None

    def begin(self, run: Run) -> None:
        """Another run: nothing said of the last one holds any more; warnings stay."""
        self._run, self.kind, self.missing, self.drained_step = run, "", [], None
        self._failure, self._formed_at, self.progress, self._first_step_at = None, "", None, ""
        self._start, self._hang, self.lost, self.check = None, None, [], None
        self.stalled = False

    def form(self, wall: float) -> None:
        """The gang is complete."""
        self._formed_at, self.missing = timestamp(wall), []

    def fail(self, failure: Exit) -> None:
        """A rank of this pod failed."""
        self._failure = failure

    def hang(self, seen: Optional[HangSeen], wall: float) -> None:
        """The ranks of this pod wait, and have waited for too long; or no longer do."""
        if seen is None:
            self._hang = None
            return
        positions = [{"group": group, "rank": rank, "issued": issued, "completed": completed}
                     for group, rank, issued, completed in seen.positions[:POSITIONS]]
        self._hang = {"since": timestamp(wall - seen.silent), "phase": seen.phase, "step": seen.step,
                      "reason": seen.reason[:REASON], "text": seen.text[:TEXT], "positions": positions}

    def warn(self, reason: str, message: str, wall: float) -> None:
        """Something that a user should know, told with the next word; the newest few are kept."""
        self._warnings = [*self._warnings, {"reason": reason, "message": message, "at": timestamp(wall)}][-WARNINGS:]

    def newest_step(self) -> Optional[int]:
        """The step that rank 0's ranks saved last, as far as they said."""
        if self.progress is None:
            return None
        step: int = self.progress.get("durableStep", self.progress["step"])
        return step

    def take_progress(self, progress: Mapping[str, Any], warnings: Tuple[Tuple[str, str], ...], wall: float) -> bool:
        """Note what rank 0 says; True if it should be told at once."""
        old = self.progress
        known = [(warning["reason"], warning["message"]) for warning in self._warnings]
        for reason, message in warnings:
            if (reason, message) not in known:
                self.warn(reason, message, wall)
        new = dict(progress, at=timestamp(wall))
        if self._start is None:
            self._start = new["step"]
        first = self._first_step_at == "" and stepped(new, self._start)
        if first:
            self._first_step_at = new["at"]
        if self._first_step_at:
            new["firstStepAt"] = self._first_step_at
        self.progress = new
        if old is None:
            return True
        ends = new.get("steps") is not None and new["step"] >= new["steps"]
        return first or new.get("durableStep") != old.get("durableStep") or (ends and new["step"] != old["step"])

    def spec(self, kind: str) -> Dict[str, Any]:
        """The next Report.spec to write, of this kind."""
        self.kind = kind
        self._sequence += 1
        spec: Dict[str, Any] = {
            "job": self._me.job, "podUid": self._me.pod_uid, "index": self._me.index,
            "incarnation": self._me.incarnation, "generation": self._run[0], "attempt": self._run[1],
            "sequence": self._sequence, "kind": kind, "missing": self.missing, "warnings": list(self._warnings),
        }
        optional = {
            "address": self.address or None, "formedAt": self._formed_at or None, "drainedStep": self.drained_step,
            "progress": self.progress, "failure": self._failure_spec(), "hang": self._hang,
            "check": self.check,
        }
        if self.lost:
            spec.update(lost=self.lost, lostAt=timestamp(self.lost_at), **({"stalled": True} if self.stalled else {}))
        spec.update({key: value for key, value in optional.items() if value is not None})
        return spec

    def _failure_spec(self) -> Optional[Dict[str, Any]]:
        failure = self._failure
        if failure is None:
            return None
        spec: Dict[str, Any] = {
            "root": failure.root, "rank": failure.rank, "exitCode": failure.code,
            "reason": failure.reason[:REASON], "text": failure.text[-TEXT:], "oom": failure.oom,
        }
        if failure.hang:
            spec["hang"] = True
        if failure.devices:
            spec["devices"] = [device[:63] for device in failure.devices[:64]]
        if failure.step is not None:
            spec["step"] = failure.step
        if failure.at:
            spec["at"] = timestamp(failure.at)
        return spec
