"""The searcher: what is asked next.

Axis legend: N = networks, D = dimensions of the space, G = groups, M = objectives, Q = quantities.
"""

import moocore
import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Failure, Measurement, Observation
from autoprune.searchers.frontier.descent import descended
from autoprune.searchers.frontier.failures import Failures
from autoprune.searchers.frontier.lattice import Array, Lattice, Levels
from autoprune.searchers.frontier.model import Draw, Known, Model, Told
from autoprune.searchers.novelty import nearest_unseen

FIRST = 4
"""Trials to hear of before anything is believed; until then all groups keep about the same."""

STARTS = 24
"""Networks that are refined for an ask."""

SPREADS = (0.0, 0.3)
"""How much of the doubt a draw has, each for half of the asks: the mean exploits, a draw explores.
Draws with all of it explore too much: 50 trials on 24 groups then had a fifth less hypervolume."""

GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
"""Steps of this length around a circle cover it evenly, however many are made."""


class FrontierSearcher:
    """A search that knows what pruning is, and refines the front that it has.

    - Costs and losses are sums over groups and over the pairs of them that meet in a layer. Their
      curves are learnt from every trial by Bayesian regression (`belief`, `terms`), also from
      what a profile measured of each group alone. Speedups count as the time that is taken.
    - An ask draws one such belief (Thompson 1933, with less spread), takes members of the front,
      and optimises them for random trade-offs over random groups, a few or all (`descent`). Of
      the networks found it proposes the one by which the front gains most hypervolume, running
      trials counted as if they were done, times its chance not to fail (`failures`).
    - A trial that a constraint ended early, or that paused on the ladder, tells of costs alone:
      its quality was not recovered.
    - Networks that are thought to break a constraint gain nothing. Where nothing gains, the one
      nearest to the constraints and to the reference is proposed.
    - What is told of a trial last takes the place of what was told of it before. Nothing is
      proposed twice before the space is used up.
    """

    def __init__(
        self, space: SearchSpace, goal: Goal, seed: int, *, profile: Profile | None = None
    ) -> None:
        self._space, self._goal = space, goal
        self._rng = np.random.default_rng(seed)
        self._lattice = Lattice(space)
        self._model = Model(self._lattice, goal, profile)
        self._ratio = self._rng.uniform()
        self._told: dict[int, Told] = {}
        self._running: dict[int, Levels] = {}
        self._seen: set[PruningSpec] = set()
        self._believed: tuple[list[Known], Failures] | None = None

    @property
    def blind(self) -> int:
        """Until it has heard of so many all groups keep about the same."""
        return FIRST

    def ask(self, number: int) -> PruningSpec:
        """Propose trial `number`."""
        spec = self._alike() if len(self._told) < FIRST else self._refined()
        if spec in self._seen:
            spec = nearest_unseen(self._space, spec, self._seen, self._rng) or spec
        self._seen.add(spec)
        self._running[number] = self._lattice.levels(spec)
        return spec

    def tell(self, observation: Observation) -> None:
        """Learn from an outcome. Raises AutopruneError for a spec that is not of the space."""
        trial, outcome = observation.trial, observation.outcome
        levels_D = self._lattice.levels(trial.spec)  # noqa: N806
        match outcome:
            case Measurement(metrics, complete=complete):
                feasible = self._goal.feasible(outcome)
                # on a rung of the ladder quality is not recovered either
                complete = complete and observation.rung is None
                told = Told(levels_D, metrics, complete=complete, feasible=feasible)
            case Failure():
                told = Told(levels_D, {})
        self._told[trial.number] = told
        self._running.pop(trial.number, None)
        self._seen.add(trial.spec)
        self._believed = None

    def _alike(self) -> PruningSpec:
        """Groups that keep about the same, with ratios that cover the range evenly."""
        rng, space = self._rng, self._space
        self._ratio = (self._ratio + GOLDEN) % 1.0
        ratio_G = 0.3 + 0.6 * self._ratio + 0.05 * rng.standard_normal(len(space.axes))  # noqa: N806
        return PruningSpec.of(
            {
                axis.group.name: axis.nearest(float(ratio) * axis.group.size)
                for axis, ratio in zip(space.axes, ratio_G, strict=True)
            },
            criterion=space.criteria[rng.integers(len(space.criteria))],
            recovery=space.recoveries[rng.integers(len(space.recoveries))],
            precision=space.precisions[rng.integers(len(space.precisions))],
        )

    def _refined(self) -> PruningSpec:
        """The new network by which the front gains most under a draw of what is believed."""
        rng = self._rng
        known, failures = self._believed = self._believed or self._learnt()
        spread = float(rng.choice(SPREADS))
        draw = Draw(known, [one.drawn(rng, spread) for one in known])
        front_ND = self._front(draw)  # noqa: N806
        bases_ND = front_ND if len(front_ND) else self._levels()  # noqa: N806
        starts_ND = bases_ND[rng.integers(len(bases_ND), size=STARTS)]  # noqa: N806
        found_ND = descended(self._lattice, starts_ND, draw.tables, rng)  # noqa: N806
        violation_N = self._violation(found_ND, draw)  # noqa: N806
        gain_N = np.where(violation_N == 0.0, self._gains(front_ND, found_ND, draw), 0.0)  # noqa: N806
        gain_N *= failures.passing(found_ND)  # noqa: N806
        order = np.lexsort((draw.short(found_ND), violation_N, -gain_N))
        specs = (self._lattice.spec(found_ND[at]) for at in order)
        new = next((spec for spec in specs if spec not in self._seen), None)
        return new or self._lattice.spec(found_ND[order[0]])

    def _learnt(self) -> tuple[list[Known], Failures]:
        told, levels_ND = list(self._told.values()), self._levels()  # noqa: N806
        failed_N = np.array([not trial.metrics for trial in told])  # noqa: N806
        failures = Failures.fit(self._lattice, levels_ND[failed_N], levels_ND[~failed_N])
        return self._model.fit(told), failures

    def _levels(self) -> Levels:
        """Of all that was told of, of shape (N, D)."""
        return np.array([trial.levels_D for trial in self._told.values()])

    def _front(self, draw: Draw) -> Levels:
        """Those that are on the front of what is done or running, and better than the reference.

        They go by the values believed, so that no lucky measurement keeps others off the front.
        """
        feasible = [trial.levels_D for trial in self._told.values() if trial.feasible]
        tried_ND = np.array([*feasible, *self._running.values()], dtype=np.int64)  # noqa: N806
        tried_ND = tried_ND.reshape(-1, len(self._lattice.counts_D))  # noqa: N806
        points_NM = self._points(draw.values(tried_ND))  # noqa: N806
        better_N = (points_NM > 0.0).all(axis=1)  # noqa: N806
        on_front_N = moocore.is_nondominated(points_NM[better_N], maximise=True)  # noqa: N806
        return np.asarray(tried_ND[better_N][on_front_N])

    def _points(self, values_NQ: Array) -> Array:  # noqa: N803
        """How much better than the reference objectives are, of shape (N, M)."""
        sign_M = np.array([objective.direction.sign for objective in self._goal.objectives])  # noqa: N806
        values_NM = values_NQ[:, : len(sign_M)]  # noqa: N806
        return np.asarray(sign_M * (values_NM - np.array(self._goal.reference)))

    def _gains(self, front_ND: Levels, found_ND: Levels, draw: Draw) -> Array:  # noqa: N803
        """The hypervolume that the front gains by each network found."""
        volume = moocore.Hypervolume(ref=np.zeros(len(self._goal.objectives)), maximise=True)
        front_NM = self._points(draw.values(front_ND))  # noqa: N806
        found_NM = self._points(draw.values(found_ND))  # noqa: N806
        with_each = [volume(np.vstack([front_NM, point_M])) for point_M in found_NM]
        gained_N: Array = np.array(with_each) - volume(front_NM)  # noqa: N806
        return gained_N

    def _violation(self, levels_ND: Levels, draw: Draw) -> Array:  # noqa: N803
        """How far networks break constraints, in shares of their bounds, of shape (N,)."""
        names = [quantity.metric for quantity in self._model.quantities]
        found = (dict(zip(names, row_Q, strict=True)) for row_Q in draw.values(levels_ND))
        return np.array([self._goal.violation(metrics) for metrics in found])
