"""How a network is trained towards zeros before its cut, as plain facts."""

import math
from dataclasses import dataclass

from autoprune.domain.errors import FaultsError, broken_rules, unknown
from autoprune.domain.typed import check_types

METHODS = ("group_lasso", "slimming", "low_rank")
BUDGETS = ("none", "macs", "latency")


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Training of the unpruned network with a penalty that makes whole units exactly zero.

    For `epochs`, before the cut, every step of the optimizer is followed by the proximal step
    against `multiplier` times the penalty, which begins at `strength`. The penalty of `group_lasso`
    is the length of everything that makes a unit, weights, biases, scales and shifts as one block
    (Yuan and Lin, JRSS B, 2006); with `overlap` also of what reads it, and weights that so belong
    to two units are sums of latent variables (Jacob, Obozinski and Vert, Group Lasso with Overlap
    and Graph Lasso, ICML 2009). That of `slimming` are the absolute scales of batch norms (Liu et
    al., ICCV 2017). `low_rank` is `group_lasso` with the nuclear norm of every weight that the cut
    thins out besides, at `rank_strength`: what is left of a layer may then be written as two.

    As many units of each group as the cut will leave are spared, the longest: nothing is gained by
    making these shorter. With a `budget` the multiplier is learnt, by ascent on its logarithm: it
    grows as long as the units that are not zero cost more, in multiply-accumulates or in latency as
    the sweep's profile predicts it, than those that the cut will leave; by a factor of
    ``exp(multiplier_lr)`` an epoch as long as they cost twice as much.
    """

    epochs: int = 4
    method: str = "group_lasso"
    strength: float = 0.01
    overlap: bool = False
    budget: str = "none"
    multiplier_lr: float = 2.0
    rank_strength: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        faults = []
        for name, known in (("method", METHODS), ("budget", BUDGETS)):
            if getattr(self, name) not in known:
                faults.append(str(unknown(name, getattr(self, name), known)))
        rules = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "strength": (0 < self.strength < math.inf, "a positive number"),
            "multiplier_lr": (0 < self.multiplier_lr < math.inf, "a positive number"),
            "rank_strength": (0 < self.rank_strength < math.inf, "a positive number"),
        }
        faults += broken_rules(self, rules)
        if self.overlap and self.method != "group_lasso":
            faults.append(
                f"overlap is true and method is {self.method}; choose group_lasso, or no overlap"
            )
        if faults:
            raise FaultsError(faults)

    def __str__(self) -> str:
        """What it does: how long, and by which method to which budget."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        budget = "" if self.budget == "none" else f" to a budget of {self.budget}"
        return f"{epochs} of {self.method}{budget}"
