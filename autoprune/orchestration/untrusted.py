"""Files that may be a stranger's: plain files only, no links, and no larger than they may be.

Whoever reads from a folder that somebody else may have written reads through here. A folder that
changes while it is read is not covered: who can do that writes as its user.
"""

import json
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from autoprune.domain.errors import AutopruneError

MIB = 2**20
MAX_JSON = 64 * MIB
"""Of a recipe, a profile, a history: far more than that of any real network."""

MAX_ENTRIES = 200_000
MAX_DIRECTORY = 64 * MIB
"""Of an archive: how many records it lists, and in how many bytes."""

MAX_RECORD = 256 * MIB
"""Of the records of an archive that are no tensors: graphs and layouts."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_AGAIN = "save it again with torch"
_TENSORS = ("data", "weights", "constants", ".data")


class UntrustedError(AutopruneError):
    """A file that is not what it should be; nothing of it was used."""


def check_part(folder: Path, name: str) -> Path:
    """A file or folder below `folder`, reached by no link: one leads wherever its maker wants."""
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise UntrustedError(
                f"{path} is a symbolic link, and what is read from a folder lies in it; copy the "
                "folder with its files (cp -rL), or name the file itself"
            )
    return path


def check_file(path: Path, *, most: int) -> int:
    """The size of a plain file. Raises UntrustedError for anything else and for more than `most`.

    A link that the user named is followed. Raises OSError where there is nothing.
    """
    return _checked(path, path.stat(), most)


def read_bytes(path: Path, *, most: int) -> bytes:
    """A plain file's content. Raises like `check_part` and `check_file`."""
    with opened(path, most=most) as file:
        content = file.read(most + 1)
    if len(content) > most:  # files of /proc say that they are empty
        raise _too_large(path, len(content), most)
    return content


def read_json(path: Path, *, most: int = MAX_JSON) -> Any:
    """What a JSON file holds. Raises like `read_bytes`, and ValueError for what is no JSON."""
    content = read_bytes(path, most=most)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


@contextmanager
def opened(path: Path, *, most: int) -> Iterator[IO[bytes]]:
    """A plain file to read from. Raises like `check_part` and `check_file`."""
    check_part(path.parent, path.name)
    # a pipe would wait for somebody to write into it
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _checked(path, os.fstat(descriptor), most)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def memory() -> int:
    """What no file of tensors may exceed: it would not fit into this machine."""
    return int(psutil.virtual_memory().total)


def _checked(path: Path, found: os.stat_result, most: int) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedError(f"{path} is no plain file; name one that is")
    if found.st_size > most:
        raise _too_large(path, found.st_size, most)
    return found.st_size


def _too_large(path: Path, size: int, most: int) -> UntrustedError:
    return UntrustedError(
        f"{path} has {size} bytes, {most} at most are read here; look at what wrote it"
    )


def check_archive(path: Path) -> None:
    """Raise UntrustedError unless a zip file is as torch writes them: nothing in it is packed.

    So it unpacks to no more than it is. Its table of contents is where every reader finds the same
    one, names plain paths once each, and no record but a tensor's is large. An archive of samples
    inside is looked at, too. Raises OSError and zipfile.BadZipFile like zipfile.
    """
    with path.open("rb") as file:
        _check_archive(file, str(path))


def _check_archive(file: IO[bytes], name: str) -> None:
    if not zipfile.is_zipfile(file):
        raise zipfile.BadZipFile("it is no zip file")
    size = file.seek(0, os.SEEK_END)
    entries, directory = _contents(file, size)
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY:
        raise UntrustedError(
            f"{name} lists {entries} records in {directory} bytes; {MAX_ENTRIES} in "
            f"{MAX_DIRECTORY} at most are read here"
        )
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        names = {info.filename for info in infos}
        if len(names) < len(infos):
            raise UntrustedError(f"{name} holds two records of one name; {_AGAIN}")
        if sum(info.file_size for info in infos) > size:
            raise UntrustedError(
                f"{name} unpacks to more than its own {size} bytes; torch packs nothing: {_AGAIN}"
            )
        for info in infos:
            _check_record(info, name)
        for info in infos:
            if info.filename.endswith(".pt"):
                with archive.open(info) as inner:
                    if inner.read(4) == b"PK\x03\x04":
                        _check_archive(inner, f"{name}/{info.filename}")


def _check_record(info: zipfile.ZipInfo, name: str) -> None:
    parts = info.orig_filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] in ("", "~") or "\0" in info.orig_filename:
        raise UntrustedError(
            f"{name} holds a record outside of it, {info.orig_filename[:80]!r}; {_AGAIN}"
        )
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UntrustedError(
            f"{name} holds the packed record {info.filename[:80]!r}; torch packs nothing: {_AGAIN}"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UntrustedError(f"{name} holds the link {info.filename[:80]!r}; {_AGAIN}")
    tensor = parts[-2:-1] and parts[-2] in _TENSORS and "." not in parts[-1]
    if not tensor and info.file_size > MAX_RECORD:
        raise _too_large(Path(name) / info.filename, info.file_size, MAX_RECORD)


def _contents(file: IO[bytes], size: int) -> tuple[int, int]:
    """How many records a zip file lists, and in how many bytes, read before any of them is."""
    file.seek(max(0, size - _END.size))
    end = file.read(_END.size)
    # before a comment there may be several ends, of which torch finds another than zipfile
    if len(end) < _END.size or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise zipfile.BadZipFile("it does not end as an archive of torch does")
    _, _, _, _, entries, directory, _, _ = _END.unpack(end)
    file.seek(max(0, size - _END.size - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if locator[:4] != b"PK\x06\x07":
        return entries, directory
    file.seek(_LOCATOR.unpack(locator)[2])
    end64 = file.read(_END64.size)
    if len(end64) < _END64.size or end64[:4] != b"PK\x06\x06":
        raise zipfile.BadZipFile("it does not end as an archive of torch does")
    return int(_END64.unpack(end64)[7]), int(_END64.unpack(end64)[8])
