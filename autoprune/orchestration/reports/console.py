"""What a sweep shows while it runs, and at its end: rich on a terminal, plain lines elsewhere."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autoprune.domain.trial import Failure, Measurement, Observation, Stage, Trial
from autoprune.orchestration.reports.notes import notes
from autoprune.orchestration.reports.pareto import pareto_json, settled, tally
from autoprune.orchestration.view import SweepView

WIDE = 1000
"""Columns of an output that is no terminal: tables are not folded where a program reads them."""

HARMLESS = dict.fromkeys((*range(32), *range(127, 160)), "�")
del HARMLESS[ord("\n")], HARMLESS[ord("\t")]
"""What is shown in the place of control characters, all but ends of lines and tabs."""


class TextConsole(Console):
    """A console to which texts are texts: a stranger's name does not command the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, without control characters from texts."""
        for segment in super().render(renderable, options):
            own = segment.control is not None
            yield segment if own else segment._replace(text=segment.text.translate(HARMLESS))


def stdout() -> Console:
    """A console on the standard output, as wide as what is printed where nobody looks at it."""
    console = TextConsole()
    return console if console.is_terminal or console.is_jupyter else TextConsole(width=WIDE)


class ConsoleWatcher:
    """One line for every trial that ends, and on a terminal a live bar below them.

    `started` is the sweep as it began, None before that.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started: SweepView | None = None
        self._bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.fields[trials]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def on_start(self, view: SweepView) -> None:
        """Show the bar."""
        self.started = view
        if self.console.is_terminal:
            self._task = self._bar.add_task("", total=view.trials, **_fields(view))
            self._bar.start()

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Stages and epochs are not shown: trials run in parallel."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Print the trial's line and move the bar on."""
        self.console.print(trial_line(observation, view), highlight=False, markup=False)
        if self._task is not None:
            self._bar.update(self._task, completed=len(view.observations), **_fields(view))

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Take the bar away."""
        del view, complete
        if self._task is not None:
            self._bar.stop()


def trial_line(observation: Observation, view: SweepView) -> str:
    """What the trial that ended last came to, in one line that begins with the sweep's progress."""
    total = "" if view.trials is None else f"/{view.trials}"
    return f"[{len(view.observations):>3}{total}] {outcome_line(observation, view)}"


def outcome_line(observation: Observation, view: SweepView) -> str:
    """What a trial came to, in one line; ``*`` marks a member of the front."""
    head, tail = f"trial {observation.trial.number:>3}", f"{observation.seconds:5.1f} s"
    main = view.goal.main.metric
    match observation.outcome:
        case Failure() as failure:
            return f"{head}  failed in {failure.stage} ({failure.cause}): {failure.reason}"
        case Measurement(metrics=metrics, stopped_by=str() as broken):
            return f"{head}  {metrics['speedup']:5.2f}x  stopped: breaks {broken}  {tail}"
        case Measurement(metrics=metrics):
            mark = "*" if observation.trial.number in view.front else " "
            speed = times(metrics["speedup"], settled=settled(observation))
            ends = f"[{metrics['speedup_low']:.2f}, {metrics['speedup_high']:.2f}]"
            waits = "" if observation.rung is None else f"  paused on rung {observation.rung}"
            found = f"{main} {metrics[main]:.4f}  speedup {speed:>6} {ends}"
            return f"{head} {mark} {found}  {tail}{waits}"


def _fields(view: SweepView) -> dict[str, Any]:
    return {"trials": progress_of(view), "state": state_line(view)}


def progress_of(view: SweepView) -> str:
    """How many trials are done, of how many."""
    total = "" if view.trials is None else f"/{view.trials}"
    return f"{len(view.observations)}{total} trials"


def state_line(view: SweepView) -> str:
    """The time left where it can be told, the front's size, and the hypervolume."""
    done, left = len(view.observations), ""
    if view.trials and done:
        seconds = int(view.search_s / done * max(view.trials - done, 0))
        left = f"about {seconds // 60}:{seconds % 60:02d} left  "
    return f"{left}front {len(view.front)}  hypervolume {view.hypervolume:.4g}"


def show_front(console: Console, view: SweepView) -> None:
    """The front as a table, and what the search gave over equal ratios for every group."""
    console.print(front_table(view))
    show_summary(console, view)


def front_table(view: SweepView) -> Table:
    """The baseline and the members of the front, best first by the main metric."""
    main, base = view.goal.main.metric, view.baseline
    title = Text(f"Pareto front of {view.sweep_id}", "table.title")
    table = Table(title=title, title_justify="left")
    for name in ("trial", main, "change", "speedup", "95% interval", "ms", "MACs", "rho", "params"):
        table.add_column(name, justify="right")
    choice = len(view.space.precisions) > 1
    if choice:
        table.add_column("precision")
    costs = [f"{base['latency_ms']:.3f}", short(base["macs"]), "", short(base["params"])]
    table.add_row("baseline", f"{base[main]:.4f}", "", "1.00x", "", *costs, style="dim")
    for member in pareto_json(view)["front"]:
        table.add_row(
            str(member["trial"]),
            f"{member[main]:.4f}",
            f"{member[main] - base[main]:+.4f}",
            times(member["speedup"], settled=member["speedup_settled"]),
            interval(member["speedup_low"], member["speedup_high"]),
            f"{member['latency_ms']:.3f}",
            short(member["macs"]),
            f"{member['rho']:.2f}",
            short(member["params"]),
            *([member["precision"]] if choice else []),
        )
    return table


def show_summary(console: Console, view: SweepView) -> None:
    """What the search gave over equal ratios for every group, and how it went."""
    for line in notes(view):
        console.print(line, highlight=False)
    console.print(
        f"{tally(view)} in {view.search_s:.0f} s; "
        f"slots busy {100 * view.utilisation:.0f}% of the time; "
        f"hypervolume {view.hypervolume:.4g}",
        highlight=False,
    )


def times(speedup: float, *, settled: bool) -> str:
    """A speedup; ``~`` marks one whose interval did not become as narrow as was asked."""
    return f"{'' if settled else '~'}{speedup:.2f}x"


def interval(low: float, high: float) -> str:
    """A 95% interval in a column of its own."""
    return f"{low:.2f} to {high:.2f}"


def short(value: float) -> str:
    """A count in thousands, millions or billions."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def count(size: int) -> str:
    """How many there are, by order of magnitude where there are many."""
    return str(size) if size < 10_000 else f"about 10^{round(math.log10(size))}"
