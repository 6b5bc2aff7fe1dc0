"""How far a measured speedup can be trusted: ``python -m tests.benchmarks.measurement``.

Pairs of networks (the demo's VGG and pruned ones, near 1x, 1.5x and 3x, on eager PyTorch and on
ONNX Runtime) are measured again and again: naively on the idle machine (the candidate's mean time
under a baseline timed once), naively while two real processes train, in pairs while they train,
and in pairs behind the gate while they train. The truth is what pairs give on the idle machine.
Besides: how often the interval of two equal networks contains 1, what the gate costs a trainer
when nobody measures, how long a measurement takes, and what the latency model is worth
(`tests.benchmarks.latency`). All figures are of one run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Speedup
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import Gate, NoGate, QuietNode
from autoprune.measurement.runtimes import Inference, OnnxRuntime, Runtime, TorchRuntime
from autoprune.models import vgg
from autoprune.pruning.graph import trace
from autoprune.pruning.surgery import prune
from tests.benchmarks.latency import latency_models

SIDE = 16
EXAMPLE = torch.zeros(1, 1, SIDE, SIDE)
NAIVE_CALLS = 50
TARGETS = (1.0, 1.5, 3.0)
KEPT = (0.97, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
RUNTIMES: Sequence[Runtime] = (TorchRuntime(), OnnxRuntime())
STEPS_COMPARED = 400


@dataclass(frozen=True)
class Result:
    """What came of one pair on one runtime; `flagged` of the gated ones did not settle."""

    name: str
    runtime: str
    ratio: float
    naive_idle_cv: float
    naive_loaded_cv: float
    paired_loaded_cv: float
    gated_loaded_cv: float
    gated_loaded_bias: float
    flagged: int


def demo_network() -> nn.Module:
    """The demo's network with its first weights: speed does not depend on them."""
    torch.manual_seed(0)
    return vgg(depth=11, width=32, in_channels=1, num_classes=10, image_side=SIDE).eval()


def pruned_networks(baseline: nn.Module) -> dict[float, nn.Module]:
    """The network at every ratio of `KEPT`, the same for all groups."""
    dependencies = trace(baseline, EXAMPLE, time_limit_s=60)
    made = {}
    for kept in KEPT:
        widths = {g.name: max(1, round(kept * g.size)) for g in dependencies.groups}
        spec = PruningSpec.of(widths)
        made[kept] = prune(baseline, EXAMPLE, spec, dependencies=dependencies).model
    return made


def train(folder: Path, log: Path) -> None:
    """Train for ever; one byte in the log a step."""
    torch.set_num_threads(1)
    gate = QuietNode(folder)
    with log.open("ab", buffering=0) as steps:
        for step in training():
            with gate.step():
                step()
            steps.write(b".")


def training() -> Iterator[Callable[[], None]]:
    """Steps of training the demo's network on noise, as many as are asked for."""
    model = demo_network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, labels = torch.randn(32, 1, SIDE, SIDE), torch.randint(10, (32,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    while True:
        yield step


@contextmanager
def trainers(count: int, folder: Path) -> Iterator[None]:
    """Training processes, given when each has made some steps."""
    logs = [folder / f"trainer{number}.log" for number in range(count)]
    command = [sys.executable, "-m", "tests.benchmarks.measurement", "--train"]
    processes = [subprocess.Popen([*command, str(folder / "gate"), str(log)]) for log in logs]
    try:
        while not all(log.exists() and log.stat().st_size > 5 for log in logs):
            time.sleep(0.1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.unlink(missing_ok=True)


def mean_s(infer: Inference) -> float:
    """Seconds of one call, as a mean over a loop: how most people time a network."""
    for _ in range(5):
        infer()
    start = time.perf_counter()
    for _ in range(NAIVE_CALLS):
        infer()
    return (time.perf_counter() - start) / NAIVE_CALLS


@dataclass(frozen=True)
class Pair:
    """Two networks on a runtime, and the ways to measure them; each takes a seed."""

    name: str
    runtime: Runtime
    baseline: nn.Module
    candidate: nn.Module

    def speedup(self, gate: Gate, seed: int) -> Speedup:
        """A measurement as a trial makes it."""
        meter = PairedMeter(self.runtime, gate, MeterSettings(seed=seed))
        return meter.measure(self.candidate, self.baseline, EXAMPLE)

    def naive(self) -> Callable[[int], float]:
        """The candidate against a baseline that is timed now."""
        baseline_s = mean_s(self.runtime.prepare(self.baseline, EXAMPLE))
        infer = self.runtime.prepare(self.candidate, EXAMPLE)
        return lambda _: baseline_s / mean_s(infer)


def pairs_of(baseline: nn.Module) -> list[Pair]:
    """For every runtime the networks whose speedups come nearest to the targets."""
    networks, found = pruned_networks(baseline), []
    for runtime in RUNTIMES:
        speeds = {
            kept: Pair("", runtime, baseline, network).speedup(NoGate(), 0).ratio
            for kept, network in networks.items()
        }
        for target in TARGETS:
            kept = min(speeds, key=lambda kept: abs(speeds[kept] - target))
            found.append(Pair(f"near {target:g}x", runtime, baseline, networks[kept]))
    return found


def spread(ratios: Sequence[float]) -> float:
    """The coefficient of variation."""
    return statistics.stdev(ratios) / statistics.mean(ratios)


def repeat(measure: Callable[[int], float], times: int) -> list[float]:
    """`measure` with the seeds 1, 2, ..."""
    return [measure(seed) for seed in range(1, times + 1)]


def compare(pair: Pair, gate: QuietNode, *, repeats: int, loaded: int) -> Result:
    """One pair in every way, the idle ones first."""
    truth = statistics.mean(repeat(lambda s: pair.speedup(NoGate(), s).ratio, repeats))
    naive = pair.naive()
    naive_idle = repeat(naive, repeats)
    assert gate.folder is not None
    with trainers(loaded, gate.folder.parent):
        naive_loaded = repeat(naive, repeats)
        paired = repeat(lambda s: pair.speedup(NoGate(), s).ratio, repeats)
        found = [pair.speedup(gate, seed) for seed in range(1, repeats + 1)]
    gated = [speedup.ratio for speedup in found]
    return Result(
        pair.name,
        pair.runtime.name,
        ratio=truth,
        naive_idle_cv=spread(naive_idle),
        naive_loaded_cv=spread(naive_loaded),
        paired_loaded_cv=spread(paired),
        gated_loaded_cv=spread(gated),
        gated_loaded_bias=statistics.mean(gated) / truth - 1,
        flagged=sum(not speedup.settled for speedup in found),
    )


def aa_coverage(baseline: nn.Module, gate: QuietNode, *, repeats: int, loaded: int) -> float:
    """How often the interval of two equal networks contains 1, behind the gate, under load."""
    hits = 0
    assert gate.folder is not None
    with trainers(loaded, gate.folder.parent):
        for seed in range(repeats):
            pair = Pair("A/A", RUNTIMES[seed % len(RUNTIMES)], baseline, demo_network())
            found = pair.speedup(gate, seed)
            hits += found.low <= 1.0 <= found.high
    return hits / repeats


def gate_overhead(gate: Gate) -> float:
    """What passing the gate adds to a training step when nobody measures, as a part of it."""
    torch.set_num_threads(1)
    added = []
    for _, step in zip(range(STEPS_COMPARED), training(), strict=False):
        start = time.perf_counter()
        with gate.step():
            entered = time.perf_counter()
            step()
            done = time.perf_counter()
        left = time.perf_counter()
        added.append((left - done + entered - start) / (done - entered))
    return statistics.median(added)


def seconds_each(pairs: Sequence[Pair], gate: Gate) -> dict[str, float]:
    """How long a measurement takes by the name of the runtime, as a mean over its pairs."""
    each_s = {}
    for runtime in RUNTIMES:
        own = [pair for pair in pairs if pair.runtime == runtime]
        start = time.perf_counter()
        for pair in own:
            pair.speedup(gate, 0)
        each_s[runtime.name] = (time.perf_counter() - start) / len(own)
    return each_s


def compared(pairs: Sequence[Pair], gate: QuietNode, *, repeats: int, loaded: int) -> list[Result]:
    """Every pair in every way, a line each."""
    print("pair       runtime  ratio   naive idle  naive loaded  paired  gated   bias  flagged")
    results = []
    for pair in pairs:
        r = compare(pair, gate, repeats=repeats, loaded=loaded)
        results.append(r)
        print(
            f"{r.name:<10} {r.runtime:<8} {r.ratio:5.2f}x  {r.naive_idle_cv:10.3f}  "
            f"{r.naive_loaded_cv:12.3f}  {r.paired_loaded_cv:6.3f}  {r.gated_loaded_cv:6.3f}  "
            f"{r.gated_loaded_bias:+5.1%}  {r.flagged:7}",
            flush=True,
        )
    return results


def main() -> None:
    """Run the comparison, or one trainer of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", nargs=2, type=Path, metavar=("GATE", "LOG"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--equal", type=int, default=40, help="measurements of two equal networks")
    parser.add_argument("--trainers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.train:
        train(*arguments.train)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        gate = QuietNode(Path(name) / "gate")
        baseline, loaded = demo_network(), arguments.trainers
        overhead = gate_overhead(gate)
        print(f"the gate costs a trainer {overhead:.3%} of a step when nobody measures")
        pairs = pairs_of(baseline)
        each_s = seconds_each(pairs, gate)
        shown = ", ".join(f"{seconds:.2f} s on {name}" for name, seconds in each_s.items())
        print(f"a measurement, exports included, takes {shown} while nobody trains\n")
        results = compared(pairs, gate, repeats=arguments.repeats, loaded=loaded)
        covered = aa_coverage(baseline, gate, repeats=arguments.equal, loaded=loaded)
        print(f"\nthe interval of two equal networks contains 1 in {covered:.0%} of measurements")
        models = latency_models(baseline, EXAMPLE, RUNTIMES)
    if arguments.json is not None:
        facts = {
            "pairs": [asdict(result) for result in results],
            "aa_coverage": covered,
            "gate_overhead": overhead,
            "seconds_per_measurement": each_s[RUNTIMES[0].name],
            "seconds_by_runtime": each_s,
            "latency_model": models[RUNTIMES[0].name],
            "latency_models": models,
        }
        arguments.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
