"""Root or consequence, and the one line that says why."""

from __future__ import annotations

import json

import pytest
from supervisor import failures
from supervisor.failures import judge

CONSEQUENCES = [
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4242",
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for "
    "recv operation to complete",
    "RuntimeError: [enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:131] rv != -1. -1 vs -1",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1275, remote process exited",
    "torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cpu//0/rank_3",
    "torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. 3/4 clients joined.",
    "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed.",
    "RuntimeError: NCCL communicator was aborted on rank 1. NCCL error: unhandled system error",
    "RuntimeError: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE)",
    "RuntimeError: [ERROR] HCCL AllReduce failed: HCCL_E_TIMEOUT",
    "RuntimeError: EI0002: The wait execution of the Notify register times out",
    "RuntimeError: EI0006: Getting socket times out.",
]
ROOTS = [
    "ValueError: batch size 3 is not divisible by 2",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "RuntimeError: CUDA error: device-side assert triggered",
    "RuntimeError: NPU error, error code is 507015. AI Core execution exception",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/train.bin'",
    "KeyError: 'nccl_settings'",
    "TimeoutError: the data server did not answer",
]


@pytest.mark.parametrize("message", CONSEQUENCES)
def test_consequences(message: str) -> None:
    lines = ["Traceback (most recent call last):", '  File "train.py", line 3', "    dist.all_reduce(t)", message]
    verdict = judge(1, lines, lines)
    assert (verdict.root, verdict.reason) == (False, message)


@pytest.mark.parametrize("message", ROOTS)
def test_roots(message: str) -> None:
    lines = ["Traceback (most recent call last):", '  File "train.py", line 3, in <module>', "    x()", message]
    verdict = judge(1, lines, lines)
    assert (verdict.root, verdict.reason) == (True, message)


def test_what_torch_prints_after_the_traceback_is_not_the_reason() -> None:
    lines = ["Traceback (most recent call last):", '  File "t.py", line 1', "ValueError: no such layer",
             "[rank1]:[W1122 ProcessGroup.cpp:1] Warning: destroy_process_group() was not called"]
    assert judge(1, lines, lines).reason == "ValueError: no such layer"


def test_a_chained_exception_is_named_after_the_last() -> None:
    lines = ["Traceback (most recent call last):", '  File "t.py"', "KeyError: 1", "", "During handling of the above "
             "exception, another exception occurred:", "", "Traceback (most recent call last):", '  File "t.py"',
             "app.errors.ConfigError: bad"]
    assert judge(1, lines, lines).reason == "app.errors.ConfigError: bad"


@pytest.mark.parametrize(("code", "oom", "reason"), [
    (-9, False, "SIGKILL"), (-9, True, "SIGKILL (out of memory)"), (-11, False, "SIGSEGV"), (-64, False, "SIGRTMAX"),
])
def test_signals_are_roots_whatever_was_printed(code: int, oom: bool, reason: str) -> None:
    verdict = judge(code, [], ["Connection closed by peer"], oom=oom)
    assert (verdict.root, verdict.reason) == (True, reason)


def test_the_watchdogs_abort_is_a_consequence_an_assertions_is_not() -> None:
    watchdog = ["[rank1] ProcessGroupNCCL's watchdog: Watchdog caught collective operation timeout",
                "terminate called after throwing an instance of 'c10::DistBackendError'"]
    assert judge(-6, watchdog, watchdog).root is False
    assertion = ["python: kernel.cpp:7: Assertion `n > 0' failed."]
    assert judge(-6, assertion, assertion) == (True, "SIGABRT: " + assertion[0], assertion[0])


def recorded(message: str, stack: str = "") -> str:
    return json.dumps({"message": {"message": message, "extraInfo": {"py_callstack": stack, "timestamp": "1"}}})


def test_the_error_file_is_better_evidence_than_the_log() -> None:
    verdict = judge(1, ["Connection reset by peer"], ["Connection reset by peer"],
                    recorded("ValueError: bad\nsecond", "Traceback\nValueError: bad"))
    assert verdict == (True, "ValueError: bad", "Traceback\nValueError: bad")
    peer = recorded("RuntimeError: [gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    assert judge(1, [], [], peer).root is False


@pytest.mark.parametrize("content", ["", "{", "[]", '{"message": 3}', '{"message": {}}', "null",
                                     "[" * 100_000])
def test_a_damaged_error_file_is_ignored(content: str) -> None:
    assert judge(1, ["x"], ["boom"], content).reason == "boom"


@pytest.mark.parametrize(("errors", "file", "reason"), [
    (["warning", "\x1b[31mdata: /data is empty\x1b[0m", ""], "", "data: /data is empty"),
    (["noise"], recorded("tokenizer: not found"), "tokenizer: not found"),
    (["noise"], json.dumps({"message": "short form"}), "short form"),
    (["NCCL error: unhandled"], "", "NCCL error: unhandled"),
    ([], "", "bad configuration"),
])
def test_bad_configuration_is_a_root_with_one_line(errors: list[str], file: str, reason: str) -> None:
    verdict = judge(78, errors, errors, file)
    assert (verdict.root, verdict.reason) == (True, reason)


def test_an_exit_without_a_word() -> None:
    assert judge(3, [], []) == (True, "exit code 3", "")


def test_control_characters_are_taken_out() -> None:
    assert failures.plain("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x00") == "red x"
