"""Work in a fresh process, which runs this module and knows nothing of the one that asks."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from autoprune.domain.errors import AutopruneError

LOOK_S = 0.2
"""How often a process that is watched is looked at."""


class FreshProcessError(AutopruneError):
    """The process ended without an answer; the message is its last words."""


def in_fresh_process(
    function: Callable[..., Any], *arguments: Any, code_paths: Sequence[str] = ()
) -> Any:
    """What a function of a module gives, in plain JSON types, called in a new process.

    The process finds modules in `code_paths`, too. Raises FreshProcessError where it fails, and
    whatever pickling the arguments raises.
    """
    return _asked(function, arguments, code_paths, wait=lambda process: process.wait())


def in_watched_process(
    function: Callable[..., Any],
    *arguments: Any,
    watch: Callable[[], None],
    limit_s: float,
) -> Any:
    """`in_fresh_process`, ended where `watch` raises, which is called again and again meanwhile.

    Raises what that raises, and FreshProcessError after `limit_s` seconds, too.
    """

    def wait(process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + limit_s
        while process.poll() is None:
            watch()
            if time.monotonic() > until:
                raise FreshProcessError(f"it was not done after {limit_s:g} s")
            time.sleep(LOOK_S)
        watch()

    return _asked(function, arguments, (), wait=wait)


def _asked(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    code_paths: Sequence[str],
    *,
    wait: Callable[[subprocess.Popen[str]], object],
) -> Any:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        order, answer = Path(folder) / "order.pkl", Path(folder) / "answer.json"
        order.write_bytes(cloudpickle.dumps((function, tuple(arguments))))
        with subprocess.Popen(
            [sys.executable, "-m", __name__, str(order), str(answer), *code_paths],
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
        ) as process:
            try:
                wait(process)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise FreshProcessError(re.sub(r"^autoprune(\.\w+)+: ", "", last[0])[:300])
        return json.loads(answer.read_text())


def _main(order: str, answer: str, *code_paths: str) -> None:
    sys.path[:0] = code_paths
    with Path(answer).open("w") as file:  # before a function that lets nothing be written any more
        function, arguments = cloudpickle.loads(Path(order).read_bytes())
        file.write(json.dumps(function(*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
