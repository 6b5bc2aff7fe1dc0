"""A journal of Optuna's in one file, written in few pieces."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from optuna.storages.journal import BaseJournalBackend


class JournalFile(BaseJournalBackend):
    """The operations of one Optuna storage, which one process writes; `save` takes them to disk.

    Optuna 5.0.0's own backend reads the same file, but syncs every operation by itself, of which
    a trial is dozens, and waits half a minute for the lock of a process that was killed. A crash
    can tear the last line only, which Optuna's readers skip.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._saved: int | None = None  # so many of the lines; None: the file is written anew

    @classmethod
    def read(cls, path: Path) -> Self:
        """The journal in a file, to go on with; a torn last line is cut off by the next `save`.

        Raises OSError where there is no such file.
        """
        *lines, torn = path.read_bytes().split(b"\n")
        journal = cls(path)
        journal._lines = lines
        journal._saved = None if torn else len(lines)
        return journal

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The operations from a number on. Raises ValueError for a line that is no JSON."""
        return map(json.loads, self._lines[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add operations, which stay in memory until they are saved."""
        self._lines += [json.dumps(log, separators=(",", ":")).encode() for log in logs]

    def save(self) -> None:
        """Write what the file lacks, in one piece. Raises OSError; the next `save` makes up for it.

        A file that is written anew takes the old one's place at once.
        """
        since, self._saved = self._saved, None
        data = b"".join(line + b"\n" for line in self._lines[since:])
        if since is None:
            draft = self._path.with_name(f".{self._path.name}.draft")
            draft.write_bytes(data)
            draft.replace(self._path)
        else:
            with self._path.open("ab") as file:
                file.write(data)
        self._saved = len(self._lines)
