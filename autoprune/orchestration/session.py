"""A sweep from its request to its result: prepare, sweep, resume. The one way through it all."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Speedup
from autoprune.evaluation import TrialContext, portable, settled_steps
from autoprune.measurement.cost import costs
from autoprune.orchestration.artifacts import write_weights
from autoprune.orchestration.baseline import (
    Baseline,
    BaselineCache,
    EpochReport,
    digest_of,
    load_checkpoint,
    rising,
    train_baseline,
)
from autoprune.orchestration.early import Keeper, load_early
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
from autoprune.orchestration.planning import Plan, check_predicted, goal_of, make_plan
from autoprune.orchestration.profile_file import read_profile, read_ranking, write_known
from autoprune.orchestration.proposals import Proposals
from autoprune.orchestration.ranking import rank_network
from autoprune.orchestration.request import SweepRequest, conditions_now
from autoprune.orchestration.store import check_store
from autoprune.orchestration.sweep import Sweep, Watcher
from autoprune.orchestration.view import SweepView, view_of
from autoprune.pruning.accuracy import evaluate
from autoprune.searchers.named import build_searcher, takes
from autoprune.searchers.uniform import UniformSearcher


@dataclass(frozen=True)
class Prepared:
    """A request whose baseline is trained and judged, ready for its first trial.

    `metrics` are the baseline's, `speed` is the measurement of the baseline against itself, and
    `doubts` say what speaks against pruning it. `profile` is there for a searcher to read.
    """

    request: SweepRequest
    plan: Plan
    baseline: Baseline
    metrics: Mapping[str, float]
    speed: Speedup
    context: TrialContext
    doubts: tuple[str, ...] = ()
    profile: Profile | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user of a sweep should know before it runs."""
        return (*self.plan.warnings, *self.doubts)

    @property
    def goal(self) -> Goal:
        """The sweep's goal, with its reference point."""
        return self.context.goal


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


def prepare(request: SweepRequest, *, report: EpochReport | None = None) -> Prepared:
    """Plan, train or load the baseline, and judge it. `report` hears of training epochs."""
    plan = make_plan(request)
    baseline = load_baseline(request, report=report)
    example = request.task.example()
    twin = copy.deepcopy(baseline.model)
    speed = request.meter.measure(twin, baseline.model, example)
    values = evaluate(twin.to(request.device), request.task, "val", step_guard=request.gate.step)
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise AutopruneError(
            f"the baseline's metrics on val are {wrong}; the task's evaluate must give finite "
            "numbers: look at the network's outputs, and at how they are judged"
        )
    metrics = values | costs(baseline.model, example)
    metrics |= _baseline_speed(speed)
    context = TrialContext(
        model=baseline.model,
        dependencies=plan.dependencies,
        task=request.task,
        goal=goal_of(request.goal, request.task, request.meter, metrics),
        meter=request.meter,
        baseline_ms=speed.baseline_ms,
        recoveries=request.recoveries,
        criteria=request.criteria,
        limits=request.limits,
        calibration_batches=request.calibration_batches,
        model_config=request.model_config,
        step_guard=request.gate.step,
        device=request.device,
        threads=request.threads,
        early=load_early(request),
    )
    doubts = []
    main = request.task.metrics[0]
    if rising(baseline.history, main):
        doubts.append(
            f"the baseline's {main.name} on val was still improving when its training ended "
            f"({baseline.history[-1]:.4g}): pruning a network that is not trained out flatters "
            "the front; raise baseline.fit.epochs"
        )
    return Prepared(request, plan, baseline, metrics, speed, context, tuple(doubts))


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


def load_baseline(request: SweepRequest, *, report: EpochReport | None = None) -> Baseline:
    """The unpruned network with its weights: loaded, trained, or as the request has it."""
    wanted = request.baseline
    model = copy.deepcopy(request.model)
    if wanted.checkpoint is not None:
        return load_checkpoint(model, wanted.checkpoint, store=wanted.store)
    if wanted.plan is None:
        return Baseline(portable(model), "as given")
    cache = BaselineCache(request.output / "baselines")
    kept = cache.find(wanted.identity, model)
    if kept is not None:
        return kept
    keeper = Keeper(model, wanted.keep_epoch, report)
    trained = train_baseline(
        model.to(request.device),
        request.task,
        wanted.plan,
        seed=request.seed,
        step_guard=settled_steps(request.gate.step, request.device),
        report=keeper,
    )
    return cache.keep(wanted.identity, trained, beside=keeper.kept)


def at_hand(request: SweepRequest) -> bool:
    """Whether the unpruned network's weights are there without training it."""
    wanted = request.baseline
    if wanted.checkpoint is not None or wanted.plan is None:
        return True
    cache = BaselineCache(request.output / "baselines")
    return cache.find(wanted.identity, copy.deepcopy(request.model)) is not None


def _baseline_speed(twins: Speedup) -> dict[str, float]:
    """What a measurement of the baseline against itself tells of it, as a trial's metrics."""
    found = {"speedup": 1.0, "latency_ms": twins.baseline_ms}
    found["throughput"] = 1e3 * twins.batch_size / twins.baseline_ms
    for other in twins.further:
        size = other.batch_size
        found |= {
            f"speedup_at_{size}": 1.0,
            f"throughput_at_{size}": 1e3 * size / other.baseline_ms,
        }
    return found
