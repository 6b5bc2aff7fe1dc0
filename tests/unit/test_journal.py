"""The journal on a real disk, with real processes that die."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage, Trial
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.journal_line import MAX_LINE
from autoprune.orchestration.record import Asked, JournalError, Told, read_journal

HEADER = {"sweep_id": "digits-1", "seed": 3, "goal": {"reference": [0.9, 1.0]}}


def trial(number: int, width: int = 8) -> Trial:
    return Trial(number, PruningSpec.of({"conv": width}), number)


def told(number: int) -> Observation:
    return Observation(trial(number), Measurement({"accuracy": 0.5}), host="here", seconds=1.5)


def line(record: dict[str, Any]) -> bytes:
    """A line with the right checksum, whatever it says."""

    def dump(data: dict[str, Any]) -> str:
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    return dump({**record, "crc": f"{zlib.crc32(dump(record).encode()):08x}"}).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_it_comes_back_as_it_was_written(path: Path) -> None:
    with Journal.create(path, HEADER) as journal:
        journal.append_asked(trial(0))
        journal.append_asked(trial(1))
        failure = Failure(Stage.PRUNE, Cause.GRAPH, "cannot trace \N{SNOWMAN}\nline two")
        journal.append_told(Observation(trial(1), failure))
        journal.append_told(told(0))
        written = journal.events
    with Journal.open(path) as journal:
        assert journal.header == HEADER
        assert journal.events == written
        assert journal.repaired is None
    assert [type(event) for event in written] == [Asked, Asked, Told, Told]
    assert read_journal(path).events == written


def test_nobody_else_reads_it(path: Path) -> None:
    # an argument of the user's may be a secret
    Journal.create(path, HEADER).close()
    assert path.stat().st_mode & 0o077 == 0


def test_what_no_reader_would_take_is_not_written(path: Path) -> None:
    with Journal.create(path, HEADER) as journal:
        size = path.stat().st_size
        huge = replace(trial(0), spec=PruningSpec.of({"g" * (MAX_LINE + 1): 1}))
        with pytest.raises(JournalError, match="more than a journal may hold; start a new sweep"):
            journal.append_asked(huge)
    assert path.stat().st_size == size
    assert read_journal(path).events == ()


def test_the_last_budget_counts(path: Path) -> None:
    header = {**HEADER, "budget": {"trials": 3}}
    with Journal.create(path, header) as journal:
        journal.change_budget({"trials": 3})
        journal.append_asked(trial(0))
        before = path.stat().st_size
        assert journal.budget == {"trials": 3}
    with Journal.open(path) as journal:
        journal.change_budget({"trials": 3})
        assert path.stat().st_size == before
        journal.change_budget({"trials": 5})
        journal.append_told(told(0))
    record = read_journal(path)
    assert record.budget == {"trials": 5}
    assert [type(event) for event in record.events] == [Asked, Told]
    path.write_bytes(path.read_bytes() + line({"event": "budget", "at": 1.0, "budget": 7}))
    with pytest.raises(JournalError, match="line 5: its budget is no object but 7; the file was"):
        read_journal(path)


def test_the_clock_goes_on_where_it_stopped(path: Path) -> None:
    now = iter([100.0, 103.0, 500.0, 507.0, 508.0])
    with Journal.create(path, HEADER, timer=lambda: next(now)) as journal:
        assert journal.append_asked(trial(0)).at == 3.0
    with Journal.open(path, timer=lambda: next(now)) as journal:
        assert journal.append_told(told(0)).at == 10.0
        assert journal.clock() == 11.0


def test_a_journal_is_read_while_it_is_written(path: Path) -> None:
    with Journal.create(path, HEADER) as journal:
        journal.append_asked(trial(0))
        assert read_journal(path).events == journal.events


def test_a_torn_last_line_is_cut_off_and_told(path: Path) -> None:
    with Journal.create(path, HEADER) as journal:
        journal.append_asked(trial(0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"at":1.0,"crc"')
    record = read_journal(path)
    assert record.torn == f"{path}: line 3 was torn by a crash (15 bytes)"
    assert path.read_bytes() != whole
    with Journal.open(path) as journal:
        assert journal.repaired == record.torn
        assert path.read_bytes() == whole
        journal.append_told(told(0))
    with Journal.open(path) as journal:
        assert journal.repaired is None
        assert len(journal.events) == 2


ASK = {"event": "ask", "at": 0.0, "trial": trial(0).to_json()}
TELL = {"event": "tell", "at": 1.0, "observation": told(0).to_json()}
LOST = {
    "event": "lost",
    "at": 1.0,
    "trial": 0,
    "times": 1,
    "failure": Failure(Stage.RECOVER, Cause.PREEMPTED, "its node is gone").to_json(),
}
OTHER = {**TELL, "observation": Observation(trial(0, 9), told(0).outcome).to_json()}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"\n"], "line 2: it is not JSON"),
        ([b'{"at": 1e999}\n'], "line 2: it is not JSON"),
        ([b"\xff\n"], "line 2: it is not JSON"),
        ([b"[]\n"], "line 2: it is not a JSON object"),
        ([line(ASK).replace(b'"at":0.0', b'"at":0.5')], "line 2: it does not agree with its check"),
        ([line(ASK).replace(b":", b": ")], "line 2: it does not agree with its checksum"),
        ([line({"event": "pause"})], "line 2: event 'pause' is not known"),
        ([line({**ASK, "trial": {}})], r"line 2: its ask cannot be understood \(KeyError"),
        ([line({**TELL, "observation": 3})], "line 2: its tell cannot be understood"),
        ([line(TELL)], "line 2: trial 0 is told but was never asked"),
        ([line(ASK), line(ASK)], "line 3: trial 0 is asked a second time"),
        ([line(ASK), line(TELL), line(TELL)], "line 4: trial 0 is told a second time"),
        ([line(ASK), line(OTHER)], "line 3: trial 0 is told with another spec or seed"),
        ([line({"event": "header"})], "line 2: event 'header' is not known"),
        ([line(LOST)], "line 2: trial 0 is lost but was never asked"),
        ([line(ASK), line(TELL), line(LOST)], "line 4: trial 0 is lost after its end"),
        ([line(ASK), line(LOST), line(LOST)], "line 4: loss 1 of trial 0 comes after 1 of them"),
        ([line({**LOST, "failure": {}})], r"line 2: its lost cannot be understood \(KeyError"),
    ],
)
def test_a_line_that_is_wrong_is_refused(path: Path, lines: list[bytes], message: str) -> None:
    Journal.create(path, HEADER).close()
    with path.open("ab") as file:
        file.writelines(lines)
    before = path.read_bytes()
    for read in (read_journal, Journal.open):
        with pytest.raises(JournalError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "restore it from a copy, or start a new sweep" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no header: its sweep never started, or the file was"),
        (b'{"event":"hea', "has no header: its sweep never started"),
        (line(ASK), "line 1: the first line is no header"),
        (line({"event": "header", "version": 9}), "line 1: version 9 is not 1"),
        (line({"event": "header", "version": 1}), "line 1: the header holds no facts"),
    ],
)
def test_a_header_that_is_wrong_is_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        Journal.open(path)


def test_what_may_not_come_next_is_not_written(path: Path) -> None:
    with Journal.create(path, HEADER) as journal:
        journal.append_asked(trial(0))
        before = path.read_bytes()
        with pytest.raises(JournalError, match="not written, since trial 0 is asked a second time"):
            journal.append_asked(trial(0))
        with pytest.raises(JournalError, match="trial 1 is told but was never asked"):
            journal.append_told(told(1))
        journal.append_told(told(0))
        with pytest.raises(JournalError, match="trial 0 is told a second time"):
            journal.append_told(told(0))
        assert path.read_bytes().startswith(before)
        assert len(path.read_bytes().splitlines()) == 3


def test_a_journal_is_not_overwritten(path: Path) -> None:
    Journal.create(path, HEADER).close()
    with pytest.raises(JournalError, match="exists here already; resume its sweep or choose"):
        Journal.create(path, HEADER)


def test_a_journal_that_is_not_there(path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot be opened for writing \(No such file"):
        Journal.open(path)
    with pytest.raises(JournalError, match=r"no journal can be read here \(No such file"):
        read_journal(path)
    with pytest.raises(JournalError, match="that its folder exists and is yours to write"):
        Journal.create(path / "deeper", HEADER)


def test_one_writer_at_a_time(path: Path) -> None:
    with Journal.create(path, HEADER):
        with pytest.raises(JournalError, match="another process is writing this journal") as caught:
            Journal.open(path)
        assert str(path) in str(caught.value)
    journal = Journal.open(path)
    journal.close()
    journal.close()


def test_facts_that_json_cannot_hold_leave_nothing_behind(path: Path) -> None:
    with pytest.raises(TypeError):
        Journal.create(path, {"when": object()})
    assert not path.exists()


WRITER = """
    import resource, signal, sys
    from pathlib import Path
    from autoprune.domain.space import PruningSpec
    from autoprune.domain.trial import Measurement, Observation, Trial
    from autoprune.orchestration.journal import Journal
    from autoprune.orchestration.record import JournalError

    journal = Journal.create(Path(sys.argv[1]), {"sweep_id": "x"})
    if sys.argv[2] == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    number = 0
    while True:
        trial = Trial(number, PruningSpec.of({"conv": 8}), number)
        try:
            journal.append_asked(trial)
            print("asked", number, flush=True)
            journal.append_told(Observation(trial, Measurement({"accuracy": 0.5})))
            print("told", number, flush=True)
        except JournalError as error:
            sys.exit(str(error))
        number += 1
"""


def start(path: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def labels(path: Path) -> list[str]:
    return [
        f"asked {event.trial.number}"
        if isinstance(event, Asked)
        else f"told {event.observation.trial.number}"
        for event in read_journal(path).events
    ]


@pytest.mark.parametrize("lines", [1, 2, 7, 40])
def test_what_was_acknowledged_survives_sigkill(path: Path, lines: int) -> None:
    with start(path, "endless") as process:
        assert process.stdout is not None
        heard = [process.stdout.readline().strip() for _ in range(lines)]
        with pytest.raises(JournalError, match="another process is writing this journal"):
            Journal.open(path)
        os.kill(process.pid, signal.SIGKILL)
        heard += process.stdout.read().splitlines()
    # At most one more line was on the disk than its writer had said.
    Journal.open(path).close()
    found = labels(path)
    assert found[: len(heard)] == heard
    assert len(found) <= len(heard) + 1


def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    with start(path, "full") as process:
        out, err = process.communicate(timeout=60)
    assert "the journal cannot be written (File too large)" in err
    assert "make room, then resume the sweep" in err
    assert read_journal(path).torn is None
    assert labels(path) == out.splitlines()
