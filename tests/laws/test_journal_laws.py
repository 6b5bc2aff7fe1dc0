"""Laws of the journal: what was written comes back, and damage never passes for data."""

import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation, Trial
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.record import Asked, Event, JournalError, Lost, Told, read_journal
from tests import strategies

headers = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | strategies.finite | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


Item = Trial | Observation | Lost


@st.composite
def histories(draw: st.DrawFn) -> list[Item]:
    """Asks in any order, each told at most once and later: late, out of order, or never.

    Before that it may be lost.
    """
    history: list[Item] = []
    for number in draw(st.lists(st.integers(0, 99), max_size=5, unique=True)):
        trial = Trial(number, draw(strategies.specs), draw(st.integers(0, 2**32 - 1)))
        at = draw(st.integers(0, len(history)))
        history.insert(at, trial)
        if draw(st.booleans()):
            at += 1
            history.insert(at, Lost(number, draw(strategies.failures), 0.0))
        if draw(st.booleans()):
            observation = Observation(trial, draw(strategies.outcomes), host=draw(st.text()))
            history.insert(draw(st.integers(at + 1, len(history))), observation)
    return history


def write(path: Path, header: dict[str, object], history: list[Item]) -> None:
    seconds = count()
    trials = {item.number: item for item in history if isinstance(item, Trial)}
    with Journal.create(path, header, timer=lambda: float(next(seconds))) as journal:
        for item in history:
            if isinstance(item, Trial):
                journal.append_asked(item)
            elif isinstance(item, Lost):
                journal.append_lost(trials[item.number], item.failure)
            else:
                journal.append_told(item)


def contents(events: tuple[Event, ...]) -> list[Item]:
    def item(event: Event) -> Item:
        match event:
            case Asked(trial=trial):
                return trial
            case Told(observation=observation):
                return observation
            case Lost():
                return replace(event, at=0.0)

    return [item(event) for event in events]


@given(headers, histories())
@settings(deadline=None, max_examples=50)
def test_round_trip(header: dict[str, object], history: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        write(path, header, history)
        record = read_journal(path)
        assert record.header == header
        assert record.torn is None
        assert contents(record.events) == history
        times = [event.at for event in record.events]
        assert times == sorted(times)


@given(histories(), st.data())
@settings(deadline=None, max_examples=150)
def test_cut_anywhere_it_is_a_prefix_or_says_so(history: list[Item], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        write(path, {"sweep_id": "x"}, history)
        whole = path.read_bytes()
        check_cut(path, whole[: data.draw(st.integers(0, len(whole)))], history)


def test_cut_at_every_byte(tmp_path: Path) -> None:
    trial = Trial(3, PruningSpec.of({"conv": 8}), 7)
    history = [trial, Observation(trial, Measurement({"accuracy": 0.5}, stopped_by="speedup"))]
    path = tmp_path / "journal.jsonl"
    write(path, {"sweep_id": "x"}, history)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        check_cut(path, whole[:size], history)


def check_cut(path: Path, data: bytes, history: list[Item]) -> None:
    path.write_bytes(data)
    lines = data.count(b"\n")
    if not lines:
        with pytest.raises(JournalError, match="has no header"):
            Journal.open(path)
        return
    with Journal.open(path) as journal:
        assert contents(journal.events) == history[: lines - 1]
        assert (journal.repaired is None) == data.endswith(b"\n")
    assert path.read_bytes() == data[: data.rindex(b"\n") + 1]


@given(histories(), st.data())
@settings(deadline=None, max_examples=100)
def test_a_flipped_bit_before_the_end_is_refused(history: list[Item], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        write(path, {"sweep_id": "x"}, history)
        damaged = bytearray(path.read_bytes())
        # The last newline is left alone: without it the last line counts as torn.
        damaged[data.draw(st.integers(0, len(damaged) - 2))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match="restore it from a copy"):
            read_journal(path)


@given(histories(), st.data())
@settings(deadline=None, max_examples=50)
def test_a_doubled_line_is_refused(history: list[Item], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        write(path, {"sweep_id": "x"}, history)
        lines = path.read_bytes().splitlines(keepends=True)
        at = data.draw(st.integers(0, len(lines) - 1))
        path.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))
        with pytest.raises(JournalError, match=r"a second time|of them|event 'header' is not"):
            read_journal(path)
