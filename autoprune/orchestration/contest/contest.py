"""Running a contest: searchers and seeds one after the other, each a sweep of its own."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.contest.records import CONTEST_FILE, Contest, Entry, read_contest
from autoprune.orchestration.files import NetworksWatcher
from autoprune.orchestration.folders import (
    JOURNAL_FILE,
    PROFILE_FILE,
    check_writable,
    held,
    make_folder,
    new_id,
    replace_text,
)
from autoprune.orchestration.launch import Listeners
from autoprune.orchestration.planning import check_warm_up
from autoprune.orchestration.profiling import with_profile
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.session import Prepared, prepare, resume, start
from autoprune.searchers.named import AnyFactory, build_searcher


@dataclass(frozen=True, slots=True)
class Entrant:
    """A searcher of a contest, and its config; with `profile` it gets the network's profile."""

    factory: AnyFactory
    config: Mapping[str, Any] | None = None
    profile: bool = False


@dataclass(frozen=True)
class ContestRequest:
    """Searchers by name, each to run the same sweep with each of the seeds.

    What `sweep` says of a searcher and a seed does not count, but that its seed trains the
    baseline, which all share.
    """

    sweep: SweepRequest
    entrants: Mapping[str, Entrant]
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.entrants) < 2:
            raise AutopruneError(
                f"searchers names {list(self.entrants)}; name two or more to compare"
            )
        if not self.seeds:
            raise AutopruneError("seeds is 0; choose 1 or more")


def run_contest(
    request: ContestRequest,
    *,
    folder: Path | None = None,
    listeners: Listeners | None = None,
    on_entry: Callable[[Contest], None] | None = None,
) -> tuple[Contest, Path]:
    """Run what remains of a contest, in `folder` or a new one; the contest and where it is.

    The searches of one seed run one after the other, so that an interrupted contest compares
    whole seeds. Each is on disk when it ends, and `on_entry` hears of it; a search that was
    interrupted goes on. Raises AutopruneError before anything is trained for what cannot work.
    """
    listeners, asked = listeners or Listeners(), request.sweep
    check_writable(asked.output)
    asked.executor.check()
    prepared = prepare(asked, report=listeners.on_epoch)
    for entrant in request.entrants.values():
        space, goal = prepared.plan.space, prepared.goal
        check_warm_up(build_searcher(entrant.factory, space, goal, asked.seed), asked.budget)
    if listeners.on_prepared is not None:
        listeners.on_prepared(prepared)
    folder = folder or make_folder(asked.output, new_id(f"{asked.name}-compare"))
    with held(folder, "runs this contest"), asked.executor.kept():
        contest = _begun(request, prepared, folder)
        prepared = _as_begun(prepared, contest)
        if contest.profiled:
            prepared, contest = _profiled(prepared, contest, folder, listeners)
        _write(contest, folder)
        for seed in request.seeds:
            for name, entrant in request.entrants.items():
                if contest.entry(name, seed) is not None:
                    continue
                entry = _searched(prepared, contest, entrant, name=name, seed=seed)
                if entry is None:
                    return contest, folder
                contest = contest.plus(entry)
                _write(contest, folder)
                if on_entry is not None:
                    on_entry(contest)
    return contest, folder


def _begun(request: ContestRequest, prepared: Prepared, folder: Path) -> Contest:
    """The contest as it stands in its folder, or before its first search."""
    new = Contest(
        name=folder.name,
        goal=prepared.goal,
        baseline=dict(prepared.metrics),
        budget=asdict(request.sweep.budget),
        searchers=tuple(request.entrants),
        seeds=tuple(request.seeds),
        device=prepared.speed.device,
        config=request.sweep.config,
        profiled=tuple(name for name, entrant in request.entrants.items() if entrant.profile),
    )
    if not (folder / CONTEST_FILE).is_file():
        return new
    old = read_contest(folder)
    for what in ("searchers", "seeds", "budget", "profiled"):
        began, now = getattr(old, what), getattr(new, what)
        if began != now:
            raise AutopruneError(
                f"{folder}: {what} was {began} and is {now}; go on with what it began with, or "
                "start a new contest"
            )
    return old


def _as_begun(prepared: Prepared, contest: Contest) -> Prepared:
    """One baseline and one reference point for all: measured anew they would differ a little."""
    context = replace(
        prepared.context, goal=contest.goal, baseline_ms=contest.baseline["latency_ms"]
    )
    return replace(prepared, metrics=contest.baseline, context=context)


def _profiled(
    prepared: Prepared, contest: Contest, folder: Path, listeners: Listeners
) -> tuple[Prepared, Contest]:
    """The sweep with the profile that all searches share, and the seconds that it took."""
    started = time.perf_counter()
    profiled = with_profile(prepared, report=listeners.on_point)
    assert profiled.profile is not None
    if not contest.profile_s:
        contest = replace(contest, profile_s=time.perf_counter() - started)
        replace_text(folder / PROFILE_FILE, json.dumps(profiled.profile.to_json()))
    return profiled, contest


def _searched(
    prepared: Prepared, contest: Contest, entrant: Entrant, *, name: str, seed: int
) -> Entry | None:
    """One search from its beginning or from where it stopped; None where it is interrupted."""
    shared, folder = prepared.request, prepared.request.output / contest.name / name
    config = shared.config
    own = replace(
        shared,
        name=f"seed-{seed}",
        searcher=entrant.factory,
        seed=seed,
        output=folder,
        config=None if config is None else {**config, "searcher": entrant.config, "seed": seed},
    )
    profile = prepared.profile if entrant.profile else None
    alone = replace(prepared, request=own, profile=profile)
    begun = sorted(folder.glob(f"seed-{seed}-*/{JOURNAL_FILE}"))

    def watch(place: Path) -> list[NetworksWatcher]:
        return [NetworksWatcher(place)]

    if begun:
        result = resume(alone, begun[-1].parent, watchers=watch)
    else:
        result = start(alone, watchers=watch)
    if not result.complete:
        return None
    record = read_journal(result.folder / JOURNAL_FILE)
    return Entry.of(
        record,
        contest.goal,
        searcher=name,
        seed=seed,
        folder=f"{name}/{result.folder.name}",
        before_s=contest.profile_s if entrant.profile else 0.0,
    )


def _write(contest: Contest, folder: Path) -> None:
    replace_text(folder / CONTEST_FILE, json.dumps(contest.to_json(), indent=1))
