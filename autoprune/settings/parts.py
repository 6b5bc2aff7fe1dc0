"""The sections of a config that are plain facts: training, space, goal, ladder, limits."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from autoprune.domain.bounds import Bounds
from autoprune.domain.errors import AutopruneError, FaultsError, check_once, unknown
from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.space import PRECISIONS
from autoprune.evaluation import TrialLimits
from autoprune.measurement.runtimes.protocol import Runtime, precisions_of
from autoprune.orchestration.request import GoalRequest, SpaceRequest
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.criteria import Criterion, criterion_of
from autoprune.pruning.distill import Distillation
from autoprune.pruning.healing import Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan
from autoprune.pruning.schedule import Schedule
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.settings.compose import RECOVERY_OPTIONS
from autoprune.settings.rules import NOT_NEGATIVE, ONE_OR_MORE, POSITIVE, Faults, T, check_ranges


def fit_plan(section: str, config: Mapping[str, Any]) -> FitPlan:
    """How to train, from the section `section`."""
    if 0 < config["epochs"] < config["warmup_epochs"]:
        raise AutopruneError(
            f"{section}.warmup_epochs is {config['warmup_epochs']} of {config['epochs']} epochs; "
            f"choose at most {config['epochs']}, or more {section}.epochs"
        )
    return _in_section(section, lambda: FitPlan(**config))


def recoveries_of(config: Mapping[str, Any]) -> dict[str, Recovery]:
    """The recoveries of a sweep's config by the names that specs use: those of the options that
    `recoveries` names, else what the one in `recovery` does.
    """
    if not config["recoveries"]:
        return named_recovery(_recovery("recovery", config["recovery"]))
    faults, options = Faults(), config[RECOVERY_OPTIONS]
    found = {
        name: faults.of(partial(_recovery, f"recoveries.{name}", options[name]))
        for name in config["recoveries"]
    }
    faults.check()
    return found


def named_recovery(given: FitPlan | Recovery) -> dict[str, Recovery]:
    """The one recovery of a sweep by its name."""
    recovery = Recovery(given) if isinstance(given, FitPlan) else given
    return {recovery.name: recovery}


def _recovery(section: str, config: Mapping[str, Any]) -> Recovery:
    """How cut networks heal, from the section `section`."""
    faults = Faults()
    rules = {"recalibration_batches": ONE_OR_MORE}
    faults.of(lambda: check_ranges(section, config, rules))
    fit = faults.of(lambda: fit_plan(f"{section}.fit", config["fit"]))
    sparsity = faults.of(
        lambda: _unless_none(f"{section}.sparsity", config["sparsity"], "epochs", Sparsity)
    )
    fitted = config["reconstruction"]
    reconstruction = faults.of(
        lambda: _unless_none(f"{section}.reconstruction", fitted, "batches", Reconstruction)
    )
    distillation = faults.of(partial(_distillation, section, config["distillation"]))
    schedule = faults.of(partial(_schedule, section, config["schedule"]))
    faults.check()
    batches = config["recalibration_batches"]
    return _in_section(
        section,
        lambda: Recovery(
            fit,
            recalibration_batches=batches,
            sparsity=sparsity,
            reconstruction=reconstruction,
            distillation=distillation,
            schedule=schedule,
        ),
    )


def _unless_none(
    section: str, config: Mapping[str, Any], amount: str, make: Callable[..., T]
) -> T | None:
    """What `make` gives of a section; None where the key `amount` is 0, which `make` refuses."""
    faults = Faults()
    faults.of(lambda: check_ranges(section, config, {amount: NOT_NEGATIVE}))
    some = {**config, amount: max(config[amount], 1)}
    found = faults.of(lambda: _in_section(section, lambda: make(**some)))
    faults.check()
    return found if config[amount] else None


def _distillation(section: str, config: Mapping[str, Any]) -> Distillation | None:
    """None where the teacher has no weight in the loss."""
    layers = tuple(config["hint_layers"])
    found = _in_section(
        f"{section}.distillation", lambda: Distillation(**{**config, "hint_layers": layers})
    )
    return found if found.weight or found.hints else None


def _schedule(section: str, config: Mapping[str, Any]) -> Schedule:
    return _in_section(f"{section}.schedule", lambda: Schedule(**config))


def _in_section(section: str, make: Callable[[], T]) -> T:
    """What `make` gives, its faults with the section that they are in."""
    try:
        return make()
    except FaultsError as error:
        raise FaultsError([f"{section}: {fault}" for fault in error.faults]) from error


def criteria_of(config: Mapping[str, Any]) -> dict[str, Criterion]:
    """The criteria by name."""
    if not config["criteria"]:
        raise AutopruneError("importance.criteria is empty; name at least one, such as l1")
    faults = Faults()
    faults.of(lambda: check_once("importance.criteria", config["criteria"]))
    found = {name: faults.of(partial(criterion_of, name)) for name in config["criteria"]}
    faults.check()
    return found


def precisions_in(names: Sequence[str], runtime: Runtime) -> tuple[str, ...]:
    """What networks may be deployed in. Raises AutopruneError for what the runtime cannot run."""
    listed = f"precisions [{', '.join(names)}]"
    if not names:
        raise AutopruneError("precisions is empty; name at least one, such as fp32")
    for name in names:
        if name not in PRECISIONS:
            raise unknown("precision", name, PRECISIONS)
    check_once("precisions", names)
    taken = precisions_of(runtime)
    if not set(names) <= set(taken):
        raise AutopruneError(
            f"{listed}: runtime {runtime.name!r} takes networks in {', '.join(taken)} only; set "
            'meter=onnxruntime (from Python, runtime="onnxruntime") on the CPU, or precisions to '
            "fp32 alone"
        )
    return tuple(names)


def space_of(config: Mapping[str, Any], *, default_step: int) -> SpaceRequest:
    """How far which groups may shrink; `default_step` where the config sets none."""
    faults = Faults()
    faults.of(lambda: check_ranges("space", config, {"graph_limit_s": POSITIVE}))
    step = default_step if config["step"] is None else config["step"]
    bounds = faults.of(lambda: Bounds("*", config["min_kept"], config["max_kept"], step))
    overrides = [faults.of(partial(Bounds, **override)) for override in config["overrides"]]
    faults.check()
    return SpaceRequest(
        bounds,
        overrides=tuple(overrides),
        exclude=tuple(config["exclude"]),
        kinds=tuple(config["kinds"]),
    )


def goal_of(config: Mapping[str, Any]) -> GoalRequest:
    """Objectives and constraints."""
    faults = Faults()
    constraints = [faults.of(partial(_constraint, c)) for c in config["constraints"]]
    faults.check()
    return GoalRequest(tuple(config["metrics"]), tuple(constraints), config["reference"])


def _constraint(config: Mapping[str, Any]) -> Constraint:
    low, high = config["low"], config["high"]
    return Constraint(
        config["metric"],
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
    )


def limits_of(config: Mapping[str, Any]) -> TrialLimits:
    """What a trial may cost."""
    faults = Faults()
    faults.of(lambda: check_ranges("importance", config["importance"], {"batches": ONE_OR_MORE}))
    faults.of(lambda: check_ranges("budget", config["budget"], {"trial_limit_s": POSITIVE}))
    faults.check()
    return TrialLimits(
        importance_batches=config["importance"]["batches"],
        time_limit_s=config["budget"]["trial_limit_s"],
    )


def budget_of(config: Mapping[str, Any]) -> Budget:
    """The budget of a config."""
    check_ranges(
        "budget", config, dict.fromkeys(("trials", "wall_minutes", "trial_hours"), POSITIVE)
    )
    wall, hours = config["wall_minutes"], config["trial_hours"]
    return Budget(
        trials=config["trials"],
        wall_s=None if wall is None else 60.0 * wall,
        trial_s=None if hours is None else 3600.0 * hours,
    )


def budget_config(budget: Budget) -> dict[str, Any]:
    """The inverse of `budget_of`."""
    return {
        "trials": budget.trials,
        "wall_minutes": None if budget.wall_s is None else budget.wall_s / 60.0,
        "trial_hours": None if budget.trial_s is None else budget.trial_s / 3600.0,
    }


def ladder_of(config: Mapping[str, Any]) -> Ladder | None:
    """Where trials are compared; None without a rung, so that every trial comes to its end."""
    epochs, reduction = config["epochs"], config["reduction"]
    if not epochs:
        return None
    return Ladder(tuple(epochs), reduction, finish_front=config["finish_front"])
