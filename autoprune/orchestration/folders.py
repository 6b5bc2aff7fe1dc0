"""The folders of sweeps: their names, making one, finding one again, keeping it to one process."""

import fcntl
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.record import read_header

DEFAULT_OUTPUT = "outputs"
JOURNAL_FILE = "journal.jsonl"
BASELINE_FILE = "baseline.safetensors"
EARLY_FILE = "early.safetensors"
PROFILE_FILE = "profile.json"
RANKING_FILE = "ranking.json"
LATEST = "latest"
LOCK_FILE = "lock"


def new_id(name: str) -> str:
    """A sweep id that sorts by time of day and that no other sweep has."""
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_name(name: str) -> None:
    """Raise AutopruneError unless a folder and an MLflow experiment can have that name."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise AutopruneError(
            f"name={name!r}: a sweep is named with letters, digits, '-', '_' and '.'"
        )


def make_folder(output: Path, sweep_id: str) -> Path:
    """Make the folder of a new sweep."""
    folder = output / sweep_id
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise unwritable(output, error) from error
    return folder


def check_writable(folder: Path) -> None:
    """Raise AutopruneError unless `folder` can be made and written to; leaves nothing behind."""
    with made(folder):
        try:
            # permissions say too little: root, and read-only or virtual file systems
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise unwritable(folder, error) from error


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder that is there inside; afterwards what was made of its path is removed again.

    What came into it stays, and the folder with it. Raises AutopruneError where it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        yield
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder to this process. Raises AutopruneError where another one has it already.

    `what` says what the other one does (``profiles this network``).
    """
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AutopruneError(
                f"another process {what} into {folder}; wait for it to end, then run this again: "
                "what it found is not measured twice"
            ) from error
        yield


def unwritable(output: Path, error: OSError) -> AutopruneError:
    """What to say where an output folder cannot be written to."""
    return AutopruneError(
        f"cannot write to the output folder {output} ({error.strerror}); set output=FOLDER "
        "to one that can be written"
    )


def trial_folder(sweep_folder: Path, number: int) -> Path:
    """Where trial `number` of a sweep keeps its snapshots."""
    return sweep_folder / "trials" / f"{number:04d}"


def find_sweep(output: Path, sweep: str) -> Path:
    """The folder of the sweep with id `sweep`, or of the latest one, below `output`."""
    found = {path.parent.name: path for path in output.glob(f"*/{JOURNAL_FILE}")}
    if not found:
        raise AutopruneError(f"no sweep in {output.resolve()}; set output=FOLDER, or sweep first")
    if sweep in found:
        return found[sweep].parent
    begun = sorted(found.values(), key=_created)
    if sweep == LATEST:
        return begun[-1].parent
    recent = ", ".join(journal.parent.name for journal in begun[-5:])
    raise AutopruneError(f"no sweep {sweep!r} in {output.resolve()}; the latest are {recent}")


def _created(journal: Path) -> str:
    """When a sweep was begun; one that was killed before its first line never was."""
    header = read_header(journal)
    return "" if header is None else str(header.get("created", ""))


def output_word(output: Path) -> str:
    """What `output=` must say in a command for this folder; empty for the default one."""
    return "" if output.resolve() == Path(DEFAULT_OUTPUT).resolve() else str(output.resolve())
