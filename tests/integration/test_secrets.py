"""Where the passwords and keys of real sweeps are not: in nothing that is printed or written."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from autoprune.cli import main
from autoprune.domain.trial import Stage
from autoprune.orchestration.tracking.tracker import MlflowTracker, Patience
from tests.servers import MlflowServer
from tests.sweeps import make_sweep
from tests.tiny import REPOSITORY, WORDS, Driver, sweep_folder

SECRETS = {
    "url": "p4ss-in-the-url",
    "MLFLOW_TRACKING_PASSWORD": "p4ss-of-mlflow",
    "RAY_AUTH_TOKEN": "70ce" * 16,
    "AWS_SECRET_ACCESS_KEY": "k3y-of-aws",
}
RAY_SESSIONS = Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}" / "ray"


@pytest.fixture(autouse=True)
def _in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    for name, secret in SECRETS.items():
        if name != "url":
            monkeypatch.setenv(name, secret)


def with_password(server: MlflowServer) -> str:
    return server.uri.replace("://", f"://me:{SECRETS['url']}@")


def told_in(text: str | bytes) -> list[str]:
    """The secrets that stand in a text."""
    content = text.encode() if isinstance(text, str) else text
    return [name for name, secret in SECRETS.items() if secret.encode() in content]


def leaks(folder: Path) -> dict[str, list[str]]:
    """The files below a folder that hold a secret, with which."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    found = {str(path.relative_to(folder)): told_in(path.read_bytes()) for path in files}
    return {path: names for path, names in found.items() if names}


def run(words: list[str], folder: Path) -> tuple[Driver, set[str]]:
    """A command from its start to its end, and the command lines of all that it started."""
    driver, seen = Driver(words, folder), set[str]()
    while driver.process.poll() is None:
        for process in driver.family():
            try:
                seen.add(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    return driver, seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep runs, and then its resume."""
    return tmp_path_factory.mktemp("secrets")


@pytest.mark.slow  # a sweep in workers, and all that it writes
def test_a_sweep_tells_no_secret(folder: Path, mlflow_server: MlflowServer) -> None:
    words = ["sweep", *WORDS, "name=secret", "output=out", "budget.trials=2"]
    words += [f"tracking.uri={with_password(mlflow_server)}"]
    driver, commands = run(words, folder)
    assert driver.process.returncode == 0, driver.said
    assert told_in(driver.said) == []
    assert any("setup_worker" in command or "ray::" in command for command in commands)
    assert [command for command in commands if told_in(command)] == []
    assert leaks(folder / "out") == {}
    (session,) = RAY_SESSIONS.glob(f"session_*_{driver.process.pid}")
    assert leaks(session) == {}
    assert leaks(mlflow_server.folder) == {}
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("secret")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`autoprune.kind` = 'sweep'")
    assert parent.data.params["tracking.uri"].startswith("http://me:***@127.0.0.1:")


@pytest.mark.slow  # a sweep on Ray
def test_a_sweep_whose_trials_fail_tells_no_secret(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    words = ["sweep", *WORDS, "name=failing", "output=out", "budget.trials=3", "executor=inline"]
    words += [f"tracking.uri={with_password(mlflow_server)}", "recovery.fit.lr=1e30"]
    driver, _ = run(words, tmp_path)
    assert driver.process.returncode == 1
    assert "3 trials failed (NaN loss) and none came through" in driver.said
    assert told_in(driver.said) == []
    assert leaks(tmp_path / "out") == {}
    assert leaks(mlflow_server.folder) == {}


@pytest.mark.slow  # a sweep on Ray, and a resume of it
def test_a_resume_takes_the_password_from_the_environment(
    folder: Path,
    mlflow_server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sweep_folder(folder / "out") is not None
    words = ["resume", "sweep=latest", "output=out", "budget.trials=3"]
    refused, _ = run(words, folder)
    assert refused.process.returncode == 2
    shown = mlflow_server.uri.replace("://", "://me:***@")
    assert f"tracking.uri was {shown}, and its password is written down nowhere" in refused.said
    assert "set MLFLOW_TRACKING_URI to all of it in the environment" in refused.said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password(mlflow_server))
    resumed, commands = run(words, folder)
    assert resumed.process.returncode == 0, resumed.said
    assert told_in(resumed.said) == []
    assert [command for command in commands if told_in(command)] == []
    assert leaks(folder / "out") == {}
    page, _ = run(["dashboard", "sweep=latest", "output=out"], folder)
    assert page.said.startswith(f"{mlflow_server.uri}/#/experiments/")
    assert told_in(page.said) == []


@pytest.mark.parametrize("words", [["--cfg", "job"], ["--cfg", "job", "--resolve"]])
def test_a_printed_config_has_no_password(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"tracking.uri=postgresql://me:{SECRETS['url']}@host/db"
    assert main(["sweep", uri, *words]) == 0
    out, err = capsys.readouterr()
    assert "postgresql://me:***@host/db" in out
    assert told_in(out + err) == []


@pytest.mark.parametrize(
    "words",
    [
        ["tracking.ur=http://me:{}@host"],
        ["tracking.uri=gopher://me:{}@host"],
        ["tracking.uri=postgresql://me:{}@127.0.0.1:9/db", "output=/proc/nowhere"],
        ["tracking.uri=postgresql://127.0.0.1:9/db?password={}"],
        ["tracking.uri=http://me:{}@127.0.0.1:9"],
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_its_password(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(SECRETS["url"]) for word in words]
    assert main(["sweep", *WORDS, f"output={tmp_path}", "executor=inline", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("autoprune: ")
    assert told_in(out + err) == []


@pytest.fixture
def failing(mlflow_server: MlflowServer) -> Iterator[MlflowServer]:
    """The server of all tests, to be killed; it is there again afterwards."""
    yield mlflow_server
    mlflow_server.start()


def test_a_store_that_goes_away_is_complained_of_without_its_password(
    failing: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    view = make_sweep(2, sweep_id="secret-tracker")
    tracker = MlflowTracker(with_password(failing), patience=Patience(0.1, drain_s=3.0))
    tracker.on_start(view)
    failing.kill()
    trial = view.observations[0].trial
    tracker.on_progress(trial, Stage.PRUNE, {"accuracy": 0.5}, epoch=0)
    deadline = time.monotonic() + 60
    while "waits for the tracking store" not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.05)
    tracker.on_finish(view, complete=True)
    assert "could not be made" in tracker.summary()
    assert told_in(caplog.text + tracker.summary()) == []


def test_a_traceback_of_a_script_has_no_password(tmp_path: Path) -> None:
    script = f"""
import autoprune
from tests.pruning_tasks import Blobs, small_net
uri = "http://me:{SECRETS["url"]}@127.0.0.1:9"
autoprune.search(small_net(), Blobs(), trials=1, inline=True, tracking=uri)
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no MLflow store answers at http://me:***@127.0.0.1:9" in done.stderr
    assert told_in(done.stdout + done.stderr) == []
