"""The dependency groups of a network, explained: what hangs together, and what it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from autoprune.domain.objective import Objective
from autoprune.domain.profile import Profile, ProfilePoint
from autoprune.domain.space import Axis, Group
from autoprune.evaluation import portable
from autoprune.orchestration.baseline import EpochReport
from autoprune.orchestration.planning import Plan, make_plan, rehearse_goal
from autoprune.orchestration.preparation import Prepared, at_hand, prepare
from autoprune.orchestration.profiling import (
    PROFILES,
    PointReport,
    kept_profile,
    profile_network,
)
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.understanding.doubts import unconverged
from autoprune.pruning.anatomy import Part, Role, multiplies, params_in, parts_of, unit_names
from autoprune.pruning.checks import Refused
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.graph import forward_order
from autoprune.tasks.protocol import Inputs

HALF = 0.5
"""The kept share at which a group's sensitivity is told, by the profiled width nearest to it."""


@dataclass(frozen=True, slots=True)
class ExplainedGroup:
    """A group, its layers in forward order, what its units are called, and what it is worth.

    `axis` is None where the search space leaves it out. `params` would go with all of its units.
    `time_share` is the part of the network's time that would go with them by the latency model of
    the profile, and `alone` the profiled point at about half of its units; None where there is no
    profile of it.
    """

    group: Group
    parts: tuple[Part, ...]
    units: tuple[str, ...]
    axis: Axis | None
    params: int
    time_share: float | None = None
    alone: ProfilePoint | None = None

    def layers(self, role: Role) -> list[str]:
        """The layers of one role."""
        return [part.layer for part in self.parts if part.role is role]


@dataclass(frozen=True)
class ExplainedNetwork:
    """A network's groups in forward order, what cannot be pruned, and its layers in forward order.

    `layers` are those that make or read something, and modules that are units. `main` is the
    metric of `ExplainedGroup.alone`, whose value `whole` the unpruned network has; None without a
    profile.
    """

    name: str
    groups: tuple[ExplainedGroup, ...]
    refused: tuple[Refused, ...]
    layers: tuple[str, ...]
    costs: Mapping[str, float]
    main: Objective
    whole: float | None = None
    warnings: tuple[str, ...] = ()


def explain_network(
    request: SweepRequest,
    *,
    on_epoch: EpochReport | None = None,
    on_point: PointReport | None = None,
) -> ExplainedNetwork:
    """Trace the network and take its groups apart; with a profile, what each is worth, too.

    With `request.profile` the network is profiled as a sweep would do, after its baseline was
    trained; otherwise nothing is trained, and a profile is shown where an earlier one is kept.
    """
    prepared, profile = _profiled(request, on_epoch, on_point)
    plan = make_plan(request) if prepared is None else prepared.plan
    model, example = portable(request.model), request.task.example()
    main = rehearse_goal(request.goal, request.task, request.meter).main
    places, shares = _places(model, example), _time_shares(profile)
    return ExplainedNetwork(
        name=request.name,
        groups=tuple(
            _explained(coupling, plan, model, profile, shares, places)
            for coupling in plan.dependencies.couplings
        ),
        refused=plan.dependencies.refused,
        layers=_layers(plan.dependencies.couplings, model, places),
        costs=plan.costs,
        main=main,
        whole=None if profile is None else profile.baseline[main.metric],
        warnings=(*plan.warnings, *map(str, [] if prepared is None else unconverged(prepared))),
    )


def _profiled(
    request: SweepRequest, on_epoch: EpochReport | None, on_point: PointReport | None
) -> tuple[Prepared | None, Profile | None]:
    if request.profile:
        prepared = prepare(request, report=on_epoch)
        return prepared, profile_network(prepared, checks=0, report=on_point).profile
    if (request.output / PROFILES).is_dir() and at_hand(request):
        prepared = prepare(request)
        return prepared, kept_profile(prepared)
    return None, None


def _explained(
    coupling: Coupling,
    plan: Plan,
    model: nn.Module,
    profile: Profile | None,
    shares: Mapping[str, float],
    places: "_Places",
) -> ExplainedGroup:
    group, couplings = coupling.group, plan.dependencies.couplings
    points = [] if profile is None else profile.of(group.name)
    wanted = HALF * group.size
    return ExplainedGroup(
        group=group,
        parts=tuple(sorted(parts_of(coupling, model), key=lambda part: places.of(part.layer))),
        units=unit_names(coupling, couplings),
        axis=next((a for a in plan.space.axes if a.group.name == group.name), None),
        params=params_in(coupling, model),
        time_share=shares.get(group.name),
        alone=min(points, key=lambda p: abs(p.widths[group.name] - wanted), default=None),
    )


def _time_shares(profile: Profile | None) -> dict[str, float]:
    """The part of the network's time that goes with each group, of those that were profiled."""
    if profile is None or not profile.points:
        return {}
    model = profile.model
    whole = model.share({})
    return {
        group.name: 1.0 - model.share({group.name: 0}) / whole
        for group in profile.groups
        if profile.of(group.name)
    }


@dataclass(frozen=True, slots=True)
class _Places:
    """Where modules stand in the forward pass; those that it never calls stand by their owners."""

    called: Mapping[str, int]
    registered: Mapping[str, int]

    def of(self, layer: str) -> tuple[int, int]:
        """What sorts layers and free parameters."""
        owner = layer
        while owner not in self.called:
            owner = owner.rpartition(".")[0]
        return self.called[owner], self.registered.get(layer, -1)


def _places(model: nn.Module, example: Inputs) -> _Places:
    called = {name: at for at, name in enumerate(forward_order(model, example))}
    registered = {name: at for at, (name, _) in enumerate(model.named_modules())}
    return _Places({"": -1, **called}, registered)


def _layers(couplings: Sequence[Coupling], model: nn.Module, places: _Places) -> tuple[str, ...]:
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {
        part.layer
        for coupling in couplings
        for part in parts_of(coupling, model)
        if part.role is not Role.FOLLOWS or multiplies(modules.get(part.layer, model))
    }
    return tuple(sorted(found, key=places.of))
