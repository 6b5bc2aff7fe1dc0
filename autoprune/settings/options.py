"""The options of `autoprune.search`: their types, their defaults, and the rules they keep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from torch import nn

from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.space import FP32, USUAL_KINDS
from autoprune.measurement.runtimes import Runtime
from autoprune.orchestration.request import FIRST
from autoprune.pruning.criteria import Criterion
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.settings.arguments import (
    PLACE,
    RUNTIME,
    SIZES,
    TEXT,
    TRUTH,
    a,
    all_of,
    number,
    offers,
    or_none,
    whole,
)
from autoprune.settings.rules import SEED, TASK_NAMES, Rule


class Options(TypedDict, total=False):
    """What `search` takes beyond the model, the task, the searcher and the budget."""

    recovery: FitPlan | Recovery
    early: nn.Module | None
    criterion: str | Criterion
    min_kept: float
    step: int | None
    exclude: Sequence[str]
    kinds: Sequence[str]
    precisions: Sequence[str]
    calibration_batches: int
    objectives: Sequence[str]
    constraints: Sequence[Constraint]
    uniform_first: Sequence[float]
    ladder: Ladder | None
    profile: bool
    runtime: Runtime | str | None
    batch_sizes: Sequence[int]
    measure_s: float
    where: str
    device: str
    slots: int | None
    inline: bool
    address: str | None
    storage: str | Path | None
    tracking: str | None
    optuna: bool
    export: Sequence[str]
    output: str | Path
    name: str
    resume: str | None
    seed: int


DEFAULTS: Options = {
    "recovery": FitPlan(epochs=8),
    "early": None,
    "criterion": "l1",
    "min_kept": 0.1,
    "step": None,
    "exclude": (),
    "kinds": USUAL_KINDS,
    "precisions": (FP32,),
    "calibration_batches": 8,
    "objectives": ("main", "speedup"),
    "constraints": (),
    "uniform_first": FIRST,
    "ladder": None,
    "profile": False,
    "runtime": None,
    "batch_sizes": (1,),
    "measure_s": 1.5,
    "where": "trial",
    "device": "cpu",
    "slots": None,
    "inline": False,
    "address": None,
    "storage": None,
    "tracking": "default",
    "optuna": True,
    "export": (),
    "output": "outputs",
    "name": "search",
    "resume": None,
    "seed": 0,
}

RULES: dict[str, Rule] = {
    "model": (a(nn.Module), "a network, an instance of nn.Module"),
    "task": (
        offers(TASK_NAMES),
        "a task (autoprune.tasks)",
    ),
    "trials": (or_none(whole), "a whole number, or None"),
    "minutes": (or_none(lambda given: number(given) and given > 0), "more than 0, or None"),
    "recovery": (a((FitPlan, Recovery)), "an autoprune.FitPlan or an autoprune.Recovery"),
    "early": (or_none(a(nn.Module)), "the network as it was early in its training, or None"),
    "criterion": (
        lambda given: isinstance(given, str) or offers(("name", "scores"))(given),
        'a name, such as "l1", or a criterion (autoprune.pruning.criteria)',
    ),
    "min_kept": (number, "a share between 0 and 1"),
    "step": (or_none(whole), "a whole number, or None"),
    "exclude": (all_of(a(str)), "a list of patterns"),
    "kinds": (all_of(a(str)), "a list of kinds of groups"),
    "precisions": (all_of(a(str)), 'a list of precisions, such as ["fp32", "int8"]'),
    "calibration_batches": (lambda value: whole(value) and value >= 1, "a whole number, 1 or more"),
    "objectives": (all_of(a(str)), "a list of metrics"),
    "constraints": (all_of(a(Constraint)), "a list of Constraint"),
    "uniform_first": (all_of(number), "a list of kept ratios"),
    "profile": TRUTH,
    "ladder": (or_none(a(Ladder)), "an autoprune.Ladder, or None"),
    "runtime": (
        or_none(lambda given: isinstance(given, str) or RUNTIME(given)),
        'a name, such as "onnxruntime", a runtime (autoprune.measurement.runtimes), or None',
    ),
    "batch_sizes": SIZES,
    "measure_s": (number, "a number of seconds"),
    "where": TEXT,
    "device": TEXT,
    "slots": (or_none(whole), "a whole number, or None"),
    "inline": TRUTH,
    "address": (or_none(a(str)), "a text, or None"),
    "storage": (or_none(a((str, Path))), "a path, a URL, or None"),
    "tracking": (or_none(a(str)), "an MLflow URI, or None"),
    "optuna": TRUTH,
    "export": (all_of(a(str)), 'a list of formats, such as ["onnx"]'),
    "output": PLACE,
    "name": TEXT,
    "resume": (or_none(a(str)), "the id of a sweep, or None"),
    "seed": (
        lambda value: whole(value) and SEED[0](value),
        f"a whole number, {SEED[1]}",
    ),
}
"""Of `model`, `task`, `trials` and `minutes`, too."""
