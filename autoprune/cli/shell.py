"""What Hydra does better than we would: its own flags, and completion in the user's shell."""

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import hydra
from omegaconf import DictConfig

from autoprune.domain.errors import AutopruneError, shown
from autoprune.settings.compose import compose_config, config_folder
from autoprune.settings.schema import register

HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i")
WITH_HYDRA_FLAGS = ("--resolve", "--package", "-p")
COMPLETION_FLAGS = ("--shell-completion", "-sc")
SHELLS = ("bash", "fish", "zsh")


def hand_to_hydra(name: str, words: Sequence[str], config_dir: str | None) -> int:
    """Let Hydra answer its flags (--help, --cfg, --info) for a command; overrides come first.

    Raises AutopruneError for overrides that are wrong and for flags that do not go with these.
    """
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("-") and flag not in (*HYDRA_FLAGS, *WITH_HYDRA_FLAGS):
            raise AutopruneError(f"{word} does not go with --help, --cfg and --info; leave it out")
    compose_config(name, overrides, config_dir=config_dir)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            return _hydra(name, words, config_dir)
    finally:
        print(shown(said.getvalue()), end="")


def complete(words: Sequence[str], commands: Mapping[str, Sequence[str]]) -> int:
    """Tab completion: install scripts as Hydra writes them; queries for the sub-command's config.

    A query arrives in the environment as COMP_LINE, the whole command line so far. `commands`
    are the sub-commands with their flags. Raises AutopruneError for anything else asked.
    """
    if len(words) != 1 or words[0] not in [
        f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in SHELLS
    ]:
        raise AutopruneError(
            f"-sc {' '.join(words)}: write -sc install=SHELL or -sc uninstall=SHELL, with SHELL "
            f"one of {', '.join(SHELLS)}"
        )
    if not words[0].startswith("query="):
        return _hydra("sweep", ["--shell-completion", *words], None)
    line = os.environ.get("COMP_LINE", "").split(" ")
    if len(line) > 3 and " ".join(line[1:3]) in commands:
        line[1:3] = [" ".join(line[1:3])]
    if line[1:2] and line[1] in commands and line[2:]:
        _complete_command(line, words[0], commands[line[1]])
    else:
        print(" ".join(_next_words(line[1:] or [""], commands)))
    return 0


def _next_words(typed: Sequence[str], commands: Iterable[str]) -> list[str]:
    """What the last word of `typed` may become: a command's first word, or its second."""
    *before, last = typed
    named = (name.split() for name in commands)
    fitting = [n for n in named if n[: len(before)] == before and len(n) > len(before)]
    found = dict.fromkeys(name[len(before)] for name in fitting)
    return [word for word in found if word.startswith(last)]


def _complete_command(line: Sequence[str], query: str, flags: Sequence[str]) -> None:
    name, rest, config_dir = line[1], list(line[2:]), None
    for flag in ("--config-dir", "-cd"):
        if flag in rest[:-2]:
            at = rest.index(flag)
            config_dir = rest[at + 1]
            del rest[at : at + 2]
    if rest[-1].startswith("-"):
        known = (*flags, "--help", "--cfg", "--info", "--config-dir")
        print(" ".join(flag for flag in known if flag.startswith(rest[-1])))
        return
    if rest[-2:-1] and rest[-2] in ("--config-dir", "-cd"):
        return  # the shell completes folders
    if config_dir is not None and not Path(config_dir).is_dir():
        config_dir = None
    words = [word for word in rest[:-1] if not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["autoprune", *words, rest[-1]])
    _hydra(name.replace(" ", "_"), ["--shell-completion", query], config_dir)


def _hydra(name: str, words: Sequence[str], config_dir: str | None) -> int:
    register(name)
    extra = ["--config-dir", config_dir] if config_dir else []
    before, sys.argv = sys.argv, ["autoprune", *extra, *words]
    try:
        with _own_log():
            _application(name)()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


@contextmanager
def _own_log() -> Iterator[None]:
    """Let Hydra log to the standard output alone: that is how it prints what --info asks for."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _application(name: str) -> Callable[[], None]:
    def nothing(_: DictConfig) -> None:
        """Hydra prints what was asked; nothing runs."""

    decorated: Callable[[], None] = hydra.main(
        config_path=str(config_folder()), config_name=name, version_base="1.3"
    )(nothing)
    return decorated
