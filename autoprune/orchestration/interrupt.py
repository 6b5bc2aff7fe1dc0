"""Ctrl-C: once ends a sweep in good order, twice ends it now."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType


class OnInterrupt(StrEnum):
    """What becomes of the running trials at the first Ctrl-C."""

    FINISH = "finish"
    GIVE_UP = "give_up"


class Interrupt:
    """Whether the user asked to stop, and what should become of the running trials then.

    `hook` is called once, when the user asks. That is in the signal's handler, amid whatever the
    main thread does: it must take no lock and write to no buffered stream.
    """

    def __init__(
        self,
        policy: OnInterrupt = OnInterrupt.FINISH,
        *,
        hook: Callable[[OnInterrupt], None] | None = None,
    ) -> None:
        self.policy, self.hook = policy, hook
        self.requested = False

    @property
    def give_up(self) -> bool:
        """Whether running trials should be left where they are."""
        return self.requested and self.policy is OnInterrupt.GIVE_UP

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM; the second one raises KeyboardInterrupt.

        Outside the main thread Python delivers no signals, so nothing is taken over there.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(_signal: int, _frame: FrameType | None) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            if self.hook is not None:
                self.hook(self.policy)

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
