"""The known problems by name: each has one of the troubles that real networks give a search."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.problems.chain import TOLERANCE, ChainProblem, Floats, Noise

KINDS = ("independent", "coupled", "cliff", "staircase", "noisy", "infeasible")
SIZES = (8, 24, 100)
"""Groups of the small, the middle and the large problem of each kind."""

LEVELS = 16
_WHOLE_TICKS = 8000
_FIXED = 0.05
_HALF_LOST = 0.3
_COUPLED, _JOINT_LOST = 0.6, 0.5
_BLOCK = 4
_CLIFF_LOST = 0.2
_NOISE = Noise(accuracy=0.003, speedup=0.02)


class _Drawn(NamedTuple):
    """What is drawn for every group: its part of the time, how much it loses, and how steeply."""

    time_G: Floats  # noqa: N815
    loss_G: Floats  # noqa: N815
    power_G: Floats  # noqa: N815


def known_problem(kind: str, groups: int = 24, seed: int = 0) -> ChainProblem:
    """A problem of a kind of `KINDS`, with any number of groups from 2 up; the seed draws it.

    Every group has 16 legal widths. Groups differ by orders of magnitude in the time that they
    take and in the accuracy that cutting them loses. With half of everything kept a third of the
    tolerable loss is lost.

    - ``independent``: each group loses and takes its own.
    - ``coupled``: neighbours meet in layers, whose time is a product of both widths, and what
      they lose is more where both are cut.
    - ``cliff``: below a width of its own, a group loses much at once.
    - ``staircase``: time falls only with every fourth width, as with kernels that work on blocks.
    - ``noisy``: accuracy and speed are measured with errors.
    - ``infeasible``: trials in which some group keeps much more than its neighbour fail.

    Raises AutopruneError for another kind or fewer groups.
    """
    if kind not in KINDS:
        raise unknown("kind of problem", kind, KINDS)
    if groups < 2:
        raise AutopruneError(f"a problem of {groups} groups; choose 2 or more")
    rng = np.random.default_rng([seed, groups])
    drawn = _Drawn(
        rng.lognormal(0.0, 1.0, groups),
        rng.lognormal(0.0, 1.0, groups),
        rng.uniform(1.5, 4.0, groups),
    )
    build = {
        "independent": _independent,
        "coupled": _coupled,
        "cliff": _cliff,
        "staircase": _staircase,
        "noisy": _noisy,
        "infeasible": _infeasible,
    }[kind]
    return replace(build(drawn, rng), name=f"{kind}-{groups}")


def _space(groups: int) -> SearchSpace:
    """Groups that meet their neighbours in a layer, from wide to wider."""
    return SearchSpace(tuple(_axis(at, LEVELS * (4 + 12 * at // groups)) for at in range(groups)))


def _axis(at: int, size: int) -> Axis:
    layers = (f"l{at}", f"l{at + 1}")
    return Axis(Group(f"g{at:03d}", "channels", size, size // LEVELS, layers), 1, size)


def _independent(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    del rng
    return _problem(drawn, joint_time=0.0, joint_lost=0.0)


def _coupled(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    del rng
    return _problem(drawn, joint_time=_COUPLED, joint_lost=_JOINT_LOST)


def _cliff(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    problem = _problem(drawn, joint_time=0.0, joint_lost=0.0)
    edge_G = rng.uniform(0.15, 0.5, len(drawn.time_G))  # noqa: N806
    over_GL = _kept(len(edge_G)) < edge_G[:, None]  # noqa: N806
    return replace(problem, lost_GL=problem.lost_GL + _CLIFF_LOST * TOLERANCE * over_GL)


def _staircase(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    del rng
    problem = _problem(drawn, joint_time=0.0, joint_lost=0.0)
    full = [min(-(-(level + 1) // _BLOCK) * _BLOCK, LEVELS) - 1 for level in range(LEVELS)]
    return replace(problem, ticks_GL=problem.ticks_GL[:, full])


def _noisy(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    return replace(_coupled(drawn, rng), noise=_NOISE)


def _infeasible(drawn: _Drawn, rng: np.random.Generator) -> ChainProblem:
    problem = _coupled(drawn, rng)
    joints = len(drawn.time_G) - 1
    strict = rng.choice(joints, size=max(1, joints // 8), replace=False)
    kept_L = np.arange(1, LEVELS + 1)  # noqa: N806
    broken_HLL = np.zeros_like(problem.broken_HLL)  # noqa: N806
    broken_HLL[strict] = kept_L[None, :] > 4 * kept_L[:, None]
    return replace(problem, broken_HLL=broken_HLL)


def _problem(drawn: _Drawn, *, joint_time: float, joint_lost: float) -> ChainProblem:
    """Time and losses in the given parts shared by neighbours, the rest each group's own."""
    groups = len(drawn.time_G)
    kept_GL, cut_GL = _kept(groups), 1.0 - _kept(groups)  # noqa: N806
    lost_GL = drawn.loss_G[:, None] * cut_GL ** drawn.power_G[:, None]  # noqa: N806
    ticks_GL = drawn.time_G[:, None] * kept_GL  # noqa: N806
    both_H = np.sqrt(drawn.time_G[:-1] * drawn.time_G[1:])  # noqa: N806
    ticks_HLL = both_H[:, None, None] * kept_GL[:-1, :, None] * kept_GL[1:, None, :]  # noqa: N806
    worse_H = np.sqrt(drawn.loss_G[:-1] * drawn.loss_G[1:])  # noqa: N806
    lost_HLL = worse_H[:, None, None] * (cut_GL[:-1, :, None] * cut_GL[1:, None, :]) ** 2  # noqa: N806
    whole = (1.0 - _FIXED) * _WHOLE_TICKS
    ticks_GL = ticks_GL * ((1.0 - joint_time) * whole / ticks_GL[:, -1].sum())  # noqa: N806
    ticks_HLL = ticks_HLL * (joint_time * whole / ticks_HLL[:, -1, -1].sum())  # noqa: N806
    half = LEVELS // 2 - 1
    lost = _HALF_LOST * TOLERANCE
    lost_GL = lost_GL * ((1.0 - joint_lost) * lost / lost_GL[:, half].sum())  # noqa: N806
    lost_HLL = lost_HLL * (joint_lost * lost / lost_HLL[:, half, half].sum())  # noqa: N806
    return ChainProblem(
        name="",
        space=_space(groups),
        lost_GL=lost_GL,
        ticks_GL=np.rint(ticks_GL).astype(np.int64),
        lost_HLL=lost_HLL,
        ticks_HLL=np.rint(ticks_HLL).astype(np.int64),
        broken_HLL=np.zeros((groups - 1, LEVELS, LEVELS), dtype=bool),
        fixed_ticks=round(_FIXED * _WHOLE_TICKS),
    )


def _kept(groups: int) -> Floats:
    """The kept shares of every group, of shape (G, L)."""
    return np.tile(np.arange(1, LEVELS + 1) / LEVELS, (groups, 1))
