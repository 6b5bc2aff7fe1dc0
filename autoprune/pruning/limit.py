"""Give up on a computation that takes too long, from whichever thread it was asked."""

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
GRACE_S = 1.0


class TimeLimitError(Exception):
    """The computation did not end in time."""


class _Expired(BaseException):
    """Thrown into the helper thread; a BaseException, so that `except Exception` lets it pass."""


def run_limited(function: Callable[[], T], *, seconds: float) -> T:
    """The value of `function()`, or TimeLimitError after `seconds`.

    The function runs in a thread of its own while the caller waits. When the time is up, an
    asynchronous exception ends that thread at its next Python instruction: the caller's thread
    is never interrupted, so this is safe in any thread and nests. A function that sits in native
    code is left behind and ends when it returns to Python. What is local to a thread (gradient
    mode, autocast) starts from its defaults in `function`.
    """
    values: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        with suppress(_Expired):  # thrown again while the first one was on its way out
            try:
                values.append(function())
            except _Expired:
                pass
            except BaseException as error:
                errors.append(error)

    helper = threading.Thread(target=work, daemon=True, name="autoprune-limited")
    helper.start()
    try:
        helper.join(seconds)
    finally:
        late = helper.is_alive()
        _end(helper)
    if late:
        raise TimeLimitError(f"not done after {seconds:g} s")
    if errors:
        error = errors.pop()
        try:
            raise error
        finally:
            # The traceback holds this frame: without this the two would keep each other alive.
            del error
    return values.pop()


def _end(helper: threading.Thread) -> None:
    """Throw into the helper until it ends: a bare `except:` in it may swallow the first ones."""
    deadline = time.perf_counter() + GRACE_S
    while helper.is_alive() and time.perf_counter() < deadline:
        assert helper.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(helper.ident), ctypes.py_object(_Expired)
        )
        helper.join(0.1)
