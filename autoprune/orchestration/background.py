"""Threads beside the main loop: calls carried out one after the other, and whose turn it is."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

TURN_S = 0.0005
"""How long a thread may keep the interpreter from another one, within `short_turns`."""

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


class Background:
    """One thread that carries out calls in order, and holds up no exit.

    An executor of `concurrent.futures` would do, were it not that the interpreter waits for its
    threads before it ends: a call that takes for ever, in code of a user's, could not be left.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        call: Callable[Arguments, Found],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Future[Found]:
        """Have a call carried out after all those before it."""
        assert not self._closed, "it has come to its end"
        future: Future[Found] = Future()
        self._calls.put((future, lambda: call(*arguments, **named)))
        return future

    def close(self, *, wait: bool) -> None:
        """Come to an end: with `wait` after all calls, else as soon as the present one is over."""
        self._closed = True
        if not wait:
            self._cancel()
        self._calls.put(None)
        if wait:
            self._thread.join()

    def _cancel(self) -> None:
        while True:
            try:
                queued = self._calls.get_nowait()
            except Empty:
                return
            if queued is not None:
                queued[0].cancel()

    def _run(self) -> None:
        while (queued := self._calls.get()) is not None:
            future, call = queued
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # whoever waits for it hears of it
                future.set_exception(error)
            del queued, future, call  # what was found is not kept until the next call


@contextmanager
def short_turns() -> Iterator[None]:
    """Let threads of this process, and its memory, hold up its main loop for less.

    A loop that waits for something many times a second waits for a turn of theirs after each:
    CPython's turns of 5 ms made a quarter of what Tune's loop takes for a trial. Every search for
    garbage among all there is stops everything for 0.4 s, since torch, Ray and MLflow are half a
    million objects: what is there at the beginning is left out of it. And SciPy keeps the
    interpreter while BLAS works, whose threads wait for each other on cores that trials are using:
    up to 0.1 s for a millisecond's work. It has one thread here; PyTorch's are others.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    gc.collect()
    gc.freeze()
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
