"""What asking and telling cost: `python -m tests.benchmarks.overhead --json FILE`.

Every searcher through 1,000 trials of the coupled known problem of 24 groups: the milliseconds of
an ask and of a tell, median and worst; and for how long a loop that does nothing else is kept from
its next turn, median and worst, while the searcher works in a thread of its own, as in a sweep.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from autoprune.domain.trial import Observation
from autoprune.orchestration.background import short_turns
from autoprune.orchestration.proposals import Proposals
from autoprune.problems import known_problem
from autoprune.searchers.named import SEARCHERS, build_searcher
from tests.benchmarks.search import factory

GROUPS, TRIALS = 24, 1000
SLOTS = 4
LEFT_OUT = ("gp", "ranked")
"""Hours for 1,000 trials: left out unless it is asked for. And what needs a network to rank."""


class Timed:
    """A searcher whose asks and tells are timed."""

    def __init__(self, searcher: Any) -> None:
        self.searcher = searcher
        self.ms: dict[str, list[float]] = {"ask": [], "tell": []}

    def ask(self, number: int) -> Any:
        return self._timed("ask", number)

    def tell(self, observation: Observation) -> None:
        self._timed("tell", observation)

    def _timed(self, what: str, argument: Any) -> Any:
        start = time.perf_counter()
        found = getattr(self.searcher, what)(argument)
        self.ms[what].append(1e3 * (time.perf_counter() - start))
        return found


def measured(name: str, trials: int) -> dict[str, dict[str, float]]:
    """The figures of one searcher, `SLOTS` trials at a time."""
    problem = known_problem("coupled", GROUPS, 0)
    timed = Timed(build_searcher(factory(name), problem.space, problem.goal, 0))
    proposals = Proposals(timed, problem.space)
    turns_ms: list[float] = []
    running: list[Any] = []
    asked, proposal = 0, None
    before = time.perf_counter()
    while asked < trials or proposal is not None or running:
        if proposal is None and asked < trials and len(running) < SLOTS:
            proposal = proposals.ask(asked)
            asked += 1
        if proposal is not None and proposal.trial.done():
            running.append(proposal.trial.result())
            proposal = None
        if len(running) == SLOTS or (asked == trials and proposal is None and running):
            proposals.tell(problem.observe(running.pop(0)))
        time.sleep(0.001)  # the loop's own turn: whoever keeps it from coming back blocks it
        now = time.perf_counter()
        turns_ms.append(1e3 * (now - before))
        before = now
    proposals.close()
    return {
        what: {"median_ms": statistics.median(ms), "worst_ms": max(ms)}
        for what, ms in {**timed.ms, "loop": turns_ms}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--searchers", nargs="+")
    parser.add_argument("--trials", type=int, default=TRIALS)
    asked = parser.parse_args()
    found = {}
    for name in asked.searchers or [name for name in SEARCHERS if name not in LEFT_OUT]:
        with short_turns():  # as a sweep's loop has it
            found[name] = measured(name, asked.trials)
        row = "  ".join(
            f"{what} {ms['median_ms']:.2f} / {ms['worst_ms']:.1f}"
            for what, ms in found[name].items()
        )
        print(f"{name:<10} ms, median / worst:  {row}", flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
