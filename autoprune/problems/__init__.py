"""Pruning problems of formulas, whose best front is known: for testing and comparing searchers."""

from autoprune.problems.chain import ChainProblem, Noise
from autoprune.problems.known import KINDS, SIZES, known_problem

__all__ = ["KINDS", "SIZES", "ChainProblem", "Noise", "known_problem"]
