"""A cluster of three hosts with addresses of their own, a team's MLflow, and strangers."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow.pyfunc
import pytest
import torch
from mlflow import MlflowClient

from autoprune.orchestration.tracking.connection import process_store
from autoprune.orchestration.tracking.serving import ready_model
from tests.hosts import Host, Network, network
from tests.strangers import knock
from tests.team import ADMIN, PASSWORD, Server, served, with_postgresql
from tests.tiny import REPOSITORY, WORDS, events, sweep_folder, told

pytestmark = pytest.mark.slow  # a cluster of three, and servers that import all of MLflow
TOKEN = "a-token-for-this-test-that-nobody-would-guess"
LOGIN = {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
JOIN_S = 120.0
AUTOPRUNE = (sys.executable, "-c", "import sys; from autoprune.cli import main; sys.exit(main())")
MODEL = """
from torch import nn


def net(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), Scaled(), nn.Linear(32, classes)
    )


class Scaled(nn.Module):
    def forward(self, x):
        return 0.5 * x
"""
"""A user's module, without which no worker can take up a trial."""
PROJECT = ("--config-dir", "conf", "model=mine", "name=tiny", "budget.trials=6")
PROJECT = (*PROJECT, *(word for word in WORDS if not word.startswith("model")))


@dataclass(frozen=True)
class Team:
    """Three hosts with a cluster on them, and an MLflow on their network.

    They share all folders but `private`, which is empty to the workers.
    """

    network: Network
    head: Host
    workers: tuple[Host, Host]
    mlflow: Server
    private: Path
    environment: Mapping[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def autoprune(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A command of somebody's outside of the cluster."""
        return subprocess.run(
            [*AUTOPRUNE, *words],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with made(tmp_path_factory.mktemp("team")) as team:
        yield team


@contextmanager
def made(folder: Path) -> Iterator[Team]:
    private, token = folder / "private", folder / "token"
    private.mkdir()
    token.write_text(TOKEN)
    token.chmod(0o600)
    here = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'agents'}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_grpc_server_use_loopback": "false",
    }
    with network(folder, here) as hosts, with_postgresql() as where:
        allowed = {**where, "MLFLOW_SERVER_ALLOWED_HOSTS": f"{hosts.gateway}:*"}
        with served(folder, allowed, host=hosts.gateway) as server:
            head = hosts.host("head")
            head.head("--num-cpus=0", **LOGIN)
            workers = hosts.host("a", private), hosts.host("b", private)
            for worker in workers:
                worker.join(head, "--num-cpus=1")
            team = Team(hosts, head, workers, server, private, here)
            wait_for_nodes(team, 3)
            yield team


def wait_for_nodes(team: Team, count: int) -> None:
    until = time.monotonic() + JOIN_S
    joining = f"import ray; ray.init('{team.head.address}:6379', logging_level='ERROR')"
    program = f"{joining}; print(sum(node['Alive'] for node in ray.nodes()))"
    while True:
        done = team.head.run([sys.executable, "-c", program])
        if done.stdout.strip() == str(count):
            return
        assert time.monotonic() < until, (done.stdout, done.stderr, team.head.log.read_text())
        time.sleep(1)


def submitted(team: Team, folder: Path, output: Path, *words: str) -> str:
    """A job's id."""
    done = team.autoprune(
        "submit",
        f"executor.address={team.dashboard}",
        f"output={output}",
        f"tracking.uri={team.mlflow.uri}",
        *words,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"job +(\S+)\n", done.stdout)
    assert found is not None, done.stdout
    return found[1]


def project(folder: Path) -> Path:
    """A user's folder."""
    (folder / "conf/model").mkdir(parents=True)
    (folder / "my_net.py").write_text(MODEL)
    (folder / "conf/model/mine.yaml").write_text("_target_: my_net.net\n")
    return folder


def test_a_sweep_is_submitted_followed_and_its_front_is_loaded_over_http(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, output = project(tmp_path / "project"), tmp_path / "outputs"
    at = f"executor.address={team.dashboard}"
    job = submitted(team, mine, output, *PROJECT)
    shutil.rmtree(mine)  # the job has it
    done = team.autoprune("logs", "-f", f"job={job}", at, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 trials at a time" in done.stdout
    assert re.search(r"^\[ *6/6\] trial", done.stdout, re.MULTILINE)
    assert f"job       {job}: SUCCEEDED" in done.stdout
    stood = json.loads(team.autoprune("status", f"job={job}", at, "--json", cwd=tmp_path).stdout)
    assert (stood["id"], stood["state"]) == (job, "SUCCEEDED")
    folder = sweep_folder(output)
    assert folder is not None
    assert sorted(told(folder)) == list(range(6))
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(team.mlflow.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = client.search_runs([experiment.experiment_id], "tags.`pareto` = 'true'")
    front = json.loads((folder / "pareto.json").read_text())["front"]
    assert {run.info.run_id for run in runs} == {member["run_id"] for member in front}
    assert front
    with process_store(team.mlflow.uri):
        for run in runs:
            model = mlflow.pyfunc.load_model(f"models:/{ready_model(client, run.info.run_id)}")
            assert model.predict(torch.zeros(2, 1, 8, 8).numpy()).shape == (2, 10)


def test_a_job_is_stopped_in_good_order_and_what_remains_goes_on(
    team: Team, tmp_path: Path
) -> None:
    mine, output = project(tmp_path / "project"), tmp_path / "outputs"
    at, there = f"executor.address={team.dashboard}", f"output={output}"
    job = submitted(team, mine, output, *PROJECT, "tracking=none", "budget.trials=2000")
    until = time.monotonic() + JOIN_S
    while (folder := sweep_folder(output)) is None or not told(folder):
        assert time.monotonic() < until, team.autoprune("logs", f"job={job}", at, cwd=mine).stdout
        time.sleep(0.2)
    done = team.autoprune("stop", f"job={job}", at, cwd=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{job}: STOPPED after" in done.stdout
    said = team.autoprune("logs", f"job={job}", at, cwd=mine).stdout
    assert "autoprune: finishing the running trials" in said
    assert "Results are in" in said
    before = told(folder)
    assert sorted(before) == list(range(len(before))), "a trial that ran was given up"
    more = len(before) + 4
    done = team.autoprune("submit", "resume=latest", at, there, f"budget.trials={more}", cwd=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    done = team.autoprune("logs", "-f", at, cwd=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(folder)[: len(before)] == before
    assert sorted(told(folder)) == list(range(more))


def test_a_sweep_that_is_attached_brings_workers_its_users_modules(
    team: Team, tmp_path: Path
) -> None:
    mine = project(team.private / "project")
    words = [
        "sweep",
        f"executor.address={team.head.address}:6379",
        f"output={tmp_path}",
        "tracking=none",
        *PROJECT,
    ]
    done = team.head.run([*AUTOPRUNE, *words], cwd=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = sweep_folder(tmp_path)
    assert folder is not None
    outcomes = [event["observation"] for event in events(folder, "tell")]
    assert len(outcomes) == 6
    assert all("measurement" in outcome for outcome in outcomes), outcomes


def test_a_stranger_without_the_token_is_refused_by_all_that_listens(team: Team) -> None:
    answers = [answer for host in team.network.hosts for answer in knock(host)]
    pages = [answer for answer in answers if answer.pages and not answer.exporter]
    calls = [answer for answer in answers if answer.calls]
    # the dashboard and, on each host, the agents of the dashboard and of environments
    assert len(pages) == 1 + 2 * 3
    assert {status for answer in pages for status in answer.pages.values()} == {401}, pages
    # the cluster's state, Ray Client, and on each host the raylet's two ports and the agent's
    assert len(calls) >= 2 + 3 * 3
    known = {code for answer in calls for code in answer.calls.values()}
    assert known <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, calls
    refusing = {answer.host for answer in calls if "UNAUTHENTICATED" in answer.calls.values()}
    assert refusing == {"head", "a", "b"}
    # figures for Prometheus are for everybody (deploy/SECURITY.md)
    assert {answer.host for answer in answers if answer.exporter} == {"head", "a", "b"}


@pytest.mark.parametrize("token", ["", "another-token-than-the-cluster-has-been-given"])
def test_a_stranger_is_told_that_the_token_is_missing(
    team: Team, tmp_path: Path, token: str
) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(token)
    without = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)} if token else {}
    there = [f"executor.address={team.dashboard}", f"output={tmp_path}"]
    mine = project(tmp_path / "project")
    stranger = replace(
        team, environment={**team.environment, "RAY_AUTH_MODE": "disabled"} | without
    )
    for words in (["submit", *there, *PROJECT], ["logs", there[0]], ["stop", there[0]]):
        done = stranger.autoprune(*words, cwd=mine)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "does not let this process in; give the same RAY_AUTH_MODE and" in done.stderr
    joining = ["sweep", f"executor.address={team.head.address}:6379", f"output={tmp_path}"]
    done = team.head.run([*AUTOPRUNE, *joining, *PROJECT], cwd=mine, **stranger.environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "answers and does not let this process in" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
