"""What pairing and the quiet gate are worth: ``python -m tests.benchmarks.gate``.

One pair of networks is measured again and again while two real processes train on the same
node, in three ways: naively (the candidate timed by itself against a baseline timed once before
training began), in pairs, and in pairs behind the gate. The truth is what pairs give before the
trainers start. On a machine that others use too, the truth is noisy as well.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from autoprune.measurement.latency import MeterSettings, PairedMeter
from autoprune.measurement.quiet import Gate, NoGate, QuietNode
from autoprune.measurement.runtimes import EagerRuntime, Inference

EXAMPLE = torch.zeros(1, 3, 32, 32)
NAIVE_CALLS = 50


def network(width: int) -> nn.Module:
    """A plain convolutional network in three stages."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in range(3):
        for depth in range(6):
            stride = 2 if stage and not depth else 1
            layers.append(nn.Conv2d(channels, width * 2**stage, 3, stride, 1, bias=False))
            channels = width * 2**stage
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def train(folder: Path, log: Path) -> None:
    """Train for ever; one byte in the log a step."""
    torch.set_num_threads(1)
    model, gate = network(16), QuietNode(folder)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    with log.open("ab", buffering=0) as steps:
        while True:
            with gate.step():
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
            steps.write(b".")


@contextmanager
def trainers(count: int, folder: Path) -> Iterator[list[Path]]:
    """Training processes, given when each has made some steps: the logs they write."""
    logs = [folder / f"trainer{number}.log" for number in range(count)]
    command = [sys.executable, "-m", "tests.benchmarks.gate", "--train"]
    processes = [subprocess.Popen([*command, str(folder / "gate"), str(log)]) for log in logs]
    try:
        while not all(log.exists() and log.stat().st_size > 5 for log in logs):
            time.sleep(0.1)
        yield logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


def mean_s(infer: Inference) -> float:
    """Seconds of one call, as a mean over a loop: how most people time a network."""
    for _ in range(5):
        infer()
    start = time.perf_counter()
    for _ in range(NAIVE_CALLS):
        infer()
    return (time.perf_counter() - start) / NAIVE_CALLS


def paired(gate: Gate) -> Callable[[int], float]:
    """A measurement of the pair behind `gate`; takes the seed."""
    baseline, candidate = network(16), network(8)

    def measure(seed: int) -> float:
        meter = PairedMeter(EagerRuntime(), gate, MeterSettings(seed=seed))
        return meter.measure(candidate, baseline, EXAMPLE).ratio

    return measure


def naive() -> Callable[[int], float]:
    """The candidate against a baseline that is timed now."""
    runtime = EagerRuntime()
    baseline_s = mean_s(runtime.prepare(network(16), EXAMPLE))
    infer = runtime.prepare(network(8), EXAMPLE)
    return lambda _: baseline_s / mean_s(infer)


def step_cost_us(gate: Gate) -> float:
    """Microseconds that entering and leaving a step takes when nobody measures."""
    rounds = 20_000
    start = time.perf_counter()
    for _ in range(rounds):
        with gate.step():
            pass
    return (time.perf_counter() - start) / rounds * 1e6


def report(name: str, measure: Callable[[int], float], *, repeats: int, truth: float) -> None:
    """Measure again and again, and print spread, bias and the time it takes."""
    start = time.perf_counter()
    ratios = [measure(seed) for seed in range(repeats)]
    each_s = (time.perf_counter() - start) / repeats
    centre, spread = statistics.mean(ratios), statistics.stdev(ratios)
    bias = statistics.median(ratios) / truth - 1 if truth else 0.0
    print(
        f"{name:<22} mean {centre:.3f}x  cv {spread / centre:.3f}  bias {bias:+.1%}  "
        f"range {min(ratios):.2f}..{max(ratios):.2f}  {each_s:.2f} s each",
        flush=True,
    )


def main() -> None:
    """Run the comparison, or one trainer of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", nargs=2, type=Path, metavar=("GATE", "LOG"))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--trainers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.train:
        train(*arguments.train)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gate = QuietNode(folder / "gate")
        print(f"a step through the gate costs {step_cost_us(gate):.1f} us when nobody measures")
        alone = paired(NoGate())
        truth = statistics.median(alone(seed) for seed in range(arguments.repeats))
        report("paired, no trainers", alone, repeats=arguments.repeats, truth=truth)
        ways = {"naive": naive(), "paired": paired(NoGate()), "gated and paired": paired(gate)}
        with trainers(arguments.trainers, folder) as logs:
            for way, measure in ways.items():
                before, start = sum(log.stat().st_size for log in logs), time.perf_counter()
                report(way, measure, repeats=arguments.repeats, truth=truth)
                steps = sum(log.stat().st_size for log in logs) - before
                print(f"{'':<22} {steps / (time.perf_counter() - start):.1f} training steps a s")


if __name__ == "__main__":
    main()
