"""Two-batch overlap: a block computes the two halves of a micro-batch in turns, so that one half's collectives are on
their way while the other half computes (MindSpore calls it multi-copy, https://arxiv.org/abs/2412.19437 section 3.2
does the same between micro-batches).

How. A block is called with the whole micro-batch. Its forward is run twice, on the first half of the samples by the
thread that called it and on the second by a thread of its own. Only one of the two threads runs at any time: it hands
over where it is about to wait for a collective that it has begun (trainer/waits.py), and then waits for its turn and
for the collective. transformers' code is as it is. The backward pass is done in the same way: each half has an autograd
graph of its own, and the two are walked through by the same two threads. Everything around the blocks (embedding,
head, loss, FSDP2's gathering and reducing) sees the whole micro-batch and happens once, so a step is the same as
without, and so is its scale. What stays exposed: a block's first collective of the first half and its last of the
second.

Why it never deadlocks. Which collectives a half has, and in which order, follows from the code and the layout alone,
never from values or time. As turns change exactly at waits, the order in which a rank begins the collectives of both
halves follows from the same, and is that of every other rank: first half's first, second half's first, first half's
second, and so on. Take the earliest in this order that some rank waits for: nobody waits for a later one before having
begun it, and what comes before is done, so every rank will begin it. Groups have one sequence each, equal on their
ranks, by which the supervisor finds who hangs."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from trainer import waits
from trainer.parallel.pipeline import Absent

Work = Callable[[], Any]
Tensors = tuple[torch.Tensor, ...]


def apply(model: Any) -> None:
    """Let the blocks of a model, after everything else was done to it, compute in halves of their samples, in place."""
    waits.watch()
    for block in model.model.layers:
        if not isinstance(block, Absent):
            block.forward = _Halved(block)


class _Halved:
    """In the place of a block's forward."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self._routers = threading.local()  # of the half that this thread computes
        if hasattr(block.mlp, "experts"):
            block.mlp.gate.register_forward_hook(self._keep_router)
            if hasattr(block.mlp.experts, "unshard"):
                _gather_with(block, block.mlp.experts)

    def __call__(self, hidden: torch.Tensor, documents: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
        """hidden: (samples, positions, width), an even number of samples; documents, of the rest, has a row a sample
        too."""
        parts = (None, None) if documents is None else documents.chunk(2)
        works = [partial(self._half, documents=part, **given) for part in parts]
        if torch.is_grad_enabled() and hidden.requires_grad:
            results = _Halves.apply(hidden, *works)
        else:
            both = in_turns(*(partial(work, part) for work, part in zip(works, hidden.chunk(2), strict=True)))
            results = tuple(torch.cat(pair) for pair in zip(*both, strict=True))
        output: torch.Tensor = results[0]
        _tell_routers(results[1:])
        return output

    def _half(self, hidden: torch.Tensor, **given: Any) -> Tensors:
        """The class's own forward, which computes again in the backward pass what is not to be kept: each half by
        itself, in its thread. And its routers' logits, if there are any."""
        found = self._routers.found = []
        try:
            output = type(self._block).forward(self._block, hidden, **given)
        finally:
            self._routers.found = None
        return (output, *found)

    def _keep_router(self, _module: Any, _given: Any, output: Tensors) -> None:
        found = getattr(self._routers, "found", None)
        if found is not None:  # not when it is computed again
            found.append(output[0])


def _tell_routers(logits: Tensors) -> None:
    """transformers notes what routers return, for the thread that has called the model: not in the halves, where it
    would be a part of one, in a graph of its own, but here."""
    from transformers.utils.output_capturing import _active_collector

    noted = _active_collector.get()
    if noted is not None and "router_logits" in noted:
        noted["router_logits"].extend(logits)


def _gather_with(block: Any, experts: Any) -> None:
    """FSDP2 would gather a block's experts at their call, and let go of them after it: too early, while the other half
    is not done. Let it be at the block's call. FSDP2 has no switch for that, only its hooks."""
    state = experts._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    state._pre_forward_hook_handle = block.register_forward_pre_hook(state._pre_forward, with_kwargs=True)
    state._post_forward_hook_handle = block.register_forward_hook(state._post_forward)


class _Halves(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed here
    """Both halves, with a graph each that nobody else sees; gradients of parameters are added up where they are."""

    @staticmethod
    def forward(saved: Any, hidden: torch.Tensor, *works: Callable[[torch.Tensor], Tensors]) -> Tensors:
        saved.parts = [part.detach().requires_grad_() for part in hidden.chunk(2)]
        with torch.enable_grad():
            saved.results = in_turns(*(partial(work, part) for work, part in zip(works, saved.parts, strict=True)))
        return tuple(torch.cat([one.detach() for one in pair]) for pair in zip(*saved.results, strict=True))

    @staticmethod
    def backward(saved: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        halves = zip(*(gradient.chunk(2) for gradient in gradients), strict=True)
        in_turns(*(partial(torch.autograd.backward, results, list(half))
                   for results, half in zip(saved.results, halves, strict=True)))
        joint = torch.cat([part.grad for part in saved.parts])
        saved.parts = saved.results = None
        return joint, None, None


# ---- two threads, of which one runs


class _Abandoned(BaseException):
    """The other half has failed: there is nothing to go on for."""


class _Turns:
    """Which of two threads runs."""

    def __init__(self) -> None:
        self._may = (threading.Semaphore(0), threading.Semaphore(0))
        self._ended = [False, False]
        self._failed = False

    def run(self, half: int, work: Work) -> Any:
        """Do this half's work; the first begins. It gives way at every wait."""
        try:
            if half == 1:
                self._may[1].acquire()
            self._check()
            before, waits.this_thread.before = waits.this_thread.before, partial(self._give_way, half)
            try:
                return contextvars.Context().run(work)  # in which transformers collects nothing
            finally:
                waits.this_thread.before = before
        except BaseException:
            self._failed = True
            raise
        finally:
            self._ended[half] = True
            self._may[1 - half].release()

    def _give_way(self, half: int) -> None:
        if not self._ended[1 - half]:
            self._may[1 - half].release()
            self._may[half].acquire()
        self._check()

    def _check(self) -> None:
        """A half that went on alone would wait for collectives that other ranks never come to."""
        if self._failed:
            raise _Abandoned


def in_turns(first: Work, second: Work) -> tuple[Any, Any]:
    """Do both, one in this thread and one in another, of which only one runs at any time: it gives way to the other
    before it waits for a collective. Returns both results, or raises what the half that failed first has raised."""
    turns = _Turns()
    others = _other_thread().begin(partial(turns.run, 1, partial(_as_here(), second)))
    try:
        mine = turns.run(0, first)
    except _Abandoned:
        others.result()  # raises
        raise
    except BaseException:
        wait([others])
        raise
    return mine, others.result()


def _as_here() -> Callable[[Work], Any]:
    """Something that does a work in another thread under what torch knows of this one: whether gradients are wanted,
    the device's stream, who counts its waits. A backward pass stays in the thread that asks for it: torch's own for a
    device would be held up by the first half."""
    gradients, waited = torch.is_grad_enabled(), waits.this_thread.waited
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    stream = torch.accelerator.current_stream() if device is not None else None

    @contextmanager
    def there() -> Iterator[None]:
        waits.this_thread.waited = waited
        if stream is not None:
            torch.accelerator.set_stream(stream)
        try:
            with torch.set_grad_enabled(gradients), torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            waits.this_thread.waited = None

    def run(work: Work) -> Any:
        with there():
            return work()

    return run


class _OtherThread:
    """One that lives as long as the process: torch keeps much by thread, such as how DTensors are spread."""

    def __init__(self) -> None:
        self._works: SimpleQueue[tuple[Future[Any], Work]] = SimpleQueue()
        threading.Thread(target=self._serve, name="second half", daemon=True).start()

    def begin(self, work: Work) -> Future[Any]:
        """Have it done."""
        future: Future[Any] = Future()
        self._works.put((future, work))
        return future

    def _serve(self) -> None:
        while True:
            future, work = self._works.get()
            try:
                future.set_result(work())
            except BaseException as error:  # raised in the thread that asked
                future.set_exception(error)
            del future, work  # they hold a model's tensors


_threads: list[_OtherThread] = []


def _other_thread() -> _OtherThread:
    """Made when it is first needed: a thread does not come along through a fork."""
    if not _threads:
        _threads.append(_OtherThread())
    return _threads[0]
