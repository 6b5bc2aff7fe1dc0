"""The code that `autoprune sweep` ends with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from autoprune.cli.call import BROKE_OFF, DONE, INTERRUPTED, Call
from autoprune.cli.sweeps import _show_end
from autoprune.orchestration.view import SweepView
from tests.sweeps import make_goal, make_space

BASELINE = {"accuracy": 0.9, "latency_ms": 1.0, "macs": 1e6, "params": 1e4}


@pytest.mark.parametrize(
    ("complete", "interrupted", "code"),
    [
        (True, False, DONE),
        (True, True, DONE),
        (False, True, INTERRUPTED),
        (False, False, BROKE_OFF),
    ],
)
def test_only_what_was_interrupted_ends_as_if_it_were(
    complete: bool, interrupted: bool, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = SweepView("s-1", "s", make_goal(), make_space({"a": 8}), BASELINE)
    result = SimpleNamespace(view=view, folder=tmp_path, complete=complete, interrupted=interrupted)
    call = Call({}, Console(quiet=True))
    assert _show_end(call, SimpleNamespace(result=result, exported=(), warnings=())) == code
    assert ("before its budget was used up" in capsys.readouterr().err) == (code == BROKE_OFF)
