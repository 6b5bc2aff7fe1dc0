"""What every member of a sweep's front cut: from the journal and the recipes, without any data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.space import ALIGNED
from autoprune.domain.trial import Observation
from autoprune.orchestration.artifacts import MODEL_FOLDER, RECIPE_FILE, read_recipe
from autoprune.orchestration.comparison.networks import example_of
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.view import SweepView
from autoprune.pruning.anatomy import gone_units, unit_names, went_with
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.graph import trace
from autoprune.pruning.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Survivors:
    """The units of a group by name: which are left, and which are gone."""

    left: tuple[str, ...]
    gone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainedMember:
    """A member of the front and, of every group whose units have names, which of them are left.

    Channels and neurons have none: how many are left is in the trial's spec, but for groups of any
    kind that a block or a branch took along: which, by group, is in `went_with`. Without its recipe
    a member has neither.
    """

    observation: Observation
    survivors: Mapping[str, Survivors] = field(default_factory=dict)
    went_with: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The trial's."""
        return self.observation.trial.number


@dataclass(frozen=True)
class ExplainedFront:
    """The members of a front, best first, and why units of some of them are not named."""

    view: SweepView
    members: tuple[ExplainedMember, ...]
    unnamed: tuple[str, ...] = ()


def explain_front(
    view: SweepView, folder: Path, network: nn.Module | str, *, time_limit_s: float = 60.0
) -> ExplainedFront:
    """What the members of the front of the sweep in `folder` cut.

    `network` is the unpruned one, whose weights do not matter, or why it cannot be built; it is
    traced to tell by their names which units a recipe's cuts took. Raises AutopruneError for an
    empty front, and for a recipe that is damaged.
    """
    if not view.front.members:
        raise AutopruneError(
            f"the front of {view.sweep_id} is empty; `autoprune status sweep={view.sweep_id}` "
            "shows what its trials came to"
        )
    members = view.front.members
    if all(group.kind in ALIGNED for group in view.space.groups):
        return ExplainedFront(view, tuple(map(ExplainedMember, members)))
    recipes = {m.trial.number: _recipe(folder, m.trial.number) for m in members}
    known = {number: recipe for number, recipe in recipes.items() if recipe is not None}
    unnamed = [
        f"{_missing(folder, number)}, so the units of trial {number} are not named"
        for number in recipes.keys() - known.keys()
    ]
    found: tuple[Coupling, ...] = ()
    if isinstance(network, str):
        unnamed.append(f"units are not named: {network}")
    elif known:
        example = example_of(next(iter(known.values())))
        try:
            found = trace(network, example, time_limit_s=time_limit_s).couplings
        except AutopruneError as error:
            unnamed.append(f"units are not named: {first_line(error)}")
    return ExplainedFront(
        view,
        tuple(_explained(m, known.get(m.trial.number), found, view) for m in members),
        tuple(sorted(unnamed)),
    )


def _recipe(folder: Path, number: int) -> Recipe | None:
    place = trial_folder(folder, number) / MODEL_FOLDER
    return read_recipe(place) if (place / RECIPE_FILE).is_file() else None


def _missing(folder: Path, number: int) -> str:
    place = trial_folder(folder, number) / MODEL_FOLDER
    return f"{place / RECIPE_FILE} is missing" if place.is_dir() else "its network was not kept"


def _explained(
    member: Observation, recipe: Recipe | None, couplings: tuple[Coupling, ...], view: SweepView
) -> ExplainedMember:
    if recipe is None:
        return ExplainedMember(member)
    names = {group.name for group in view.space.groups}
    searched = [coupling for coupling in couplings if coupling.group.name in names]
    taken = {c.group.name: went_with(c, recipe.history) for c in searched}
    return ExplainedMember(
        member,
        _survivors(recipe, couplings, searched),
        {name: wholes for name, wholes in taken.items() if wholes},
    )


def _survivors(
    recipe: Recipe, couplings: tuple[Coupling, ...], searched: Iterable[Coupling]
) -> dict[str, Survivors]:
    found = {}
    for coupling in searched:
        if coupling.group.kind not in ALIGNED:
            names, gone = unit_names(coupling, couplings), set(gone_units(coupling, recipe.history))
            found[coupling.group.name] = Survivors(
                left=tuple(name for unit, name in enumerate(names) if unit not in gone),
                gone=tuple(name for unit, name in enumerate(names) if unit in gone),
            )
    return found
