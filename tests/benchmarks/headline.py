"""The headline of the field, on this machine: ``python -m tests.benchmarks.headline``.

"A VGG-16 for CIFAR-10 that lost half of its filters is 3x smaller and 2x faster at the same
accuracy." Here the same network, on scikit-learn's digits at 32x32 (which need no download), loses
half of every group by l1 and recovers for 10 epochs: its parameters, bytes and multiplications, its
measured speedup on every runtime, and the accuracy that it keeps on test, over seeds.

To be run alone on an idle machine; a seed takes about ten minutes on one core. ``--quick`` is a
run of a minute on a thin network, to see that it works: its figures mean nothing.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from autoprune.domain.bounds import Bounds, build_space, of_kinds
from autoprune.evaluation import portable
from autoprune.measurement.cost import costs
from autoprune.orchestration.comparison.compare import NoMeter
from autoprune.orchestration.preparation import load_baseline
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.graph import trace
from autoprune.pruning.healing import Healing
from autoprune.pruning.surgery import prune
from autoprune.settings.measure import named_meters
from tests.benchmarks.seeds import interval, options, request

PUBLISHED = {"smaller": 3.0, "faster": 2.0}
KEPT = 0.5
RUNTIMES = ("eager", "compile", "onnxruntime")
WORDS = (
    *("model=vgg", "model.depth=16", "model.width=64", "model.in_channels=3"),
    *("model.image_side=32", "data=digits", "data.side=32", "data.channels=3"),
    *("task.batch_size=32", "task.augment=shift", "baseline=short", "recovery.fit.epochs=10"),
    *("executor=inline", "tracking=none"),
)
SMALL = ("model.width=4", "baseline.fit.epochs=1", "recovery.fit.epochs=1")


@dataclass(frozen=True)
class Run:
    """One seed: costs of the network before and after, accuracy on test, and speedups."""

    seed: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    accuracy_before: float
    accuracy_cut: float
    accuracy_after: float
    speedups: Mapping[str, Mapping[str, float] | str]


def run(asked: SweepRequest, runtimes: Sequence[str]) -> Run:
    """Cut half of every group, recover, and measure."""
    baseline = load_baseline(asked).model
    task, example = asked.task, asked.task.example()
    main = task.metrics[0].name
    dependencies = trace(baseline, example, time_limit_s=60)
    space = build_space(of_kinds(dependencies.groups, ["channels"]), Bounds(min_kept=0.1))
    pruned = prune(baseline, example, space.uniform(KEPT), dependencies=dependencies)
    (recovery,) = asked.recoveries.values()
    model = pruned.model
    healing = Healing(recovery, task, baseline, pruned.recipe.history, seed=asked.seed)
    healing.at_once(model)
    cut = evaluate(model, task, "test")[main]
    for _ in healing.train(model):
        pass
    network = portable(model)
    return Run(
        asked.seed,
        before=costs(baseline, example),
        after=costs(network, example),
        accuracy_before=evaluate(baseline, task, "test")[main],
        accuracy_cut=cut,
        accuracy_after=evaluate(model, task, "test")[main],
        speedups={name: _speedup(name, network, baseline, example) for name in runtimes},
    )


def _speedup(name: str, network: Any, baseline: Any, example: Any) -> Mapping[str, float] | str:
    meter = named_meters([name])[name]
    if isinstance(meter, NoMeter):
        return meter.reason
    found = meter.measure(network, baseline, example)
    return {
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "baseline_ms": found.baseline_ms,
        "candidate_ms": found.candidate_ms,
    }


def averaged(values: Sequence[float]) -> dict[str, float | None]:
    """The mean with the ends of its 95% interval, None for a single value."""
    low, high = interval(values) or (None, None)
    return {"mean": statistics.fmean(values), "low": low, "high": high}


def summary(found: Sequence[Run]) -> dict[str, Any]:
    """What the headline claims, and what was found."""
    first = found[0]
    speedups = {}
    for name in first.speedups:
        ratios = [one["ratio"] for run in found if not isinstance(one := run.speedups[name], str)]
        speedups[name] = averaged(ratios) if ratios else first.speedups[name]
    return {
        "published": PUBLISHED,
        **{
            f"{name}_ratio": first.before[name] / first.after[name]
            for name in ("params", "size_mb", "macs")
        },
        "speedups": speedups,
        "accuracy_before": averaged([run.accuracy_before for run in found]),
        "accuracy_cut": averaged([run.accuracy_cut for run in found]),
        "accuracy_after": averaged([run.accuracy_after for run in found]),
        "accuracy_change": averaged([r.accuracy_after - r.accuracy_before for r in found]),
        "seeds": len(found),
    }


def markdown(found: Sequence[Run]) -> str:
    """The published claim beside what was found."""
    told = summary(found)
    lines = ["| | published | here |", "| --- | --: | --: |"]
    lines.append(
        f"| smaller (parameters) | {PUBLISHED['smaller']:g}x | {told['params_ratio']:.2f}x |"
    )
    lines.append(f"| smaller (bytes) | | {told['size_mb_ratio']:.2f}x |")
    lines.append(f"| fewer MACs | | {told['macs_ratio']:.2f}x |")
    for name, speed in told["speedups"].items():
        text = speed if isinstance(speed, str) else _text(speed, "{:.2f}x")
        lines.append(f"| faster ({name}) | {PUBLISHED['faster']:g}x | {text} |")
    for name in ("before", "cut", "after", "change"):
        lines.append(f"| accuracy, {name} | | {_text(told[f'accuracy_{name}'], '{:.4f}')} |")
    return "\n".join(lines)


def _text(found: Mapping[str, float | None], style: str) -> str:
    mean = style.format(found["mean"])
    if found["low"] is None:
        return mean
    return f"{mean} [{style.format(found['low'])}, {style.format(found['high'])}]"


def main() -> None:
    """Run the study and print its table."""
    parser = options(__doc__)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if arguments.quick else arguments.seeds):
            words = [*WORDS, f"output={folder}", f"seed={seed}"]
            words += SMALL if arguments.quick else ()
            found.append(run(request(words), arguments.runtimes))
            if arguments.json is not None:  # after every seed: the study takes long
                facts = {"summary": summary(found), "runs": list(map(asdict, found))}
                arguments.json.write_text(json.dumps(facts, indent=1))
            print(f"seed {seed}: accuracy {found[-1].accuracy_after:.4f}", flush=True)
    print(markdown(found))


if __name__ == "__main__":
    main()
