"""What a hostile tracking server can do to whoever fetches a model from it."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli import main
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.fresh import FreshProcessError
from autoprune.orchestration.tracking.fetching import Bounds, _write_below, fetch
from autoprune.orchestration.untrusted import UntrustedError
from tests.hostile_store import HostileStore, a_file, a_folder

MIB = 2**20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The folder that is written to; beside it nothing comes to be."""
    found = tmp_path / "a" / "b" / "place"
    found.mkdir(parents=True)
    yield found
    assert {p for p in tmp_path.rglob("*") if found not in p.parents} == {
        *(found, found.parent, found.parent.parent)
    }


def only_at_top(*files: dict[str, Any]) -> Any:
    return lambda folder: list(files) if folder == "models/1" else []


def in_it(place: Path) -> dict[str, int]:
    return {str(p.relative_to(place)): p.stat().st_size for p in place.rglob("*") if p.is_file()}


def test_what_a_server_lists_comes_into_the_folder(place: Path) -> None:
    store = HostileStore(listing=only_at_top(a_file("model.safetensors")), content=b"weights")
    with store.running():
        found = fetch("models:/m/1", store.uri, place)
    assert found == place
    assert in_it(place) == {"model.safetensors": 7}


@pytest.mark.parametrize(
    "listed",
    [
        a_file("../../escaped"),
        a_file("/tmp/escaped-by-a-server"),
        a_file("%2e%2e/%2e%2e/escaped"),
        a_folder("a/../../../escaped"),
    ],
    ids=["parents", "absolute", "encoded", "folder"],
)
def test_no_name_in_a_listing_leads_out_of_the_folder(listed: dict[str, Any], place: Path) -> None:
    store = HostileStore(listing=only_at_top(a_file("good"), listed))
    with store.running(), suppress(AutopruneError):
        fetch("models:/m/1", store.uri, place)
    assert not Path("/tmp/escaped-by-a-server").exists()


@pytest.mark.parametrize(
    ("uri", "location"), [("models:/m@champion", "file:///etc"), ("runs:/r/model", "/etc")]
)
def test_a_server_does_not_make_its_client_read_files_of_its_own(
    uri: str, location: str, place: Path
) -> None:
    store = HostileStore(location=location)
    with store.running(), pytest.raises(FreshProcessError) as caught:
        fetch(uri, store.uri, place)
    assert "on this machine" in str(caught.value)
    assert in_it(place) == {}


def test_a_file_without_end_is_cut_off(place: Path) -> None:
    store = HostileStore(listing=only_at_top(a_file("model.safetensors")), endless=True)
    with store.running(), pytest.raises(AutopruneError, match=r"File too large|has sent 2 files"):
        fetch("models:/m/1", store.uri, place, bounds=Bounds(most=20 * MIB))
    assert sum(in_it(place).values()) <= 20 * MIB


def test_files_without_number_are_cut_off(place: Path) -> None:
    many = only_at_top(*(a_file(f"{number:05d}") for number in range(5000)))
    store = HostileStore(listing=many)
    with store.running(), pytest.raises(UntrustedError, match=r"has sent \d+ files and folders"):
        fetch("models:/m/1", store.uri, place, bounds=Bounds(files=100))


def test_folders_without_bottom_and_lists_without_end_are_cut_off(place: Path) -> None:
    deep = HostileStore(listing=lambda _: [a_folder("a")])
    with deep.running(), pytest.raises(AutopruneError):
        fetch("models:/m/1", deep.uri, place, bounds=Bounds(seconds=8))
    long = HostileStore(padding=16 * 1024 * MIB)
    began = time.perf_counter()
    with long.running(), pytest.raises(FreshProcessError):
        fetch("models:/m/1", long.uri, place, bounds=Bounds(memory=2 * 2**30))
    assert time.perf_counter() - began < 60


def test_the_command_says_what_the_server_did(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = HostileStore(location="/etc")
    with store.running():
        words = [f"tracking.uri=http://me:secret@127.0.0.1:{store.port}", f"output={tmp_path}"]
        assert main(["measure", "candidate=models:/m/1", "baseline=models:/m/1", *words]) == 2
    err = capsys.readouterr().err
    assert "checkpoint models:/m/1 cannot be fetched (the server says that the model lies" in err
    assert "secret" not in err


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="Landlock is Linux's")
def test_a_confined_process_writes_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "kept").write_text("kept")
    child = os.fork()
    if child == 0:
        _write_below(str(tmp_path / "in"))
        (tmp_path / "in" / "here").write_text("here")
        refused = 0
        for attempt in (
            lambda: (tmp_path / "out").write_text("out"),
            lambda: (tmp_path / "kept").write_text("changed"),
            lambda: (tmp_path / "kept").unlink(),
            lambda: (tmp_path / "folder").mkdir(),
            lambda: (tmp_path / "link").symlink_to("/"),
        ):
            try:
                attempt()
            except PermissionError:
                refused += 1
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    assert (tmp_path / "in" / "here").read_text() == "here"
