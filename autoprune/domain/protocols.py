"""The seams of the search: what a searcher promises, and what work on a node must hold."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.ranking import Ranking
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation, Trial

StepGuard = Callable[[], AbstractContextManager[object]]
"""Opens the context in which every step of work runs that would disturb a measurement nearby."""


class Searcher(Protocol):
    """Proposes what to try next.

    Determinism: a searcher built with the same space, goal and seed and driven by the same
    sequence of `ask` and `tell` makes the same proposals. That is how a sweep resumes: the
    journal is replayed into a new searcher.
    """

    def ask(self, number: int) -> PruningSpec:
        """Propose trial `number`. Numbers ascend, each asked once; others may propose some."""
        ...

    def tell(self, observation: Observation) -> None:
        """Hear of an outcome, in any order; also of trials that this searcher never proposed.

        A trial may be told again once it got further up the ladder (a higher `rung`): what is
        told last counts, and takes the place of what was told of it before.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """A searcher that a resume restores instead of replaying to it: one that learns for long."""

    def save(self, folder: Path) -> None:
        """Write all that decides its further proposals into an empty folder."""
        ...

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; a searcher just built with the same arguments does."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A searcher that shows how its learning goes."""

    @property
    def curves(self) -> Mapping[str, float]:
        """The latest figures by name, such as ``episode_reward``; empty before the first."""
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """A searcher that has to hear of some trials before it begins to learn."""

    @property
    def warm_up(self) -> int:
        """How many; a budget of no more is for nothing."""
        ...


@runtime_checkable
class BeginsBlind(Protocol):
    """A searcher whose first proposals build on no outcome."""

    @property
    def blind(self) -> int:
        """How many, whoever proposed them; a budget of no more tells nothing of it."""
        ...


class SearcherFactory(Protocol):
    """Builds a searcher for a sweep."""

    def __call__(
        self,
        space: SearchSpace,
        goal: Goal,
        seed: int,
        *,
        profile: Profile | None = None,
        ranking: Ranking | None = None,
    ) -> Searcher:
        """Build it; the seed fixes every proposal.

        `profile` is what each group costs and gives on its own, where the sweep has measured it;
        `ranking` is what the space's criteria make of the trained network, once there is one.
        """
        ...


class Problem(Protocol):
    """What a search is for: a real network's trials, or a formula in their place."""

    @property
    def space(self) -> SearchSpace:
        """What there is to choose from."""
        ...

    @property
    def goal(self) -> Goal:
        """What makes one outcome better than another."""
        ...

    def observe(self, trial: Trial) -> Observation:
        """Run a trial; a fault of it is an outcome too."""
        ...
