"""A sweep in the real optuna-dashboard: by its HTTP interface, and drawn by a real browser."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from autoprune.domain.objective import Constraint
from autoprune.domain.trial import Measurement
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.request import GoalRequest
from autoprune.orchestration.session import SweepResult
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.tracking.optuna_watcher import OPTUNA_FILE
from tests.programs import CHROMIUM, needs_chromium
from tests.tiny import request

WAIT_S = 60.0
PICTURES = os.environ.get("AUTOPRUNE_TEST_PICTURES")
COMMAND = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"


@dataclass
class Dashboard:
    """The command `optuna-dashboard FILE` on a free port of this machine."""

    process: subprocess.Popen[bytes]
    uri: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.uri}/api/{path}", timeout=WAIT_S) as answer:
            return json.load(answer)

    def wait(self) -> None:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None
            try:
                self.get("studies")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("optuna-dashboard does not answer")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Of seven trials those with many parameters are stopped."""
    asked = request(
        tmp_path_factory.mktemp("outputs"),
        budget=Budget(trials=7),
        goal=GoalRequest(("main", "params"), (Constraint("params", high=450),)),
    )
    return launch(asked, Tracking()).result


@pytest.fixture(scope="module")
def dashboard(result: SweepResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(result.folder / OPTUNA_FILE), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, "--quiet"], cwd=tmp_path_factory.mktemp("cwd")
    )
    found = Dashboard(process, f"http://127.0.0.1:{port}")
    try:
        found.wait()
        yield found
    finally:
        process.terminate()
        process.wait(WAIT_S)


def test_its_interface_tells_of_every_trial(dashboard: Dashboard, result: SweepResult) -> None:
    (summary,) = dashboard.get("studies")["study_summaries"]
    view = result.view
    assert summary["study_name"] == view.sweep_id
    study = dashboard.get(f"studies/{summary['study_id']}?after=0")
    assert study["directions"] == ["maximize", "minimize"]
    assert study["objective_names"] == ["accuracy", "params"]
    assert {trial["state"] for trial in study["trials"]} == {"Complete", "Pruned"}
    told = {trial["number"]: trial for trial in study["trials"]}
    assert sorted(told) == [o.trial.number for o in view.observations]
    for observation in view.observations:
        trial = told[observation.trial.number]
        outcome = observation.outcome
        assert isinstance(outcome, Measurement)
        if outcome.complete:
            assert trial["state"] == "Complete"
            assert trial["values"] == list(view.goal.values(outcome))
        else:
            assert trial["state"] == "Pruned"
        assert trial["constraints"] == list(view.goal.violations(outcome.metrics))
        widths = {p["name"]: p["param_internal_value"] for p in trial["params"]}
        assert widths == observation.trial.spec.widths
        attributes = {attr["key"]: attr["value"] for attr in trial["user_attrs"]}
        assert float(attributes["speedup"]) == outcome.metrics["speedup"]


@needs_chromium
def test_its_page_shows_the_front(dashboard: Dashboard, result: SweepResult) -> None:
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.goto(f"{dashboard.uri}/dashboard/studies/0")
        page.get_by_text(result.view.sweep_id).first.wait_for(timeout=1000 * WAIT_S)
        front = page.locator(".scatterlayer .point")
        front.first.wait_for(timeout=1000 * WAIT_S)
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / "optuna-dashboard.png", full_page=True)
        assert page.get_by_text("accuracy").count() > 0
        browser.close()
