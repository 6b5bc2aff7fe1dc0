"""How much compute a ladder saves on the demo: `python -m tests.benchmarks.ladder --json FILE`.

The demo's sweep with every trial to its end, and the same searcher with trials that pause on the
rungs of the ladder `asha`, which gets the same seconds of slots. Both from one baseline, with the
same seeds. Told is the share of the full search's compute after which the ladder's hypervolume, in
the mean over seeds, has reached what the full search ended with.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.domain.ladder import Ladder
from autoprune.domain.standings import Course, mean_course
from autoprune.orchestration.contest.records import Entry
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.session import start
from autoprune.orchestration.sweep import Budget
from autoprune.settings.build import build_request
from autoprune.settings.compose import compose_config, plain

STEPS = 400


def search(prepared: Prepared, *, seed: int, budget: Budget, ladder: Ladder | None) -> Course:
    """One sweep; its course by compute."""
    request = replace(
        prepared.request, seed=seed, budget=budget, ladder=ladder, name=f"seed-{seed}"
    )
    result = start(replace(prepared, request=request))
    record = read_journal(result.folder / JOURNAL_FILE)
    name = "full" if ladder is None else "ladder"
    found = Entry.of(record, prepared.goal, searcher=name, seed=seed, folder="", before_s=0.0)
    for doubt in result.doubts:
        print(f"doubt: {doubt}")
    course = found.course
    print(
        f"{name:<7} seed {seed}: hypervolume {course.final:.4f}, {len(course.hypervolume_T)} "
        f"trials, {course.moments[-1].busy:.0f} s of slots, {course.seconds:.0f} s",
        flush=True,
    )
    return course


def by_compute(courses: Sequence[Course], end_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean hypervolume against seconds of slots."""
    times_s = np.linspace(0.0, end_s, STEPS)
    return times_s, mean_course([course.by_compute(times_s) for course in courses])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=digits_vgg", "ladder=asha", *asked.overrides, f"output={folder}"]
        request = build_request(plain(compose_config("sweep", words)))
        prepared = prepare(request)
        full, climbed = [], []
        with request.executor.kept():
            for seed in range(asked.seeds):
                budget = Budget(trials=asked.trials)
                full.append(search(prepared, seed=seed, budget=budget, ladder=None))
                same = Budget(trial_s=full[-1].moments[-1].busy)
                climbed.append(search(prepared, seed=seed, budget=same, ladder=request.ladder))
    end_s = float(np.mean([course.moments[-1].busy for course in full]))
    target = float(np.mean([course.final for course in full]))
    times_s, mean = by_compute(climbed, end_s)
    reached = np.flatnonzero(mean >= target)
    share = float(times_s[reached[0]] / end_s) if len(reached) else None
    found: dict[str, Any] = {
        "full": {"hypervolume": [c.final for c in full], "slot_s": end_s},
        "ladder": {"hypervolume": [c.final for c in climbed], "mean_course": mean.tolist()},
        "compute_share": share,
    }
    print(
        f"full: {target:.4f} after {end_s:.0f} s of slots; ladder: {mean[-1]:.4f} after as many, "
        + ("the same never" if share is None else f"the same after {100 * share:.0f}% of them")
    )
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
