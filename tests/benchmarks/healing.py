"""Which criterion and which healing leave most accuracy? ``python -m tests.benchmarks.healing``.

The demo's network and data: trained once a seed, cut by each criterion to equal shares of every
group, healed in each way, and judged on val. ``--quick`` is a run of a minute on a smaller network,
to see that it works; its figures mean nothing.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy import stats

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.space import PruningSpec
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.session import load_baseline
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.criteria import Scoring, criterion_of
from autoprune.pruning.distill import Distillation
from autoprune.pruning.graph import trace
from autoprune.pruning.healing import Healing, Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.surgery import prune
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain

RATIOS = (0.5, 0.25, 0.125)
CRITERIA = ("l1", "taylor")
EPOCHS = 8
SMALL = ("model.depth=8", "model.width=8", "baseline.fit.epochs=2")


@dataclass(frozen=True)
class Run:
    """One network that was cut and healed, and the seconds that healing it took."""

    criterion: str
    healing: str
    ratio: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Cell:
    """The runs of all seeds: the mean with the ends of its 95% interval, and a run's seconds.

    `ci95` is Student's, None for a single seed.
    """

    criterion: str
    healing: str
    ratio: float
    accuracies: Sequence[float]
    mean: float
    ci95: tuple[float, float] | None
    seconds: float


def healings(epochs: int) -> dict[str, Recovery]:
    """Those that are compared."""
    idle, plan = FitPlan(epochs=0), FitPlan(epochs=epochs)
    fitted, taught = Reconstruction(), Distillation()
    found = (
        Recovery(idle),
        Recovery(idle, reconstruction=fitted),
        Recovery(plan),
        Recovery(plan, distillation=taught),
        Recovery(plan, reconstruction=fitted, distillation=taught),
    )
    return {recovery.name: recovery for recovery in found}


def runs(
    asked: SweepRequest, criteria: Sequence[str], recoveries: Mapping[str, Recovery]
) -> Iterator[Run]:
    """Everything with one seed."""
    baseline = load_baseline(asked).model
    task, example, seed = asked.task, asked.task.example(), asked.seed
    main = task.metrics[0].name
    print(f"seed {seed}: the unpruned network's {main} {evaluate(baseline, task, 'val')[main]:.4f}")
    dependencies = trace(baseline, example, time_limit_s=60)
    space = build_space(dependencies.groups, Bounds(min_kept=0.04))
    for criterion in criteria:
        for ratio in RATIOS:
            pruned = prune(
                baseline,
                example,
                PruningSpec.of(space.uniform(ratio).widths, criterion=criterion),
                criterion=criterion_of(criterion),
                scoring=Scoring(task, seed=seed, batches=8),
                dependencies=dependencies,
            )
            for name, recovery in recoveries.items():
                model = copy.deepcopy(pruned.model)
                healing = Healing(recovery, task, baseline, pruned.recipe.history, seed=seed)
                start = time.perf_counter()
                healing.at_once(model)
                for _ in healing.train(model):
                    pass
                seconds = time.perf_counter() - start
                yield Run(criterion, name, ratio, evaluate(model, task, "val")[main], seconds)


def cells(found: Sequence[Run]) -> list[Cell]:
    """The runs of all seeds, put together."""
    kinds = dict.fromkeys((run.criterion, run.healing, run.ratio) for run in found)
    return [
        _cell([run for run in found if (run.criterion, run.healing, run.ratio) == kind])
        for kind in kinds
    ]


def _cell(alike: Sequence[Run]) -> Cell:
    one, accuracies = alike[0], [run.accuracy for run in alike]
    mean, interval = statistics.fmean(accuracies), None
    if len(alike) > 1:
        error = statistics.stdev(accuracies) / len(alike) ** 0.5
        half = float(stats.t.ppf(0.975, len(alike) - 1)) * error
        interval = (mean - half, mean + half)
    seconds = statistics.fmean(run.seconds for run in alike)
    return Cell(one.criterion, one.healing, one.ratio, accuracies, mean, interval, seconds)


def markdown(found: Sequence[Cell]) -> str:
    """Criteria and healings by ratios: the mean, half its interval, and a run's seconds."""
    ratios = "".join(f" {ratio:g} kept |" for ratio in RATIOS)
    lines = [f"| criterion | healing |{ratios}", f"| --- | --- |{' --- |' * len(RATIOS)}"]
    for criterion, healing in dict.fromkeys((c.criterion, c.healing) for c in found):
        own = [c for c in found if (c.criterion, c.healing) == (criterion, healing)]
        texts = "".join(f" {_text(cell)} |" for cell in own)
        lines.append(f"| {criterion} | {healing} |{texts}")
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    half = "" if cell.ci95 is None else f" ± {cell.ci95[1] - cell.mean:.4f}"
    return f"{cell.mean:.4f}{half} ({cell.seconds:.1f} s)"


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recoveries = healings(1 if arguments.quick else EPOCHS)
    found: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            words = ["experiment=digits_vgg", "executor=inline", f"output={folder}", f"seed={seed}"]
            config = plain(compose_config("sweep", [*words, *(SMALL if arguments.quick else ())]))
            found += runs(build_request(config), arguments.criteria, recoveries)
            if arguments.json is not None:  # after every seed: the full study takes long
                facts = [asdict(cell) for cell in cells(found)]
                arguments.json.write_text(json.dumps(facts, indent=1))
    print(markdown(cells(found)))


if __name__ == "__main__":
    main()
