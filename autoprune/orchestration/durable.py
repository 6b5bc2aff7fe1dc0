"""What is written is on the disk, whatever happens to the machine."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until what a file holds, or what a folder's files are called, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
