"""Does sparse training before the cut pay? ``python -m tests.benchmarks.sparse_training``.

The demo's network and data, trained once a seed and cut to equal shares of every group: fine-tuned
after a cut of the trained network, and after one of the network that was trained towards zeros,
with as many epochs in all. Whole trials, as a sweep runs them; accuracy is val's. ``--quick`` is a
run of a minute on a smaller network, to see that it works; its figures mean nothing.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from autoprune.domain.trial import Measurement, Trial, trial_seed
from autoprune.evaluation import run_trial
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.sparsity.plan import Sparsity
from tests.benchmarks.seeds import options, request

RATIOS = (0.25, 0.125, 0.0625)
EPOCHS, BEFORE = 12, 4
SMALL = ("model.depth=8", "model.width=8", "baseline.fit.epochs=2")


@dataclass(frozen=True)
class Run:
    """One trial: val's accuracy right after the last cut and at the end, whether the budget was
    met (1) or by how much it was not, how many layers were factored, the speedup, and seconds.
    """

    recovery: str
    ratio: float
    after_cut: float
    accuracy: float
    cost: float
    factored: float
    speedup: float
    seconds: float


def recoveries(epochs: int) -> dict[str, Recovery]:
    """Those that are compared, all of as many epochs."""
    plan = FitPlan(epochs=epochs)
    before = Sparsity(epochs=BEFORE * epochs // EPOCHS or 1, budget="macs")
    shorter = FitPlan(epochs=epochs - before.epochs)
    kinds = {
        "group_lasso": before,
        "overlap": replace(before, overlap=True),
        "slimming": replace(before, method="slimming"),
        "low_rank": replace(before, method="low_rank"),
    }
    return {
        "finetune": Recovery(plan),
        **{name: Recovery(shorter, sparsity=kind) for name, kind in kinds.items()},
    }


def runs(asked: SweepRequest, compared: dict[str, Recovery]) -> Iterator[Run]:
    """Everything with one seed."""
    prepared = prepare(replace(asked, recoveries=compared))
    main = asked.task.metrics[0].name
    print(f"seed {asked.seed}: the unpruned network's {main} {prepared.metrics[main]:.4f}")
    for ratio in RATIOS:
        for name in compared:
            spec = replace(prepared.plan.space.uniform(ratio), recovery=name)
            trial = Trial(0, spec, trial_seed(asked.seed, 0))
            found = run_trial(trial, prepared.context)
            assert isinstance(found.outcome, Measurement), found.outcome
            metrics = found.outcome.metrics
            yield Run(
                name,
                ratio,
                metrics.get(f"sparsity_{main}", metrics[f"proxy_{main}"]),
                metrics[main],
                metrics.get("sparsity_cost", 1.0),
                metrics.get("sparsity_factored", 0.0),
                metrics["speedup"],
                found.seconds,
            )


def markdown(found: Sequence[Run]) -> str:
    """Recoveries by ratios: means over seeds, after the cut and at the end, with every seed's."""
    lines = ["| recovery | kept | after the cut | at the end | each seed | budget | factored | x |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for ratio, name in dict.fromkeys((run.ratio, run.recovery) for run in found):
        own = [run for run in found if (run.ratio, run.recovery) == (ratio, name)]
        texts = (
            name,
            f"{ratio:g}",
            f"{statistics.fmean(run.after_cut for run in own):.4f}",
            f"{statistics.fmean(run.accuracy for run in own):.4f}",
            " ".join(f"{run.accuracy:.4f}" for run in own),
            f"{max(run.cost for run in own):.2f}",
            f"{statistics.fmean(run.factored for run in own):.1f}",
            f"{statistics.fmean(run.speedup for run in own):.2f}",
        )
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study and print its table."""
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(1)
    compared = recoveries(3 if arguments.quick else EPOCHS)
    found: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if arguments.quick else arguments.seeds):
            words = ["experiment=digits_vgg", "executor=inline", f"output={folder}", f"seed={seed}"]
            words += ["meter.max_s=0.2", *(SMALL if arguments.quick else ())]
            found += runs(request(words), compared)
            if arguments.json is not None:  # after every seed: the full study takes long
                arguments.json.write_text(json.dumps([asdict(run) for run in found], indent=1))
            print(markdown(found), flush=True)


if __name__ == "__main__":
    main()
