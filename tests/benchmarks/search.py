"""Which searcher finds most on the known problems: `python -m tests.benchmarks.search --json FILE`.

Every searcher proposes one trial after the other on every problem and size, with 20 seeds; the
first 50 trials of a search of 300 are the search of 50, since no searcher knows its budget. The
hypervolume is a share of that of the best front there is, which is known exactly; noise is not
taken for success, since members of a front count with their true values.

Runs are kept beside FILE as they end: a benchmark that was interrupted goes on. Keys of the JSON:
problem and size (``coupled-24``), budget, and those of `autoprune compare`.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from autoprune.domain.pareto import ParetoFront
from autoprune.domain.protocols import Searcher
from autoprune.domain.standings import Course, standings_of
from autoprune.domain.trial import Trial, trial_seed
from autoprune.measurement.device import usable_cores
from autoprune.problems import KINDS, SIZES, ChainProblem, known_problem
from autoprune.searchers.named import SEARCHERS, AnyFactory, build_searcher, searcher_named
from autoprune.searchers.optuna import OptunaSearcher

BUDGETS = (50, 300)
SEEDS = 20
STOCK = "nsga2_stock"
"""Optuna's NSGA-II as it comes, with a population of 50."""

LEFT_OUT = ("gp", "ranked")
"""Seconds a proposal: left out unless it is asked for. And what needs a network to rank."""

Key = tuple[str, int, str, int]


def course(
    problem: ChainProblem, searcher: Searcher, *, name: str, seed: int, trials: int
) -> Course:
    """One search of a problem, trial by trial."""
    front, values = ParetoFront(problem.goal), []
    known, hypervolume = (), 0.0
    for number in range(trials):
        trial = Trial(number, searcher.ask(number), trial_seed(seed, number))
        observation = problem.observe(trial)
        searcher.tell(observation)
        front.add(observation)
        members = tuple(member.trial.number for member in front.members)
        if members != known:
            known, hypervolume = members, problem.hypervolume(front.members)
        values.append(hypervolume / problem.best_hypervolume)
    return Course(name, seed, tuple(values))


def factory(name: str) -> AnyFactory:
    """A searcher by name; Optuna's as it comes has one of its own."""
    if name == STOCK:
        return partial(OptunaSearcher, sampler="nsga2", options={"population_size": 50})
    return searcher_named(name)


def run(kind: str, size: int, name: str, seed: int) -> tuple[Key, Course]:
    """One run, in a process of the pool."""
    problem = known_problem(kind, size, seed)
    searcher = build_searcher(factory(name), problem.space, problem.goal, seed)
    found = course(problem, searcher, name=name, seed=seed, trials=max(BUDGETS))
    return (kind, size, name, seed), found


def begun(file: Path) -> dict[Key, Course]:
    """The runs that ended before."""
    found = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        facts = json.loads(line)
        found[tuple(facts["key"])] = Course.from_json(facts["course"])
    return found


def completed(keys: list[Key], file: Path, *, workers: int) -> Iterator[tuple[Key, Course]]:
    """Run what is left, and keep every run as it ends."""
    context = multiprocessing.get_context("spawn")
    with file.open("a") as kept, ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed(pool.submit(run, *key) for key in keys):
            key, found = future.result()
            kept.write(json.dumps({"key": key, "course": asdict(found)}) + "\n")
            kept.flush()
            yield key, found


def report(courses: dict[Key, Course]) -> dict[str, dict[str, Any]]:
    """Standings for every problem, size and budget; prints them as a table."""
    found: dict[str, dict[str, Any]] = {}
    for kind, size in sorted({key[:2] for key in courses}, key=lambda k: (KINDS.index(k[0]), k[1])):
        own = [course for key, course in courses.items() if key[:2] == (kind, size)]
        for budget in BUDGETS:
            cut = [Course(c.searcher, c.seed, c.hypervolume_T[:budget]) for c in own]
            standings = standings_of(cut)
            found.setdefault(f"{kind}-{size}", {})[str(budget)] = standings.to_json()
            row = "  ".join(
                f"{s.searcher} {s.mean:.3f}" + (f"±{s.mean - s.ci95[0]:.3f}" if s.ci95 else "")
                for s in standings.standings
            )
            print(f"{kind}-{size}, {budget} trials: {row}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--searchers", nargs="+")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=usable_cores())
    asked = parser.parse_args()
    names = asked.searchers or [*(n for n in SEARCHERS if n not in LEFT_OUT), STOCK]
    os.environ["OMP_NUM_THREADS"] = "1"
    file = (asked.json or Path("search.json")).with_suffix(".runs.jsonl")
    keys = [
        (kind, size, name, seed)
        for seed in range(asked.seeds)
        for size in asked.sizes
        for kind in asked.kinds
        for name in names
    ]
    courses = {key: found for key, found in begun(file).items() if key in set(keys)}
    print(f"{len(keys)} searches of {max(BUDGETS)} trials, {len(courses)} of them done before")
    started = time.perf_counter()
    left = [key for key in keys if key not in courses]
    for done, (key, found) in enumerate(completed(left, file, workers=asked.workers), start=1):
        courses[key] = found
        if done % 20 == 0:
            print(f"{done} of {len(left)} in {time.perf_counter() - started:.0f} s", flush=True)
    found = report(courses)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
