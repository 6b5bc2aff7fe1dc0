"""What a sweep from Python shows while it runs: its front as a table that is drawn anew."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from autoprune.domain.trial import Failure, Observation, Stage, Trial
from autoprune.orchestration.reports.console import (
    ConsoleWatcher,
    front_table,
    progress_of,
    state_line,
    trial_line,
)
from autoprune.orchestration.sweep import Watcher
from autoprune.orchestration.view import SweepView


class Drawing(Protocol):
    """A place where a table can be drawn again and again."""

    def update(self, table: Table) -> None:
        """Draw a table in place of the last one."""
        ...

    def stop(self) -> None:
        """No more tables come."""
        ...


class TerminalDrawing:
    """On a terminal, below the lines printed meanwhile; it goes away at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def update(self, table: Table) -> None:
        """Draw it at once."""
        self._live.start()
        self._live.update(table, refresh=True)

    def stop(self) -> None:
        """Take the table away."""
        self._live.stop()


class NotebookDrawing:
    """In a cell of a notebook, where the last table stays.

    `display` is IPython's: ``display(table, display_id=True)`` returns a handle with `update`.
    rich's own live display needs ipywidgets in a notebook; this needs nothing.
    """

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display, self._handle = display, None

    def update(self, table: Table) -> None:
        """Draw it in the cell."""
        if self._handle is None:
            self._handle = self._display(table, display_id=True)
        else:
            self._handle.update(table)

    def stop(self) -> None:
        """The last table stays."""


class LiveFront:
    """A watcher that keeps a drawing of the front up to date, and prints the trials that fail."""

    def __init__(self, console: Console, drawing: Drawing) -> None:
        self.console, self.drawing = console, drawing

    def on_start(self, view: SweepView) -> None:
        """Draw what there is."""
        self._draw(view)

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Stages and epochs are not shown: trials run in parallel."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Draw the front anew."""
        if isinstance(observation.outcome, Failure):
            self.console.print(trial_line(observation, view), highlight=False, markup=False)
        self._draw(view)

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Draw it a last time."""
        del complete
        self._draw(view)
        self.drawing.stop()

    def _draw(self, view: SweepView) -> None:
        table = front_table(view)
        table.caption = f"{progress_of(view)}  {state_line(view)}"
        self.drawing.update(table)


def live_watcher(console: Console) -> Watcher:
    """The live front in a notebook and on a terminal, a line a trial where there is neither."""
    if console.is_jupyter:
        # there wherever a notebook is, and no dependency of autoprune
        display = import_module("IPython.display").display
        return LiveFront(console, NotebookDrawing(display))
    if console.is_terminal:
        return LiveFront(console, TerminalDrawing(console))
    return ConsoleWatcher(console)
