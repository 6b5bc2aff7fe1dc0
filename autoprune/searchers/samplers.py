"""Optuna's samplers by name, with defaults that suit the small budgets of a pruning search."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler

from autoprune.domain.errors import AutopruneError, unknown

OURS = ("seed", "constraints_func")
"""Arguments that the searcher sets itself (Optuna 5 deprecates the second)."""


LEAST = {"dividing_parameter": 1, "n_ei_candidates": 1}
"""The least value of whole numbers that may not be 0."""


@dataclass(frozen=True, slots=True)
class SamplerKind:
    """A sampler class of Optuna, the arguments we give it, and how often it is asked again.

    `draws` bounds the asks for one proposal while they repeat what was proposed before.
    """

    build: type[BaseSampler]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that may be set, by name, with what they are by default."""
        parameters = inspect.signature(self.build).parameters
        usual = {name: p.default for name, p in parameters.items() if name not in OURS}
        return {**usual, **self.defaults}


# Optuna's population of 50 would spend a budget of 24-100 trials on one or two generations: random
# search. On known problems of 8 and 24 groups (18 runs each, after 50, 100 and 300 trials) 10 did
# best of 6, 10, 16, 24 and 50 over all; 6 was ahead after 50 trials of 24 groups (0.458 of the
# best hypervolume against 0.441) and behind after 300 (0.527 against 0.578). No other probability
# of mutation, crossover or swapping did better than Optuna's over all.
_SMALL = {"population_size": 10}

# For several objectives Optuna models each parameter by itself; all together take a third of the
# time and gave as much or more of the best hypervolume (12 runs each: 0.62 against 0.58 at 8 groups
# and 0.46 against 0.44 at 24 after 50 trials, 0.73 against 0.72 and 0.53 against 0.49 after 150).
_JOINT = {"multivariate": True}

SAMPLERS: Mapping[str, SamplerKind] = {
    "nsga2": SamplerKind(NSGAIISampler, _SMALL, draws=8),
    "nsga3": SamplerKind(NSGAIIISampler, _SMALL, draws=8),
    "tpe": SamplerKind(TPESampler, _JOINT, draws=8),
    # A second ask costs seconds and finds the same optimum of the same acquisition function.
    "gp": SamplerKind(GPSampler, {"warn_independent_sampling": False}),
}


def build_sampler(name: str, seed: int, options: Mapping[str, Any]) -> BaseSampler:
    """Build the sampler `name` with `options` over our defaults; `seed` is any non-negative int.

    Raises AutopruneError for a sampler or an option that does not exist, with the near miss, and
    a value of the wrong kind or that Optuna refuses.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    kind = SAMPLERS[name]
    for option, value in options.items():
        if option not in kind.options:
            raise unknown(f"option of sampler {name!r}", option, kind.options)
        _check_kind(
            f"option {option!r} of sampler {name!r}",
            value,
            usual=kind.options[option],
            least=LEAST.get(option, 0),
        )
    # Optuna seeds a RandomState, which takes 32 bits.
    seed32 = int(np.random.SeedSequence(seed).generate_state(1)[0])
    try:
        with warnings.catch_warnings():
            # Optuna 5.0.0 calls NSGA-III and some options experimental; users did not pick Optuna.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return kind.build(**{**kind.defaults, **options, "seed": seed32})
    except (TypeError, ValueError) as error:
        raise AutopruneError(
            f"sampler {name!r} refuses {dict(options)}: {error}; see optuna.samplers."
            f"{kind.build.__name__} for the values it takes"
        ) from error


def _check_kind(what: str, value: Any, *, usual: Any, least: int) -> None:
    """Optuna 5.0.0 takes any text for true, 2.5 trials for a number, and -1 of whatever it is."""
    kinds = {bool: "true or false", int: f"a whole number from {least} on"}
    if type(usual) not in kinds:
        return
    if type(value) is not type(usual) or (type(usual) is int and value < least):
        raise AutopruneError(f"{what} is {value!r}; choose {kinds[type(usual)]}")
