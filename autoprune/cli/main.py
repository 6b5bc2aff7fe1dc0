"""`autoprune <command>`: finds the command, composes its config, and turns faults into messages.

A command's module is imported when it runs: help, completion and status need no torch, which
takes seconds to import.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from autoprune.cli.call import BAD_INPUT, DONE, INTERRUPTED, Call, say, stderr
from autoprune.cli.shell import COMPLETION_FLAGS, HYDRA_FLAGS, complete, hand_to_hydra
from autoprune.domain.errors import AutopruneError, without_passwords
from autoprune.orchestration.executors.user_code import importable, users_own
from autoprune.orchestration.reports.console import stdout
from autoprune.settings.choices import choose
from autoprune.settings.compose import compose_config, given_keys, plain, spelled_out
from autoprune.settings.listed import with_recoveries

HELP = ("--help", "-h", "help")
MULTIRUN_FLAGS = ("--multirun", "-m")


@dataclass(frozen=True)
class Command:
    """A sub-command: the module whose function runs it, and what it does.

    The function has the sub-command's name, or its last word where that has two.
    """

    module: str
    about: str
    flags: tuple[str, ...] = ()


COMMANDS = {
    "sweep": Command("sweeps", "search for the fastest versions of a network worth having"),
    "plan": Command("plans", "show the groups, the space and the time; start nothing"),
    "explain": Command(
        "explains",
        "the dependency groups, or what each member of a front cut (--json)",
        flags=("--json",),
    ),
    "doctor": Command(
        "doctor", "examine nodes, storage, tracking and meter (--json)", flags=("--json",)
    ),
    "profile": Command(
        "profiles", "what each group gives and costs on its own (--json)", flags=("--json",)
    ),
    "estimate": Command(
        "estimates",
        "the size, speed and quality to expect of a pruning ratio (--json)",
        flags=("--json",),
    ),
    "resume": Command("sweeps", "go on with a sweep that was interrupted"),
    "status": Command("status", "how a sweep or a job stands (--json)", flags=("--json",)),
    "submit": Command("jobs", "send a sweep to a Ray cluster as a job, and leave"),
    "logs": Command("jobs", "what a job prints (-f follows it)", flags=("-f", "--follow")),
    "stop": Command("jobs", "end a job's sweep in good order"),
    "dashboard": Command("pages", "serve MLflow on 127.0.0.1"),
    "compare": Command(
        "contests", "which searcher finds most on one budget (--json)", flags=("--json",)
    ),
    "measure": Command(
        "measures", "time two networks against each other (--json)", flags=("--json",)
    ),
    "promote": Command("promotion", "prove a member of the front and register it"),
    "rollback": Command("promotion", "give the champion alias back"),
    "study sparsity": Command(
        "studies", "what each kind of pruning buys in size and speed (--json)", flags=("--json",)
    ),
}

OVERVIEW = """\
autoprune finds the fastest versions of a trained network worth having.

Commands:
{commands}

`autoprune <command> --help` shows what it takes; --cfg job shows its whole configuration;
--config-dir FOLDER adds your own. Tab completion, here for bash (fish and zsh alike):
  eval "$(autoprune -sc install=bash)"

Exit codes:
  0    done
  1    a sweep or a comparison broke off (what it printed goes on), or autoprune is at fault
  2    something to mend before anything was started; `autoprune doctor` found a fault
  3    a promotion whose proof failed; nothing was moved
  130  interrupted; `autoprune resume` goes on with a sweep that had begun
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except AutopruneError as error:
        say(stderr(), [f"autoprune: {line}" for line in str(error).splitlines()])
        return BAD_INPUT
    except KeyboardInterrupt:
        say(stderr(), ["autoprune: ended at once"])
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) has gone: not a fault, but stdout must not be flushed again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # a fault of autoprune's, of which Python prints where it was
        without_passwords(error)
        raise


def _dispatch(words: list[str]) -> int:
    name, rest = _named(words or [HELP[0]])
    if name in HELP:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
        print(OVERVIEW.format(commands="\n".join(lines)), end="")
        return DONE
    if name == "--version":
        print(f"autoprune {version('autoprune')}")
        return DONE
    if name in COMPLETION_FLAGS:
        return complete(rest, {name: command.flags for name, command in COMMANDS.items()})
    if name not in COMMANDS:
        raise AutopruneError(f"no command {name!r}; {choose(name, list(COMMANDS))}")
    _check_here()
    config_name = name.replace(" ", "_")
    config_dir, rest = _take_config_dir(rest)
    if name == "measure":
        rest = spelled_out(rest, config_dir)
    if any(word.split("=")[0] in HYDRA_FLAGS for word in rest):
        return hand_to_hydra(config_name, rest, config_dir)
    overrides = [word for word in rest if not word.startswith("-")]
    flags = [word for word in rest if word.startswith("-")]
    _check_flags(name, flags)
    config = plain(compose_config(config_name, overrides, config_dir=config_dir))
    config = with_recoveries(config, given=given_keys(overrides), config_dir=config_dir)
    code_paths = tuple(str(Path(place).resolve()) for place in (".", config_dir) if place)
    importable(code_paths)
    call = Call(
        config,
        console=stdout(),
        code_paths=code_paths,
        flags=frozenset(flags),
        words=tuple(overrides),
        config_dir=config_dir,
    )
    return int(_function(name, code_paths)(call))


def _check_here() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise AutopruneError(
            "the current folder is no longer there; change to one that is, and run this again"
        ) from error


def _function(name: str, code_paths: Sequence[str]) -> Callable[[Call], int]:
    """What runs a command. Raises AutopruneError where a file of the user's keeps it from that."""
    try:
        module = import_module(f"autoprune.cli.{COMMANDS[name].module}")
    except ImportError as error:
        own = users_own((error.name or "").partition(".")[0], code_paths)
        if own is None:
            raise
        raise AutopruneError(
            f"{own} stands in the place of a package of that name, which autoprune needs; rename "
            "it, or run autoprune in another folder"
        ) from error
    function: Callable[[Call], int] = getattr(module, name.split()[-1])
    return function


def _named(words: Sequence[str]) -> tuple[str, list[str]]:
    """The sub-command that a command line begins with, of one word or two, and the words after.

    `autoprune study --help` is a call for help like any other.
    """
    first, *rest = words
    seconds = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
    if not seconds:
        return first, rest
    if rest and rest[0] in HELP:
        return rest[0], []
    if not rest or rest[0] not in seconds:
        asked = rest[0] if rest else ""
        raise AutopruneError(f"{' '.join([first, asked]).strip()}: {choose(asked, seconds)}")
    return f"{first} {rest[0]}", rest[1:]


def _check_flags(name: str, flags: Sequence[str]) -> None:
    for flag in flags:
        if flag in MULTIRUN_FLAGS:
            raise AutopruneError(
                f"{flag}: autoprune has no multirun (a sweep has its own searcher); run the "
                "command once for every value"
            )
        if flag not in COMMANDS[name].flags:
            known = [*COMMANDS[name].flags, "--help", "--cfg", "--info", "--config-dir"]
            raise AutopruneError(f"{name} has no option {flag!r}; {choose(flag, known)}")


def _take_config_dir(words: list[str]) -> tuple[str | None, list[str]]:
    rest, folder, pending = [], None, False
    for word in words:
        if pending:
            folder, pending = word, False
        elif word in ("--config-dir", "-cd"):
            pending = True
        elif word.startswith("--config-dir="):
            folder = word.split("=", 1)[1]
        else:
            rest.append(word)
    if pending or folder == "":
        raise AutopruneError("--config-dir names no folder; write --config-dir FOLDER")
    return folder, rest
