"""The parts of `autoprune doctor`: what is made of what machines, stores and clocks tell."""

import io
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import ViewType
from rich.console import Console

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import NoGate, QuietNode
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.doctor import storage
from autoprune.orchestration.doctor.authentication import (
    anonymous_verdict,
    beyond_loopback,
    exposed,
    secret_verdicts,
    stranger_verdict,
)
from autoprune.orchestration.doctor.clocks import clock_verdict, of_date, offset_of
from autoprune.orchestration.doctor.findings import (
    DRIVER,
    Check,
    Finding,
    State,
    Verdict,
    examined,
    examined_together,
    fault,
    fault_of,
    ok,
    warning,
)
from autoprune.orchestration.doctor.measuring import (
    Graphics,
    Noise,
    gate_verdict,
    graphics_verdict,
    library_verdict,
    noise_verdict,
)
from autoprune.orchestration.doctor.places import told_apart
from autoprune.orchestration.doctor.storage import (
    Room,
    locks,
    network_among,
    network_of,
    probing,
    room_verdict,
)
from autoprune.orchestration.doctor.tracking import TrackingStore, version_verdict
from autoprune.orchestration.reports.findings import FindingsDrawing, findings_view
from tests.tiny import meter


def states(verdicts: Iterator[Verdict]) -> list[State]:
    return [verdict.state for verdict in verdicts]


def test_a_fault_ends_with_its_remedy() -> None:
    verdict = fault_of(AutopruneError("there are 2; 3 are wanted; lower executor.slots"))
    assert verdict == fault("there are 2; 3 are wanted", "lower executor.slots")
    verdict = fault_of(KeyError("x"))
    assert verdict.found == "KeyError: 'x'"
    assert "please report it" in verdict.remedy
    assert fault_of(AutopruneError("no remedy at all")).remedy


def test_what_raises_or_hangs_is_a_fault_and_keeps_what_was_found() -> None:
    forever = threading.Event()

    def raises() -> Iterator[Verdict]:
        yield ok("so far")
        raise OSError("disk on fire")

    def hangs() -> Iterator[Verdict]:
        yield ok("so far")
        forever.wait()

    first, second = examined(Check(DRIVER, "a", raises))
    assert first == Finding(DRIVER, "a", ok("so far"))
    assert second.verdict.state is State.FAULT
    assert second.verdict.found == "OSError: disk on fire"
    began = time.perf_counter()
    first, second = examined(Check(DRIVER, "b", hangs, limit_s=0.2))
    assert time.perf_counter() - began < 5
    assert (first.verdict, second.verdict.found) == (ok("so far"), "no answer within 0.2 s")
    forever.set()


def test_a_node_that_hangs_keeps_nobody_waiting() -> None:
    forever = threading.Event()

    def hangs() -> Iterator[Verdict]:
        forever.wait()
        yield ok("never")

    slow = [Check("slow", "hangs", hangs, limit_s=1.0), Check("slow", "after", lambda: [ok("on")])]
    quick = [Check("quick", str(n), lambda: [ok("at once")]) for n in range(3)]
    found = list(examined_together([slow, quick]))
    forever.set()
    assert [f.node for f in found] == ["quick"] * 3 + ["slow"] * 2
    assert [f.verdict.state for f in found if f.node == "slow"] == [State.FAULT, State.OK]


def test_findings_are_shown_by_node_as_they_are() -> None:
    found = [
        Finding("b", "disk", warning("[bold]half[/bold] full", "rm -r /")),
        Finding(DRIVER, "versions", ok("all")),
        Finding("b", "clock", ok("right")),
        Finding("a", "disk", fault("full", "buy one")),
    ]
    text = io.StringIO()
    Console(file=text, width=100).print(findings_view(found))
    lines = text.getvalue().splitlines()
    named = [line for line in lines if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in named] == [DRIVER, "a", "", "b", "", ""]
    assert "[bold]half[/bold] full" in text.getvalue()
    assert "to mend: rm -r /" in text.getvalue()
    assert lines[-1] == "1 to mend before a sweep, 1 to know of, 2 fine"
    assert found[0].to_json() == {
        "node": "b",
        "check": "disk",
        "state": "warning",
        "found": "[bold]half[/bold] full",
        "remedy": "rm -r /",
    }


@pytest.mark.parametrize("terminal", [True, False])
def test_the_whole_is_printed_once_at_the_end(terminal: bool) -> None:
    text = io.StringIO()
    drawing = FindingsDrawing(Console(file=text, width=80, force_terminal=terminal))
    drawing.add(Finding(DRIVER, "versions", ok("all")))
    assert ("versions" in text.getvalue()) == terminal, "on a terminal they appear as they come"
    drawing.stop()
    left = text.getvalue().rpartition("\x1b[2K")[2]  # what no later line was written over
    assert left.count("versions") == 1


delays = st.floats(1e-4, 10.0)


@given(st.floats(-1e4, 1e4), st.lists(st.tuples(delays, delays), min_size=1, max_size=8))
def test_a_clocks_offset_is_within_its_error(
    ahead_s: float, trips: list[tuple[float, float]]
) -> None:
    now_s = 1.8e9
    exchanges = [(now_s, now_s + go + ahead_s, now_s + go + back) for go, back in trips]
    found = offset_of(exchanges)
    assert abs(found.ahead_s - ahead_s) <= found.error_s + 1e-5
    assert found.error_s <= min(go + back for go, back in trips) / 2 + 1e-5
    if found.apart:
        assert abs(ahead_s) > 0.99


def test_clocks_that_are_apart_are_told() -> None:
    assert clock_verdict(offset_of([(10.0, 10.6, 11.0)])) == ok(
        "its clock is 0.1 s ahead of the driver's, give or take 0.5 s"
    )
    verdict = clock_verdict(offset_of([(10.0, 5.0, 10.1)]), "the server's")
    assert (verdict.state, "NTP" in verdict.remedy) == (State.WARNING, True)
    assert "the server's clock is 5.1 s behind the driver's" in verdict.found
    # 30 s behind, told in whole seconds
    found = of_date("Sat, 28 Nov 2026 04:00:00 GMT", 1795838430.2, 1795838430.4)
    assert (found.ahead_s, found.error_s) == (pytest.approx(-29.8), pytest.approx(0.6))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "VISIBLE_S", 0.3)


@pytest.mark.parametrize("folder", ["", "new", "new/below"])
def test_a_probe_is_met_and_leaves_nothing(tmp_path: Path, folder: str) -> None:
    with probing(tmp_path / folder) as probe:
        probe.meet("node")
        probe.check_seen("node")
        assert locks(probe).state is State.OK
        assert list((tmp_path / folder).iterdir()) == [probe.folder]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("impatient")
def test_another_folder_under_the_same_path_is_told(tmp_path: Path) -> None:
    with probing(tmp_path / "here") as probe:
        (tmp_path / "there").mkdir()
        (tmp_path / "taken").touch()
        theirs = replace(probe, folder=tmp_path / "there" / probe.folder.name)
        with pytest.raises(AutopruneError, match=r"is another folder than the driver's: .*; mount"):
            theirs.meet("node")
        with pytest.raises(AutopruneError, match=r"there is no folder .* on this node"):
            replace(probe, folder=tmp_path / "nowhere" / probe.folder.name).meet("node")
        with pytest.raises(AutopruneError, match=r"does not come to the driver; mount one shared"):
            probe.check_seen("node")
        (probe.folder / "node").mkdir()
        with pytest.raises(AutopruneError, match=r"user 0|user \d+ of this node, .* cannot write"):
            probe.meet("node")
        assert not list((tmp_path / "there").iterdir())


def test_a_folder_that_cannot_be_written_is_told() -> None:
    with (
        pytest.raises(AutopruneError, match="cannot write to the output folder"),
        probing(Path("/proc/outputs")),
    ):
        pass


def test_what_lies_between_driver_and_node_may_be_slow(tmp_path: Path) -> None:
    with probing(tmp_path) as probe:
        late = threading.Timer(0.5, probe.meet, args=("node",))
        late.start()
        probe.check_seen("node")
        late.join()


@pytest.mark.parametrize(
    ("free", "size", "state"),
    [
        (50e9, 100e9, State.OK),
        (4e9, 20e9, State.WARNING),
        (40e9, 1000e9, State.WARNING),
        (0.4e9, 1e9, State.FAULT),
        (0, 0, State.FAULT),
    ],
)
def test_room(free: float, size: float, state: State) -> None:
    verdict = room_verdict(Room("/outputs", int(free), int(size)))
    assert verdict.state is state
    assert f"{free / 1e9:.1f} GB free at /outputs" in verdict.found


def test_room_is_told_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert Room.at(tmp_path / "a" / "b").size == Room.at(tmp_path).size > 0
    assert Room.of_temporary().size > 0


def test_network_file_systems_are_known_by_the_mount_that_is_seen() -> None:
    mounts = [("/", "ext4"), ("/mnt", "nfs4"), ("/mnt/fast", "xfs"), ("/s3", "fuse.s3fs")]
    kinds = {
        "/tmp/x": None,
        "/mnt/x": "nfs4",
        "/mnt/fast/x": None,
        "/mntx": None,
        "/s3": "fuse.s3fs",
    }
    for path, kind in kinds.items():
        assert network_among(PurePath(path), mounts) == kind
    over = [*mounts, ("/mnt", "tmpfs")]
    assert network_among(PurePath("/mnt/x"), over) is None
    assert network_among(PurePath("/x"), [("/", "fuse.fuse-overlayfs")]) is None
    assert network_of(Path("/proc")) is None


def test_a_secret_that_others_can_come_to_is_told(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "token"
        file.write_text("secret")
        for folder_mode, mode, expected in [
            (0o755, 0o600, False),
            (0o755, 0o644, True),
            (0o750, 0o640, True),
            (0o700, 0o644, False),
            (0o750, 0o604, False),
        ]:
            folder.chmod(folder_mode)
            file.chmod(mode)
            assert exposed(file) is expected, (folder_mode, mode)
        folder.chmod(0o755)
        file.chmod(0o644)
        (verdict,) = secret_verdicts(file, "Ray's token")
        assert verdict == warning(
            f"Ray's token in {file} can be read by other users of this machine (mode 644)",
            f"chmod 600 {file}",
        )
        file.chmod(0o600)
        assert states(secret_verdicts(file, "Ray's token")) == [State.OK]
    assert not list(secret_verdicts(tmp_path / "none", "Ray's token"))
    assert not list(secret_verdicts(None, "Ray's token"))


def test_who_is_beyond_this_machine() -> None:
    assert not beyond_loopback(["127.0.0.1", "::1"])
    assert not beyond_loopback(["127.0.1.1"])
    assert beyond_loopback(["127.0.0.1", "192.0.2.1"])
    assert beyond_loopback(["fe80::1%eth0"])
    assert beyond_loopback([])


@pytest.mark.parametrize(
    ("status", "beyond", "state"),
    [
        (401, True, State.OK),
        (403, True, State.OK),
        (302, True, State.OK),
        (400, False, State.OK),
        (400, True, State.WARNING),
        (200, True, State.WARNING),
        (404, True, State.WARNING),
        (502, False, State.WARNING),
    ],
)
def test_a_server_that_asks_for_no_login(status: int, beyond: bool, state: State) -> None:
    verdict = anonymous_verdict("http://u:secret@h:5000", status, beyond=beyond)
    assert verdict.state is state
    assert "secret" not in str(verdict)


def test_a_ray_that_lets_strangers_in() -> None:
    assert stranger_verdict("h:6379", 1, "Unauthenticated: no token").state is State.OK
    verdict = stranger_verdict("h:6379", 0, "2 nodes")
    assert (verdict.state, "RAY_AUTH_MODE=token" in verdict.remedy) == (State.WARNING, True)
    verdict = stranger_verdict("h:6379", 1, "Traceback\nRuntimeError: the moon is full\n")
    assert verdict.state is State.WARNING
    assert "(RuntimeError: the moon is full)" in verdict.found
    assert stranger_verdict("h:6379", None, "").state is State.WARNING


def test_versions_of_mlflow_go_together_by_their_major() -> None:
    assert version_verdict("3.11.0", "3.17.2").state is State.OK
    assert version_verdict("2.22.0", "3.17.2") == fault(
        "the server is MLflow 2.22.0, this process has 3.17.2",
        "run both with one major version: mlflow==3.17.2 on the server, or its here",
    )


def everything(uri: str) -> tuple[set[str], set[str]]:
    """All experiments and runs of a store, deleted ones, too."""
    client = MlflowClient(tracking_uri=uri)
    found = client.search_experiments(view_type=ViewType.ALL)
    ids = [experiment.experiment_id for experiment in found]
    runs = client.search_runs(ids, run_view_type=ViewType.ALL)
    return {experiment.name for experiment in found}, {run.info.run_id for run in runs}


def test_a_database_takes_runs_and_keeps_none_of_ours(sqlite_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=sqlite_uri)
    known = client.create_experiment("known", artifact_location=f"file://{tmp_path}/mlartifacts/a")
    client.create_run(known)
    before, files = everything(sqlite_uri), sorted(tmp_path.rglob("*"))
    for name in ("known", "new"):
        verdicts = list(TrackingStore(sqlite_uri, name).verdicts())
        assert states(iter(verdicts)) == [State.OK] * 3, verdicts
        told = ["the tables of", "takes runs and deletes them", "artifacts are kept, read back and"]
        assert all(part in v.found for part, v in zip(told, verdicts, strict=True))
        assert everything(sqlite_uri) == before
        assert sorted(tmp_path.rglob("*")) == files


def test_an_experiment_that_was_deleted_is_in_the_way(sqlite_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=sqlite_uri)
    client.delete_experiment(client.create_experiment("gone", f"file://{tmp_path}/mlartifacts/a"))
    verdicts = TrackingStore(sqlite_uri, "gone").verdicts()
    next(verdicts)
    with pytest.raises(AutopruneError, match="'gone' was deleted; restore it or choose another"):
        list(verdicts)


def test_artifacts_that_cannot_be_kept_are_told(sqlite_uri: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file is here")
    client = MlflowClient(tracking_uri=sqlite_uri)
    client.create_experiment("odd", artifact_location=f"file://{tmp_path}/taken/below")
    before = everything(sqlite_uri)
    *_, last = TrackingStore(sqlite_uri, "odd").verdicts()
    assert last.state is State.FAULT
    assert f"artifacts cannot be kept at file://{tmp_path}/taken/below" in last.found
    assert everything(sqlite_uri) == before


@pytest.mark.parametrize(
    ("change", "state", "message"),
    [
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", State.FAULT, "an older schema"),
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", State.FAULT, "a newer schema"),
        ("DROP TABLE alembic_version", State.FAULT, "holds tables, and none of MLflow's"),
    ],
)
def test_a_database_of_another_version_is_told_and_left_as_it_is(
    sqlite_uri: str, change: str, state: State, message: str
) -> None:
    file = Path(sqlite_uri.removeprefix("sqlite:///"))
    with sqlite3.connect(file) as connection:
        connection.execute(change)
    connection.close()
    before = file.read_bytes()
    (verdict,) = TrackingStore(sqlite_uri, "any").verdicts()
    assert (verdict.state, message in verdict.found) == (state, True), verdict
    assert file.read_bytes() == before


def test_databases_that_the_first_sweep_makes(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/below/mlflow.db"
    (verdict,) = TrackingStore(uri, "any").verdicts()
    assert verdict == ok(f"the first sweep makes {tmp_path}/below/mlflow.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.db").touch()
    (verdict,) = TrackingStore(f"sqlite:///{tmp_path}/empty.db", "any").verdicts()
    assert (verdict.state, "is empty; the first sweep" in verdict.found) == (State.OK, True)
    with pytest.raises(AutopruneError, match="cannot write to the output folder"):
        list(TrackingStore("sqlite:////proc/below/mlflow.db", "any").verdicts())


def test_gpus_that_torch_does_not_find() -> None:
    two, none = Graphics(("A", "B")), Graphics((), "driver too old")
    assert graphics_verdict(two, wanted=True, offered=2) == ok("A, B")
    assert graphics_verdict(none, wanted=False, offered=2).state is State.OK
    verdict = graphics_verdict(none, wanted=True, offered=2)
    assert (verdict.state, verdict.found) == (
        State.FAULT,
        "torch finds no CUDA device (driver too old)",
    )
    assert graphics_verdict(two, wanted=True, offered=4).state is State.FAULT
    assert isinstance(Graphics.here(), Graphics)


def test_the_gate_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    gate = QuietNode(tmp_path / "gate")
    assert gate_verdict(gate) == ok(f"{tmp_path / 'gate'} can be locked")
    assert not list(tmp_path.iterdir())
    with gate.step():
        pass
    files = sorted(tmp_path.rglob("*"))
    assert gate_verdict(gate).state is State.OK
    assert sorted(tmp_path.rglob("*")) == files
    assert gate_verdict(NoGate()).state is State.WARNING
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(AutopruneError, match="must be a folder that only you can write"):
        gate_verdict(QuietNode(tmp_path / "open"))


SPEEDUP = Speedup(1.0, 0.99, 1.01, 1.0, 1.0, 100, "eager", "a cpu", 0.01, others=0.1)


def test_a_noise_floor_above_what_is_asked_is_told() -> None:
    settings = MeterSettings()
    settled, loose = SPEEDUP, replace(SPEEDUP, low=0.9, high=1.1, settled=False)
    verdict = noise_verdict([settled, settled, loose], settings)
    assert verdict.state is State.OK
    assert "is measured to within 1.0%" in verdict.found
    verdict = noise_verdict([loose, loose, settled], settings)
    assert verdict.state is State.WARNING
    assert "is measured to within 10.0%" in verdict.found
    assert verdict.remedy == "raise meter.max_s, or meter.half_width from 0.02"
    busy = replace(loose, others=1.7)
    assert "end what else runs there" in noise_verdict([busy], settings).remedy
    stolen = replace(loose, steal=0.2)
    assert "not shared" in noise_verdict([stolen], settings).remedy
    assert library_verdict("torch 2", "torch 2") == ok("torch 2")
    assert library_verdict("torch 2", "torch 3").state is State.WARNING


def test_the_noise_floor_is_measured_with_the_meter_as_it_is_set(tmp_path: Path) -> None:
    settings = replace(meter().settings, batch_sizes=(3, 5))
    found = Noise.here(replace(meter(), gate=QuietNode(tmp_path / "gate"), settings=settings))
    assert len(found.speedups) == 3
    assert all(speedup.batch_size == 3 and not speedup.further for speedup in found.speedups)
    assert all(speedup.low <= speedup.ratio <= speedup.high for speedup in found.speedups)
    assert found.library.startswith("torch ")
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_a_node_cannot_run_is_told_by_itself() -> None:
    slow = PairedMeter(TorchRuntime(threads=4096), NoGate(), MeterSettings())
    with pytest.raises(AutopruneError, match="threads"):
        Noise.here(slow)


def test_nodes_of_one_host_are_told_apart() -> None:
    names = {"abcdef01": "host", "01234567": "host", "x": "other"}
    assert told_apart(names) == {
        "abcdef01": "host (abcdef)",
        "01234567": "host (012345)",
        "x": "other",
    }
