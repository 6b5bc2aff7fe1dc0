"""The small parent of a gate's crew, for tests: ``python -m tests.gate_programs FOLDER``.

Prints as JSON what came of killing its members (``--rounds``), or of how they take turns.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoprune.measurement.quiet import Gate, NoGate, QuietNode
from tests.gate_crew import Pace, crew_on, torn, turns


class LockFile:
    """A gate as it must not be: the file stays when who made it is killed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "lock"

    @contextmanager
    def step(self) -> Iterator[None]:
        while True:
            try:
                self._file.touch(exist_ok=False)
                break
            except FileExistsError:
                time.sleep(0.0005)
        try:
            yield
        finally:
            self._file.unlink()

    measuring = step


GATES = {"quiet": QuietNode, "none": lambda _: NoGate(), "lock_file": LockFile}
TRAINING = Pace((0.0, 0.0005, 0.003))
MEASURING = Pace((0.0, 0.001, 0.004), pause_s=(0.0, 0.0, 0.003))


def kills(gate: Gate, folder: Path, *, rounds: int, seed: int, patience_s: float) -> dict[str, Any]:
    """Kill some of three trainers and three meters, replace them, and again.

    After every round each that lives must finish another stay within `patience_s`.
    """
    rng, slowest_s, stuck = random.Random(seed), 0.0, None
    with crew_on(gate, folder, seed) as crew:
        for measuring in [False, True] * 3:
            crew.start(measuring, MEASURING if measuring else TRAINING)
        try:
            crew.all_go_on(patience_s)
            for _ in range(rounds):
                time.sleep(rng.uniform(0.0, 0.02))
                victims = rng.sample(crew.living, rng.randint(1, 6))
                crew.kill(victims)
                for victim in victims:
                    crew.start(victim.measuring, MEASURING if victim.measuring else TRAINING)
                slowest_s = max(slowest_s, crew.all_go_on(patience_s))
            killed = [m for m in crew.members if m.killed_s is not None]
        except TimeoutError as error:
            killed, stuck = [], str(error)
    stays = crew.stays()
    ends = [f"{'meter' if m.measuring else 'trainer'} {m.left_at}" for m in killed]
    return {
        "killed": {end: ends.count(end) for end in sorted(set(ends))},
        "steps": sum(not stay.measuring for stay in stays),
        "measurements": sum(stay.measuring for stay in stays),
        "torn": [str(pair) for pair in torn(stays)],
        "stuck": stuck,
        "slowest_s": slowest_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gate", choices=GATES, default="quiet")
    parser.add_argument("--rounds", type=int, help="kill so often; without it look who gets in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience-s", type=float, default=30.0)
    chosen = parser.parse_args()
    folder, gate = chosen.folder, GATES[chosen.gate](chosen.folder)
    if chosen.rounds is None:
        paces = {"measuring": Pace((0.005,)), "training": Pace((0.003,))}
        found = asdict(turns(gate, folder, meters=4, seconds=2.0, **paces))
    else:
        limits = {"rounds": chosen.rounds, "seed": chosen.seed, "patience_s": chosen.patience_s}
        found = kills(gate, folder, **limits)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
