"""The seams of the search: what a searcher promises, and what work on a node must hold."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation

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
        """Hear of an outcome, in any order; also of trials that this searcher never proposed."""
        ...


class SearcherFactory(Protocol):
    """Builds a searcher for a sweep."""

    def __call__(self, space: SearchSpace, goal: Goal, seed: int) -> Searcher:
        """Build it; the seed fixes every proposal."""
        ...
