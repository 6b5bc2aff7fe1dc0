"""`autoprune doctor` as a user types it: on this machine, and with real stores and servers."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from autoprune.cli import main
from autoprune.orchestration.doctor import authentication, tracking
from autoprune.orchestration.executors import cluster
from tests.servers import MlflowServer

# it settles whatever else runs here
QUICK = [
    *("experiment=digits_vgg", "meter.max_s=0.1"),
    *("meter.half_width=100", "meter.others_limit=100"),
]
INLINE = [*QUICK, "executor=inline"]
Doctor = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    """Runs the doctor in an empty folder; the findings, and that nothing is left."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, code: int = 0) -> list[dict[str, Any]]:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        found = main(["doctor", *words, f"meter.gate_folder={tmp_path / 'gate'}", "--json"])
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert not err
        assert sorted(tmp_path.rglob("*")) == before, "something is left behind"
        findings: list[dict[str, Any]] = json.loads(out)
        faulty = [f for f in findings if f["state"] == "fault"]
        assert bool(faulty) == (code == 2), faulty
        return findings

    return call


def of(findings: list[dict[str, Any]], check: str) -> list[dict[str, Any]]:
    return [finding for finding in findings if finding["check"] == check]


def test_this_machine_as_a_sweep_in_one_process_would_use_it(doctor: Doctor) -> None:
    found = doctor(*INLINE)
    host = socket.gethostname()
    assert {(f["node"], f["check"]) for f in found} == {
        *(("driver", name) for name in ("versions", "storage", "tracking", "resources")),
        *((host, name) for name in ("disk", "gpu", "gate", "meter")),
    }
    assert "torch 2" in of(found, "versions")[0]["found"]
    assert "the first sweep makes" in of(found, "tracking")[0]["found"]
    library, noise = of(found, "meter")
    assert library["found"].startswith("torch 2")
    assert "one network against itself is measured to within" in noise["found"]


def test_this_machine_as_trials_in_parallel_would_use_it(doctor: Doctor) -> None:
    """On a Ray of its own, whose processes outlive the check that starts it."""
    found = doctor(*QUICK, "executor.slots=2", "tracking=none")
    assert of(found, "ray")[0]["found"] == "starts on this machine"
    assert "refuses whoever has no token" in of(found, "authentication")[0]["found"]
    assert of(found, "resources")[0]["found"] == "trials at a time: 2, each with 1 CPU"
    nodes = {f["node"] for f in found} - {"driver"}
    assert len(nodes) == 1
    checks = ["versions", "clock", "storage", "disk", "gpu", "gate", "meter", "meter"]
    assert [f["check"] for f in found if f["node"] in nodes] == checks


def test_neither_network_nor_data_are_built(doctor: Doctor) -> None:
    odd = ["model._target_=no_such.Network", "data._target_=no_such.data", "baseline=checkpoint"]
    found = doctor(*INLINE, *odd, "baseline.checkpoint=nowhere.pt", "tracking=none")
    assert of(found, "tracking")[0]["found"] == "none: results stay in the folder"


def test_a_user_reads_what_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *INLINE, "output=/proc/outputs", "meter.gate=false"]) == 2
    out, err = capsys.readouterr()
    assert not err
    assert "cannot write to the output folder /proc/outputs" in out
    assert "to mend: set output=FOLDER to one that can be written" in out
    # the store would be in the same folder; without a gate trials disturb each other
    assert out.splitlines()[-1].startswith("2 to mend before a sweep, 1 to know of")


def test_a_quantised_network_on_another_runtime(doctor: Doctor) -> None:
    library, noise = of(doctor(*INLINE, "meter=onnxruntime_int8", "tracking=none"), "meter")
    assert library["found"].startswith("onnxruntime ")
    assert noise["state"] == "ok"


def all_runs(client: MlflowClient) -> Iterator[tuple[str, str]]:
    for experiment in client.search_experiments(view_type=ViewType.ACTIVE_ONLY):
        for run in client.search_runs([experiment.experiment_id]):
            yield experiment.name, run.info.run_id


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_an_mlflow_server(doctor: Doctor, mlflow_server: MlflowServer) -> None:
    client = MlflowClient(tracking_uri=mlflow_server.uri)
    client.create_run(client.create_experiment("examined"))
    before, kept = list(all_runs(client)), files_in(mlflow_server.folder / "artifacts")
    for experiment in ("examined", "never swept"):
        words = [f"tracking.uri={mlflow_server.uri}", f"tracking.experiment='{experiment}'"]
        found = doctor(*INLINE, *words)
        version, runs, artifacts = of(found, "tracking")
        assert version["found"].startswith("the server is MLflow 3.")
        assert "takes runs and deletes them" in runs["found"]
        assert (
            "artifacts are kept, read back and deleted at mlflow-artifacts:" in artifacts["found"]
        )
        assert "the tracking server's clock is" in of(found, "clock")[0]["found"]
        assert (
            "asks for no login, and is on this machine" in of(found, "authentication")[0]["found"]
        )
        assert list(all_runs(client)) == before
    names = {e.name for e in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)}
    assert not [name for name in names if name.startswith("autoprune-doctor")]
    assert files_in(mlflow_server.folder / "artifacts") == kept


def test_a_server_that_takes_calls_and_never_answers(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (authentication, tracking):
        monkeypatch.setattr(module, "REQUEST_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        found = doctor(*INLINE, f"tracking.uri={uri}", code=2)
    (fault,) = of(found, "tracking")
    assert fault["state"] == "fault"
    assert f"no MLflow store answers at {uri}" in fault["found"]
    assert fault["remedy"] == "start the server or set tracking.uri"
    assert of(found, "meter"), "the others are examined all the same"


def test_a_cluster_that_is_not_there(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        found = doctor(*QUICK, "executor=cluster", f"executor.address={address}", code=2)
    (fault,) = of(found, "ray")
    assert f"no Ray cluster answers at executor.address='{address}'" in fault["found"]
    assert {f["node"] for f in found} == {"driver"}
    assert of(found, "storage")[0]["state"] == "ok"


def test_a_device_that_is_not_there_is_found_and_not_refused(doctor: Doctor) -> None:
    found = doctor(*INLINE, "executor.device=cuda", "tracking=none", code=2)
    (fault,) = of(found, "gpu")
    assert "torch finds no CUDA device" in fault["found"]
    assert "choose executor.gpus=0 executor.device=cpu" in fault["remedy"]
