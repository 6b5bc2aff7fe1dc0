"""Files as a hostile stranger would make them."""

import io
import json
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0
DEEP = "[" * 200_000 + "]" * 200_000


def in_time(call: Callable[[], T]) -> T:
    """What a call gives or raises; fails where it hangs, as one that reads from a pipe does."""
    done: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]
    return done[0]


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(size: int) -> Callable[[Path], None]:
    """Makes a file of zeros that takes no room on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


IN_PLACE_OF_A_FILE: Mapping[str, Callable[[Path], None]] = {
    "a link to somebody's file": _link_to("/etc/passwd"),
    "a link to a device": _link_to("/dev/zero"),
    "a link to nothing": _link_to("/nonexistent"),
    "a pipe": os.mkfifo,
    "a directory": Path.mkdir,
    "two terabytes": sparse(2 * 2**40),
}
"""What may lie where a file is expected, by what it is."""


def packed(records: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file, as nobody checks it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return buffer.getvalue()


def bomb(name: str, size: int = 2**24) -> bytes:
    """A zip file of a thousandth of what it unpacks to."""
    return packed({name: bytes(size)}, compression=zipfile.ZIP_DEFLATED)


def overlapping(name: str, times: int) -> bytes:
    """A zip file whose table lists one record again and again, by other names."""
    whole = packed({f"{name}0": bytes(10_000)})
    table = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entry = whole[table:end]
    entries = b"".join(entry[:-1] + bytes([48 + turn]) for turn in range(times))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, times, times, len(entries), table, 0)
    return whole[:table] + entries + tail


def claiming(entries: int) -> bytes:
    """A zip file that says that it lists so many records."""
    whole = bytearray(packed({"a": b""}))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(whole) - 22, 1)
    numbers = (44, 45, 45, 0, 0, entries, entries, 46 * entries, 0)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", *numbers)
    return bytes(whole[:-22]) + end64 + locator + bytes(whole[-22:])


def link_record(name: str, target: str) -> bytes:
    """A zip file that holds a symbolic link."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return buffer.getvalue()


def safetensors_header(tensors: Mapping[str, Any]) -> bytes:
    """What a safetensors file begins with."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text
