"""A process that has imported what ranks need, and whose forks become ranks.

Not imported by the supervisor: this file is run by the program's own Python, as `python preload.py LINK MODULES --
PROGRAM...`, and needs nothing beside it.

LINK is a socket (SOCK_SEQPACKET). It says {"ready": true} once the imports are done, or {"aside": why} if its forks
would not be like new processes, and ends. An order is {"number", "ranks": [{"local", "name", "environment"}]} with
descriptors: the gate, then stdout and stderr of each rank. Each rank answers {"number", "local", "pid"} and waits for
a byte from the gate; if that is closed instead, it ends. Ranks are children of a process that ends at once, so that
they become the supervisor's.
"""

from __future__ import annotations

import array
import builtins
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import types
import zipfile
from typing import Any, Dict, Iterable, List, Sequence

DEVICES = ("/dev/davinci", "/dev/devmm_svm", "/dev/hisi_hdc", "/dev/nvidia", "/dev/kfd", "/dev/accel")
ORDER = 1 << 20  # bytes
RANKS = 120  # a message carries at most 253 descriptors
WORDS = 1000  # characters of why there is no server: the supervisor reads messages of at most 64 KiB
SET_NAME = 15  # prctl


def load(names: Iterable[str]) -> None:
    """Import modules; `module:function` is called as well."""
    for name in names:
        module, _, function = name.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    if "torch" in sys.modules:
        importlib.import_module("torch._dynamo")  # torch's optimizers import it in their first step: more than a second


def threads() -> int:
    """Threads of this process, the kernel's count: those of C libraries too."""
    return len(os.listdir("/proc/self/task"))


def end_library_threads() -> None:
    """OpenBLAS keeps threads from its import on; it ends them itself before a fork and starts them when needed."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def open_devices() -> List[str]:
    """Accelerators that this process holds open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if path.startswith(DEVICES):
            found.add(path)
    return sorted(found)


def problem() -> str:
    """Why a fork of this process would not be like a new one, or an empty string."""
    devices = open_devices()
    if devices:
        return "the imports opened " + ", ".join(devices)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return "the imports made a process group"
    if threads() > 1:
        end_library_threads()
    if threads() > 1:
        return "the imports left {} threads running".format(threads() - 1)
    return ""


def first_path(program: Sequence[str]) -> str:
    """What `python PROGRAM...` has as sys.path[0]."""
    if program[0] == "-c":
        return ""
    if program[0] == "-m":
        return os.getcwd()
    if os.path.isdir(program[0]) or zipfile.is_zipfile(program[0]):
        return program[0]
    return os.path.dirname(os.path.realpath(program[0]))


def serve(link: socket.socket) -> int:
    """Fork ranks as ordered; returns in each of them, with its gate."""
    while True:
        message, ancillary, _, _ = link.recvmsg(ORDER, socket.CMSG_SPACE(4 * (2 * RANKS + 1)))
        if not message:
            os._exit(0)  # the supervisor has ended, or wants no server any more
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data[: len(data) - len(data) % 4])
        order = json.loads(message)
        between = fork(link, order["number"])
        if between == 0:
            for at, rank in enumerate(order["ranks"]):
                forked = fork(link, order["number"])
                if forked == 0:
                    become(rank, descriptors[1 + 2 * at: 3 + 2 * at], descriptors)
                    answer = {"number": order["number"], "local": rank["local"], "pid": os.getpid()}
                    link.send(json.dumps(answer).encode())
                    link.close()
                    return descriptors[0]
                if forked < 0:
                    break
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        if between > 0:
            os.waitpid(between, 0)


def fork(link: socket.socket, number: int) -> int:
    """As os.fork; -1 if there can be no more processes now, which the supervisor is told."""
    try:
        return os.fork()
    except OSError as error:
        link.send(json.dumps({"number": number, "failed": str(error)}).encode())
        return -1


def become(rank: Dict[str, Any], streams: Sequence[int], descriptors: Sequence[int]) -> None:
    """Be this rank: session, output, environment, name, and none of the server's state."""
    os.setsid()
    for target, descriptor in zip((1, 2), streams):
        os.dup2(descriptor, target)
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    os.chdir(HOME)
    os.environ.update(rank["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()  # Python's own generator does so by itself, torch's starts the same in every process
    try:
        ctypes.CDLL(None).prctl(SET_NAME, rank["name"].encode(), 0, 0, 0)
    except (OSError, AttributeError):
        pass  # only people look at it


def run(program: List[str]) -> None:
    """What the interpreter does with these arguments, in a fresh __main__."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    kind, rest = program[0], program[1:]
    if kind == "-m":
        sys.argv = rest
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]  # as the interpreter itself does
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec", dont_inherit=True), main.__dict__)
    elif os.path.isdir(kind) or zipfile.is_zipfile(kind):
        sys.argv = program
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]
    else:
        sys.argv = program
        path = os.path.abspath(kind)
        try:
            with io.open_code(path) as file:
                source = file.read()
        except OSError as error:
            print("{}: can't open file {!r}: [Errno {}] {}".format(sys.executable, path, error.errno, error.strerror),
                  file=sys.stderr)
            sys.exit(2)
        main.__dict__.update(__file__=path, __cached__=None)
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def run_as_python(program: List[str]) -> None:
    """Run it; an exception is told without the frames of this file. The interpreter's own end follows."""
    try:
        run(program)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        sys.exit(1)


def main(arguments: List[str]) -> None:
    """Load, check, serve; in a rank, run the program."""
    link = socket.socket(fileno=int(arguments[0]))
    names, program = arguments[1], arguments[3:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = first_path(program)
    try:
        load(filter(None, names.split(",")))
        why = problem()
    except BaseException as error:  # the ranks will say it better than we can
        why = "{}: {}".format(type(error).__name__, error)[:WORDS]
    if why:
        link.send(json.dumps({"aside": why}).encode())
        os._exit(0)
    gc.collect()
    gc.freeze()  # else the first collection in a rank would copy every page
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    link.send(json.dumps({"ready": True}).encode())
    gate = serve(link)
    opened = os.read(gate, 1)
    os.close(gate)
    if not opened:
        os._exit(0)
    run_as_python(program)


if __name__ == "__main__":
    HOME = os.getcwd()
    main(sys.argv[1:])
