"""Sweeps that take seconds: the smallest real network, data and budget, for the tests of sweeps."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.request import (
    BaselineRequest,
    Executor,
    GoalRequest,
    SpaceRequest,
    SweepRequest,
)
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.searchers.named import searcher_named
from autoprune.tasks.protocol import Task
from tests.pruning_tasks import Blobs, small_net

REPOSITORY = Path(__file__).parents[1]
WORDS = (
    "model=mlp",
    "model.width=32",
    "data.side=8",
    "model.image_side=8",
    "baseline.fit.epochs=2",
    "recovery.fit.epochs=2",
    "meter.max_s=0.1",
    "meter.gate=false",
)
"""Overrides of `autoprune sweep` for the smallest sweep of real digits."""


def meter(max_s: float = 0.05) -> PairedMeter:
    """A real meter in a hurry."""
    settings = MeterSettings(max_s=max_s, warmup_s=0.01, min_runs=2, run_s=0.01, sample_s=0.0005)
    return PairedMeter(TorchRuntime(), NoGate(), settings)


def request(
    output: Path,
    *,
    task: Task | None = None,
    model: nn.Module | None = None,
    executor: Executor | None = None,
    **changes: Any,
) -> SweepRequest:
    """A sweep of a network that was trained for nothing, with nsga2 over quality and size."""
    facts: dict[str, Any] = {
        "searcher": searcher_named("nsga2"),
        "uniform_first": (0.5,),
        "budget": Budget(trials=4),
        "goal": GoalRequest(("main", "params")),
        "criteria": {"l1": criterion_of("l1")},
        "recoveries": {"finetune": Recovery(FitPlan(epochs=2))},
        "space": SpaceRequest(),
        "baseline": BaselineRequest(),
        "meter": meter(),
        "code_paths": (str(REPOSITORY),),
        **changes,
    }
    return SweepRequest(
        name="tiny",
        model=small_net() if model is None else model,
        task=Blobs() if task is None else task,
        executor=executor or InlineExecutor(),
        output=output,
        **facts,
    )


def ray_slots(slots: int) -> TuneExecutor:
    """A local cluster of `slots` slots that finds the tests' own modules."""
    return TuneExecutor(wanted_slots=slots, code_paths=(str(REPOSITORY),))


DRIVERS: "list[Driver]" = []
"""Those that the present test has started."""


@dataclass
class Driver:
    """`autoprune` in a process of its own, as a shell starts it, with its output in a file."""

    words: Sequence[str]
    folder: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        # Python ignores the signal that ends whoever writes beyond a limit on the size of a file
        code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); "
        code += "import sys; from autoprune.cli import main; sys.exit(main())"
        self._log = self.folder / f"driver-{len(list(self.folder.glob('driver-*.log')))}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", code, *self.words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"},
            )
        DRIVERS.append(self)

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    def end(self) -> None:
        """Kill it with everything that it started; what has ended already stays ended."""
        if self.process.poll() is None:
            family = self.family()
            self.process.kill()
            self.process.wait()
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def family(self) -> list[psutil.Process]:
        """The processes that it started, of Ray for instance, and those that they started."""
        return psutil.Process(self.process.pid).children(recursive=True)


def sweep_folder(output: Path) -> Path | None:
    """The one sweep below `output`, as soon as it has a journal."""
    try:
        found = list(output.glob(f"*/{JOURNAL_FILE}"))
    except FileNotFoundError:  # a driver that looks whether it can write there makes and removes it
        return None
    assert len(found) < 2, found
    return found[0].parent if found else None


def lines(folder: Path) -> list[str]:
    """The whole lines of a sweep's journal, without its header."""
    text = (folder / JOURNAL_FILE).read_text()
    return text[: text.rfind("\n") + 1].splitlines()[1:]


def events(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The ``ask`` or ``tell`` events of a sweep's journal."""
    return (e for e in map(json.loads, lines(folder)) if e["event"] == kind)


def told(folder: Path) -> list[int]:
    """The numbers of the trials that came to an outcome, in order."""
    return [event["observation"]["trial"]["number"] for event in events(folder, "tell")]
