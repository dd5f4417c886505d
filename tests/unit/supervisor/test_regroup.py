"""The supervisor's end of the lines to ranks that outlive a generation, with programs that know only those."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod
from unit.supervisor.test_processes import PYTHON

Start = Callable[..., SupervisedPod]
STORE = "class TCPStore:\n    def __init__(self, *_, **__):\n        self.port = 1\n"  # kept by the supervisor's child
RANK = """
import json, os, socket, sys, time
me, say = os.environ["RANK"], lambda *what: print(*what, flush=True)
say("began", os.environ["TRAINYARD_GENERATION"], os.getpid())
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ["TRAINYARD_REGROUP"])
stream = line.makefile("rw")
def tell(**what):
    stream.write(json.dumps(what) + "\\n")
    stream.flush()
tell(pid=os.getpid())
say("ready")
for text in stream:
    told = json.loads(text)
    if "leave" in told:
        tell(**(ANSWER))
        if AFTER == "end" and me == "1":
            sys.exit(3)
    else:
        os.environ.update(told["environment"])
        say("joined", os.environ["TRAINYARD_GENERATION"], os.getpid())
        assert os.path.isdir(os.path.dirname(os.environ["TRAINYARD_PROGRESS"]))
        tell(joined=True)
        if AFTER == "fail" and me == "1":
            sys.exit("broken")
"""


class Regrouping:
    """A pod of two ranks that runs, and is told of a second generation."""

    def __init__(self, start: Start, api: FakeApi, folder: Path, answer: str, after: str = "") -> None:
        (folder / "torch").mkdir()
        (folder / "torch" / "__init__.py").touch()
        (folder / "torch" / "distributed.py").write_text(STORE)
        program = RANK.replace("ANSWER", answer).replace("AFTER", repr(after))
        path = Path(__file__).parents[3] / "trainer-image"
        self.operator = Operator(api)
        self.pod = start([PYTHON, "-c", program], ranks=2, PYTHONPATH=f"{path}:{folder}", TRAINYARD_SURVIVORS="regroup")
        self.operator.run(self.pod)
        for rank in (0, 1):
            self.pod.wait_output(f"[rank {rank}] ready")
        self.operator.put(generation=2, cause={"total": 1})

    def pids(self, word: str, generation: int) -> dict[str, str]:
        """By rank."""
        for rank in (0, 1):
            self.pod.wait_output(f"[rank {rank}] {word} {generation} ")
        return dict(re.findall(rf"^\[rank (\d)\] {word} {generation} (\d+)$", self.pod.output(), re.MULTILINE))


def test_all_ranks_of_a_pod_are_kept(start: Start, api: FakeApi, tmp_path: Path) -> None:
    job = Regrouping(start, api, tmp_path, '{"left": True}')
    assert job.pids("joined", 2) == job.pids("began", 1)
    job.operator.put(generation=3)
    assert job.pids("joined", 3) == job.pids("began", 1)
    assert "began 2" not in job.pod.output()


@pytest.mark.parametrize(("answer", "after", "why"), [
    ('{"stay": "is writing a checkpoint"} if me == "1" else {"left": True}', "", "rank 1 is writing a checkpoint"),
    ('{"left": True} if me == "0" else {}', "end", "rank 1 has ended"),
    ('{"left": True} if me == "0" else {}', "", "have not left their groups within 2 s"),
], ids=["stays", "ends", "says nothing"])
def test_all_start_anew_where_one_cannot_be_kept(start: Start, api: FakeApi, tmp_path: Path, answer: str, after: str,
                                                 why: str) -> None:
    job = Regrouping(start, api, tmp_path, answer, after)
    assert not set(job.pids("began", 2).values()) & set(job.pids("began", 1).values())
    assert why in job.pod.output()


def test_a_rank_that_was_kept_fails_like_any_other(start: Start, api: FakeApi, tmp_path: Path) -> None:
    job = Regrouping(start, api, tmp_path, '{"left": True}', "fail")
    failure = job.operator.report("RankFailed", 2)["failure"]
    assert (failure["rank"], failure["exitCode"], failure["reason"]) == (1, 1, "broken")
