"""A soak: `python -m tests.benchmarks.soak --minutes 10 --trials 200`.

One sweep on a cluster, to which something happens every few seconds, at random: workers, nodes, the
driver, MLflow and PostgreSQL are killed or hang, the disk is full, trials hang or take all memory.
Whatever ended the driver, the sweep is resumed until it is complete; then it is audited.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests import harm
from tests.audit import Audit
from tests.chaos import Scene

PAUSE_S = 0.7
EVERY_S = (3.0, 8.0)
LASTS_S = (2.0, 10.0)
LONGEST_END_S = 600.0
KILLED, BROKE_OFF, NOT_STARTED = -9, 1, 2
RETRIES = tuple(
    f"executor.retries.{cause}=null" for cause in ("worker_lost", "out_of_memory", "time_limit")
)
"""No trial is to fail, however often it is struck: every one is to come to a measurement."""

NEEDED_TO_START = ("driver", "store", "disk")
"""What is struck once a driver has brought an outcome home, or none would ever come to do so."""

Deed = Callable[[Scene], None]


@dataclass(frozen=True)
class Strike:
    """Something that may happen, and what ends it where it does not end by itself.

    Of those that harm the same `thing` one happens at a time.
    """

    name: str
    weight: int
    thing: str
    harm: Deed
    mend: Deed | None = None


def two_nodes(scene: Scene) -> None:
    scene.nodes.be(harm.SLOTS)


STRIKES = (
    Strike("worker killed", 6, "worker", harm.kill_worker),
    Strike("node lost", 2, "nodes", harm.kill_node, two_nodes),
    Strike("node preempted", 2, "nodes", harm.preempt_node, two_nodes),
    Strike("node joins", 1, "nodes", harm.join_node, two_nodes),
    Strike("driver killed", 2, "driver", harm.kill_driver),
    Strike("MLflow hangs", 2, "store", harm.freeze_mlflow, harm.thaw_mlflow),
    Strike("MLflow away", 1, "store", harm.kill_mlflow, harm.start_mlflow),
    Strike("PostgreSQL away", 1, "store", harm.kill_database, harm.start_database),
    Strike("PostgreSQL hangs", 1, "store", harm.freeze_database, harm.thaw_database),
    Strike("trial hangs", 1, "trial", harm.order_hang),
    Strike("out of memory", 1, "trial", harm.order_allocate),
    Strike("disk full", 1, "disk", harm.fill, harm.make_room),
)


@dataclass
class Soak:
    """A sweep under a rain of strikes: how often each happened, and how the drivers ended."""

    scene: Scene
    rng: random.Random
    strikes: list[Strike]
    happened: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    _told: int = 0
    """How many outcomes there were when the present driver started."""
    _mends: dict[str, tuple[float, Deed]] = field(default_factory=dict)

    def rain(self, minutes: float) -> None:
        """Strike every few seconds, until the time is up or the sweep complete."""
        until = time.monotonic() + 60 * minutes
        due = time.monotonic()
        while time.monotonic() < until and not self.scene.ended:
            self.tend(time.monotonic())
            if time.monotonic() >= due and self.scene.told:
                self.strike()
                due = time.monotonic() + self.rng.uniform(*EVERY_S)
            time.sleep(0.1)

    def strike(self) -> None:
        """Let one of those happen that can, now."""
        driven = len(self.scene.told) > self._told
        able = [
            strike
            for strike in self.strikes
            if strike.thing not in self._mends and (driven or strike.thing not in NEEDED_TO_START)
        ]
        (chosen,) = self.rng.choices(able, [strike.weight for strike in able])
        self.scene.keep()
        chosen.harm(self.scene)
        self.happened[chosen.name] += 1
        print(f"{len(self.scene.told):4} told  {chosen.name}", flush=True)
        if chosen.mend is not None:
            self._mends[chosen.thing] = time.monotonic() + self.rng.uniform(*LASTS_S), chosen.mend

    def tend(self, now: float) -> None:
        """Mend what has lasted long enough, and go on where the driver has ended."""
        for thing, (due, mend) in list(self._mends.items()):
            if now >= due:
                del self._mends[thing]
                mend(self.scene)
        code = self.scene.driver.process.poll()
        if code is None or code == 0:
            return
        self.ends[code] += 1
        said = self.scene.driver.said
        if code not in (KILLED, BROKE_OFF, NOT_STARTED) or "Traceback" in said:
            self.odd.append(f"exit {code}:\n{said[-3000:]}")
        self._told = len(self.scene.told)
        self.scene.resume()

    def end(self) -> Audit:
        """Mend everything, let the sweep come to its end, and audit it."""
        until = time.monotonic() + LONGEST_END_S
        while not self.scene.ended or self._mends:
            self.tend(float("inf"))
            assert time.monotonic() < until, self.scene.driver.said
            time.sleep(0.1)
        return self.scene.audit()


def soaked(scene: Scene, *, minutes: float, seed: int) -> dict[str, Any]:
    """The figures of a soak; none of them may tell of something lost."""
    strikes = [s for s in STRIKES if scene.database or "PostgreSQL" not in s.name]
    mount = harm.may_mount()
    strikes = [s for s in strikes if mount or s.thing != "disk"]
    with harm.small_disk() if mount else harm.ordinary_disk() as output:
        began = time.monotonic()
        scene.nodes.be(harm.SLOTS)
        scene.begin(*RETRIES, "budget.trial_limit_s=10", output=output, pause_s=PAUSE_S)
        soak = Soak(scene, random.Random(seed), strikes)
        try:
            soak.rain(minutes)
            rained = time.monotonic() - began
            found = soak.end()
        finally:
            scene.end()
    return {
        "seed": seed,
        "minutes": rained / 60,
        "strikes": dict(soak.happened),
        "driver ends": {str(code): count for code, count in soak.ends.items()},
        "odd ends": soak.odd,
        "audit": asdict(found),
        "clean": found.clean and not soak.odd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, harm.scene_in(Path(place)) as scene:
        scene.trials = asked.trials
        found = soaked(scene, minutes=asked.minutes, seed=asked.seed)
    print(json.dumps(found, indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
