"""A reinforcement-learning agent behind the searcher protocol."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import qmc, truncnorm

from autoprune.domain.latency import LatencyModel
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.novelty import nearest_unseen
from autoprune_agents.learner import AgentLearner
from autoprune_agents.learning import Aim, Learning
from autoprune_agents.memory import EpisodeMemory
from autoprune_agents.outcomes import Array
from autoprune_agents.rewards import reward_named, weights
from autoprune_agents.walk import Walk


class AgentSearcher:
    """A search whose proposals are episodes of an agent's present policy.

    - `ask` walks the groups (`Walk`) under a preference; preferences cover all there are evenly.
    - `tell` replays the episode that ends with the trial's spec, whoever proposed it, so that the
      executed widths are what is learnt, and takes gradient steps. Results may come late and in
      any order; what is told last of a trial takes the place of what was told before.
    - A trial that failed is rewarded as `Outcomes` says.
    - Nothing is proposed twice while the space has anything new: a repetition is replaced by its
      nearest new neighbour, which may be a step beyond the wall.

    `profile` gives the latency model its first timings. Raises AutopruneError for an unknown
    algorithm, option, reward or objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        seed: int,
        *,
        profile: Profile | None = None,
        aim: Aim,
        learning: Learning,
    ) -> None:
        self._space, self._seed, self._learning = space, seed, learning
        self._objectives = len(goal.objectives)
        self._fixed = None if aim.preference is None else weights(goal, aim.preference)
        self._reward = reward_named(aim.reward)
        timings = [] if profile is None else profile.timings
        groups = space.groups if profile is None else profile.groups
        latency = LatencyModel.fit(groups, timings)
        walk = Walk(space, latency, self._objectives, aim.wall)
        draws, batches = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
        self._rng = draws
        self._learner = AgentLearner(
            learning.algorithm,
            walk.features,
            seed,
            options={**learning.options, "gamma": 1.0, "buffer_size": learning.memory * len(walk)},
            replay={
                "steps": len(walk),
                "reward": self._reward,
                "fixed_M": self._fixed,
                "rng": batches,
            },
            actor_learning_rate=learning.actor_learning_rate,
        )
        self._memory = EpisodeMemory(goal, walk, self._learner.buffer, timings=timings)
        self._seen: set[PruningSpec] = set()
        self._asked: dict[int, list[float]] = {}
        self._owed = self._updates = self._acted = 0
        self._curves: dict[str, float] = {}

    @property
    def warm_up(self) -> int:
        """The outcomes that it hears of before its policy acts; a smaller budget is for nothing."""
        return self._learning.warm_up

    @property
    def curves(self) -> Mapping[str, float]:
        """The last episode's reward under its preference, the losses, and the policy's entropy."""
        return dict(self._curves)

    def ask(self, number: int) -> PruningSpec:
        """Walk an episode of the present policy, or one of the warm-up."""
        preference = self._preference(len(self._asked))
        spec = self._policys(preference) if self._updates else self._uniform()
        spec = nearest_unseen(self._space, spec, self._seen, self._rng) or spec
        self._seen.add(spec)
        self._asked[number] = preference.tolist()
        return spec

    def tell(self, observation: Observation) -> None:
        """Learn from an outcome. Raises AutopruneError for a spec that is not of the space."""
        trial = observation.trial
        self._space.check(trial.spec)
        self._seen.add(trial.spec)
        outcome = self._memory.tell(observation)
        self._owed += self._learning.gradient_steps
        if self._updates or self._owed >= self.warm_up * self._learning.gradient_steps:
            self._curves |= self._learner.train(self._owed)
            self._updates, self._owed = self._updates + self._owed, 0
        if trial.number in self._asked:
            preference = np.array([self._asked[trial.number]])
            self._curves["episode_reward"] = float(self._reward(outcome, preference)[0])

    def save(self, folder: Path) -> None:
        """Write all that decides its further proposals: JSON and tensors."""
        self._learner.save(folder / "agent.pt")
        state = {
            "memory": self._memory.to_json(),
            "seen": sorted((spec.to_json() for spec in self._seen), key=json.dumps),
            "asked": list(self._asked.items()),
            "counts": [self._owed, self._updates, self._acted],
            "curves": self._curves,
            "draws": self._rng.bit_generator.state,
            "batches": self._learner.buffer.rng.bit_generator.state,
        }
        (folder / "agent.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; nothing in it is executed."""
        state = json.loads((folder / "agent.json").read_text())
        self._learner.load(folder / "agent.pt")
        self._memory.restore(state["memory"])
        self._seen = set(map(PruningSpec.from_json, state["seen"]))
        self._asked = {int(number): preference for number, preference in state["asked"]}
        self._owed, self._updates, self._acted = state["counts"]
        self._curves = dict(state["curves"])
        self._rng.bit_generator.state = state["draws"]
        self._learner.buffer.rng.bit_generator.state = state["batches"]

    def _preference(self, episode: int) -> Array:
        """The preference of an episode: points of a Halton sequence, so that all are covered."""
        if self._fixed is not None:
            return self._fixed
        if self._objectives == 1:
            return np.ones(1)
        halton = qmc.Halton(self._objectives - 1, rng=np.random.default_rng(self._seed))
        cuts = np.sort(halton.fast_forward(episode).random(1)[0])
        return np.diff(cuts, prepend=0.0, append=1.0)

    def _policys(self, preference: Array) -> PruningSpec:
        """The spec at the end of an episode of the policy."""
        walk, indices = self._memory.walk, list[int]()
        spread = 2.0 * self._learning.noise * self._learning.decay**self._acted
        for _ in range(len(walk)):
            action = self._learner.act(walk.observation(indices, preference.tolist()))
            if spread > 0.0:
                ends = (-1.0 - action) / spread, (1.0 - action) / spread
                action += spread * truncnorm.rvs(*ends, random_state=self._rng)
            indices.append(walk.executed(indices, action))
        self._acted += 1
        return self._space.at(indices)

    def _uniform(self) -> PruningSpec:
        """The spec of a warm-up episode: about one ratio for all groups, any choice."""
        walk, indices = self._memory.walk, list[int]()
        ratio = self._rng.random()
        for step in range(len(walk)):
            kept = ratio + self._rng.normal(0.0, self._learning.spread)
            unit = kept if step < len(self._space.axes) else self._rng.random()
            indices.append(walk.executed(indices, 2.0 * unit - 1.0))
        return self._space.at(indices)
