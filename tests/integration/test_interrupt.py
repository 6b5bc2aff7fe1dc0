"""Ctrl-C: once ends a sweep in good order, twice ends it now."""

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autoprune.cli import main
from tests.tiny import WORDS, Driver, events, sweep_folder, told

PATIENCE_S = 180.0
SWEEP = [
    "sweep",
    *WORDS,
    "recovery.fit.epochs=40",
    "output=out",
    "budget.trials=50",
    "tracking=none",
    "objective=quality_size",
]
RESUME = ["resume", "sweep=latest", "output=out"]


def until(driver: Driver, moment: Callable[[Path], bool]) -> Path:
    """Wait for the moment; the sweep's folder."""
    deadline = time.monotonic() + PATIENCE_S
    while (folder := sweep_folder(driver.folder / "out")) is None or not moment(folder):
        assert driver.process.poll() is None, driver.said
        assert time.monotonic() < deadline, driver.said
        time.sleep(0.005)
    return folder


def ctrl_c(driver: Driver) -> None:
    """What a terminal does: every process of the foreground group gets the signal."""
    os.killpg(driver.process.pid, signal.SIGINT)


def terminate(driver: Driver) -> None:
    """What a batch system or a container does: the driver alone gets the signal."""
    driver.process.terminate()


def running(folder: Path) -> set[int]:
    return {event["trial"]["number"] for event in events(folder, "ask")} - set(told(folder))


def in_recovery(folder: Path) -> bool:
    """One trial has an outcome, and another one has saved an epoch."""
    saved = {int(path.parent.name) for path in folder.glob("trials/*/epoch-*")}
    return bool(told(folder)) and bool(saved & running(folder))


@pytest.mark.parametrize(
    ("executor", "policy", "ask_to_stop"),
    [
        ("executor=inline", "finish", ctrl_c),
        pytest.param("executor.slots=2", "finish", ctrl_c, marks=pytest.mark.slow),
        pytest.param("executor.slots=2", "give_up", ctrl_c, marks=pytest.mark.slow),
        pytest.param("executor.slots=2", "finish", terminate, marks=pytest.mark.slow),
    ],
)
def test_once_ends_in_good_order_and_can_be_resumed(tmp_path, executor, policy, ask_to_stop):
    driver = Driver([*SWEEP, executor, f"executor.on_interrupt={policy}"], tmp_path)
    folder = until(driver, in_recovery)
    before = running(folder)
    family = driver.family()
    ask_to_stop(driver)
    assert driver.process.wait(PATIENCE_S) == 130, driver.said

    said = driver.said
    assert f"autoprune resume sweep={folder.name}" in said
    assert "Traceback" not in said
    done = told(folder)
    report = json.loads((folder / "pareto.json").read_text())
    assert sum(report["counts"].values()) == len(done) < 50
    assert report["counts"]["failed"] == 0
    if policy == "finish":
        assert not running(folder)
        assert before <= set(done)
    else:
        # a trial may have come to its end between the look and the signal
        assert running(folder)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    "executor", ["executor=inline", pytest.param("executor.slots=2", marks=pytest.mark.slow)]
)
def test_twice_ends_now(tmp_path, executor):
    driver = Driver([*SWEEP, "recovery.fit.epochs=5000", executor], tmp_path)
    folder = until(driver, lambda folder: bool(list(folder.glob("trials/*/epoch-*"))))
    family = driver.family()
    ctrl_c(driver)
    time.sleep(0.3)
    assert driver.process.poll() is None, "once lets the running trial finish"
    ctrl_c(driver)
    assert driver.process.wait(PATIENCE_S) == 130, driver.said
    assert "ended at once; `autoprune resume" in driver.said
    assert "Traceback" not in driver.said
    assert told(folder) == []
    assert 0 in running(folder)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


class Hasty(io.StringIO):
    """A terminal whose user types Ctrl-C the moment that it says a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def write(self, text: str) -> int:
        if self.word in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_once_is_in_good_order_as_soon_as_trials_are_said_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdout", terminal := Hasty("trials at a time"))
    assert main([*SWEEP, "executor=inline"]) == 130
    folder = sweep_folder(tmp_path / "out")
    assert folder is not None
    assert f"autoprune resume sweep={folder.name}" in terminal.getvalue()
    assert told(folder) == []


SLEEPY = """
import time

class Sleepy:
    def __init__(self, space, goal, seed):
        pass

    def ask(self, number):
        print("asked")
        time.sleep(3600)

    def tell(self, observation):
        pass
"""


def test_twice_ends_a_searcher_that_does_not_come_back(tmp_path):
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    option = tmp_path / "conf" / "searcher" / "sleepy.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: sleepy.Sleepy\n")
    words = ["--config-dir", "conf", "searcher=sleepy", "uniform_first=[]", "executor=inline"]
    driver = Driver([*SWEEP, *words], tmp_path)
    folder = until(driver, lambda _: "asked" in driver.said)
    ctrl_c(driver)
    time.sleep(0.3)
    ctrl_c(driver)
    assert driver.process.wait(30) == 130, driver.said
    assert "ended at once; `autoprune resume" in driver.said
    assert "Traceback" not in driver.said
    assert told(folder) == []


@pytest.mark.slow
def test_what_was_given_up_goes_on_from_its_last_epoch(tmp_path):
    few = ["budget.trials=3", "executor=inline", "executor.on_interrupt=give_up"]
    driver = Driver([*SWEEP, *few], tmp_path)
    folder = until(driver, in_recovery)
    ctrl_c(driver)
    assert driver.process.wait(PATIENCE_S) == 130, driver.said
    assert f"autoprune resume sweep={folder.name}" in driver.said
    (given_up,) = running(folder)
    (epoch,) = (folder / "trials" / f"{given_up:04d}").glob("epoch-*")
    spent = json.loads((epoch / "recipe.json").read_text())["seconds"]

    again = Driver(RESUME, tmp_path)
    assert again.process.wait(PATIENCE_S) == 0, again.said
    assert sorted(told(folder)) == [0, 1, 2]
    (tell,) = (e for e in events(folder, "tell") if e["observation"]["trial"]["number"] == given_up)
    seconds = tell["observation"]["measurement"]["seconds"]
    assert seconds["prune"] == spent["prune"], "the trial was begun anew"
    assert seconds["recover"] > spent["recover"]
