"""Running a contest: searchers and seeds one after the other, each a sweep of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import BeginsBlind, Searcher
from autoprune.orchestration.contest.again import TimedReport, timed_again
from autoprune.orchestration.contest.records import (
    CONTEST_FILE,
    Contest,
    Entry,
    Origin,
    read_contest,
)
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.folders import (
    JOURNAL_FILE,
    PROFILE_FILE,
    check_writable,
    held,
    make_folder,
    new_id,
)
from autoprune.orchestration.launch import Listeners
from autoprune.orchestration.networks import NetworksWatcher
from autoprune.orchestration.planning import check_warm_up, make_plan, rehearse_goal
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.profile_file import read_profile, write_known
from autoprune.orchestration.profiling import profile_network
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.request import SweepRequest, conditions_now
from autoprune.orchestration.session import SweepResult, check_goal, check_places, resume, start
from autoprune.orchestration.sweep import Watcher
from autoprune.searchers.named import AnyFactory, build_searcher
from autoprune.searchers.uniform import UniformSearcher


@dataclass(frozen=True, slots=True)
class Entrant:
    """A searcher of a contest, and its config; with `profile` it gets the network's profile."""

    factory: AnyFactory
    config: Mapping[str, Any] | None = None
    profile: bool = False


@dataclass(frozen=True)
class ContestRequest:
    """Searchers by name, each to run the same sweep with each of the seeds.

    What `sweep` says of a searcher and a profile does not count; its seed trains the baseline,
    which all share.
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

    @property
    def facts(self) -> dict[str, Any]:
        """What all searches of a contest have in common: others do not compare with them."""
        entrants = self.entrants.items()
        return {
            "searchers": tuple(self.entrants),
            "seeds": tuple(self.seeds),
            "budget": asdict(self.sweep.budget),
            "conditions": self.sweep.conditions,
            "profiled": tuple(name for name, entrant in entrants if entrant.profile),
        }


def run_contest(
    request: ContestRequest,
    *,
    folder: Path | None = None,
    listeners: Listeners | None = None,
    on_start: Callable[[Path], None] | None = None,
    on_entry: Callable[[Contest], None] | None = None,
    on_timed: TimedReport | None = None,
) -> tuple[Contest, Path]:
    """Run what remains of a contest, in `folder` or a new one; the contest and where it is.

    The searches of one seed run one after the other, so that an interrupted contest compares
    whole seeds. Each is on disk when it ends, and `on_entry` hears of it; a search that was
    interrupted goes on. At the end all fronts are timed again (`timed_again`), of which `on_timed`
    hears. `on_start` hears of the folder once the contest is in it. Raises AutopruneError before
    anything is trained for what cannot work.
    """
    listeners, asked = listeners or Listeners(), request.sweep
    with ExitStack() as stack:
        begun = None
        if folder is not None:
            stack.enter_context(held(folder, "runs this contest"))
            begun = read_contest(folder)
            begun = replace(begun, conditions=conditions_now(begun.conditions))
            _check_same(request, begun, folder)
        doubts = _check(request)
        prepared = prepare(asked, report=listeners.on_epoch)
        prepared = replace(prepared, doubts=(*prepared.doubts, *doubts))
        if begun is not None and folder is not None:
            _check_network(begun, prepared, folder)
        if listeners.on_prepared is not None:
            listeners.on_prepared(prepared)
        if folder is None:
            folder = make_folder(asked.output, new_id(f"{asked.name}-compare"))
            stack.enter_context(held(folder, "runs this contest"))
            if asked.config is not None:
                Origin(asked.config, tuple(asked.code_paths)).write(folder)
        stack.enter_context(asked.executor.kept())
        contest = begun or _new(request, prepared, folder)
        prepared = _as_begun(prepared, contest)
        if contest.profiled:
            prepared, contest = _profiled(prepared, contest, folder, listeners)
        _write(contest, folder)
        if on_start is not None:
            on_start(folder)
        contest, interrupted = _searches(
            request, prepared, contest, folder=folder, watchers=listeners.watchers, hears=on_entry
        )
        if not interrupted and not contest.timed_again:
            try:
                contest = timed_again(prepared, contest, folder, report=on_timed)
            except AutopruneError as error:
                contest = replace(contest, untimed=str(error))
            _write(contest, folder)
    return contest, folder


def _searches(
    request: ContestRequest,
    prepared: Prepared,
    contest: Contest,
    *,
    folder: Path,
    watchers: Sequence[Watcher],
    hears: Callable[[Contest], None] | None,
) -> tuple[Contest, bool]:
    """Run the searches that have not ended; the contest with them, and whether it was interrupted.

    Each is on disk when it ends, and `hears` is called with the contest.
    """
    for seed in request.seeds:
        for name, entrant in request.entrants.items():
            if contest.entry(name, seed) is not None:
                continue
            own = _own_sweep(prepared, entrant, name=name, seed=seed, folder=folder)
            result = _searched(own, watchers)
            if result.complete:
                contest = contest.plus(_entry(contest, result, name=name, seed=seed))
                _write(contest, folder)
                if hears is not None:
                    hears(contest)
            if result.interrupted or not result.complete:
                return contest, True
    return contest, False


def _check(request: ContestRequest) -> list[str]:
    """What speaks against a contest; raises AutopruneError for what cannot work.

    Trains and writes nothing.
    """
    asked = request.sweep
    check_writable(asked.output)
    doubts = [*check_places(asked)]
    space = make_plan(asked).space
    goal = rehearse_goal(asked.goal, asked.task, asked.meter)
    for name, entrant in request.entrants.items():
        searcher = build_searcher(entrant.factory, space, goal, asked.seed)
        check_warm_up(searcher, asked.budget)
        doubts += _unlearnt(name, searcher, asked)
    return doubts


def _unlearnt(name: str, searcher: Searcher, asked: SweepRequest) -> list[str]:
    """Whether a budget ends before a searcher has proposed anything that builds on an outcome."""
    trials, given = asked.budget.trials, len(asked.uniform_first)
    blind = max(given, searcher.blind if isinstance(searcher, BeginsBlind) else 0)
    if trials is None or isinstance(searcher, UniformSearcher) or trials > blind:
        return []
    return [
        f"budget.trials is {trials}, and the first {blind} trials of {name} build on no outcome "
        f"({given} of them are the ratios of uniform_first): what it comes to says nothing of it; "
        "raise budget.trials"
    ]


def _check_same(request: ContestRequest, begun: Contest, folder: Path) -> None:
    for what, now in request.facts.items():
        began = getattr(begun, what)
        if began != now:
            raise AutopruneError(
                f"{folder}: {what} was {began} and is {now}; go on with what it began with, or "
                "start a new contest"
            )


def _check_network(begun: Contest, prepared: Prepared, folder: Path) -> None:
    if begun.network != prepared.baseline.digest:
        raise AutopruneError(
            f"{folder}: the network's weights are not those that this contest began with, so its "
            "searches would not compare; go on with them, or start a new contest"
        )
    check_goal(folder, begun.goal, prepared.goal)


def _new(request: ContestRequest, prepared: Prepared, folder: Path) -> Contest:
    return Contest(
        name=folder.name,
        goal=prepared.goal,
        baseline=dict(prepared.metrics),
        device=prepared.speed.device,
        network=prepared.baseline.digest,
        **request.facts,
    )


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
    file = folder / PROFILE_FILE
    profile = read_profile(file, without="the network is profiled anew")
    if profile is None:
        profile = profile_network(prepared, checks=0, report=listeners.on_point).profile
        write_known(profile, file)
    seconds = sum(point.seconds for point in profile.points)
    return replace(prepared, profile=profile), replace(contest, profile_s=seconds)


def _own_sweep(
    prepared: Prepared, entrant: Entrant, *, name: str, seed: int, folder: Path
) -> Prepared:
    """The sweep as one searcher runs it with one seed."""
    config = prepared.request.config
    own = replace(
        prepared.request,
        name=f"seed-{seed}",
        searcher=entrant.factory,
        seed=seed,
        output=folder / name,
        config=None if config is None else {**config, "searcher": entrant.config, "seed": seed},
    )
    profile = prepared.profile if entrant.profile else None
    return replace(prepared, request=own, profile=profile)


def _searched(own: Prepared, watchers: Sequence[Watcher]) -> SweepResult:
    """One search from its beginning, or from where it stopped."""
    begun = sorted(own.request.output.glob(f"{own.request.name}-*/{JOURNAL_FILE}"))
    kept: list[NetworksWatcher] = []

    def watch(place: Path) -> Sequence[Watcher]:
        kept.append(NetworksWatcher(place, own.request.storage_of(place)))
        return [*kept, *watchers]

    result = resume(own, begun[-1].parent, watchers=watch) if begun else start(own, watchers=watch)
    faults = (networks.fault for networks in kept)
    return replace(result, lost=(*result.lost, *filter(None, faults)))


def _entry(contest: Contest, result: SweepResult, *, name: str, seed: int) -> Entry:
    entry = Entry.of(
        read_journal(result.folder / JOURNAL_FILE),
        contest.goal,
        searcher=name,
        seed=seed,
        folder=f"{name}/{result.folder.name}",
        before_s=contest.profile_s if name in contest.profiled else 0.0,
    )
    return replace(entry, warnings=(*result.lost, *result.doubts))


def _write(contest: Contest, folder: Path) -> None:
    replace_text(folder / CONTEST_FILE, json.dumps(contest.to_json(), indent=1))
