"""What an examination found, as a table by node."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoprune.orchestration.doctor.findings import DRIVER, Finding, State

STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAULT: "bold red"}


class FindingsDrawing:
    """On a terminal findings appear as they come; at the end the whole is printed once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        live = Live(console=console, auto_refresh=False, transient=True)
        self._live = live if console.is_terminal else None
        self._found: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Hear of another finding."""
        self._found.append(finding)
        if self._live is not None:
            self._live.start()
            self._live.update(findings_view(self._found), refresh=True)

    def stop(self) -> None:
        """No more come."""
        if self._live is not None:
            self._live.stop()
        if self._found:
            self._console.print(findings_view(self._found))


def findings_view(found: Sequence[Finding]) -> Group:
    """The findings by node, the driver's first, and how many there are of each state."""
    table = Table()
    for name in ("node", "check", "state", "found"):
        table.add_column(name, overflow="fold")
    before = ""
    for finding in sorted(found, key=lambda f: (f.node != DRIVER, f.node)):
        verdict = finding.verdict
        if before and finding.node != before:
            table.add_section()
        table.add_row(
            Text("" if finding.node == before else finding.node),
            Text(finding.check),
            Text(str(verdict.state), style=STYLES[verdict.state]),
            Text(verdict.found + (f"\nto mend: {verdict.remedy}" if verdict.remedy else "")),
        )
        before = finding.node
    return Group(table, Text(tally(found)))


def tally(found: Sequence[Finding]) -> str:
    """How many findings there are of each state, the worst first."""
    times = Counter(finding.verdict.state for finding in found)
    names = {State.FAULT: "to mend before a sweep", State.WARNING: "to know of", State.OK: "fine"}
    return ", ".join(f"{times[state]} {name}" for state, name in names.items())
