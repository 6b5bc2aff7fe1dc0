"""An agent of Stable-Baselines3 that learns outside of its own training loop."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune_agents.replay import HindsightBuffer
from autoprune_agents.walk import Features

ALGORITHMS: Mapping[str, type[OffPolicyAlgorithm]] = {"sac": SAC, "td3": TD3, "ddpg": DDPG}
"""The algorithms by name."""


class DivergedError(AutopruneError):
    """Learning has come to values that are not finite, from which it does not come back."""

    def __init__(self, sign: str) -> None:
        super().__init__(
            f"the agent's learning has diverged ({sign}), and does on a resume, too; what was "
            "found so far stays: begin anew with a lower learning_rate in the searcher's "
            "learning.options (and a lower actor_learning_rate, where it is set)"
        )


class AgentLearner:
    """A model of Stable-Baselines3 with randomness of its own, on the CPU.

    `options` are arguments of the algorithm's class, such as ``learning_rate``, which is the
    actor's too where `actor_learning_rate` is None. PyTorch's global generator is left as it was
    found. Raises AutopruneError for an algorithm that is not known and for options that it refuses.
    """

    def __init__(
        self,
        algorithm: str,
        features: int,
        seed: int,
        *,
        options: Mapping[str, Any],
        replay: Mapping[str, Any],
        actor_learning_rate: float | None = None,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise unknown("algorithm", algorithm, ALGORITHMS)
        # a sweep's seed may have more bits than a generator takes
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._noise = torch.Generator().manual_seed(state)
        with _found_again():
            torch.set_rng_state(self._noise.get_state())
            self.model: Any = _built(algorithm, features, options, replay)
        self.model.set_logger(configure(None, []))
        if actor_learning_rate is not None:
            for group in self.model.actor.optimizer.param_groups:
                group["lr"] = actor_learning_rate
            # Stable-Baselines3 2.9 sets one rate for all before every step
            self.model._update_learning_rate = lambda _optimizers: None
        self._global_noise = algorithm != "sac"
        if not self._global_noise:
            self.model.actor.action_dist = OwnNoise(self._noise)

    @property
    def buffer(self) -> HindsightBuffer:
        """What it learns from."""
        buffer: HindsightBuffer = self.model.replay_buffer
        return buffer

    def act(self, observation: Features) -> float:
        """The policy's action, in [-1, 1]; drawn from the policy where it is stochastic."""
        action, _ = self.model.predict(observation, deterministic=self._global_noise)
        return float(action[0])

    def train(self, gradient_steps: int) -> dict[str, float]:
        """Take gradient steps; the losses and the entropy by name.

        TD3 and DDPG draw from PyTorch's global generator (Stable-Baselines3 2.9), which is set
        back afterwards; what they draw decides nothing, since no target is bootstrapped. Raises
        DivergedError where a figure is not finite.
        """
        try:
            found = self._trained(gradient_steps)
        except ValueError as error:  # torch's distributions refuse parameters that are NaN
            if all(bool(weights.isfinite().all()) for weights in self.model.policy.parameters()):
                raise  # a fault of something else, such as a reward of the user's
            raise DivergedError(first_line(error)) from error
        for name, figure in found.items():
            if not math.isfinite(figure):
                raise DivergedError(f"{name} is {figure}")
        return found

    def _trained(self, gradient_steps: int) -> dict[str, float]:
        with _one_thread(), _found_again() if self._global_noise else nullcontext():
            self.model.train(gradient_steps, self.model.batch_size)
            entropy = self._entropy()
        told = self.model.logger.name_to_value
        names = {"train/critic_loss": "critic_loss", "train/actor_loss": "actor_loss"}
        names |= {"train/ent_coef": "entropy_coefficient"}
        figures = {name: float(told[key]) for key, name in names.items() if key in told}
        return figures | entropy

    def save(self, path: Path) -> None:
        """Write networks, optimisers and the generator, as tensors and plain containers."""
        _, variables = self.model._get_torch_save_params()
        torch.save(
            {
                "parameters": self.model.get_parameters(),
                "variables": {name: getattr(self.model, name).detach() for name in variables},
                "updates": self.model._n_updates,
                "noise": self._noise.get_state(),
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Read what `save` wrote; nothing in the file is executed."""
        saved = torch.load(path, weights_only=True)
        self.model.set_parameters(saved["parameters"], device="cpu")
        for name, value in saved["variables"].items():
            # in place: an optimiser holds the same tensor
            getattr(self.model, name).data.copy_(value)
        self.model._n_updates = saved["updates"]
        self._noise.set_state(saved["noise"])

    def _entropy(self) -> dict[str, float]:
        """The policy's entropy, where it is stochastic, on a batch."""
        if self._global_noise:
            return {}
        batch = self.buffer.sample(self.model.batch_size)
        with torch.no_grad():
            _, log_prob = self.model.actor.action_log_prob(batch.observations)
        return {"entropy": -float(log_prob.mean())}


class OwnNoise(SquashedDiagGaussianDistribution):
    """SAC's squashed Gaussian drawn from a generator of its own.

    A sweep tells its searcher in a thread of its own. Were the noise drawn from PyTorch's global
    generator, a trial that trains meanwhile in the same process would not repeat.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(1)
        self._generator = generator

    def sample(self) -> torch.Tensor:
        """A reparametrised draw."""
        mean, deviation = self.distribution.mean, self.distribution.stddev
        noise = torch.randn(mean.shape, generator=self._generator)
        self.gaussian_actions = mean + deviation * noise
        return torch.tanh(self.gaussian_actions)


class _Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The spaces of `LayerwisePruning`: all that a model asks of an environment it never runs."""

    def __init__(self, features: int) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (features,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


def _built(
    algorithm: str, features: int, options: Mapping[str, Any], replay: Mapping[str, Any]
) -> Any:
    try:
        return ALGORITHMS[algorithm](
            "MlpPolicy",
            _Spaces(features),
            replay_buffer_class=HindsightBuffer,
            replay_buffer_kwargs=dict(replay),
            device="cpu",
            # a copy: Stable-Baselines3 2.9 writes into policy_kwargs
            **copy.deepcopy(dict(options)),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise AutopruneError(
            f"algorithm {algorithm!r} refuses {dict(options)}: {error}; see stable_baselines3."
            f"{algorithm.upper()} for the options it takes"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: several only wait for each other over networks as small as these."""
    before = torch.get_num_threads()
    if before == 1:  # setting it, also to what it is, empties the cache of oneDNN (torch 2.13)
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _found_again() -> Iterator[None]:
    """PyTorch's global generator of the CPU, set back to what it was."""
    with torch.random.fork_rng(devices=[]):
        yield
