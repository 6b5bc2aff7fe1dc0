"""What a sweep costs besides its trials: ``python -m tests.benchmarks.scale --json FILE``.

Trials that do no work, in two slots of a Ray cluster on this machine: in a whole sweep (journal,
proposals, an MLflow store in sqlite, reports, networks, a study), whose trials tell every stage as
real ones do (seven results); the same with `silent` trials, which tell their outcome alone; in
stock Ray Tune with its own random search, reused actors and one result a trial; and the same with
`stages`, seven results. All draw a point of 24 groups.

The overhead of a trial is the time from the end of the first two, which wait until both workers
have started, to that of the last one, times the slots, over the trials between: what a trial takes
of its slot. Starting Ray and its workers is not in it. `cpu_s` is the driver's processor time a
trial, of all its threads, starting and ending included. Memory is the driver's: `driver_mb` at its
peak, `grown_mb` from before the first trial to after the last. Every figure comes from a process of
its own, sweep and stock in turns.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from rich.console import Console

from autoprune.orchestration.executors import tune as executor
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.networks import NetworksWatcher
from autoprune.orchestration.proposals import Proposals
from autoprune.orchestration.record import Told, read_journal
from autoprune.orchestration.reports.console import WIDE, ConsoleWatcher
from autoprune.orchestration.reports.files import ReportsWatcher
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.sweep import Budget, Sweep
from autoprune.orchestration.tracking.optuna_watcher import OptunaWatcher
from autoprune.orchestration.tracking.tracker import MlflowTracker, Patience
from autoprune.orchestration.view import SweepView
from autoprune.problems import known_problem
from autoprune.searchers.random import RandomSearcher
from tests.empty import FIRST, EmptyActor, EmptyContext, StockStages, StockTrial

TRIALS = (100, 500, 2000)
SLOTS, GROUPS = 2, 24
BASELINE = {"accuracy": 0.95, "latency_ms": 1.0, "macs": 1e6, "params": 1e5}
GOAL_GROWTH = 1.2

Figures = dict[str, float]


def sweep(trials: int, folder: Path, *, silent: bool = False) -> Figures:
    """A whole sweep of empty trials."""
    problem = known_problem("coupled", GROUPS)
    header = {
        "sweep_id": "scale",
        "experiment": "scale",
        "goal": problem.goal.to_json(),
        "space": problem.space.to_json(),
        "baseline": BASELINE,
        "budget": {"trials": trials},
        "slots": SLOTS,
        "output": "",
        "config": None,
    }
    view = SweepView("scale", "scale", problem.goal, problem.space, BASELINE, slots=SLOTS)
    tracker = MlflowTracker(f"sqlite:///{folder}/mlflow.db", patience=Patience(drain_s=600.0))
    executor.TrialActor = EmptyActor  # type: ignore[misc]  # what a slot does is all that differs
    with (
        Journal.create(folder / "journal.jsonl", header) as journal,
        (folder / "console.log").open("w") as log,
    ):
        search = Sweep(
            view,
            journal,
            Proposals(RandomSearcher(problem.space, problem.goal, 0), problem.space),
            budget=Budget(trials=trials),
            watchers=[
                tracker,
                NetworksWatcher(folder, InFolder(folder)),
                ReportsWatcher(folder, run_ids=lambda: tracker.run_ids),
                OptunaWatcher(folder, run_ids=lambda: tracker.run_ids),
                ConsoleWatcher(Console(file=log, width=WIDE)),
            ],
        )
        slots = executor.TuneExecutor(wanted_slots=SLOTS)
        with slots.kept(), search.watched():
            before_mb, start, cpu_s = memory_mb(), time.perf_counter(), time.process_time()
            context = EmptyContext(problem, silent=silent)
            slots.run(search, context, InFolder(folder), interrupt=Interrupt())
            end, behind = time.perf_counter(), tracker.behind
        cpu_s = time.process_time() - cpu_s
        drained = time.perf_counter()
    events = read_journal(folder / "journal.jsonl").events
    ends = [event.at for event in events if isinstance(event, Told)]
    assert len(ends) == trials
    assert not tracker.unwritten, tracker.summary()
    return figures(ends, before_mb) | {
        "wall_s": end - start,
        "drain_s": drained - end,
        "behind": behind,
        "cpu_s": cpu_s / trials,
    }


def silent(trials: int, folder: Path) -> Figures:
    """A whole sweep of trials that tell their outcome alone, like those of stock."""
    return sweep(trials, folder, silent=True)


def stock(trials: int, folder: Path, *, trial: type[StockTrial] = StockTrial) -> Figures:
    """Stock Ray Tune on as many empty trials."""
    problem = known_problem("coupled", GROUPS)
    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    space = {axis.group.name: tune.choice(list(axis.widths)) for axis in problem.space.axes}
    ray.init(
        address="local",
        num_cpus=SLOTS,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    before_mb, start, cpu_s = memory_mb(), time.perf_counter(), time.process_time()
    tuner = tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=SLOTS, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="stock", storage_path=str(folder), callbacks=[Ends()], verbose=0
        ),
    )
    results = tuner.fit()
    wall_s = time.perf_counter() - start
    assert len(ends) == trials, results.errors
    assert not results.errors, results.errors[0]
    cpu_s = (time.process_time() - cpu_s) / trials
    return figures(ends, before_mb) | {"wall_s": wall_s, "cpu_s": cpu_s}


def stock_stages(trials: int, folder: Path) -> Figures:
    """Stock Ray Tune on trials that tell as many results as those of a sweep."""
    return stock(trials, folder, trial=StockStages)


def figures(ends: list[float], before_mb: float) -> Figures:
    """The overhead of a trial, and the memory of this process."""
    overhead_s = (ends[-1] - ends[FIRST - 1]) * SLOTS / (len(ends) - FIRST)
    return {
        "overhead_s": overhead_s,
        "driver_mb": memory_mb(peak=True),
        "grown_mb": memory_mb() - before_mb,
    }


def memory_mb(*, peak: bool = False) -> float:
    """What this process holds, or held at most since it began."""
    if not peak:
        return float(psutil.Process().memory_info().rss) / 1e6
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measured(engine: Callable[[int, Path], Figures], trials: int) -> Figures:
    """The figures of one engine, in a process of its own."""
    own = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(max_workers=1, mp_context=own) as process,
    ):
        return process.submit(engine, trials, Path(folder)).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, nargs="+", default=list(TRIALS))
    asked = parser.parse_args()
    engines = {"": sweep, "stock_stages_": stock_stages, "silent_": silent, "stock_": stock}
    found: dict[str, list[Figures]] = {name: [] for name in engines}
    print(
        f"{'trials':>7} {'':>12} {'overhead s':>11} {'of stock':>9} {'cpu s':>7} {'driver MB':>10} "
        f"{'grown MB':>9} {'wall s':>7} {'drain s':>8}"
    )
    for trials in asked.trials:
        for name, engine in engines.items():
            found[name].append(measured(engine, trials))
        for name, figures_of in found.items():
            one, base = figures_of[-1], found["stock_"][-1]
            print(
                f"{trials:>7} {name.strip('_') or 'sweep':>12} {one['overhead_s']:>11.4f} "
                f"{one['overhead_s'] / base['overhead_s']:>9.2f} {one['cpu_s']:>7.4f} "
                f"{one['driver_mb']:>10.0f} {one['grown_mb']:>9.0f} {one['wall_s']:>7.1f} "
                f"{one.get('drain_s', 0.0):>8.1f}",
                flush=True,
            )
    ours, theirs = found[""], found["stock_"]
    growth = [one[-1]["overhead_s"] / one[0]["overhead_s"] for one in (ours, theirs)]
    print(
        f"from {asked.trials[0]} to {asked.trials[-1]} trials the overhead grows by a factor of "
        f"{growth[0]:.2f} (goal: {GOAL_GROWTH}), that of stock by {growth[1]:.2f}"
    )
    if asked.json is not None:
        table: dict[str, Any] = {"trials": asked.trials, "slots": SLOTS}
        for name, several in found.items():
            table |= {f"{name}{key}": [one[key] for one in several] for key in several[0]}
        asked.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
