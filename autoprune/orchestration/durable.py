"""Writing so that whoever reads finds all of it or nothing, and waiting until it is on the disk."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

TRIES = 10
"""How often another process may put something in the place of a folder that is replaced."""


def sync(path: Path) -> None:
    """Wait until what a file holds, or what a folder's files are called, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(place: Path, draft: Path) -> None:
    """Rename a whole folder to its place; what stands there goes, and what comes meanwhile."""
    old = draft.with_name(f"{draft.name}-old")
    for left in reversed(range(TRIES)):
        with suppress(FileNotFoundError):
            place.rename(old)  # at once, where to delete takes long enough for another to come
        try:
            draft.rename(place)
        except OSError as error:
            if not left or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        finally:
            shutil.rmtree(old, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def write_private(path: Path, text: str) -> None:
    """Write a new file that nobody else may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
