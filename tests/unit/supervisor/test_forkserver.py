"""Ranks that are forks of a process with the imports: real supervisors, real processes, no torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supervisor import forkserver, preload
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, alive, children_of, wait_for

Start = Callable[..., SupervisedPod]
PYTHON = "/usr/bin/python3"
IMPORTED = "imported ahead in"
# The supervisor with shorter times where a test would only wait.
HURRIED = [PYTHON, "-c", "from supervisor import __main__, forkserver; forkserver.FORK_WITHIN = 0.5; __main__.main()"]
COUNTED = "import os\nPID = os.getpid()\n"
FACTS = """
import signal
import json, multiprocessing, os, sys, threading
import counted

def square(value):
    return value * value

class Picklable:
    pass

if __name__ == "__main__":
    threads = len(os.listdir("/proc/self/task"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        squares = pool.map(square, [2, 3])
    seen = []
    thread = threading.Thread(target=lambda: seen.append(threading.main_thread() is not threading.current_thread()))
    thread.start()
    thread.join()
    print("FACTS " + json.dumps({
        "argv": sys.argv, "path": sys.path, "file": __file__, "cwd": os.getcwd(), "spec": __spec__, "doc": __doc__,
        "main": sys.modules["__main__"].__dict__ is globals(), "class": Picklable.__module__, "squares": squares,
        "thread": seen, "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
        "local": os.environ["LOCAL_RANK"], "input": sys.stdin.read(), "open": sorted(os.listdir("/proc/self/fd")),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "umask": os.umask(0o22),
        "pipe": signal.getsignal(signal.SIGPIPE), "threads": threads,
        "flags": str(sys.flags), "variables": sorted(os.environ), "parent": os.getppid(),
        "ahead": counted.PID != os.getpid(),
    }))
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """The folder of the program, which is on its sys.path."""
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "counted.py").write_text(COUNTED)
    return folder


def script(folder: Path, code: str) -> list[str]:
    """A program of one file, as users have it."""
    (folder / "train.py").write_text(code)
    return [PYTHON, str(folder / "train.py")]


def forking(start: Start, program: list[str], preload: str = "json", **options: Any) -> SupervisedPod:
    """A pod whose ranks are forks; returns when the imports are over."""
    pod = start(program, TRAINYARD_PRELOAD=preload, **options)
    pod.wait_output(IMPORTED)
    return pod


def facts(pod: SupervisedPod) -> dict[int, dict[str, object]]:
    """What each rank has printed."""
    lines = re.findall(r"^\[rank (\d+)\] FACTS (.*)$", pod.output(), re.MULTILINE)
    return {int(rank): json.loads(text) for rank, text in lines}


def test_a_fork_is_like_the_program_started_anew(start: Start, api: FakeApi, modules: Path) -> None:
    seen: list[dict[int, dict[str, object]]] = []
    for index, preload_list in enumerate(("", "counted")):
        operator = Operator(api, size=1, incarnations={"0": index + 1})
        pod = start([*script(modules, FACTS), "--lr", "1"], ranks=2, incarnation=index + 1,
                    TRAINYARD_PRELOAD=preload_list)
        operator.run(pod)
        wait_for(lambda pod=pod: len(facts(pod)) == 2, 30, pod.output)  # type: ignore[misc]
        seen.append(facts(pod))
        operator.put(phase="Done")
        assert pod.wait() == 0
        assert {one.pop("parent") for one in seen[-1].values()} == {pod.process.pid}
    executed, forked = seen
    assert [one.pop("ahead") for one in executed.values()] == [False, False]
    assert [one.pop("ahead") for one in forked.values()] == [True, True]
    for one in (*executed.values(), *forked.values()):
        assert isinstance(one["variables"], list)
        one["variables"].remove("TRAINYARD_PRELOAD")
    for rank in (0, 1):
        assert {key: (value, executed[rank][key]) for key, value in forked[rank].items()
                if value != executed[rank][key]} == {}


def test_an_import_that_fails_at_length_is_told_in_short(start: Start, api: FakeApi, modules: Path) -> None:
    (modules / "long.py").write_text("raise ValueError('x' * 100_000)")
    operator = Operator(api)
    pod = start(script(modules, "print('ran')"), TRAINYARD_PRELOAD="long")
    pod.wait_output("nothing is imported ahead (ValueError: xxx")
    operator.run(pod)
    operator.report("Finished")


ENDINGS = {
    "returns": ("print('done')", 0, ""),
    "exit": ("import sys; sys.exit(3)", 3, "exit code 3"),
    "text": ("import sys; sys.exit('no data')", 1, "no data"),
    "configuration": ("import os, sys; print('bad', file=sys.stderr); sys.stderr.flush(); os._exit(78)", 78, "bad"),
    "signal": ("import os; os.kill(os.getpid(), 9)", -9, "SIGKILL"),
    "interrupt": ("raise KeyboardInterrupt", -2, "SIGINT"),
    "exception": ("def f():\n    raise ValueError('wrong')\nf()", 1, "ValueError: wrong"),
    "syntax": ("def f(:", 1, "SyntaxError: invalid syntax"),
    "atexit": ("import atexit, threading, time\natexit.register(print, 'last words')\n"
               "threading.Thread(target=lambda: time.sleep(0.2) or print('a thread')).start()", 0, ""),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_the_ends_of_a_fork(start: Start, api: FakeApi, modules: Path, how: str) -> None:
    code, status, reason = ENDINGS[how]
    operator = Operator(api)
    program = script(modules, code)
    pod = forking(start, program)
    operator.run(pod)
    if status == 0:
        operator.report("Finished")
        if how == "atexit":
            pod.wait_output("] last words\n")
            assert re.search(r"\] a thread\n.*\] last words\n", pod.output(), re.DOTALL)
    else:
        failure = operator.report("RankFailed")["failure"]
        assert (failure["exitCode"], failure["reason"]) == (status, reason)
        if how in ("exception", "syntax"):
            plain = subprocess.run(program, capture_output=True, text=True).stderr
            assert failure["text"].strip() == plain.strip(), "the same traceback, without a frame of ours"
    assert "one by one" not in pod.output()


@pytest.mark.parametrize("form", ["-m", "-c", "-u", "folder", "missing"])
def test_the_forms_of_a_command(start: Start, api: FakeApi, modules: Path, form: str) -> None:
    code = "import sys; print('RAN', __name__, sys.argv, __spec__ and __spec__.name)"
    package = modules / "package"
    package.mkdir()
    (package / "__main__.py").write_text(code)
    program = {"-m": [PYTHON, "-m", "package", "x"], "-c": [PYTHON, "-c", code, "x"],
               "-u": [PYTHON, "-u", str(package / "__main__.py")], "folder": [PYTHON, str(package), "x"],
               "missing": [PYTHON, "missing.py"]}[form]
    environment = {**os.environ, "PYTHONPATH": f"{forkserver.__file__.rpartition('/')[0]}/..:{modules}"}
    operator = Operator(api)
    pod = forking(start, program, PYTHONPATH=environment["PYTHONPATH"])
    operator.run(pod)
    plain = subprocess.run(program, capture_output=True, text=True, env=environment)
    if form == "missing":
        assert operator.report("RankFailed")["failure"]["exitCode"] == plain.returncode == 2
    else:
        operator.report("Finished")
    (line,) = (plain.stdout + plain.stderr).splitlines()
    pod.wait_output(f"[rank 0] {line}\n")


LONG = "import os, time; print('up', os.environ['TRAINYARD_GENERATION'], os.getpid(), flush=True); time.sleep(1000)"


def server_of(pod: SupervisedPod) -> int:
    """The process that ranks are forked from."""
    return next(pid for pid in children_of(pod.process.pid)
                if b"preload.py" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getsid(pid) == pid
                and not Path(f"/proc/{pid}/comm").read_text().startswith("rank "))


def rank_of(pod: SupervisedPod, generation: str) -> int:
    """The process of rank 0 in a generation."""
    return int(re.findall(rf"up {generation} (\d+)", pod.wait_output(f"up {generation} "))[0])


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_a_server_that_is_lost_costs_no_start(start: Start, api: FakeApi, modules: Path, how: str) -> None:
    operator = Operator(api)
    pod = forking(start, script(modules, LONG), command=HURRIED)
    operator.run(pod)
    first, server = rank_of(pod, "1"), server_of(pod)
    assert Path(f"/proc/{first}/comm").read_text() == "rank 0\n"
    os.kill(server, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    if how == "killed":
        pod.wait_output("ended unexpectedly")
        wait_for(lambda: pod.output().count(IMPORTED) == 2, 30, pod.output)
    operator.put(generation=2)
    second = rank_of(pod, "2")
    assert not alive(first)
    if how == "hanging":
        assert "ranks are started one by one" in pod.output()
        assert Path(f"/proc/{second}/comm").read_text() != "rank 0\n"
        wait_for(lambda: pod.output().count(IMPORTED) == 2, 30, pod.output)
    assert not alive(server)
    operator.put(generation=3)
    assert Path(f"/proc/{rank_of(pod, '3')}/comm").read_text() == "rank 0\n", "there is a new server"


@pytest.mark.parametrize(("module", "why"), [
    ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    ("import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
     "the imports left 1 threads running"),
    ("import os; os._exit(5)", "it ended 3 times"),
])
def test_imports_that_do_not_bear_a_fork(start: Start, api: FakeApi, modules: Path, module: str, why: str) -> None:
    (modules / "odd.py").write_text(module)
    operator = Operator(api)
    pod = start(script(modules, LONG), TRAINYARD_PRELOAD="odd")
    operator.run(pod)
    assert Path(f"/proc/{rank_of(pod, '1')}/comm").read_text() != "rank 0\n"
    pod.wait_output(f"nothing is imported ahead ({why}); ranks are started one by one")
    wait_for(lambda: len(children_of(pod.process.pid)) == 1, 30, pod.output)  # the server ends after it has said so


def test_a_generation_that_comes_during_the_imports(start: Start, api: FakeApi, modules: Path) -> None:
    """The first order is given up before the server can take it; its ranks never run."""
    go = modules / "go"
    (modules / "slow.py").write_text(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)")
    operator = Operator(api)
    pod = start(script(modules, LONG), TRAINYARD_PRELOAD="slow")
    operator.run(pod)
    operator.report("Formed", 1)
    operator.put(generation=2)
    operator.report("Formed", 2)
    go.touch()
    rank_of(pod, "2")
    assert "up 1" not in pod.output()
    assert len(children_of(pod.process.pid)) == 2


def test_a_spare_is_warm_when_its_imports_are_over(start: Start, api: FakeApi, modules: Path) -> None:
    go = modules / "go"
    (modules / "slow.py").write_text(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)")
    operator = Operator(api)
    operator.put()
    pod = start(script(modules, LONG), index=1, TRAINYARD_PRELOAD="slow")
    pod.wait_output("this pod is a spare")
    assert not api.reports, "it runs, and a rank would have to wait"
    go.touch()
    operator.report("Warm", 1)
    assert IMPORTED in pod.output()
    operator.put(generation=2)
    operator.report("Warm", 2)


@pytest.mark.parametrize("preload", ["", "odd"])
def test_a_spare_that_has_nothing_to_import_is_warm_at_once(start: Start, api: FakeApi, modules: Path, preload: str
                                                            ) -> None:
    (modules / "odd.py").write_text("raise RuntimeError('no licence')")
    operator = Operator(api)
    operator.put()
    start(script(modules, LONG), index=1, TRAINYARD_PRELOAD=preload)
    operator.report("Warm", 1)


@pytest.mark.parametrize(("program", "works"), [
    (["python", "a.py"], True), (["/opt/venv/bin/python3.11", "-m", "a"], True), (["python3", "-u", "-c", "x"], True),
    (["bash", "-c", "python a.py"], False), (["python3"], False), (["python3", "-O", "a.py"], False),
    (["python3", "-m"], False), (["torchrun", "a.py"], False), (["pypy3", "a.py"], False), ([], False),
])
def test_which_programs_can_be_forks(program: list[str], works: bool) -> None:
    assert (forkserver.usable(program) == "") is works


def test_open_devices_and_threads_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from supervisor import preload; preload.DEVICES = ('/dev/zer',); {}; print(preload.problem())"
    for more, told in (("pass", ""), ("held = open('/dev/zero')", "the imports opened /dev/zero")):
        environment = {**os.environ, "PYTHONPATH": str(Path(preload.__file__).parents[1])}
        ran = subprocess.run([sys.executable, "-c", code.format(more)], capture_output=True, text=True, env=environment)
        assert ran.stdout.strip() == told, ran.stderr
