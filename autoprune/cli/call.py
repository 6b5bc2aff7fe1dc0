"""What every command is handed, how it speaks, and the codes it ends with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from autoprune.domain.errors import shown
from autoprune.orchestration.folders import JOURNAL_FILE, find_sweep
from autoprune.orchestration.record import Record, read_journal
from autoprune.orchestration.reports.console import TextConsole
from autoprune.settings.compose import given_keys

DONE, BROKE_OFF, BAD_INPUT, PROOF_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Call:
    """A command's plain config, and where and how it speaks.

    `words` are the overrides that it was composed from, with the configs in `config_dir`, and
    `given` the keys that they set; `flags` are the command's own.
    """

    config: Mapping[str, Any]
    console: Console
    code_paths: Sequence[str] = ()
    flags: frozenset[str] = frozenset()
    words: Sequence[str] = ()
    config_dir: str | None = None

    @property
    def as_json(self) -> bool:
        """Whether the answer is to be JSON."""
        return "--json" in self.flags

    @property
    def given(self) -> frozenset[str]:
        """The keys that the command line set."""
        return given_keys(self.words)

    def say(self, *lines: str) -> None:
        """Print lines as they are: unfolded, and without colours."""
        say(self.console, lines)

    def progress(self, *lines: str) -> None:
        """Print what has come so far; nothing stands beside JSON."""
        if not self.as_json:
            self.say(*lines)

    def sweep(self) -> tuple[Path, Record]:
        """The folder and the journal of the sweep that the config names."""
        folder = find_sweep(Path(self.config["output"]), self.config["sweep"])
        return folder, read_journal(folder / JOURNAL_FILE)


def say(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are: unfolded, and without colours; without passwords, if any came in."""
    for line in lines:
        console.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on the standard error."""
    say(stderr(), (f"autoprune: warning: {warning}" for warning in warnings))


def broken_off(error: BaseException, again: str) -> int:
    """Say why a search ended before its end, and what goes on with it; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        say(stderr(), [f"autoprune: ended at once; `{again}` goes on"])
        return INTERRUPTED
    say(stderr(), [f"autoprune: {error}", f"autoprune: once that is mended, `{again}` goes on"])
    return BROKE_OFF


def stderr() -> Console:
    """A console on the standard error."""
    return TextConsole(stderr=True)
