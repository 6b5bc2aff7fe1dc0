"""What the quiet gate costs, and how long one waits at it: ``python -m tests.benchmarks.gate``.

The cost of a training step's passing while nobody measures; how long a meter waits that is alone
with two trainers, in units of their steps; and how four meters that measure back to back and two
trainers share the turns. Steps and measurements are real processes that keep a core busy for 10
and 20 ms. All figures are of one run.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from autoprune.measurement.quiet import Gate, NoGate, QuietNode
from tests.gate_crew import Pace, Turns, turns

STEP_S, MEASUREMENT_S = 0.010, 0.020
PAUSES_S = (0.0, 0.003, 0.013, 0.031)
"""Of the meter that is alone: it asks at any moment of a step, also right after a measurement."""

LOOPS, PASSES = 25, 2000


def pass_us(gate: Gate) -> float:
    """Microseconds that an empty step takes when nobody else is there."""
    seconds = []
    for _ in range(LOOPS):
        start = time.perf_counter()
        for _ in range(PASSES):
            with gate.step():
                pass
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / PASSES * 1e6


def shared(folder: Path, meters: int, pauses_s: tuple[float, ...], seconds: float) -> Turns:
    """The turns of meters and two trainers on a gate of their own."""
    folder.mkdir()
    measuring = Pace((MEASUREMENT_S,), pauses_s, busy=True)
    training = Pace((STEP_S,), busy=True)
    gate = QuietNode(folder / "gate")
    return turns(
        gate, folder, meters=meters, measuring=measuring, training=training, seconds=seconds
    )


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the last two")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost_us = pass_us(QuietNode(folder / "gate")) - pass_us(NoGate())
        print(f"the gate costs a step {cost_us:.1f} microseconds when nobody measures")
        alone = shared(folder / "alone", 1, PAUSES_S, arguments.seconds)
        print(
            f"a meter alone with two trainers waits {alone.wait_steps_median:.2f} steps "
            f"(median of {sum(alone.measurements)}), at most {alone.wait_steps_max:.2f}; a trainer "
            f"begins at most {alone.wait_steps_begun_max} meanwhile"
        )
        four = shared(folder / "four", 4, (0.0,), arguments.seconds)
        print(
            f"four meters back to back measure {min(four.measurements)} to "
            f"{max(four.measurements)} times each, and are passed over at most "
            f"{four.meter_passed_over_max} times in a row; the two trainers make "
            f"{' and '.join(map(str, four.steps))} steps beside those {sum(four.measurements)} "
            f"measurements, and are passed over {four.trainer_passed_over_mean:.2f} times a step, "
            f"at most {four.trainer_passed_over_max}"
        )
    took_s = time.perf_counter() - start
    print(f"{took_s:.0f} s")
    if arguments.json is not None:
        facts = {
            "step_cost_us": cost_us,
            "one_meter": asdict(alone),
            "four_meters": asdict(four),
            "seconds": took_s,
        }
        arguments.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
