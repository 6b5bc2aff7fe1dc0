"""Laws of a storage: whatever happens while a trial saves, what it saved whole is not lost."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.orchestration.artifacts import MODEL_FOLDER, read_outputs
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.storage import InStore
from autoprune.orchestration.store import Store, StoreError, retried
from tests.faulty_files import PowerCut, at, failing
from tests.snapshots import facts, snapshot

# whether it is what the trial stands for; and where a power cut comes, after how much of a file
saves = st.tuples(st.booleans(), st.none() | st.integers(0, 7), st.sampled_from([0.0, 0.5, 1.0]))


@contextmanager
def storage_in() -> Iterator[tuple[InStore, Path]]:
    with tempfile.TemporaryDirectory() as place:
        store, home = Path(place) / "store", Path(place) / "home"
        store.mkdir()
        home.mkdir()
        yield InStore(Store(f"faulty://{store}"), "sweep-1"), home


def home_mark(storage: InStore, home: Path) -> float | None:
    """The number of the network that comes home."""
    if not storage.fetch(0, home):
        return None
    (outputs,) = read_outputs(trial_folder(home, 0) / MODEL_FOLDER)
    return float(outputs[0, 0])


@given(st.lists(saves, max_size=8))
@settings(max_examples=40)
def test_whenever_the_power_goes_the_last_whole_snapshot_is_there(course) -> None:
    with storage_in() as (storage, home):
        last, standing = None, None
        for epoch, (stands, cut, torn) in enumerate(course):
            new = snapshot(epoch, stands=stands, mark=float(epoch))
            cut_off = False
            with failing(at(set() if cut is None else {cut}, PowerCut()), torn=torn):
                try:
                    storage.save(0, new)
                except PowerCut:
                    cut_off = True
            found, came = facts(storage.read(0)), home_mark(storage, home)
            assert found in ((facts(last), facts(new)) if cut_off else (facts(new),))
            if found == facts(new):
                last, standing = new, float(epoch) if stands else standing
            assert came == standing
            assert facts(storage.read(0)) == facts(last), "reading changes nothing"


@given(
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 9), max_size=3)), max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=40)
def test_faults_that_pass_cost_nothing_but_time(course, torn) -> None:
    """Three of them at most, and there are three further attempts."""
    with storage_in() as (storage, home):
        standing = None
        for epoch, (stands, faults) in enumerate(course):
            new = snapshot(epoch, stands=stands, mark=float(epoch))
            standing = float(epoch) if stands else standing
            for call in (partial(storage.save, 0, new), partial(storage.read, 0)):
                with failing(at(faults, ConnectionResetError("gone")), torn=torn):
                    found = retried(call, pauses_s=(0.0, 0.0, 0.0))
            assert facts(found) == facts(new)
            assert home_mark(storage, home) == standing


@given(st.lists(st.sampled_from(["flip", "cut", "grow"]), min_size=1, max_size=4), st.randoms())
@settings(max_examples=20)
def test_a_file_that_is_not_as_it_was_written_never_counts(damages, random) -> None:
    """Of some snapshots that are there, as crashes may leave them, damage takes the last ones."""
    with storage_in() as (storage, _):
        for epoch in range(5):
            # nothing is deleted: the power goes after the file is there
            with failing(_no_deleting), suppress(PowerCut):
                storage.save(0, snapshot(epoch, mark=float(epoch)))
        files = sorted(Path(storage.store.url.removeprefix("faulty://")).rglob("*.zip"))
        assert len(files) == 5
        for file, damage in zip(reversed(files), damages, strict=False):
            data = bytearray(file.read_bytes())
            if damage == "flip":
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            file.write_bytes(data[:-1] if damage == "cut" else data + b"\0" * (damage == "grow"))
        found = storage.read(0)
        assert facts(found) == facts(snapshot(4 - len(damages), mark=float(4 - len(damages))))


def _no_deleting(operation: str) -> None:
    if operation == "rm":
        raise PowerCut


def test_what_lasts_is_not_tried_again() -> None:
    calls = []

    def full(operation: str) -> None:
        calls.append(operation)
        raise OSError(28, "No space left on device")

    with storage_in() as (storage, _), failing(full), suppress(StoreError):
        retried(partial(storage.save, 0, snapshot(1)), pauses_s=(0.0, 0.0))
    assert len(calls) == 1, calls
