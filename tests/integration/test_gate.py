"""The quiet gate among real processes: some are killed, and all of them want their turn."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 300


def found_by(folder: Path, *words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.gate_programs", str(folder), *map(str, words)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_200_rounds_of_kills_leave_no_dead_lock_and_no_torn_measurement(
    tmp_path: Path, seed: int
) -> None:
    found = found_by(tmp_path, "--rounds", 200, "--seed", seed)
    assert found["stuck"] is None
    assert found["torn"] == []
    for where in ("meter inside", "meter waiting", "trainer inside", "trainer waiting"):
        assert found["killed"][where] > 10
    assert min(found["steps"], found["measurements"]) > 600


def test_without_a_gate_measurements_would_be_torn(tmp_path: Path) -> None:
    found = found_by(tmp_path, "--rounds", 5, "--gate", "none")
    assert found["torn"]


def test_a_lock_file_that_outlives_its_owner_would_be_a_dead_lock(tmp_path: Path) -> None:
    found = found_by(tmp_path, "--rounds", 20, "--gate", "lock_file", "--patience-s", 1)
    assert "did not go on" in found["stuck"]


def test_meters_take_turns_and_trainers_make_a_step_between_two_of_them(tmp_path: Path) -> None:
    """Four meters that measure back to back, so that whoever is quick could starve the rest."""
    found = found_by(tmp_path)
    assert min(found["measurements"]) > 0.6 * max(found["measurements"])
    assert min(found["steps"]) > 0.6 * sum(found["measurements"])
    assert found["trainer_passed_over_mean"] < 1.5
