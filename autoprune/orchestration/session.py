"""A sweep from its request to its result: start, resume. The one way through it all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.orchestration.artifacts import write_weights
from autoprune.orchestration.baseline import digest_of
from autoprune.orchestration.folders import (
    BASELINE_FILE,
    EARLY_FILE,
    JOURNAL_FILE,
    PROFILE_FILE,
    RANKING_FILE,
    made,
    make_folder,
    new_id,
    output_word,
)
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.planning import check_predicted
from autoprune.orchestration.preparation import Prepared
from autoprune.orchestration.profile_file import read_profile, read_ranking, write_known
from autoprune.orchestration.proposals import Proposals
from autoprune.orchestration.ranking import rank_network
from autoprune.orchestration.request import SweepRequest, conditions_now
from autoprune.orchestration.store import check_store
from autoprune.orchestration.sweep import Sweep, Watcher
from autoprune.orchestration.view import SweepView, view_of
from autoprune.searchers.named import build_searcher, takes
from autoprune.searchers.uniform import UniformSearcher


@dataclass(frozen=True)
class SweepResult:
    """A sweep that ended: its folder, its last view, and whether the budget was used up.

    `lost` tells of a torn line that a resume cut off its journal, of a replay that came out
    differently, and of what could not be saved; `doubts` of what the sweep found that speaks
    against its own settings. `interrupted` tells whether the user wanted it to end, whether or not
    it came to its own end then.
    """

    folder: Path
    view: SweepView
    complete: bool
    lost: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    interrupted: bool = False


def check_places(request: SweepRequest) -> Sequence[str]:
    """Raise AutopruneError where the trials of a sweep could not run, or could not save; else what
    they would wait for.
    """
    if request.storage is not None:
        check_store(request.storage, key="executor.storage")
    with made(request.output):
        return request.executor.check(request.place)


WatchersFor = Callable[[Path], Sequence[Watcher]]


def nobody(folder: Path) -> Sequence[Watcher]:
    """No watcher, whatever the folder."""
    del folder
    return ()


def start(prepared: Prepared, *, watchers: WatchersFor = nobody) -> SweepResult:
    """Run a new sweep in a folder of its own below the request's output folder.

    `watchers` are made for that folder; they hear of events in the order they stand.
    """
    request = prepared.request
    view = SweepView(
        sweep_id=new_id(request.name),
        experiment=request.experiment or request.name,
        goal=prepared.goal,
        space=prepared.plan.space,
        baseline=dict(prepared.metrics),
        slots=request.executor.slots,
        output=output_word(request.output),
        from_python=request.config is None,
    )
    ranking = None
    if takes(request.searcher, "ranking"):
        ranking = rank_network(prepared.context, view.space, seed=request.seed)
    folder = make_folder(request.output, view.sweep_id)
    write_weights(folder / BASELINE_FILE, prepared.baseline.model.state_dict())
    early = prepared.context.early
    if early is not None:
        write_weights(folder / EARLY_FILE, early.state_dict())
    if prepared.profile is not None:
        write_known(prepared.profile, folder / PROFILE_FILE)
    if ranking is not None:
        write_known(ranking, folder / RANKING_FILE)
    header = {
        "sweep_id": view.sweep_id,
        "experiment": view.experiment,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seed": request.seed,
        "slots": view.slots,
        "output": view.output,
        "baseline_digest": prepared.baseline.digest,
        **({} if early is None else {"early_digest": digest_of(early)}),
        "goal": view.goal.to_json(),
        "space": view.space.to_json(),
        "baseline": dict(view.baseline),
        "budget": asdict(request.budget),
        "conditions": request.conditions,
        "config": request.config,
        "code_paths": list(request.code_paths),
    }
    with Journal.create(folder / JOURNAL_FILE, header) as journal:
        return _run(prepared, view, journal, watchers)


def resume(prepared: Prepared, folder: Path, *, watchers: WatchersFor = nobody) -> SweepResult:
    """Go on with the sweep in `folder`: replay its journal, then run what remains."""
    with Journal.open(folder / JOURNAL_FILE) as journal:
        view = view_of(journal)
        if view.space != prepared.plan.space:
            raise AutopruneError(
                f"{folder}: the network or the space is not what this sweep began with; resume "
                "with the model, data and versions of its journal"
            )
        if journal.header["baseline_digest"] != prepared.baseline.digest:
            raise AutopruneError(
                f"{folder}: the network's weights are not those this sweep began with, which are "
                f"in {BASELINE_FILE} there; resume with them"
            )
        early = prepared.context.early
        if early is not None and digest_of(early) != journal.header.get("early_digest"):
            raise AutopruneError(
                f"{folder}: the early weights of the network are not those this sweep began with, "
                f"which are in {EARLY_FILE} there; resume with them"
            )
        check_goal(folder, view.goal, prepared.goal)
        began = conditions_now(journal.header["conditions"])
        _check_conditions(folder, began, prepared.request.conditions)
        journal.change_budget(asdict(prepared.request.budget))
        return _run(prepared, view, journal, watchers)


def check_goal(folder: Path, began: Goal, now: Goal) -> None:
    """Raise AutopruneError unless the same is searched for as in the beginning.

    The reference point may differ: it stays the one that was begun with.
    """
    before, after = ([*goal.objectives, *goal.constraints] for goal in (began, now))
    if before != after:
        raise AutopruneError(
            f"{folder}: the goal was {', '.join(map(str, before))} and is "
            f"{', '.join(map(str, after))}; resume with what it began with, or start a new sweep"
        )


def _check_conditions(folder: Path, began: Mapping[str, str], now: Mapping[str, str]) -> None:
    other = [
        f"{name} was {began.get(name)} and is {now[name]}"
        for name in now
        if began.get(name) != now[name]
    ]
    if other:
        raise AutopruneError(
            f"{folder}: its trials would not compare with new ones: {'; '.join(other)}; resume "
            "with what it began with, or start a new sweep"
        )


def _run(
    prepared: Prepared, view: SweepView, journal: Journal, watchers: WatchersFor
) -> SweepResult:
    request = prepared.request
    folder = journal.path.parent
    profile = _profile(folder)
    check_predicted(request.recoveries, profiled=profile is not None)
    searcher = build_searcher(
        request.searcher,
        view.space,
        view.goal,
        request.seed,
        profile=profile,
        ranking=read_ranking(folder / RANKING_FILE),
    )
    proposals = Proposals(
        searcher,
        view.space,
        seed=request.seed,
        first=_first(searcher, view.space, request.uniform_first),
        guard=request.gate.step,
        folder=folder,
    )
    sweep = Sweep(
        view,
        journal,
        proposals,
        budget=request.budget,
        ladder=request.ladder,
        watchers=watchers(folder),
    )
    interrupt = Interrupt(request.on_interrupt, hook=request.on_signal)
    # the goal of the journal, not one measured anew: a sweep's reference point is fixed
    context = replace(
        prepared.context,
        goal=view.goal,
        baseline_ms=view.baseline["latency_ms"],
        rungs=() if request.ladder is None else request.ladder.epochs,
        latency=None if profile is None else profile.model,
    )
    with interrupt.listening(), sweep.watched():
        request.executor.run(sweep, context, request.storage_of(folder), interrupt=interrupt)
    lost = tuple(filter(None, (journal.repaired, proposals.fault)))
    return SweepResult(
        folder,
        sweep.view,
        sweep.complete,
        lost=lost,
        doubts=sweep.doubts,
        interrupted=interrupt.requested,
    )


def _profile(folder: Path) -> Profile | None:
    """The profile that a sweep began with: its searcher would propose otherwise with another."""
    without = "the searcher goes on without a profile, and proposes otherwise"
    return read_profile(folder / PROFILE_FILE, without=without)


def _first(
    searcher: Searcher, space: SearchSpace, ratios: Sequence[float]
) -> Sequence[PruningSpec]:
    """What is tried before the searcher proposes; the uniform one's own grid comes first anyway."""
    return () if isinstance(searcher, UniformSearcher) else [space.uniform(r) for r in ratios]
