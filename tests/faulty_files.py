"""A file system of fsspec's on this machine's disk that fails when it is told to: ``faulty://``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

Before = Callable[[str], None]


def _nothing(operation: str) -> None:
    """All is well."""


class PowerCut(BaseException):
    """The end of the process; nobody catches it."""


class FaultyFiles(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files that a store has taken while all was well, and a part of the one that broke it.

    `before` is called with the name of every operation before it, and may raise. What `put_file`
    was to write is then torn: `torn` is the share of it that is there.
    """

    protocol = "faulty"
    cachable = False
    before: ClassVar[Before] = staticmethod(_nothing)
    torn: ClassVar[float] = 0.0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    def put_file(self, path1: str, path2: str, *arguments: Any, **named: Any) -> None:
        try:
            self.before("put_file")
        except BaseException:
            data = Path(path1).read_bytes()
            place = Path(path2)
            if place.parent.is_dir():
                place.write_bytes(data[: int(self.torn * len(data))])
            raise
        super().put_file(path1, path2, *arguments, **named)

    def ls(self, *arguments: Any, **named: Any) -> Any:
        self.before("ls")
        return super().ls(*arguments, **named)

    def get_file(self, *arguments: Any, **named: Any) -> Any:
        self.before("get_file")
        return super().get_file(*arguments, **named)

    def mkdir(self, *arguments: Any, **named: Any) -> None:
        self.before("mkdir")
        super().mkdir(*arguments, **named)

    def rm(self, *arguments: Any, **named: Any) -> None:
        self.before("rm")
        super().rm(*arguments, **named)


fsspec.register_implementation("faulty", FaultyFiles, clobber=True)


@contextmanager
def failing(before: Before, *, torn: float = 0.0) -> Iterator[None]:
    """Have every operation inside call `before` with its name first."""
    FaultyFiles.before, FaultyFiles.torn = staticmethod(before), torn
    try:
        yield
    finally:
        FaultyFiles.before, FaultyFiles.torn = staticmethod(_nothing), 0.0


def at(operations: set[int], error: BaseException) -> Before:
    """Raise at those operations, counted from 0."""
    done = iter(range(10**9))

    def before(_operation: str) -> None:
        if next(done) in operations:
            raise error

    return before
