"""Sweeps on a real cluster of nodes on this machine, with MLflow on PostgreSQL, to be harmed.

`harm` has what may happen to a `Scene`, and `audit` finds what it has come to.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.audit import Audit, audit
from tests.servers import MlflowServer, Postgres, family, free_port, signal_all
from tests.tiny import REPOSITORY, WORDS, Driver, lines, sweep_folder, told

PATIENCE_S = 240.0
LOOK_S = 0.02
SPARE_BYTES = 5 * 2**30
"""How much may be taken, beyond what is in use when a node starts, before Ray's monitor acts."""


class Nodes:
    """A Ray cluster on this machine: a head that holds no trial, and nodes that come and go."""

    def __init__(self) -> None:
        self._port = free_port()
        self.start_head()

    def start_head(self) -> None:
        """Start the head, at the same address each time."""
        memory = psutil.virtual_memory()
        share = min(0.95, (memory.total - memory.available + SPARE_BYTES) / memory.total)
        monitor = {"memory_usage_threshold": share, "memory_monitor_refresh_ms": 50}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": monitor}
        head["gcs_server_port"] = self._port
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def there(self) -> list[Any]:
        """The nodes for trials."""
        return sorted(self._cluster.worker_nodes, key=lambda node: str(node.node_id))

    def join(self) -> Any:
        """A further node for one trial."""
        return self._cluster.add_node(num_cpus=1)

    def be(self, count: int) -> None:
        """Have so many nodes for trials."""
        while len(self.there) > count:
            self.kill(self.there[0])
        while len(self.there) < count:
            self.join()

    def kill(self, node: Any) -> None:
        """End all of a node's processes at once, as a power cut would."""
        signal_all(self._processes(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def preempt(self, node: Any, *, notice_s: float = 2.0) -> None:
        """Tell Ray that a node is to be taken away, as a cloud's agent does, then take it away."""
        words = ["--address", self.address, "--node-id", str(node.node_id)]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", f"{notice_s:.0f}"]
        program = str(Path(sys.executable).with_name("ray"))
        subprocess.run([program, "drain-node", *words], check=True, capture_output=True)
        time.sleep(notice_s)
        self.kill(node)

    def workers(self) -> list[psutil.Process]:
        """The processes that are amid a trial, as their titles tell: Tune wraps our class."""
        found = [process for node in self.there for process in self._processes(node)]
        return [process for process in found if "Trainable.train" in _title(process)]

    def end(self) -> None:
        """End all processes of all nodes at once."""
        everything = [
            process for node in self._cluster.list_all_nodes() for process in self._processes(node)
        ]
        signal_all(everything, signal.SIGKILL)
        psutil.wait_procs(everything, timeout=10)

    @staticmethod
    def _processes(node: Any) -> list[psutil.Process]:
        started = [info.process.pid for group in node.all_processes.values() for info in group]
        return [process for pid in started for process in family(pid)]


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@dataclass
class Scene:
    """One sweep after the other, of `trials` trials each, on what may be harmed.

    `folder` holds what the sweeps leave, `output` the present one's results.
    """

    folder: Path
    nodes: Nodes
    mlflow: MlflowServer
    database: Postgres | None = None
    trials: int = 10
    driver: Driver = field(init=False)
    output: Path = field(init=False)
    kept: list[str] = field(init=False, default_factory=list)

    def begin(self, *words: str, output: Path | None = None, pause_s: float = 0.3) -> None:
        """Start a sweep, every trial of which rests three times; `words` are further overrides."""
        place = self.folder / f"sweep-{len(list(self.folder.glob('sweep-*')))}"
        self.orders = place / "orders"
        self.orders.mkdir(parents=True)
        self.place, self.output, self.kept = place, output or place / "out", []
        own = [
            "task._target_=tests.faults.Prey",
            f"+task.orders={self.orders}",
            f"+task.pause_s={pause_s}",
            f"executor.address={self.nodes.address}",
            f"tracking.uri={self.mlflow.uri}",
            "name=chaos",
            f"output={self.output}",
            f"budget.trials={self.trials}",
            "objective=quality_size",
            "uniform_first=[0.5]",
        ]
        # the tests' modules are found from there, in the driver and in its workers
        code = ["--config-dir", str(REPOSITORY)]
        self.driver = Driver(["sweep", *code, *WORDS, *own, *words], place)

    def resume(self) -> None:
        """Go on with the sweep."""
        self.driver = Driver(["resume", "sweep=latest", f"output={self.output}"], self.place)

    @property
    def sweep(self) -> Path | None:
        """The sweep's folder, as soon as there is a journal."""
        return sweep_folder(self.output)

    @property
    def told(self) -> list[int]:
        """The trials that came to an outcome, in order."""
        return [] if self.sweep is None else told(self.sweep)

    @property
    def running(self) -> set[int]:
        """The trials that were asked and have not come to an outcome."""
        if self.sweep is None:
            return set()
        asked = [e["trial"]["number"] for e in self.events if e["event"] == "ask"]
        return set(asked) - set(self.told)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [] if self.sweep is None else [json.loads(line) for line in lines(self.sweep)]

    def keep(self) -> None:
        """Note what the journal holds; nothing of it may ever change. Called at every fault."""
        now = [] if self.sweep is None else lines(self.sweep)
        assert now[: len(self.kept)] == self.kept, "what was written has changed"
        self.kept = now

    def until(self, moment: Callable[[], bool], *, driven: bool = True) -> None:
        """Wait for a moment; where the sweep is `driven`, its driver must live to see it."""
        deadline = time.monotonic() + PATIENCE_S
        while not moment():
            ended = driven and self.driver.process.poll() is not None
            assert not ended or moment(), f"the driver ended before:\n{self.driver.said}"
            assert time.monotonic() < deadline, f"it never came:\n{self.driver.said}"
            time.sleep(LOOK_S)

    def under_way(self, outcomes: int = 2) -> None:
        """Wait until some trials have come to their outcomes, and every slot is at work."""
        slots = len(self.nodes.there)
        self.until(lambda: len(self.told) >= outcomes and len(self.running) >= slots)

    @property
    def ended(self) -> bool:
        """Whether the driver came to a good end."""
        return self.driver.process.poll() == 0

    def finish(self) -> None:
        """Wait for the end of the sweep, which must be a good one."""
        assert self.driver.process.wait(PATIENCE_S) == 0, self.driver.said

    def end(self) -> None:
        self.driver.end()

    def audit(self) -> Audit:
        """Hold the journal against MLflow, and both against the trials that were asked for."""
        self.keep()
        assert self.sweep is not None
        return audit(self.sweep, self.mlflow.uri, range(self.trials))
