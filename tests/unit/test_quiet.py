import fcntl
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.quiet import NoGate, QuietNode

PATIENCE_S = 60.0
"""How long a test waits for what must happen before it calls it a dead lock."""

HEAD = """
import os, sys, time
from pathlib import Path
from autoprune.measurement.quiet import QuietNode
gate = QuietNode(Path(sys.argv[1]))
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
"""
TRAINER = """
while True:
    with gate.step():
        os.write(log, b"+")
        time.sleep(0.003)
        os.write(log, b"-")
"""
METER = """
for _ in range(int(sys.argv[3])):
    with gate.measuring():
        os.write(log, b"M")
        time.sleep(0.005)
        os.write(log, b"m")
"""
DOOMED = """
import contextlib, fcntl, itertools, signal

def die_at(call, way):
    flock, calls = fcntl.flock, itertools.count(1)
    def doomed(file, how):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        flock(file, how)
    fcntl.flock = doomed
    with getattr(gate, way)():
        pass
    os._exit(0)

way, meanwhile = sys.argv[3:]
for call in itertools.count(1):
    with getattr(gate, meanwhile, contextlib.nullcontext)():
        child = os.fork()
        if child == 0:
            die_at(call, way)
        time.sleep(0.01)
    died = os.waitpid(child, 0)[1] != 0
    with gate.measuring():
        pass
    with gate.step():
        pass
    if not died:
        sys.exit(call)
"""
FORKING_TRAINER = """
with gate.step():
    if os.fork() == 0:
        os.write(log, b"c")
        time.sleep(60)
        os._exit(0)
    os.write(log, b"+")
    time.sleep(60)
"""


class Node:
    """A folder with the gate's locks, a log, and the processes started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "gate"
        self.log = folder / "log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HEAD + script, str(self.folder), str(self.log)]
        process = subprocess.Popen([*command, *map(str, arguments)])
        self.processes.append(process)
        return process

    def events(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def meter_gets_through(self, times: int = 1) -> None:
        assert self.start(METER, times).wait(PATIENCE_S) == 0


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    for process in node.processes:
        process.kill()
        process.wait()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE_S
    while not holds():
        assert time.perf_counter() < deadline, "waited too long"
        time.sleep(0.001)


def locked(path: Path) -> bool:
    """Whether somebody else holds the lock exclusively."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def check_quiet(events: str) -> None:
    """Nobody is inside a step while somebody measures, and only one measures at a time."""
    inside, measuring = 0, False
    for event in events:
        assert not measuring or event == "m", f"{event!r} while a meter measures"
        inside += {"+": 1, "-": -1}.get(event, 0)
        if event == "M":
            assert inside == 0, "a meter measures while a trainer is inside a step"
        measuring = event == "M"


def test_two_busy_trainers_stand_still_for_two_meters_and_starve_neither(node):
    for _ in range(2):
        node.start(TRAINER)
    eventually(lambda: node.events().count("+") > 20)
    meters = [node.start(METER, 10) for _ in range(2)]
    for meter in meters:
        assert meter.wait(PATIENCE_S) == 0
    seen = len(node.events())
    eventually(lambda: node.events().count("+", seen) > 20)
    events = node.events()
    check_quiet(events)
    assert events.count("M") == 20
    between = events[events.index("m") : events.rindex("M")]
    assert "+" in between, "trainers go on between two measurements"


@pytest.mark.parametrize("seed", range(4))
def test_processes_killed_at_random_points_block_nobody(node, seed):
    rng = random.Random(seed)
    scripts = [(TRAINER,), (TRAINER,), (METER, 10_000), (METER, 10_000)]
    victims = [node.start(*script) for script in scripts]
    eventually(lambda: "M" in node.events() and "+" in node.events())
    rng.shuffle(victims)
    for victim in victims:
        time.sleep(rng.uniform(0.0, 0.02))
        victim.kill()
        victim.wait()
    node.meter_gets_through()
    seen = len(node.events())
    node.start(TRAINER)
    eventually(lambda: "-" in node.events()[seen:])


@pytest.mark.parametrize(
    ("way", "meanwhile", "calls"),
    [
        *(("step", "nothing", 4), ("step", "step", 4), ("step", "measuring", 7)),
        *(("measuring", way, 10) for way in ("nothing", "step", "measuring")),
    ],
)
def test_a_process_killed_before_any_of_its_lock_calls_blocks_nobody(node, way, meanwhile, calls):
    assert node.start(DOOMED, way, meanwhile).wait(PATIENCE_S) == calls + 1


def test_a_child_forked_inside_a_step_does_not_keep_its_dead_parents_lock(node):
    parent = node.start(FORKING_TRAINER)
    eventually(lambda: {"c", "+"} <= set(node.events()))
    parent.kill()
    parent.wait()
    node.meter_gets_through()


def test_a_waiting_meter_goes_before_trainers_that_come_after_it(tmp_path):
    gate, order = QuietNode(tmp_path), []
    inside, leave = threading.Event(), threading.Event()

    def first_step() -> None:
        with gate.step():
            inside.set()
            leave.wait()
            order.append("first step")

    def measure() -> None:
        with gate.measuring():
            order.append("measuring")

    def second_step() -> None:
        with gate.step():
            order.append("second step")

    threads = [threading.Thread(target=first_step)]
    threads[0].start()
    inside.wait()
    for late in (measure, second_step):
        threads.append(threading.Thread(target=late))
        threads[-1].start()
        eventually(lambda: locked(tmp_path / "gate.lock"))
    leave.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["first step", "measuring", "second step"]


@pytest.mark.parametrize("outer", ["step", "measuring"])
@pytest.mark.parametrize("inner", ["step", "measuring"])
def test_entering_again_is_an_assertion_and_not_a_dead_lock(tmp_path, outer, inner):
    with getattr(QuietNode(tmp_path), outer)():
        again = getattr(QuietNode(tmp_path), inner)
        with pytest.raises(AssertionError, match="entered again inside"), again():
            pass
    with getattr(QuietNode(tmp_path), inner)():
        pass


@pytest.mark.parametrize("way", ["step", "measuring"])
def test_an_error_inside_lets_go(tmp_path, node, way):
    node.folder = tmp_path
    with pytest.raises(KeyError), getattr(QuietNode(tmp_path), way)():
        raise KeyError
    node.meter_gets_through()


def test_the_gate_travels_by_pickle_while_it_is_held(tmp_path):
    gate = QuietNode(tmp_path)
    with gate.step():
        copied = pickle.loads(pickle.dumps(gate))
    assert copied == gate
    with copied.measuring():
        assert locked(tmp_path / "room.lock")
    assert not locked(tmp_path / "room.lock")


def test_the_folder_defaults_to_one_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Locks are kept open by thread: a new one has not opened the real default folder.
    thread = threading.Thread(target=lambda: QuietNode().step().__enter__())
    thread.start()
    thread.join()
    folder = tmp_path / f"autoprune-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {"queue.lock", "waiting.lock", "gate.lock", "room.lock"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_folder_that_is_tidied_away_does_not_part_old_users_of_it_from_new(node):
    gate = QuietNode(node.folder)
    with gate.step():
        shutil.rmtree(node.folder)
        node.meter_gets_through()  # in a new folder, as the old one cannot be found any more
        with pytest.raises(AssertionError, match="entered again inside"), gate.step():
            pass
    with gate.measuring():
        assert locked(node.folder / "room.lock")


def test_a_thread_that_ends_lets_go(tmp_path):
    thread = threading.Thread(target=lambda: QuietNode(tmp_path).measuring().__enter__())
    thread.start()
    thread.join()
    assert not locked(tmp_path / "room.lock")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(
        AutopruneError, match=r"only you can write.*drwxrwxrwx.*name .*/gate, which is made"
    ):
        QuietNode(tmp_path).step().__enter__()


def test_a_planted_link_is_refused(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(AutopruneError, match="must be a folder that only you can write"):
        QuietNode(tmp_path / "link").measuring().__enter__()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(AutopruneError, match="owner 12345"):
        QuietNode(tmp_path).step().__enter__()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AutopruneError, match=r"cannot be made .*set meter.gate_folder, or TMPDIR"):
        QuietNode(tmp_path / "file" / "gate").step().__enter__()


def test_a_folder_that_does_not_take_the_locks_is_refused(tmp_path):
    (tmp_path / "gate.lock").mkdir()
    with pytest.raises(AutopruneError, match=r"cannot open its lock .*gate.lock .*set meter.gate"):
        QuietNode(tmp_path).step().__enter__()


def test_without_a_gate_nobody_waits():
    gate = pickle.loads(pickle.dumps(NoGate()))
    with gate.step(), gate.measuring(), gate.step():
        pass
