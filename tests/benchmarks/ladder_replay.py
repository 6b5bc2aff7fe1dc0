"""Which ladder saves most on the demo: `python -m tests.benchmarks.ladder_replay --json FILE`.

Records trials of the demo that all go up to the top, with what each was worth on every rung on its
way, and replays them in random orders: as a search that takes every trial to its end, and as one
with a ladder, for many ladders. Told is the share of the full search's compute after which the mean
hypervolume with the ladder has reached what the full search ended with; none where it never does.
An earlier recording is replayed again with `--sweep FOLDER`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoprune.domain.ladder import Ladder, Rungs
from autoprune.domain.objective import Goal
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.trial import Failure, Observation
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.record import Told, read_journal
from autoprune.orchestration.session import start
from autoprune.orchestration.view import view_of
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain

EPOCHS = (0, 1, 2, 4)
"""The rungs that are recorded."""

LADDERS = tuple(
    Ladder(epochs, reduction)
    for epochs in ((0,), (1,), (2,), (0, 2), (0, 1, 4))
    for reduction in (2.0, 3.0, 4.0, 6.0)
)
STEPS = 400

Climb = Mapping[int | None, Observation]
"""What a trial was worth after each of `EPOCHS`, and at its end (None)."""


@dataclass
class Course:
    """Hypervolume after seconds of compute, one outcome after the other."""

    seconds: list[float] = field(default_factory=list)
    hypervolume: list[float] = field(default_factory=list)

    def add(self, seconds: float, front: ParetoFront) -> None:
        """Note the hypervolume of a front."""
        self.seconds.append(seconds)
        self.hypervolume.append(front.hypervolume())

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """The hypervolume at given times, 0 before the first outcome."""
        place = np.searchsorted(self.seconds, times_s, side="right")
        return np.append(0.0, self.hypervolume)[place]


def recorded(words: Sequence[str]) -> Path:
    """Run the sweep whose trials all go up to the top; its folder."""
    # reduction must be above 1: of a hundred trials this keeps one a rung from going on
    climbing = [f"ladder.epochs={list(EPOCHS)}", "ladder.reduction=1.001", "ladder=asha"]
    request = build_request(plain(compose_config("sweep", [*climbing, *words])))
    return start(prepare(request)).folder


def climbs_of(folder: Path) -> tuple[Goal, list[Climb]]:
    """The goal, and the trials that came to their end, each with all that it was worth."""
    record = read_journal(folder / JOURNAL_FILE)
    found: dict[int, dict[int | None, Observation]] = {}
    for event in record.events:
        if isinstance(event, Told):
            observation = event.observation
            rung = observation.rung
            epochs = None if rung is None else EPOCHS[rung]
            found.setdefault(observation.trial.number, {})[epochs] = observation
    return view_of(record).goal, [climb for climb in found.values() if None in climb]


def outcomes(climb: Climb, ladder: Ladder) -> Iterator[Observation]:
    """What a trial tells on its way up a ladder, one outcome after the other."""
    for rung, epochs in enumerate(ladder.epochs):
        if epochs in climb:
            seen = climb[epochs]
            yield Observation(seen.trial, seen.outcome, seconds=seen.seconds, rung=rung)
    yield climb[None]


def full(goal: Goal, climbs: Sequence[Climb], budget_s: float) -> Course:
    """Every trial to its end, one after the other."""
    front, spent_s, course = ParetoFront(goal), 0.0, Course()
    for climb in climbs:
        spent_s += climb[None].seconds
        if spent_s > budget_s:
            break
        front.add(climb[None])
        course.add(spent_s, front)
    return course


def climbed(goal: Goal, climbs: Sequence[Climb], ladder: Ladder, budget_s: float) -> Course:
    """The same trials with a ladder, as `autoprune.orchestration.sweep` has it on one slot."""
    rungs, spent_s, course = Rungs(ladder, goal), 0.0, Course()
    known: dict[int, Observation] = {}
    ways = {climb[None].trial.number: outcomes(climb, ladder) for climb in climbs}
    fresh = iter(ways)
    while spent_s < budget_s:
        number = rungs.promotable()
        if number is not None:
            rungs.promote(number)
        else:
            number = next(fresh, None)
        if number is None:
            break
        told = next(ways[number])
        before_s = known[number].seconds if number in known else 0.0
        spent_s += max(0.0, told.seconds - before_s)
        known[number] = told
        rungs.take(told)
        course.add(spent_s, ParetoFront(goal, known.values()))
    return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", type=Path)
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--full", type=int, default=24, help="trials of the full search")
    parser.add_argument("--orders", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        words = ["experiment=digits_vgg", f"budget.trials={asked.trials}", f"output={place}"]
        goal, climbs = climbs_of(asked.sweep or recorded(words))
    climbs = [climb for climb in climbs if not isinstance(climb[None].outcome, Failure)]
    budget_s = asked.full * float(np.mean([climb[None].seconds for climb in climbs]))
    print(f"{len(climbs)} trials; the full search takes {budget_s:.0f} s of compute")
    orders = [np.random.default_rng(n).permutation(len(climbs)) for n in range(asked.orders)]
    times_s = np.linspace(0.0, budget_s, STEPS)
    mixed = [[climbs[place] for place in order] for order in orders]
    target = float(np.mean([full(goal, m, budget_s).at(times_s)[-1] for m in mixed]))
    found = []
    for ladder in LADDERS:
        courses = [climbed(goal, m, ladder, budget_s) for m in mixed]
        short = sum(course.seconds[-1] < budget_s for course in courses)
        mean = np.mean([course.at(times_s) for course in courses], axis=0)
        reached = np.flatnonzero(mean >= target)
        share = float(reached[0] / (STEPS - 1)) if len(reached) else None
        found.append({"epochs": ladder.epochs, "reduction": ladder.reduction, "share": share})
        told = "never" if share is None else f"{100 * share:.0f}%"
        print(
            f"rungs at {list(ladder.epochs)!s:<10} one in {ladder.reduction:g}: {told:>5}, "
            f"{mean[-1]:.4f} in the end against {target:.4f}"
            + (f"; {short} of {len(courses)} ran out of trials: record more" if short else "")
        )
    if asked.json is not None:
        asked.json.write_text(json.dumps({"full": target, "ladders": found}, indent=1))


if __name__ == "__main__":
    main()
