"""A folder of a node that one user alone can write: for what others must not put files in."""

import os
import stat
import tempfile
from pathlib import Path

from autoprune.domain.errors import AutopruneError


def place_of(folder: Path | None) -> Path:
    """Where such a folder is; None means ``autoprune-<user id>`` in the temporary directory."""
    return folder or Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"


def private_folder(folder: Path | None, *, whose: str, remedy: str) -> Path:
    """The folder at `place_of`, made where it is not there; only this user can write it.

    Raises AutopruneError, which says `whose` it is to be, where it cannot be made or belongs to
    somebody else.
    """
    path = place_of(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AutopruneError(
            f"{whose} needs a folder of its own, and {path} cannot be made "
            f"({error.strerror}); {remedy}"
        ) from error
    # lstat: another user could plant a link in the shared temporary directory.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        # a folder that the user named may hold what is not ours
        other = f"name {path / 'gate'}, which is made"
        mend = f"remove it, or {remedy}" if folder is None else other
        raise AutopruneError(
            f"{whose}'s folder {path} must be a folder that only you can write; it has "
            f"owner {found.st_uid} and mode {stat.filemode(found.st_mode)}; {mend}"
        )
    return path
