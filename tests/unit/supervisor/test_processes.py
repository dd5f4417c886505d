"""Supervisors as real processes, with a small Kubernetes API over real sockets, and programs without torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervisor.forkserver import Fork, Forked, ForkServer
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod, alive, children_of

Start = Callable[..., SupervisedPod]
PYTHON = "/usr/bin/python3"
# The supervisor with shorter times where a test would only wait; test_core.py has the real ones.
HURRIED = [PYTHON, "-c", "from supervisor import __main__, core, master; core.KILL_AFTER_TERM = 0.5; "
           "master.LOCAL_DELAY = 0.3; __main__.main()"]


def python(code: str) -> list[str]:
    """A program, its file kept out of the interpreter's way (-S: no site packages, so it starts fast)."""
    return [PYTHON, "-S", "-c", code]


def test_a_whole_life_with_torchruns_environment(start: Start, api: FakeApi) -> None:
    code = "import os, json; print('ENV ' + json.dumps(dict(os.environ)))"
    operator = Operator(api, size=2, cause={"total": 3})
    first = start(python(code), index=0, nodes=2, ranks=2)
    second = start(python(code), index=1, nodes=2, ranks=2, TRAINYARD_MAX_RESTARTS="7")
    operator.run(second)
    assert operator.report("Formed")["formedAt"].endswith("Z")
    operator.report("Finished")
    operator.put(phase="Done")
    assert (first.wait(), second.wait()) == (0, 0)
    found = {}
    for pod in (first, second):
        for rank, line in re.findall(r"^\[rank (\d)\] ENV (.*)$", pod.output(), re.MULTILINE):
            found[int(rank)] = json.loads(line)
    assert sorted(found) == [0, 1, 2, 3]
    for rank, env in found.items():
        assert {name: env[name] for name in (
            "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
            "ROLE_WORLD_SIZE", "ROLE_NAME", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR",
            "TORCHELASTIC_USE_AGENT_STORE", "TRAINYARD_GENERATION", "OMP_NUM_THREADS",
        )} == {
            "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": str(rank // 2), "GROUP_WORLD_SIZE": "2", "ROLE_RANK": str(rank), "ROLE_WORLD_SIZE": "4",
            "ROLE_NAME": "default", "TORCHELASTIC_RUN_ID": "job-uid", "TORCHELASTIC_RESTART_COUNT": "3",
            "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "False", "TRAINYARD_GENERATION": "1",
            "OMP_NUM_THREADS": "1",
        }
        assert env["TORCHELASTIC_ERROR_FILE"] != env["TRAINYARD_PROGRESS"]
    assert len({env["MASTER_PORT"] for env in found.values()}) == 1
    assert found[2]["TORCHELASTIC_MAX_RESTARTS"] == "7"


@pytest.mark.parametrize("preload", ["", "json"])
def test_of_all_processes_the_kernel_is_to_end_a_rank_first(start: Start, api: FakeApi, preload: str) -> None:
    operator = Operator(api)
    code = """
import os, time
for _ in range(100):  # a program runs before the supervisor knows its pid
    own, above = (int(open(f"/proc/{pid}/oom_score_adj").read()) for pid in ("self", os.getppid()))
    if own != above:
        break
    time.sleep(0.1)
print("ADJUSTED", own - above)
"""
    pod = start(python(code), **({"TRAINYARD_PRELOAD": preload} if preload else {}))
    operator.run(pod)
    operator.report("Finished")
    operator.put(phase="Done")
    assert pod.wait() == 0
    assert "ADJUSTED 500" in pod.output()


def test_bad_configuration_is_told_in_one_line(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    pod = start(["sh", "-c", r"echo noise; printf '\033[31mdata: /data is empty\033[0m\n' >&2; exit 78"])
    operator.run(pod)
    failure = operator.report("RankFailed")["failure"]
    assert (failure["exitCode"], failure["root"], failure["reason"]) == (78, True, "data: /data is empty")
    assert failure["text"].splitlines() == ["noise", "data: /data is empty"]
    assert pod.termination.read_text().startswith("rank 0: data: /data is empty\n")
    operator.put(phase="Done")
    assert pod.wait() == 0


def test_a_program_that_is_not_there(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    operator.run(start(["/no/such/program"]))
    failure = operator.report("RankFailed")["failure"]
    assert failure["exitCode"] == 78
    assert failure["reason"] == "cannot start '/no/such/program': No such file or directory"


DAEMON = """
import os, sys, time
if os.environ["TRAINYARD_GENERATION"] == "1":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print("daemon", os.getpid(), flush=True)
            time.sleep(1000)
        os._exit(0)
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
print("old daemon alive:", os.path.exists("/proc/" + PID) if (PID := open(sys.argv[1]).read()) else None)
"""


def test_what_a_rank_leaves_behind_is_gone_before_the_next_start(start: Start, api: FakeApi, tmp_path: Path) -> None:
    operator, note = Operator(api), tmp_path / "pid"
    pod = start([*python(DAEMON), str(note)])
    operator.run(pod)
    note.write_text(re.findall(r"daemon (\d+)", pod.wait_output("daemon "))[0])
    failure = operator.report("RankFailed")["failure"]
    assert (failure["exitCode"], failure["reason"]) == (-9, "SIGKILL")
    operator.put(generation=2)
    pod.wait_output("old daemon alive: False")
    assert not alive(int(note.read_text()))
    operator.report("Finished", 2)


def test_odd_output(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    code = ("import os, sys; o = sys.stdout.buffer; o.write(b'\\xff\\xfe raw\\n'); o.write(b'x' * 100000 + b'\\n'); "
            "o.write(b'10%\\r20%\\r30%\\r\\n'); o.write(b'no newline'); o.flush(); os.close(1); "
            "print('stdout is closed', file=sys.stderr); sys.exit(3)")
    pod = start(python(code))
    operator.run(pod)
    failure = operator.report("RankFailed")["failure"]
    assert failure["reason"] == "stdout is closed"
    lines = pod.log.read_bytes().split(b"\n")
    assert b"[rank 0] \xff\xfe raw" in lines
    cut = next(line for line in lines if b"xxx" in line)
    assert cut == b"[rank 0] " + b"x" * 16384 + b" ... [line cut]"
    assert b"[rank 0] 30%" in lines
    assert b"[rank 0] no newline" in lines


def test_sigterm_becomes_a_drain(start: Start, api: FakeApi) -> None:
    code = ("import os, sys, time\n"
            "open(os.environ['TRAINYARD_PROGRESS'], 'w').write('{\"step\": 5, \"durableStep\": 4}\\n')\n"
            "while not os.path.exists(os.environ['TRAINYARD_DRAIN']): time.sleep(0.01)\n"
            "open(os.environ['TRAINYARD_PROGRESS'], 'w').write('{\"step\": 6, \"durableStep\": 6}\\n')\n"
            "sys.exit(75)")
    operator = Operator(api)
    pod = start(python(code))
    operator.run(pod)
    api.wait_report(lambda _, spec: spec.get("progress", {}).get("step") == 5)
    pod.terminate()
    operator.report("Stopping")
    assert pod.process.poll() is None
    operator.put(phase="Drain")
    assert operator.report("Drained")["drainedStep"] == 6
    assert pod.wait() == 143


def test_a_program_that_ignores_drain_and_sigterm(start: Start, api: FakeApi) -> None:
    operator = Operator(api, drainSeconds=1)
    pod = start(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], command=HURRIED)
    operator.run(pod)
    pod.wait_output("[rank 0] up")
    began = time.monotonic()
    operator.put(phase="Drain")
    assert "drainedStep" not in operator.report("Drained")
    assert 1.4 < time.monotonic() - began < 20  # a busy machine is slow, but SIGKILL does come
    assert children_of(pod.process.pid) == []


@pytest.mark.parametrize("how", ["incarnation", "401", "job"])
def test_a_fenced_pod_leaves_without_a_word(start: Start, api: FakeApi, how: str) -> None:
    operator = Operator(api)
    pod = start(["sh", "-c", "echo pid $$; exec sleep 1000"])
    operator.run(pod)
    rank = int(re.findall(r"pid (\d+)", pod.wait_output("] pid "))[0])
    operator.report("Formed")  # may be on its way yet
    written = len(api.reports)
    if how == "incarnation":
        operator.put(generation=2, incarnations={"0": 2})
    elif how == "job":
        operator.put(job="another")
    else:
        api.status = 401
        api.cut()
    assert pod.wait() == 143
    assert len(api.reports) == written
    assert not alive(rank)


def test_an_api_that_is_away_at_first(start: Start, api: FakeApi) -> None:
    api.down()
    pod = start(["true"])
    pod.wait_output("the API cannot be reached (ConnectionRefusedError")
    api.up()
    pod.wait_output("there is no World for this job")
    operator = Operator(api)
    operator.run(pod)
    operator.report("Finished")
    operator.put(phase="Done")
    assert pod.wait() == 0


@pytest.mark.parametrize("preload", ["", "json"])
def test_without_the_api_the_gang_starts_again_by_itself(start: Start, api: FakeApi, preload: str, tmp_path: Path
                                                         ) -> None:
    operator, go = Operator(api, size=2), tmp_path / "go"
    code = ("import os, sys, time; g = os.environ['TRAINYARD_GENERATION']; print('at', g, flush=True)\n"
            "if g == '1':\n"
            f" while os.environ['RANK'] != '1' or not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
            " sys.exit(1)")
    program = [PYTHON, "-c", code] if preload else python(code)  # -S is an option that no fork can have
    pods = [start(program, index=index, nodes=2, command=HURRIED, TRAINYARD_PRELOAD=preload) for index in (0, 1)]
    operator.run(pods[0])
    for pod in pods:
        pod.wait_output("at 1\n")
    api.down()
    go.touch()
    for pod in pods:
        pod.wait_output("at 1.1\n")
        assert ("imported ahead" in pod.output()) is bool(preload)
    api.up()
    assert operator.report("Finished")["attempt"] == 1
    assert not [spec for _, _, spec in api.reports if spec["kind"] == "RankFailed"]
    operator.put(phase="Done")
    assert [pod.wait() for pod in pods] == [0, 0]


def test_progress_that_cannot_be_read_is_told_once(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    code = ("import os, time\n"
            "def put(text): open(os.environ['TRAINYARD_PROGRESS'], 'w').write(text); time.sleep(0.6)\n"
            "put('step 3 of 4'); put('{}'); put('{\"step\": 3}'); put('[]')")
    pod = start(python(code))
    operator.run(pod)
    operator.report("Finished")
    assert pod.output().count("progress is ignored") == 1
    assert next(spec["progress"]["step"] for _, _, spec in api.reports if "progress" in spec) == 3


def test_nothing_that_a_program_writes_silences_its_pod(start: Start, api: FakeApi) -> None:
    """Neither what would end a careless reader, nor what the API does not take."""
    api.unwelcome = "rude"
    operator = Operator(api)
    code = ("import os, sys, time\n"
            "open(os.environ['TRAINYARD_PROGRESS'], 'w').write('{\"step\": 3, \"loss\": 1' + '0' * 400 + '}')\n"
            "open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write('[' * 200_000)\n"
            "print('rude', flush=True); time.sleep(0.6); sys.exit(3)")
    pod = start(python(code))
    operator.run(pod)
    failure = operator.report("RankFailed")["failure"]
    assert (failure["root"], failure["rank"], failure["exitCode"]) == (True, 0, 3)
    pod.wait_output("going on without words")


def test_a_flood_of_output_stalls_nothing(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    pod = start(python("import os\nline = b'0123456789' * 12 + b'\\n'\nfor _ in range(800): os.write(1, line * 540)"))
    began = time.monotonic()
    operator.run(pod)
    operator.report("Finished", timeout=60)
    seconds = time.monotonic() - began
    operator.put(phase="Done")
    assert pod.wait() == 0
    size = pod.log.stat().st_size
    print(f"{size >> 20} MiB of output in {seconds:.2f} s")
    assert size >= 800 * 540 * (121 + len("[rank 0] "))


def test_the_environment_must_be_complete(start: Start) -> None:
    pod = start(["true"], TRAINYARD_INDEX="x")
    assert pod.wait() == 78
    assert "TRAINYARD_INDEX is 'x', expected a whole number of at least 0" in pod.output()


def test_sigterm_without_a_world(start: Start) -> None:
    pod = start(["true"])
    pod.wait_output("there is no World")
    pod.terminate()
    assert pod.wait() == 143


def test_another_store_claimant_and_a_wrong_token(start: Start, api: FakeApi) -> None:
    operator = Operator(api, size=2)
    first = start(["sleep", "1000"], index=0, nodes=2)
    operator.run(first)
    second = start(["sleep", "1000"], index=1, nodes=2)
    operator.report("Formed")
    twin = start(["sleep", "1000"], index=1, nodes=2, uid="twin", TRAINYARD_POD="j-1-1-twin")
    twin.wait_output("refused: index 1, incarnation 1 is held by the pod with UID uid-1-1")
    assert len(children_of(second.process.pid)) == 1
    assert children_of(twin.process.pid) == []
    api.put_world("k", {**operator.spec, "token": "not-the-token-of-j"})
    stranger = start(["sleep", "1000"], index=1, nodes=2, TRAINYARD_JOB="k", TRAINYARD_POD="stranger")
    stranger.wait_output("closed by the other side; trying again")
    assert children_of(stranger.process.pid) == []
    assert children_of(second.process.pid)
    twin.terminate()
    assert twin.wait() == 143


def test_a_master_address_that_is_none_is_tried_again(start: Start, api: FakeApi) -> None:
    """Somebody edited the World, or a master told nonsense: no member ends of it."""
    operator = Operator(api, size=2)
    pod = start(["sleep", "1000"], nodes=2)
    for address in ("127.0.0.1:99999", "nobody", "127.0.0.1:-1"):
        operator.put(master={"pod": "j-1-1", "podUid": "other", "address": address})
        pod.wait_output(f"master's store at {address}: ")
    pod.terminate()
    assert pod.wait() == 143


def test_a_stranger_cannot_end_the_master(start: Start, api: FakeApi) -> None:
    operator = Operator(api, size=2)
    pod = start(["sleep", "1000"], nodes=2)
    operator.run(pod)
    host, _, port = operator.spec["master"]["address"].rpartition(":")
    for body in (b"[" * 60_000, b'{"hello": ' + b"[" * 700 + b"]" * 700 + b', "nonce": 1, "proof": 1}', b"[]", b"x"):
        with socket.create_connection((host, int(port)), 10) as stranger:
            stranger.sendall(struct.pack(">I", len(body)) + hashlib.sha256(body).digest() + body)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass  # its nonce comes first
    assert pod.process.poll() is None


def test_descriptors_for_a_large_gang(start: Start, api: FakeApi) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = ["sh", "-c", 'ulimit -Sn 256; exec "$0" "$@"', PYTHON, "-m", "supervisor"]
    operator = Operator(api)
    pod = start(["sh", "-c", "echo files $(ulimit -Sn)"], command=few)
    operator.run(pod)
    operator.report("Finished")
    pod.wait_output(f"files {65536 if hard == resource.RLIM_INFINITY else min(65536, hard)}\n")


def test_a_second_sigterm_changes_nothing(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    pod = start(["sh", "-c", "echo up; exec sleep 1000"], TRAINYARD_GRACE="4")
    operator.run(pod)
    pod.wait_output("[rank 0] up")  # a pod without ranks leaves at once
    began = time.monotonic()
    pod.terminate()
    pod.process.send_signal(signal.SIGINT)
    assert pod.wait() == 143
    assert 0.9 < time.monotonic() - began < 20  # a busy machine is slow, but the sleep is 1,000 s


def test_signals_that_mean_something_to_programs_are_passed_on(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    pod = start(["sh", "-c", "trap 'echo got usr1; exit 0' USR1; echo up; while :; do sleep 0.05; done"])
    operator.run(pod)
    pod.wait_output("[rank 0] up")
    pod.process.send_signal(signal.SIGUSR1)
    operator.report("Finished")
    pod.wait_output("[rank 0] got usr1")
    assert pod.process.poll() is None


def test_a_program_that_cannot_be_started_now_may_be_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """78 would end the job for good: only for what no restart can mend."""
    from supervisor import events as e
    from supervisor import ranks as module
    from supervisor.logs import Logs

    logs, posted = Logs(), list[e.Event]()
    me = e.Member("job", "j-0-1", "uid", "127.0.0.1", 0, 1, 1, 30)
    ranks = module.Ranks(["true"], me, {}, str(tmp_path / "scratch"), logs, posted.append, set)
    for error, code in ((errno.EAGAIN, 1), (errno.ENOMEM, 1), (errno.ENOENT, 78), (errno.EACCES, 78)):
        def refuse(*_: object, number: int = error, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("subprocess.Popen", refuse)
        ranks.start(e.StartRanks((1, 0), e.Start("h", 1, False), 1, 0))
        ranks._ranks[-1].tell_at = 0
        ranks.step()
        ended = posted[-1]
        assert isinstance(ended, e.RankExited)
        assert (ended.exit.code, ended.exit.reason) == (code, f"cannot start 'true': {os.strerror(error)}")
    (tmp_path / "full").write_text("")  # nothing can be made below a file, as nothing can on a full disk
    ranks = module.Ranks(["true"], me, {}, str(tmp_path / "full"), logs, posted.append, set)
    ranks.start(e.StartRanks((1, 0), e.Start("h", 1, False), 1, 0))
    ranks.touch_drain()
    ranks.step()
    assert isinstance(posted[-1], e.RankExited)


class KilledEarly:
    """A fork server whose ranks are killed while they wait for the others: nobody reads the gate any more."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.gone = False

    def fork(self, order: list[Fork]) -> bool:
        self.pids = {one.local: subprocess.Popen(["sleep", "100"]).pid for one in order}
        return True

    def go(self) -> None:
        self.gone = True

    def cancel(self) -> None:
        raise AssertionError


def test_a_fork_that_is_killed_before_it_may_go_is_not_waited_for(tmp_path: Path) -> None:
    from supervisor import events as e
    from supervisor import ranks as module
    from supervisor.logs import Logs

    logs, posted, server = Logs(), list[e.Event](), KilledEarly()
    me = e.Member("job", "j-0-1", "uid", "127.0.0.1", 0, 1, 2, 30)
    ranks = module.Ranks(["true"], me, {}, str(tmp_path / "scratch"), logs, posted.append, set,
                         server)  # type: ignore[arg-type]
    ranks.start(e.StartRanks((1, 0), e.Start("h", 1, False), 1, 0))
    os.kill(server.pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, server.pids[1], os.WEXITED | os.WNOWAIT)
    ranks.reap(lambda pid, status: None)
    ranks.forked(Forked(server.pids))
    for rank in ranks._ranks.values():
        rank.tell_at = 0
    ranks.step()
    exited = [event for event in posted if isinstance(event, e.RankExited)]
    assert [(event.exit.rank, event.exit.code) for event in exited] == [(1, -9)]
    assert server.gone
    os.kill(server.pids[0], signal.SIGKILL)
    os.waitpid(server.pids[0], 0)


def test_the_gate_of_ranks_that_were_all_killed_does_not_end_the_supervisor(tmp_path: Path) -> None:
    from supervisor.logs import Logs

    server = ForkServer(["true"], "", {}, str(tmp_path), Logs())
    read, server._gate = os.pipe()
    server._order = [Fork(0, "rank 0", {}, (1, 2))]
    os.close(read)
    server.go()
    assert server._gate is None


def test_sigterm_while_it_still_starts_is_not_lost(start: Start, api: FakeApi) -> None:
    """The kernel keeps from PID 1 what it has no handler for."""
    code = ("import os, signal; from supervisor import __main__, loop; first = loop.Loop.__init__\n"
            "def slow(self, *given): os.kill(os.getpid(), signal.SIGTERM); first(self, *given)\n"
            "loop.Loop.__init__ = slow; __main__.main()")
    pod = start(["true"], command=[PYTHON, "-c", code])
    assert pod.wait() == 143
    assert "told to end (SIGTERM)" in pod.output()


PULSE = """
import os, time
from supervisor.pulse import HEADER, MAGIC, PHASES, SIZE
generation, rank = os.environ["TRAINYARD_GENERATION"], int(os.environ["RANK"])
print("begins", generation, "after", os.environ.get("TRAINYARD_FINISHED_STEP"), flush=True)
steps, step = {"1": (5, 12 - rank), "2": (0, 0), "3": (1, 13)}.get(generation, (0, 0))
with open(os.environ["TRAINYARD_PULSE"], "wb") as file:
    file.write(HEADER.pack(MAGIC, 0, PHASES.index("step"), 0, steps, step, time.monotonic(), 0.1).ljust(SIZE, b"\\0"))
print("told", generation, flush=True)
time.sleep(600)
"""


def test_ranks_are_told_what_those_before_them_had_finished(start: Start, api: FakeApi) -> None:
    operator = Operator(api)
    pod = start(python(PULSE), ranks=2)
    operator.run(pod)
    for generation, before in ((1, None), (2, 11), (3, 11), (4, 13)):
        if generation > 1:
            operator.put(generation=generation)
        for rank in (0, 1):
            pod.wait_output(f"[rank {rank}] begins {generation} after {before}\n")
            pod.wait_output(f"[rank {rank}] told {generation}\n")
