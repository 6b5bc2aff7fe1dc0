"""Work in a fresh process, which runs this module and knows nothing of the one that asks."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from autoprune.domain.errors import AutopruneError


class FreshProcessError(AutopruneError):
    """The process ended without an answer; the message is its last words."""


def in_fresh_process(
    function: Callable[..., Any], *arguments: Any, code_paths: Sequence[str] = ()
) -> Any:
    """What a function of a module gives, in plain JSON types, called in a new process.

    The process finds modules in `code_paths`, too. Raises FreshProcessError where it fails, and
    whatever pickling the arguments raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        order, answer = Path(folder) / "order.pkl", Path(folder) / "answer.json"
        order.write_bytes(cloudpickle.dumps((function, arguments)))
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(order), str(answer), *code_paths],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not answer.is_file():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            ours = f"{AutopruneError.__module__}.{AutopruneError.__name__}: "
            raise FreshProcessError(last[0].removeprefix(ours)[:300])
        return json.loads(answer.read_text())


def _main(order: str, answer: str, *code_paths: str) -> None:
    sys.path[:0] = code_paths
    function, arguments = cloudpickle.loads(Path(order).read_bytes())
    Path(answer).write_text(json.dumps(function(*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
