"""Is the speed on the front the speed you get? ``python -m tests.benchmarks.front_truth``.

The demo's network, 24 trials on two slots, twice: once through autoprune, and once as it is written
without it (Ray Tune, its OptunaSearch with NSGA-II, each trial timing its own model in a loop
against a baseline timed before). Pruning and fine-tuning are the same. Then every network of both
is timed again on the idle machine, in pairs, and what was told is held against that. So is one more
measurement of autoprune's networks on the idle machine (`idle_again`): nothing can be told better
than the machine repeats itself.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import ray
import torch
from optuna.samplers import NSGAIISampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from torch import nn

from autoprune.cli import main as autoprune
from autoprune.data import digits
from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Measurement
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.orchestration.baseline import load_weights
from autoprune.orchestration.folders import BASELINE_FILE, JOURNAL_FILE
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.view import view_of
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.graph import trace
from autoprune.pruning.recalibrate import recalibrate
from autoprune.pruning.recover import FitPlan, fit
from autoprune.pruning.surgery import prune
from autoprune.tasks import Classification, Task
from tests.benchmarks.measurement import demo_network, mean_s

SLOTS = 2
TRUTHS = 3
RECOVERY = FitPlan(epochs=8)
SPACE = Bounds(min_kept=0.04)


@dataclass(frozen=True)
class Told:
    """A network of a search: its widths, its accuracy, and the speedup that was told of it."""

    spec: PruningSpec
    accuracy: float
    speedup: float


@dataclass(frozen=True)
class Search:
    """What a search told, and how well it used its time."""

    told: Sequence[Told]
    utilisation: float
    search_s: float


@dataclass(frozen=True)
class Errors:
    """How far speedups are from the truth, as parts of it."""

    median_error: float
    max_error: float


@dataclass(frozen=True)
class Figures(Errors):
    """How far what was told is from the truth, and how the search went."""

    hypervolume_told: float
    hypervolume_true: float
    utilisation: float
    search_s: float


def task() -> Task:
    """The demo's."""
    return Classification(digits(side=16), batch_size=32, augment="shift")


def by_autoprune(output: Path, trials: int) -> tuple[Search, nn.Module]:
    """The demo's sweep, and the baseline that it trained."""
    words = ["experiment=digits_vgg", f"output={output}", "tracking=none", "executor=ray"]
    words += [f"budget.trials={trials}", f"executor.slots={SLOTS}"]
    assert autoprune(["sweep", *words]) == 0
    (journal,) = output.glob(f"*/{JOURNAL_FILE}")
    view = view_of(read_journal(journal))
    told = [
        Told(o.trial.spec, o.outcome.metrics["accuracy"], o.outcome.metrics["speedup"])
        for o in view.observations
        if isinstance(o.outcome, Measurement) and o.outcome.complete
    ]
    baseline = demo_network()
    load_weights(baseline, journal.parent / BASELINE_FILE)
    return Search(told, view.utilisation, view.search_s), baseline.eval()


def by_hand(baseline: nn.Module, space: SearchSpace, folder: Path, *, trials: int) -> Search:
    """What people write today: the same trials, driven and timed by Ray Tune's own means."""
    torch.set_num_threads(1)
    baseline_s = mean_s(TorchRuntime().prepare(baseline, task().example()))
    shared = ray.put(baseline)

    def trial(config: Mapping[str, float]) -> dict[str, Any]:
        torch.set_num_threads(1)
        start = time.perf_counter()
        network, job = ray.get(shared), task()
        widths = {a.group.name: a.nearest(config[a.group.name] * a.group.size) for a in space.axes}
        spec = PruningSpec.of(widths)
        pruned = prune(network, job.example(), spec).model
        recalibrate(pruned, job, batches=16, seed=0)
        for _ in fit(pruned, job, RECOVERY, seed=0):
            pass
        speedup = baseline_s / mean_s(TorchRuntime().prepare(pruned, job.example()))
        return {
            "accuracy": evaluate(pruned, job, "val")["accuracy"],
            "speedup": speedup,
            "spec": json.dumps(spec.to_json()),
            "seconds": time.perf_counter() - start,
        }

    searcher = OptunaSearch(
        metric=["accuracy", "speedup"], mode=["max", "max"], sampler=NSGAIISampler(seed=0)
    )
    start = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={a.group.name: tune.uniform(SPACE.min_kept, 1.0) for a in space.axes},
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=trials),
        run_config=tune.RunConfig(verbose=0, storage_path=str(folder)),
    ).fit()
    search_s = time.perf_counter() - start
    found = [result.metrics for result in results if result.metrics and "spec" in result.metrics]
    told = [
        Told(PruningSpec.from_json(json.loads(m["spec"])), m["accuracy"], m["speedup"])
        for m in found
    ]
    busy_s = sum(m["seconds"] for m in found)
    return Search(told, busy_s / (SLOTS * search_s), search_s)


def networks_of(search: Search, baseline: nn.Module) -> list[nn.Module]:
    """The networks of a search, cut anew: speed does not depend on what recovery made of them."""
    example = task().example()
    dependencies = trace(baseline, example, time_limit_s=60)
    return [
        prune(baseline, example, told.spec, dependencies=dependencies).model for told in search.told
    ]


def idle_speedups(networks: Sequence[nn.Module], baseline: nn.Module, *, seed: int) -> list[float]:
    """One measurement each, where nothing else runs."""
    meter = PairedMeter(TorchRuntime(), NoGate(), MeterSettings(seed=seed))
    return [meter.measure(network, baseline, task().example()).ratio for network in networks]


def truths_of(networks: Sequence[nn.Module], baseline: nn.Module) -> list[float]:
    """The medians of `TRUTHS` measurements, a round of all networks each."""
    rounds = [idle_speedups(networks, baseline, seed=seed) for seed in range(TRUTHS)]
    return [statistics.median(ratios) for ratios in zip(*rounds, strict=True)]


def errors_of(speedups: Sequence[float], truths: Sequence[float]) -> Errors:
    """By speedups and truths of the same networks."""
    errors = [abs(s / truth - 1) for s, truth in zip(speedups, truths, strict=True)]
    return Errors(statistics.median(errors), max(errors))


def figures(search: Search, truths: Sequence[float], accuracy: float) -> Figures:
    """What a search told, held against the truth."""
    accuracies, speedups = [t.accuracy for t in search.told], [t.speedup for t in search.told]
    return Figures(
        **asdict(errors_of(speedups, truths)),
        hypervolume_told=hypervolume(accuracies, speedups, accuracy),
        hypervolume_true=hypervolume(accuracies, truths, accuracy),
        utilisation=search.utilisation,
        search_s=search.search_s,
    )


def hypervolume(accuracies: Sequence[float], speedups: Sequence[float], baseline: float) -> float:
    """From the edge of what anyone would deploy: five points of accuracy less, no speedup."""
    points = np.column_stack([accuracies, speedups])
    return float(moocore.hypervolume(points, ref=[baseline - 0.05, 1.0], maximise=True))


def main() -> None:
    """Run both, and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        search, baseline = by_autoprune(Path(folder), arguments.trials)
    accuracy = evaluate(baseline, task(), "val")["accuracy"]
    dependencies = trace(baseline, task().example(), time_limit_s=60)
    space = build_space(dependencies.groups, SPACE)
    ray.init(num_cpus=SLOTS, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        stock = by_hand(baseline, space, Path(folder), trials=arguments.trials)
    ray.shutdown()
    torch.set_num_threads(1)
    networks = networks_of(search, baseline)
    truths = truths_of(networks, baseline)
    stock_truths = truths_of(networks_of(stock, baseline), baseline)
    again = idle_speedups(networks, baseline, seed=TRUTHS)
    found: dict[str, Errors] = {
        "autoprune": figures(search, truths, accuracy),
        "stock": figures(stock, stock_truths, accuracy),
        "idle_again": errors_of(again, truths),
    }
    print(f"{'':<18}{''.join(f'{name:>12}' for name in found)}")
    for name in Figures.__dataclass_fields__:
        values = [f"{getattr(f, name):>12.3f}" for f in found.values() if hasattr(f, name)]
        print(f"{name:<18}{''.join(values)}")
    if arguments.json is not None:
        facts = {name: asdict(f) for name, f in found.items()}
        arguments.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
