"""The command `autoprune`."""

from autoprune.cli.main import main

__all__ = ["main"]
