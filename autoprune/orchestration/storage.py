"""Where the trials of a sweep save, for any worker to go on from: in its folder, or in a store.

A store may be unable to rename, and what is written to it may be torn. So a snapshot there is one
file, a new one at every save, whose name holds a running number, what it is, and its SHA-256. A
file that does not match its name does not count; of the others the last one does. Those before it
are deleted only once it is whole.
"""

import hashlib
import re
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from zipfile import ZipFile

from autoprune.evaluation import Snapshot
from autoprune.orchestration.artifacts import (
    MODEL_FOLDER,
    discard_drafts,
    read_snapshot,
    save_snapshot,
)
from autoprune.orchestration.durable import replace_folder
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.store import Store, StoreError


class Storage(Protocol):
    """Keeps what the trials of one sweep save; each is saved by one worker at a time.

    All methods raise StoreError where it cannot be reached, or does not take what it is given.
    """

    def save(self, number: int, snapshot: Snapshot) -> None:
        """Keep a snapshot of a trial, whole or not at all; what it outdates is dropped."""
        ...

    def read(self, number: int) -> Snapshot | None:
        """The last snapshot of a trial that was saved whole; None where there is none."""
        ...

    def fetch(self, number: int, folder: Path) -> bool:
        """Bring the network that a trial stands for into the sweep's folder; whether it has one."""
        ...

    def delete(self, number: int) -> None:
        """Drop all that a trial has saved."""
        ...

    def clear(self) -> None:
        """Drop whatever is kept elsewhere than in the sweep's folder."""
        ...


@dataclass(frozen=True, slots=True)
class InFolder:
    """The sweep's own folder, which all nodes must see."""

    folder: Path

    def save(self, number: int, snapshot: Snapshot) -> None:
        """Keep a snapshot in the trial's folder."""
        self._check()
        save_snapshot(trial_folder(self.folder, number), snapshot)

    def read(self, number: int) -> Snapshot | None:
        """The furthest snapshot in the trial's folder; what killed workers left behind goes."""
        self._check()
        folder = trial_folder(self.folder, number)
        discard_drafts(folder)
        return read_snapshot(folder)

    def fetch(self, number: int, folder: Path) -> bool:
        """It is there."""
        return (trial_folder(folder, number) / MODEL_FOLDER).is_dir()

    def delete(self, number: int) -> None:
        """Delete the trial's folder."""
        shutil.rmtree(trial_folder(self.folder, number), ignore_errors=True)

    def clear(self) -> None:
        """There is nothing elsewhere."""

    def _check(self) -> None:
        # a folder of that name on a disk of its own would take what nobody ever finds
        if not self.folder.is_dir():
            raise StoreError(
                f"node {socket.gethostname()} does not see the sweep's folder {self.folder}; "
                "mount it at the same path on all nodes, or set executor.storage to a folder or "
                "URL that all of them reach"
            )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A snapshot in a store: its turn, the name of its folder, and the digest of the file."""

    turn: int
    what: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.turn:06d}-{self.what}-{self.digest}.zip"

    @classmethod
    def of(cls, name: str) -> "_Kept | None":
        """The snapshot of that name; None for a file that is none of ours."""
        found = re.fullmatch(r"(\d{6,})-(model|epoch-\d+)-([0-9a-f]{64})\.zip", name)
        return None if found is None else cls(int(found[1]), found[2], found[3])


@dataclass(frozen=True, slots=True)
class InStore:
    """A folder of the sweep's own in a store, with one for each trial in it.

    The store may be the output folder, where the sweep itself has a folder by its id.
    """

    store: Store
    sweep_id: str

    def save(self, number: int, snapshot: Snapshot) -> None:
        """Keep a snapshot as a new file, then delete those that it outdates."""
        before = self._kept(number)
        turn = 1 + max((kept.turn for kept in before), default=0)
        with TemporaryDirectory(prefix="autoprune-") as drafts:
            folder = save_snapshot(Path(drafts), snapshot)
            file = _packed(folder)
            new = _Kept(turn, folder.name, _digest(file))
            self.store.put(file, f"{self._folder(number)}/{new.name}")
        with suppress(StoreError):  # what stays is outdated, and goes with the next one
            for kept in before:
                if new.what == MODEL_FOLDER or kept.what != MODEL_FOLDER:
                    self.store.remove(f"{self._folder(number)}/{kept.name}")

    def read(self, number: int) -> Snapshot | None:
        """The last snapshot that is what its name says."""
        for kept in self._kept(number):
            with TemporaryDirectory(prefix="autoprune-") as place:
                if self._unpacked(number, kept, Path(place) / kept.what):
                    found = read_snapshot(Path(place))
                    if found is not None:
                        return found
        return None

    def fetch(self, number: int, folder: Path) -> bool:
        """Put the last ``model`` in the place of the one that the trial has in its folder."""
        home = trial_folder(folder, number)
        draft = home / f".draft-{MODEL_FOLDER}"
        for kept in self._kept(number):
            if kept.what == MODEL_FOLDER and self._unpacked(number, kept, draft):
                replace_folder(home / MODEL_FOLDER, draft)
                return True
        return False

    def delete(self, number: int) -> None:
        """Delete the trial's folder."""
        self.store.remove(self._folder(number))

    def clear(self) -> None:
        """Delete the sweep's folder."""
        self.store.remove(self._own)

    @property
    def _own(self) -> str:
        return f"{self.sweep_id}-saved"

    def _folder(self, number: int) -> str:
        return f"{self._own}/{number:04d}"

    def _kept(self, number: int) -> list[_Kept]:
        """The snapshots of a trial, the last one first."""
        found = map(_Kept.of, self.store.names(self._folder(number)))
        return sorted(filter(None, found), key=lambda kept: kept.turn, reverse=True)

    def _unpacked(self, number: int, kept: _Kept, folder: Path) -> bool:
        """Unpack a snapshot into a folder; False where it is not what its name says."""
        name = f"{self._folder(number)}/{kept.name}"
        with TemporaryDirectory(prefix="autoprune-") as drafts:
            file = Path(drafts) / kept.name
            if not self.store.get(name, file):
                raise StoreError(f"{self.store}/{name} was replaced meanwhile", passing=True)
            if _digest(file) != kept.digest:
                return False
            shutil.rmtree(folder, ignore_errors=True)
            with ZipFile(file) as packed:
                packed.extractall(folder)
        return True


def _packed(folder: Path) -> Path:
    """The files of a folder in one file beside it, as they are: weights hardly compress."""
    file = folder.with_name(f"{folder.name}.zip")
    with ZipFile(file, "w") as packed:
        for part in sorted(folder.iterdir()):
            packed.write(part, part.name)
    return file


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
