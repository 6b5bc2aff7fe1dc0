"""Everything that may happen to a sweep, done for real, and a row of figures about each."""

import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from autoprune.orchestration.folders import JOURNAL_FILE
from tests.audit import Audit, runs_of
from tests.chaos import PATIENCE_S, Nodes, Scene
from tests.servers import MlflowServer, Postgres, programs_of_postgresql, signal_all

SLOTS = 2
TRIALS = 10
PAUSE_S = 0.5
MOMENT_S = 1.5
DISK_MB = 48


def nothing(scene: Scene) -> None:
    """There is nothing to mend."""


@dataclass(frozen=True)
class Fault:
    """One thing that happens to a sweep: what it is called, and how it is produced.

    `harm` happens `times` over, each time amid the running sweep; after `lasts_s` `mend` ends it.
    Where the driver is gone then, the sweep is resumed. `words` are overrides that it needs, and
    `failed` is how many trials may fail of it. With `store` it is over once MLflow has caught up,
    otherwise once every trial that it may have struck has come to its outcome.
    """

    name: str
    how: str
    harm: Callable[[Scene], None]
    mend: Callable[[Scene], None] = nothing
    lasts_s: float = 0.0
    times: int = 1
    words: tuple[str, ...] = ()
    failed: int = 0
    store: bool = False
    small_disk: bool = False
    trials: int = TRIALS


@dataclass(frozen=True)
class Row:
    """What a sweep came to, to which a fault happened.

    `seconds` are from each fault to where it is over, of an outage from its end; `meanwhile` are
    the outcomes that came in during it.
    """

    fault: str
    how: str
    seconds: tuple[float, ...]
    meanwhile: int
    audit: Audit

    @property
    def cells(self) -> tuple[str, ...]:
        found = self.audit
        again = ", ".join(f"{count} {cause}" for cause, count in found.causes.items())
        differs = "; ".join([*found.differs, *found.networks])
        seconds = ", ".join(f"{value:.1f}" for value in self.seconds)
        lost, twice = len(found.lost), len(found.twice)
        cells = (self.fault, self.how, found.trials, again or "-", found.failed, lost, twice)
        return (*map(str, cells), differs or "nothing", seconds)


COLUMNS = (
    "fault",
    "how it was produced",
    "trials",
    "run again",
    "failed",
    "lost",
    "twice",
    "MLflow differs in",
    "seconds to recover",
)


def row_of(fault: Fault, scene: Scene) -> Row:
    """Run a sweep to which a fault happens, and audit it."""
    scene.nodes.be(SLOTS)
    with small_disk() if fault.small_disk else ordinary_disk() as output:
        # an outage ends before the sweep does, and so does the last of several faults
        further = fault.lasts_s / (3 * PAUSE_S) + 3 * (fault.times - 1)
        scene.trials = fault.trials + SLOTS * round(further)
        scene.begin(*fault.words, output=output, pause_s=PAUSE_S)
        try:
            seconds, meanwhile, rng = [], 0, random.Random(fault.name)
            for outcomes in range(fault.times):
                scene.under_way(outcomes + 1)
                time.sleep(rng.uniform(0, MOMENT_S))
                found = _struck(fault, scene)
                seconds.append(found[0])
                meanwhile += found[1]
            scene.finish()
            found_wrong = scene.audit()
        finally:
            scene.end()
    return Row(fault.name, fault.how, tuple(seconds), meanwhile, found_wrong)


def _struck(fault: Fault, scene: Scene) -> tuple[float, int]:
    """Let a fault happen; the seconds until it is over, and the outcomes meanwhile."""
    scene.keep()
    struck, before, began = scene.running, len(scene.told), time.perf_counter()
    fault.harm(scene)
    time.sleep(fault.lasts_s)
    meanwhile = len(scene.told) - before
    fault.mend(scene)
    if fault.lasts_s:
        began = time.perf_counter()
    if scene.driver.process.poll() is not None and not scene.ended:
        scene.resume()
    if fault.store:
        known = set(scene.told)
        scene.until(lambda: known <= told_to_mlflow(scene), driven=False)
    elif fault.harm is join_node:
        scene.until(lambda: len(scene.running) > SLOTS)
    else:
        scene.until(lambda: struck <= set(scene.told), driven=False)
    return time.perf_counter() - began, meanwhile


def told_to_mlflow(scene: Scene) -> set[int]:
    """The trials of which MLflow has the outcome."""
    assert scene.sweep is not None
    runs = runs_of(MlflowClient(scene.mlflow.uri), scene.sweep.name)
    return {int(run.data.tags["trial"]) for run in runs if "state" in run.data.tags}


# What may happen


def kill_worker(scene: Scene) -> None:
    """SIGKILL to a process amid a trial; in a soak there may be none at this moment."""
    signal_all(scene.nodes.workers()[:1], signal.SIGKILL)


def kill_node(scene: Scene) -> None:
    scene.nodes.kill(scene.nodes.there[0])


def preempt_node(scene: Scene) -> None:
    scene.nodes.preempt(scene.nodes.there[0])


def join_node(scene: Scene) -> None:
    scene.nodes.join()


def kill_driver(scene: Scene) -> None:
    scene.driver.process.kill()
    scene.driver.process.wait()


def kill_driver_in_a_line(scene: Scene) -> None:
    """Have the kernel kill the driver in the middle of a line of its journal: at a size of file.

    Whatever else it writes beyond that size kills it, too, so this may take a resume; where ten do
    not help, it is killed, and the beginning of a line is written for it.
    """
    assert scene.sweep is not None
    journal = scene.sweep / JOURNAL_FILE
    for _ in range(10):
        middle = journal.stat().st_size + 20
        resource.prlimit(scene.driver.process.pid, resource.RLIMIT_FSIZE, (middle, middle))
        assert scene.driver.process.wait(PATIENCE_S) == -signal.SIGXFSZ, scene.driver.said
        if not journal.read_bytes().endswith(b"\n"):
            return
        known = len(scene.told)
        scene.resume()
        scene.until(lambda known=known: len(scene.told) > known)
    kill_driver(scene)
    with journal.open("ab") as file:
        file.write(journal.read_bytes().splitlines()[-1][:20])


def kill_cluster(scene: Scene) -> None:
    """End every process of the cluster, and wait for the driver to say so."""
    scene.nodes.end()
    assert scene.driver.process.wait(PATIENCE_S) == 1, scene.driver.said
    assert "the Ray cluster is gone" in scene.driver.said, scene.driver.said
    assert "`autoprune resume sweep=" in scene.driver.said, scene.driver.said


def start_cluster(scene: Scene) -> None:
    scene.nodes.start_head()
    scene.nodes.be(SLOTS)


def freeze_mlflow(scene: Scene) -> None:
    scene.mlflow.freeze()


def thaw_mlflow(scene: Scene) -> None:
    scene.mlflow.thaw()


def kill_mlflow(scene: Scene) -> None:
    scene.mlflow.kill()


def start_mlflow(scene: Scene) -> None:
    scene.mlflow.start()


def kill_database(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.kill()


def start_database(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.start()


def freeze_database(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.freeze()


def thaw_database(scene: Scene) -> None:
    assert scene.database is not None
    scene.database.thaw()


def fill_disk(scene: Scene) -> None:
    """Leave no room where the sweep writes, and wait for its driver to say so."""
    fill(scene)
    assert scene.driver.process.wait(PATIENCE_S) == 1, scene.driver.said
    assert "(a full disk wants room), then resume the sweep" in scene.driver.said, scene.driver.said
    assert "`autoprune resume sweep=" in scene.driver.said, scene.driver.said


def fill(scene: Scene) -> None:
    with (scene.output / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


def make_room(scene: Scene) -> None:
    (scene.output / "filler").unlink()


def hang_a_trial(scene: Scene) -> None:
    order_hang(scene)
    scene.until(lambda: not (scene.orders / "hang").exists())


def exhaust_memory(scene: Scene) -> None:
    order_allocate(scene)
    scene.until(lambda: not (scene.orders / "allocate").exists())


def order_hang(scene: Scene) -> None:
    (scene.orders / "hang").touch()


def order_allocate(scene: Scene) -> None:
    (scene.orders / "allocate").touch()


@contextmanager
def ordinary_disk() -> Iterator[None]:
    yield None


@contextmanager
def small_disk() -> Iterator[Path]:
    """A small file system of its own; only root may mount one."""
    with tempfile.TemporaryDirectory(prefix="disk-") as place:
        size = f"size={DISK_MB}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    with suppress(subprocess.CalledProcessError, OSError), small_disk():
        return True
    return False


def faults(outage_s: float = 60.0) -> list[Fault]:
    """The fault matrix; stores are away for `outage_s`."""
    long = f"for {outage_s:.0f} s"

    def away(name: str, how: str, harm: Any, mend: Any) -> Fault:
        return Fault(name, f"{how} {long}", harm, mend, lasts_s=outage_s, store=True)

    return [
        Fault("worker killed", "SIGKILL to the process of a running trial", kill_worker, times=3),
        Fault("node lost", "SIGKILL to all processes of a node with a running trial", kill_node),
        Fault("node joins late", "a third node joins a sweep on two", join_node),
        Fault(
            "driver killed",
            "SIGKILL at five moments, each time a resume",
            kill_driver,
            times=5,
        ),
        Fault(
            "driver killed amid a line of its journal",
            "RLIMIT_FSIZE in the middle of the next line: the kernel's SIGXFSZ, then a resume",
            kill_driver_in_a_line,
            trials=3 * TRIALS,
        ),
        away("MLflow hangs", "SIGSTOP to the server", freeze_mlflow, thaw_mlflow),
        away("MLflow away", "SIGKILL to the server, started again", kill_mlflow, start_mlflow),
        away("PostgreSQL away", "SIGKILL to MLflow's database", kill_database, start_database),
        away("PostgreSQL hangs", "SIGSTOP to MLflow's database", freeze_database, thaw_database),
        Fault(
            "disk full",
            f"a file system of {DISK_MB} MB filled to the last byte, then a resume",
            fill_disk,
            make_room,
            small_disk=True,
        ),
        Fault(
            "trial hangs",
            "native code that never returns and keeps the interpreter; budget.trial_limit_s=30",
            hang_a_trial,
            words=("budget.trial_limit_s=30",),
            failed=1,
        ),
        Fault("out of memory", "a trial allocates until Ray's memory monitor acts", exhaust_memory),
        Fault(
            "node preempted",
            "`ray drain-node` with reason preemption, 2 s later SIGKILL to all its processes",
            preempt_node,
        ),
        Fault(
            "whole cluster lost",
            "SIGKILL to all processes of its head and nodes; started again, then a resume",
            kill_cluster,
            start_cluster,
        ),
    ]


@contextmanager
def scene_in(folder: Path, *, database: bool = True) -> Iterator[Scene]:
    """A cluster of two nodes for trials, MLflow, and PostgreSQL behind it where that is wanted."""
    with ExitStack() as ending:
        # beside `folder`, which only its owner may enter
        place = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="postgresql-")))
        place.chmod(0o755)
        kept = None
        if database and programs_of_postgresql() is not None:
            (place / "server").mkdir()
            kept = Postgres(place / "server", "a password")
            ending.callback(kept.kill)
            kept.create()
        mlflow = MlflowServer(folder, store=None if kept is None else kept.uri)
        ending.callback(mlflow.kill)
        mlflow.start()
        nodes = Nodes()
        ending.callback(nodes.end)
        yield Scene(folder, nodes, mlflow, kept)
