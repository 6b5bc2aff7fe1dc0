"""Optuna's samplers behind the searcher protocol, by ask and tell, in memory."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Failure, Measurement, Observation, Outcome
from autoprune.searchers.memory import Memory
from autoprune.searchers.novelty import nearest_unseen
from autoprune.searchers.samplers import SAMPLERS, build_sampler


class OptunaSearcher:
    """A search by one of Optuna's samplers: ``nsga2``, ``nsga3``, ``tpe`` or ``gp``.

    `options` are arguments of the sampler class, such as ``population_size`` of the evolutionary
    ones and ``n_startup_trials`` of the model-based ones.

    - A width is an integer: its index among the legal ones. Criteria, recoveries and
      precisions are categories.
    - Constraints are fed as violations in shares of their bound, so that the sum over
      constraints in different units, by which NSGA-II ranks infeasible trials, means something.
    - A trial stopped by a constraint counts with the values it has, as infeasible. Where it has
      not all objectives, or no constraint shows it as infeasible, it counts as failed; failed
      trials are not learnt from, and not proposed again.
    - A proposal that repeats an earlier one is drawn again a few times, then replaced by its
      nearest new neighbour: nothing is proposed twice before the space is used up.
    - A trial that this searcher did not propose, or that was run with another spec, is learnt
      from like one of its own.
    - A trial told again changes its values where it stands; generations that were bred from what
      it came to before stay.

    Papers: NSGA-II, Deb et al. 2002 (doi:10.1109/4235.996017); NSGA-III, Deb and Jain 2014
    (doi:10.1109/TEVC.2013.2281535); TPE, Bergstra et al. 2011, multi-objective by Ozaki et al.
    2022 (doi:10.1613/jair.1.13188); GP with expected hypervolume improvement, Daulton et al.
    2020 (arXiv:2006.05078).

    Raises AutopruneError for an unknown sampler or option, naming the near miss.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        seed: int,
        *,
        sampler: str = "nsga2",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._space, self._goal = space, goal
        self._rng = np.random.default_rng(seed)
        self._sampler = build_sampler(sampler, seed, options or {})
        self._options = {**SAMPLERS[sampler].options, **(options or {})}
        self._draws = SAMPLERS[sampler].draws
        self._distributions = _distributions(space)
        self._memory = Memory()
        with quiet_optuna():
            self._study = optuna.create_study(
                storage=self._memory, sampler=self._sampler, directions=directions(goal)
            )
        self._trials: dict[int, tuple[PruningSpec, Trial]] = {}
        self._seen: set[PruningSpec] = set()

    @property
    def blind(self) -> int:
        """The first generation of an evolution, or the start of a model, is drawn at random."""
        return int(self._options.get("population_size") or self._options["n_startup_trials"])

    def ask(self, number: int) -> PruningSpec:
        """Propose trial `number`; a GP takes seconds for it in spaces of many groups."""
        for _ in range(self._draws):
            trial = self._study.ask(self._distributions)
            spec = self._space.at([trial.params[name] for name in self._distributions])
            if spec not in self._seen:
                break
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            spec = nearest_unseen(self._space, spec, self._seen, self._rng) or spec
            trial = self._enter(spec)
        self._seen.add(spec)
        self._trials[number] = (spec, trial)
        return spec

    def tell(self, observation: Observation) -> None:
        """Learn from an outcome. Raises AutopruneError for a spec that is not of the space."""
        trial = self._trial(observation.trial.number, observation.trial.spec)
        violations = self._violations(observation.outcome)
        values = self._values(observation.outcome, violations)
        if values is None:
            self._fail(trial)
            return
        self._memory.reopen(trial.number)
        for name, violation in violations.items():
            trial.set_constraint(name, violation)
        self._study.tell(trial, values)

    def _trial(self, number: int, spec: PruningSpec) -> Trial:
        """The Optuna trial of what was run as trial `number`, whoever proposed it."""
        known, trial = self._trials.get(number, (None, None))
        if trial is not None and known == spec:
            return trial
        entered = self._enter(spec)
        if trial is not None:
            self._fail(trial)
        self._seen.add(spec)
        self._trials[number] = (spec, entered)
        return entered

    def _fail(self, trial: Trial) -> None:
        """Let nothing be learnt from a trial, whatever was told of it before."""
        self._memory.reopen(trial.number)
        self._memory.disinherit(trial.number)
        self._study.tell(trial, state=TrialState.FAIL)

    def _enter(self, spec: PruningSpec) -> Trial:
        """An Optuna trial of `spec`, as if the sampler had proposed it."""
        indices = self._space.indices(spec)
        self._study.enqueue_trial(dict(zip(self._distributions, indices, strict=True)))
        trial = self._study.ask(self._distributions)
        if isinstance(self._sampler, BaseGASampler):
            # Optuna 5.0.0 gives a trial its generation when it first samples for it, which it
            # never does for an enqueued one; without a generation no population takes it in.
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            self._sampler.get_trial_generation(self._study, frozen)
        return trial

    def _violations(self, outcome: Outcome) -> dict[str, float]:
        if isinstance(outcome, Failure):
            return {}
        violations = self._goal.violations(outcome.metrics)
        return {
            f"{i}: {constraint}": violation / constraint.scale
            for i, (constraint, violation) in enumerate(
                zip(self._goal.constraints, violations, strict=True)
            )
        }

    def _values(
        self, outcome: Outcome, violations: Mapping[str, float]
    ) -> tuple[float, ...] | None:
        match outcome:
            case Measurement(complete=True):
                return self._goal.values(outcome)
            case Measurement() if any(violations.values()):
                known = all(o.metric in outcome.metrics for o in self._goal.objectives)
                return self._goal.values(outcome) if known else None
            case _:
                return None


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One distribution of indices a dimension of the encoded space."""
    last = [len(options) - 1 for options in space.options]
    return {
        f"x{i}": IntDistribution(0, high)
        if i < len(space.axes)
        else CategoricalDistribution(range(high + 1))
        for i, high in enumerate(last)
    }


def directions(goal: Goal) -> list[StudyDirection]:
    """The directions of a study, one an objective."""
    return [StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE for more in goal.maximise]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna 5.0.0 logs every study it creates at INFO to stderr, and warns of its newer parts.

    Users did not pick Optuna, and our studies are nobody's business.
    """
    logger = logging.getLogger("optuna.storages")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)
