"""`autoprune dashboard` as a user types it: the address that it prints opens the sweep's run."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import sync_playwright

from autoprune.cli import main
from tests.programs import CHROMIUM, needs_chromium
from tests.tiny import REPOSITORY, WORDS

WAIT_S = 120
COMMAND = "import sys; from autoprune.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """The output folder of a tiny sweep that is in MLflow."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    words = [*WORDS, "executor=inline", "budget.trials=2", "name=shown", f"output={folder}"]
    assert main(["sweep", *words]) == 0
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Dashboard:
    """The command in a process of its own."""

    def __init__(self, output: Path, port: int, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "dashboard", f"output={output}", f"port={port}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        )

    def address(self) -> str:
        """The address that it prints once its pages answer."""
        assert self.process.stdout is not None
        watch = threading.Timer(WAIT_S, self.process.kill)
        watch.start()
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line.startswith("http://"):
                watch.cancel()
                return line.strip()
        raise AssertionError("".join(said))

    def family(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid)
        return [found, *found.children(recursive=True)]


@pytest.fixture
def started(output: Path, free_port: int, tmp_path: Path) -> Iterator[Dashboard]:
    dashboard = Dashboard(output, free_port, tmp_path)
    yield dashboard
    if dashboard.process.poll() is None:
        dashboard.process.terminate()
        dashboard.process.wait(WAIT_S)
    assert dashboard.process.stdout is not None
    dashboard.process.stdout.close()


def opens_the_run(address: str, sweep_id: str) -> None:
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.get_by_text(sweep_id).first.wait_for(timeout=1000 * WAIT_S)
        page.goto(f"{address}/artifacts/dashboard/pareto.html")
        frame = page.wait_for_selector("iframe", timeout=1000 * WAIT_S)
        assert frame is not None
        inside = frame.content_frame()
        assert inside is not None
        inside.locator("#front .main-svg").first.wait_for(timeout=1000 * WAIT_S)
        browser.close()


@needs_chromium
@pytest.mark.slow  # a sweep, a server and a browser
def test_the_address_opens_the_sweep_and_ctrl_c_ends_all(
    output: Path, started: Dashboard, tmp_path: Path
) -> None:
    (sweep_id,) = [p.name for p in output.glob("shown-*")]
    address = started.address()
    assert "#/experiments/" in address
    opens_the_run(address, sweep_id)
    ends(started, lambda: os.kill(started.process.pid, signal.SIGINT))
    assert list(tmp_path.iterdir()) == []


def ends(dashboard: Dashboard, how: Callable[[], None]) -> None:
    """Whatever ends the command, its exit code is 0 and no process of it is left."""
    family = dashboard.family()
    assert len(family) > 1
    how()
    assert dashboard.process.wait(WAIT_S) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


@pytest.mark.slow
def test_sigterm_ends_it_as_ctrl_c_does(started: Dashboard) -> None:
    started.address()
    ends(started, started.process.terminate)


def test_a_port_in_use_is_refused_with_the_remedy(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", f"output={output}", f"port={port}"]) == 2
    err = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be used (Address already in use)" in err
    assert "set port= to a free one" in err


def test_a_port_that_is_none_and_a_sweep_that_is_not_there_are_refused(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", f"output={output}", "port=70000"]) == 2
    assert "a port lies between 1 and 65535" in capsys.readouterr().err
    assert main(["dashboard", f"output={output}", "sweep=nothing"]) == 2
    assert "no sweep 'nothing'" in capsys.readouterr().err
