"""The output folder: whether all nodes have the same one, and whether there is room.

Trials write their snapshots and networks where the driver's journal is. A node that has another
folder under the same path loses them without an error, so each is asked to read what the driver has
written there, and the driver reads what each has written.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import psutil

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.doctor.findings import Verdict, fault, ok, warning
from autoprune.orchestration.folders import made, unwritable

VISIBLE_S = 5.0
"""How long what one machine wrote may take to be seen on another; network file systems cache."""

LITTLE_GB, NOTHING_GB = 5.0, 0.5
"""Free space below which a disk is told of, and below which a sweep would break off."""

FULL = 0.95
"""The part of a disk above which Ray 2.60 spills no more objects there."""

NETWORKS = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "gcsfuse", "glusterfs", "goofys", "gpfs"),
        *("juicefs", "lustre", "mount-s3", "nfs", "nfs4", "rclone", "s3fs", "smb3", "smbfs"),
        *("sshfs", "wekafs"),
    )
)
"""The file systems that other machines see, too, as the kernel names them."""

_DRIVER = "driver"
_SHARE = (
    "mount one shared folder at this path on every node and here, or name one with output=FOLDER"
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A folder below the output folder in which driver and nodes leave each other `word`."""

    folder: Path
    word: str

    def meet(self, name: str) -> None:
        """On a node: find the driver's word and leave one's own, as file `name`.

        Raises AutopruneError where the driver's is not there, or the folder takes no file.
        """
        output = self.folder.parent
        if not output.is_dir():
            raise AutopruneError(
                f"there is no folder {output} on this node, where trials keep their networks; "
                f"{_SHARE}"
            )
        if not self._seen(_DRIVER):
            raise AutopruneError(
                f"{output} on this node is another folder than the driver's: what the driver "
                f"writes there is not in it; {_SHARE}"
            )
        draft = self.folder / f".{name}.draft"
        try:
            draft.write_text(self.word)
            draft.replace(self.folder / name)
        except OSError as error:
            raise AutopruneError(
                f"user {os.getuid()} of this node, who runs Ray, cannot write to {output} "
                f"({error.strerror}); give that user the right to, or mount it for writing"
            ) from error

    def check_seen(self, name: str) -> None:
        """On the driver: raise AutopruneError unless a node's word is there."""
        if not self._seen(name):
            raise AutopruneError(
                f"what this node writes to {self.folder.parent} does not come to the driver; "
                f"{_SHARE}"
            )

    def _seen(self, name: str) -> bool:
        until = time.perf_counter() + VISIBLE_S
        while True:
            try:
                return (self.folder / name).read_text() == self.word
            except FileNotFoundError:
                if time.perf_counter() > until:
                    return False
                time.sleep(0.2)
            except OSError as error:
                raise AutopruneError(
                    f"user {os.getuid()} cannot read {self.folder.parent} ({error.strerror}); give "
                    "that user the right to"
                ) from error


@contextmanager
def probing(output: Path) -> Iterator[Probe]:
    """A probe with the driver's word in it; it is gone afterwards, with every folder made for it.

    Raises AutopruneError where the output folder cannot be written to.
    """
    with made(output):
        probe = Probe(output / f".doctor-{secrets.token_hex(4)}", secrets.token_hex(8))
        try:
            try:
                # with the rights of a sweep's folder: nodes may run as another user
                probe.folder.mkdir()
                (probe.folder / _DRIVER).write_text(probe.word)
            except OSError as error:
                raise unwritable(output, error) from error
            yield probe
        finally:
            shutil.rmtree(probe.folder, ignore_errors=True)


def locks(probe: Probe) -> Verdict:
    """Whether the output folder takes the lock that keeps a journal to one process."""
    output = probe.folder.parent
    with (probe.folder / _DRIVER).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return fault(
                f"{output} takes no file locks ({error.strerror}), which keep two processes from "
                "writing one sweep",
                "mount it with locks (NFS: without nolock, Lustre: with flock), or set output= to "
                "another folder",
            )
    return ok(f"{output} can be written and takes locks")


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a disk is free, in bytes."""

    place: str
    free: int
    size: int

    @classmethod
    def at(cls, place: Path) -> "Room":
        """Of the disk of a folder, or of the nearest one above it that exists."""
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        usage = shutil.disk_usage(there)
        return cls(str(place), usage.free, usage.total)

    @classmethod
    def of_temporary(cls) -> "Room":
        """Of the temporary directory, where Ray and exports of networks keep their files."""
        return cls.at(Path(tempfile.gettempdir()))


def room_verdict(room: Room) -> Verdict:
    """Whether the snapshots and networks of a sweep will have room."""
    free_gb, used = room.free / 1e9, 1.0 - room.free / max(room.size, 1)
    told = f"{free_gb:.1f} GB free at {room.place} ({used:.0%} of {room.size / 1e9:.0f} GB used)"
    remedy = "remove what is not needed, or name a folder on another disk (output=, TMPDIR)"
    if free_gb < NOTHING_GB:
        return fault(told, remedy)
    return warning(told, remedy) if free_gb < LITTLE_GB or used > FULL else ok(told)


def network_of(path: Path) -> str | None:
    """The kind of network file system that a path is on; None for a local one."""
    mounts = [(m.mountpoint, m.fstype) for m in psutil.disk_partitions(all=True)]
    return network_among(path.resolve(), mounts)


def network_among(path: PurePath, mounts: Sequence[tuple[str, str]]) -> str | None:
    """The same for mounts of (place, type): that of the deepest place above the path counts."""
    above = [(len(PurePath(at).parts), kind) for at, kind in mounts if path.is_relative_to(at)]
    # where a place was mounted over, the last one is what is seen
    kind = max(reversed(above), default=(0, ""), key=lambda mount: mount[0])[1]
    return kind if kind.removeprefix("fuse.") in NETWORKS else None
