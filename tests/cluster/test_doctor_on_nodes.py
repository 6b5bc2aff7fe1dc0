"""`autoprune doctor` on a real Ray cluster, a node of which has another folder under one path."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from autoprune.orchestration.doctor.examination import Examination
from autoprune.orchestration.doctor.findings import DRIVER, Finding, State
from autoprune.orchestration.executors import cluster
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.store import Store
from tests.tiny import REPOSITORY, meter

pytestmark = pytest.mark.slow  # workers that import torch on every node


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head for no trial, and a worker for two that says it has GPUs."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=2, num_gpus=2, resources={"bench": 1})
    made.wait_for_nodes()
    yield made
    made.shutdown()


def examination(nodes: Cluster, output: Path, demand: Demand | None = None) -> Examination:
    executor = TuneExecutor(
        None, demand or Demand(), address=nodes.address, code_paths=[str(REPOSITORY)]
    )
    return Examination(executor, meter(), output)


def findings(asked: Examination) -> list[Finding]:
    found: list[Finding] = []
    asked.examine(found.append)
    assert not ray.is_initialized()
    return found


def of(found: list[Finding], check: str, *, on_driver: bool = False) -> list[Finding]:
    return [f for f in found if f.check == check and (f.node == DRIVER) == on_driver]


def test_every_node_is_examined_and_nothing_is_left(nodes: Cluster, tmp_path: Path) -> None:
    found = findings(examination(nodes, tmp_path / "outputs"))
    assert not list(tmp_path.iterdir())
    faults = [f for f in found if f.verdict.state is State.FAULT]
    assert not faults
    names = {f.node for f in found} - {DRIVER}
    assert len(names) == 2, "two nodes of one host are told apart"
    for check in ("versions", "clock", "storage", "disk"):
        assert {f.node for f in of(found, check)} == names
    # the head holds no trial, so that nothing is measured there
    assert len({f.node for f in of(found, "meter")}) == 1
    assert all("is the driver's" in f.verdict.found for f in of(found, "storage"))
    (resources,) = of(found, "resources", on_driver=True)
    assert resources.verdict.found == "trials at a time: 2, each with 1 CPU"
    (token, *_) = of(found, "authentication", on_driver=True)
    assert "whoever has no token" in token.verdict.found


def test_gpus_that_ray_offers_and_torch_does_not_find(nodes: Cluster, tmp_path: Path) -> None:
    found = findings(examination(nodes, tmp_path, Demand(gpus=1)))
    (gpu,) = of(found, "gpu")
    assert gpu.verdict.state is State.FAULT
    assert "torch finds no CUDA device" in gpu.verdict.found
    assert [f.verdict.state for f in of(found, "gpu", on_driver=True)] == [State.OK]


def test_what_no_node_holds_and_other_versions_are_faults_beside_each_other(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cluster.installed()
    monkeypatch.setattr(cluster, "version", lambda name: "1.0" if name == "torch" else own[name])
    found = findings(examination(nodes, tmp_path, Demand(cpus=3)))
    (resources,) = of(found, "resources", on_driver=True)
    assert "no node can hold a trial, which asks for 3 CPUs" in resources.verdict.found
    assert "or start such a node" in resources.verdict.remedy
    for versions in of(found, "versions"):
        assert "there, 1.0 here" in versions.verdict.found
        assert versions.verdict.remedy == cluster.ALIKE
    assert all(f.verdict.state is State.OK for f in of(found, "storage"))


def test_speed_is_examined_where_it_is_measured(nodes: Cluster, tmp_path: Path) -> None:
    asked = replace(examination(nodes, tmp_path), where="bench")
    found = findings(asked)
    assert not of(found, "meter", on_driver=True)
    assert len({f.node for f in of(found, "meter")}) == 1
    assert of(found, "resources", on_driver=True)[-1].verdict.found == "benches: 1"


@pytest.fixture(scope="module")
def stranger(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder under whose path a node of the cluster sees another one: the folder."""
    tmp_path = tmp_path_factory.mktemp("stranger")
    folder, other = tmp_path / "shared", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace (root)")
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    command = [unshare, "-m", "sh", "-c", script, str(other), str(folder), *ray_start]
    before = len(_alive(nodes))
    with (tmp_path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--address={nodes.address}"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 60
        while len(_alive(nodes)) == before:
            assert process.poll() is None, (tmp_path / "node.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.5)
        yield folder
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _alive(nodes: Cluster) -> list[object]:
    with cluster.cluster(nodes.address):
        return list(cluster.members())


def test_a_node_with_another_folder_under_the_same_path(nodes: Cluster, stranger: Path) -> None:
    found = of(findings(examination(nodes, stranger)), "storage")
    assert len(found) == 3
    (fault,) = (f.verdict for f in found if f.verdict.state is State.FAULT)
    assert f"{stranger} on this node is another folder than the driver's" in fault.found
    assert "mount one shared folder" in fault.remedy
    assert not list(stranger.iterdir())
    assert not list((stranger.parent / "other").iterdir())


def test_where_trials_save_elsewhere_that_is_examined(nodes: Cluster, stranger: Path) -> None:
    both, apart = stranger.parent / "both", stranger
    both.mkdir()
    asked = examination(nodes, stranger)
    found = findings(replace(asked, storage=Store(str(both))))
    assert {f.verdict.state for f in of(found, "storage")} == {State.OK}
    assert len(of(found, "storage")) == 2, "the head holds no trial"
    found = findings(replace(asked, storage=Store(str(apart))))
    (fault,) = (f.verdict for f in of(found, "storage") if f.verdict.state is State.FAULT)
    assert f"trials save at {apart}, and node" in fault.found
    assert "or set executor.storage to a folder or URL" in fault.remedy
    assert not [*both.iterdir(), *apart.iterdir()]


@contextmanager
def head(variables: Mapping[str, str]) -> Iterator[str]:
    """A cluster of its own, started with variables of the environment: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    words = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += ["--num-cpus=1", "--include-dashboard=false"]
    # beside the sessions of others; its sockets allow for short paths alone
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words, f"--temp-dir={place}"],
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 60
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.5)
            yield address
        finally:
            end(process)


def doctor(address: str, folder: Path, variables: Mapping[str, str]) -> tuple[int, list[Any]]:
    """The exit code and the findings of the command in a process of its own."""
    code = "import sys; from autoprune.cli import main; sys.exit(main())"
    words = ["executor=cluster", f"executor.address={address}", "tracking=none", "meter.max_s=0.1"]
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", *words, "--json"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(folder.iterdir())
    return done.returncode, json.loads(done.stdout)


def test_a_cluster_that_lets_everybody_in(tmp_path: Path) -> None:
    without = {"RAY_AUTH_MODE": "disabled"}
    with head(without) as address:
        code, found = doctor(address, tmp_path, without)
    assert code == 0
    (token, *_) = [f for f in found if f["check"] == "authentication"]
    assert token["state"] == "warning"
    port = address.rpartition(":")[2]
    assert f":{port} lets in whoever has no token" in token["found"]


def test_a_token_that_is_not_the_clusters(tmp_path: Path) -> None:
    ours, theirs = ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": word * 32} for word in "ab")
    with head(theirs) as address:
        code, found = doctor(address, tmp_path, ours)
    assert code == 2
    (ray,) = [f for f in found if f["check"] == "ray"]
    assert f"executor.address='{address}' answers and does not let this process in" in ray["found"]
    assert "RAY_AUTH_TOKEN" in ray["remedy"]
