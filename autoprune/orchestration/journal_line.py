"""One line of a journal: a JSON object with the CRC-32 of the rest of it.

So a flipped bit inside a number is noticed, too.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from autoprune.orchestration.untrusted import MIB

MAX_LINE = 16 * MIB
"""Neither written nor read beyond: a trial takes some kilobytes, of a network of a thousand groups
some tens of them.
"""


class FaultError(Exception):
    """What is wrong with one line."""


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def encode(record: Mapping[str, Any]) -> bytes:
    """One line, newline included, of plain JSON types with finite numbers."""
    members = {name: f"{_JSON(name)}:{_JSON(value)}" for name, value in record.items()}
    members["crc"] = f'"crc":"{zlib.crc32(_object(members)):08x}"'
    return _object(members) + b"\n"


def _object(members: Mapping[str, str]) -> bytes:
    text = ",".join(members[name] for name in sorted(members))
    return f"{{{text}}}".encode("ascii")


def decode(line: bytes) -> dict[str, Any]:
    """The record of a line, without its newline. Raises FaultError unless `encode` wrote it."""
    if len(line) > MAX_LINE:
        raise FaultError(f"it has more than {MAX_LINE} bytes")
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise FaultError("it is not a JSON object")
        body = {key: value for key, value in record.items() if key != "crc"}
        again = encode(body)
    except (ValueError, RecursionError) as error:
        raise FaultError(f"it is not JSON ({error})") from error
    # Comparing the whole line also refuses what JSON reads as the same: spaces, repeated keys.
    if again != line + b"\n":
        raise FaultError("it does not agree with its checksum")
    return body
