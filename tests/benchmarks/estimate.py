"""Do estimates keep what they promise? ``python -m tests.benchmarks.estimate``.

The demo's network, once a seed: the speedup that `autoprune estimate` predicts for equal ratios,
with its 95% interval, against the one that is measured of these networks then; and the quality
before recovery. Measured on an idle machine; ``--quick`` is a run of a minute or two on a smaller
network, to see that it works: its figures mean nothing.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from autoprune.evaluation import portable
from autoprune.measurement.cost import costs
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.understanding.estimate import Estimate, EstimateRequest, estimate
from autoprune.pruning.surgery import prune
from tests.benchmarks.seeds import options, request

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHECKS = 6
SMALL = ("model.width=8", "baseline.fit.epochs=2", "meter.max_s=0.2")


@dataclass(frozen=True)
class Row:
    """What was predicted of a ratio, and what was measured of it."""

    seed: int
    ratio: float
    predicted: float
    low: float
    high: float
    measured: float
    measured_low: float
    measured_high: float
    exact: bool
    before: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.measured <= self.high

    @property
    def error(self) -> float:
        """How far the prediction is off, as a part of what was measured."""
        return abs(self.predicted / self.measured - 1.0)


def rows(asked: EstimateRequest) -> Iterator[Row]:
    """Every ratio of one network."""
    found = estimate(asked)
    prepared = prepare(asked.sweep)
    for row in found.rows:
        yield _row(row, prepared, found.main.metric)


def _row(row: Estimate, prepared: Prepared, main: str) -> Row:
    example = prepared.request.task.example()
    dependencies = prepared.plan.dependencies
    pruned = prune(prepared.baseline.model, example, row.spec, dependencies=dependencies)
    network = portable(pruned.model)
    speed = prepared.request.meter.measure(network, prepared.baseline.model, example)
    low, high = row.speedup.low, row.speedup.high
    assert low is not None
    assert high is not None
    return Row(
        seed=prepared.request.seed,
        ratio=row.ratio,
        predicted=row.speedup.ratio,
        low=low,
        high=high,
        measured=speed.ratio,
        measured_low=speed.low,
        measured_high=speed.high,
        exact=all(costs(network, example)[name] == row.costs[name] for name in ("params", "macs")),
        before=row.before[main],
    )


def summary(found: Sequence[Row]) -> dict[str, float]:
    """The share of intervals that held, and how far predictions were off."""
    return {
        "inside": statistics.fmean(row.inside for row in found),
        "median_error": statistics.median(row.error for row in found),
        "worst_error": max(row.error for row in found),
        "median_width": statistics.median(row.high / row.low for row in found),
        "exact": statistics.fmean(row.exact for row in found),
        "count": len(found),
    }


def main() -> None:
    """Run the study and print its table."""
    parser = options(__doc__)
    parser.add_argument("--meter", default="eager")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios, checks = ((0.3, 0.6), 2) if arguments.quick else (RATIOS, CHECKS)
    found: list[Row] = []
    print("| seed | ratio | predicted | 95% interval | measured | inside | before recovery |")
    print("| --: | --: | --: | --: | --: | --- | --: |")
    for seed in range(1 if arguments.quick else arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            words = ["experiment=digits_vgg", "executor=inline", f"output={folder}", f"seed={seed}"]
            words += [f"meter={arguments.meter}", *(SMALL if arguments.quick else ())]
            for row in rows(EstimateRequest(request(words), ratios, checks)):
                found.append(row)
                print(
                    f"| {row.seed} | {row.ratio:g} | {row.predicted:.2f}x | {row.low:.2f} to "
                    f"{row.high:.2f} | {row.measured:.2f}x | {'yes' if row.inside else 'no'} | "
                    f"{row.before:.4f} |",
                    flush=True,
                )
        if arguments.json is not None:  # after every seed: the study takes long
            facts = {"summary": summary(found), "rows": list(map(asdict, found))}
            arguments.json.write_text(json.dumps(facts, indent=1))
    told = summary(found)
    print(
        f"{told['inside']:.0%} of {told['count']} intervals held; predictions were off by "
        f"{told['median_error']:.1%} in the median and {told['worst_error']:.1%} at worst"
    )


if __name__ == "__main__":
    main()
