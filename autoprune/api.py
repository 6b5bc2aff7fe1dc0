"""The Python interface: a sweep from a script or a notebook, without configuration files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from rich.console import Console
from torch import nn

from autoprune.domain.bounds import Bounds
from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.ladder import Ladder
from autoprune.measurement.meter import MeterSettings, PairedMeter, calibrated
from autoprune.measurement.quiet import QuietNode
from autoprune.measurement.runtimes import Runtime, TorchRuntime
from autoprune.orchestration.artifacts import load
from autoprune.orchestration.comparison.compare import ComparisonRequest, compare
from autoprune.orchestration.comparison.records import Comparison
from autoprune.orchestration.executors.bench import placed
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.exports import check_formats
from autoprune.orchestration.folders import find_sweep
from autoprune.orchestration.front import Front, Member
from autoprune.orchestration.launch import Launched, Listeners, Tracking, launch
from autoprune.orchestration.promotion.promote import FinishedSweep
from autoprune.orchestration.reports.console import show_front, show_summary, stdout
from autoprune.orchestration.reports.live import live_watcher
from autoprune.orchestration.request import (
    BaselineRequest,
    Executor,
    GoalRequest,
    SpaceRequest,
    SweepRequest,
)
from autoprune.orchestration.store import store_at
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.distill import Distillation
from autoprune.pruning.healing import Recovery
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.recover import FitPlan, fit
from autoprune.pruning.schedule import Schedule
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.searchers.named import AnyFactory, searcher_named
from autoprune.settings.arguments import SIZES, TRUTH, a, check_arguments
from autoprune.settings.build import CUDA_STEP, default_uri
from autoprune.settings.given import RUNTIMES, Given, given_meters, given_pair, runtime_named
from autoprune.settings.options import DEFAULTS, RULES, Options
from autoprune.settings.parts import named_recovery, precisions_in
from autoprune.tasks.protocol import Inputs, Task

__all__ = [
    "AutopruneError",
    "Distillation",
    "FitPlan",
    "Front",
    "Ladder",
    "Member",
    "Options",
    "Reconstruction",
    "Recovery",
    "Schedule",
    "Sparsity",
    "load",
    "measure",
    "search",
    "train",
]


def search(
    model: nn.Module,
    task: Task,
    *,
    searcher: str | AnyFactory = "nsga2",
    trials: int | None = 24,
    minutes: float | None = None,
    **options: Unpack[Options],
) -> Front:
    """Search for the fastest versions of a trained network worth having; returns the front.

    The sweep is the one that ``autoprune sweep`` runs: it ends after `trials` or `minutes`,
    shows its front while it runs, and is kept in `output` and in MLflow. `model` is left as it
    is. Raises AutopruneError for what cannot be searched. The options, and what they are where
    they are left out:

    - `recovery` (``FitPlan(epochs=8)``): how each pruned network heals; an `autoprune.Recovery`
      adds a `Distillation`, a `Reconstruction`, `Sparsity` before the cut or a `Schedule` of
      rounds; one that rewinds does so to `early` (None), the network as it was early in its
      training. `criterion` (``"l1"``, another name, or an object of `autoprune.pruning.criteria`
      or your own) picks the units that it loses.
    - `min_kept` (0.1): the least share of its units that a group keeps, in multiples of `step`
      (1, on CUDA 8); those whose names match a pattern of `exclude` stay as they are, and those
      that are not of `kinds` (``("channels", "neurons", "heads")``; ``"blocks"`` is depth).
    - `precisions` (``("fp32",)``): with ``("fp32", "int8")`` the search chooses which networks are
      quantised, on ``runtime="onnxruntime"``; `calibration_batches` (8) of train are looked at.
    - `objectives` (``("main", "speedup")``), `constraints` (``Constraint("size_mb", high=2)``),
      and `uniform_first`: equal ratios that are tried before the searcher proposes.
    - `ladder` (None): an `autoprune.Ladder` on whose rungs trials pause while better ones go on;
      `profile` (False): profile the network first, for a searcher that reads what groups give.
    - `runtime` (PyTorch, on `device`) is what speed is measured on, an object of
      `autoprune.measurement.runtimes` or a name as `measure` takes it, at `batch_sizes` ((1,)), for
      `measure_s` (1.5) seconds at most; `where` is ``"trial"``, beside it, or ``"bench"``, on the
      nodes of the cluster that offer that resource.
    - `slots`: trials at a time, in Ray (as many as the machine has cores, or the cluster at
      `address`); ``inline=True`` runs them one by one in this process.
    - `storage` (None): where trials save what they go on from, a path or a URL of fsspec's
      (``"s3://bucket/sweeps"``); without one it is `output`, which all nodes of a cluster must see.
    - `tracking`: an MLflow URI (sqlite in `output`); None for no MLflow.
    - `optuna`: keep a study in the sweep's folder, for optuna-dashboard (True). `export`:
      ``("onnx",)`` writes the front's networks as ONNX, too, beside their weights.
    - `resume`: the id of a sweep in `output`, or ``"latest"``, to go on with; model, task,
      searcher and options must be those it began with.
    - `output` (``"outputs"``), `name` of the sweep, and `seed`.
    """
    for name in options:
        if name not in DEFAULTS:
            raise unknown("option", name, DEFAULTS)
    chosen: Options = {**DEFAULTS, **options}
    check_arguments(
        {"model": model, "task": task, "trials": trials, "minutes": minutes, **chosen}, RULES
    )
    check_formats("export", chosen["export"])
    factory = searcher_named(searcher) if isinstance(searcher, str) else searcher
    budget = Budget(trials=trials, wall_s=None if minutes is None else 60 * minutes)
    request = _request(model, task, chosen, factory=factory, budget=budget)
    uri = chosen["tracking"]
    if uri == "default":
        uri = default_uri(request.output)
    resumed = chosen["resume"]
    console = stdout()
    launched = launch(
        request,
        Tracking(uri, optuna=chosen["optuna"], export=tuple(chosen["export"])),
        folder=None if resumed is None else find_sweep(request.output, resumed),
        listeners=Listeners(watchers=(live_watcher(console),)),
    )
    _show_end(console, launched)
    result = launched.result
    return Front(FinishedSweep(result.folder, result.view, request, uri))


def measure(
    candidate: Given,
    baseline: Given,
    example: Inputs | None = None,
    *,
    runtimes: Sequence[str | Runtime] = ("eager",),
    batch_sizes: Sequence[int] = (1,),
    memory: bool = False,
    calibration: Sequence[Inputs] = (),
) -> Comparison:
    """Time two networks against each other; a row for every runtime and batch size.

    Each is an ``nn.Module``, an exported program, or a path: to a folder that autoprune wrote, or
    to a ``.pt2`` file. `example` is an input of batch size 1; where it is left out, a file tells.
    `runtimes` are the names that ``autoprune measure`` takes, or objects of
    `autoprune.measurement.runtimes`; those in int8 are calibrated on `calibration`, batches of
    inputs of any size. With `memory` the memory that serving takes is measured,
    too, in a process each. ``measure(...).timed[0].speedup`` is the first row's `Speedup`; rows
    that gave none stand in `untimed`, with the reason. Raises AutopruneError for networks that
    do not fit together.
    """
    given = {"runtimes": runtimes, "batch_sizes": batch_sizes, "memory": memory}
    check_arguments(given, {"runtimes": RUNTIMES, "batch_sizes": SIZES, "memory": TRUTH})
    sizes = MeterSettings(batch_sizes=tuple(batch_sizes)).batch_sizes
    request = ComparisonRequest(
        given_pair(candidate, baseline, example),
        given_meters(runtimes, calibration),
        batch_sizes=sizes,
        memory=memory,
        code_paths=_code_paths(),
    )
    return compare(request)


def train(model: nn.Module, task: Task, plan: FitPlan, *, seed: int = 0) -> list[float]:
    """Train a network in place by `plan`; returns the main metric on val after every epoch.

    For a network that has no weights yet: what `search` prunes should be trained out.
    """
    given = {"model": model, "task": task, "plan": plan, "seed": seed}
    rules = {name: RULES[name] for name in ("model", "task", "seed")}
    check_arguments(given, {**rules, "plan": (a(FitPlan), "an autoprune.FitPlan")})
    main = task.metrics[0].name
    return [evaluate(model, task, "val")[main] for _ in fit(model, task, plan, seed=seed)]


def _request(
    model: nn.Module, task: Task, chosen: Options, *, factory: AnyFactory, budget: Budget
) -> SweepRequest:
    device, seed, step = chosen["device"], chosen["seed"], chosen["step"]
    storage = chosen["storage"]
    criterion = chosen["criterion"]
    if isinstance(criterion, str):
        criterion = criterion_of(criterion)
    gate = QuietNode()
    settings = MeterSettings(
        batch_sizes=tuple(chosen["batch_sizes"]), max_s=chosen["measure_s"], seed=seed
    )
    runtime = chosen["runtime"] or TorchRuntime(device=device)
    meter = PairedMeter(
        runtime_named(runtime) if isinstance(runtime, str) else runtime, gate, settings
    )
    if step is None:
        step = CUDA_STEP if device.startswith("cuda") else 1
    code_paths = _code_paths()
    return SweepRequest(
        name=chosen["name"],
        model=model,
        task=task,
        meter=placed(
            calibrated(meter, model, task),
            chosen["where"],
            address=chosen["address"],
            code_paths=code_paths,
        ),
        searcher=factory,
        uniform_first=tuple(chosen["uniform_first"]),
        ladder=chosen["ladder"],
        profile=chosen["profile"],
        executor=_executor(chosen, code_paths),
        budget=budget,
        output=Path(chosen["output"]).resolve(),
        storage=None if storage is None else store_at(str(storage), key="storage"),
        seed=seed,
        baseline=BaselineRequest(early=chosen["early"]),
        space=SpaceRequest(
            Bounds("*", min_kept=chosen["min_kept"], step=step),
            exclude=chosen["exclude"],
            kinds=chosen["kinds"],
        ),
        goal=GoalRequest(chosen["objectives"], chosen["constraints"]),
        precisions=precisions_in(chosen["precisions"], meter.runtime),
        calibration_batches=chosen["calibration_batches"],
        criteria={criterion.name: criterion},
        recoveries=named_recovery(chosen["recovery"]),
        gate=gate,
        device=device,
        code_paths=code_paths,
    )


def _code_paths() -> tuple[str, ...]:
    """What a script imports lies beside it, what a notebook imports in the folder it works in."""
    return tuple(dict.fromkeys(str(Path(place).resolve()) for place in (sys.path[0], ".")))


def _executor(chosen: Options, code_paths: Sequence[str]) -> Executor:
    slots, address = chosen["slots"], chosen["address"]
    if slots is not None and slots < 1:
        raise AutopruneError(f"slots is {slots}; choose 1 or more, or inline=True for no Ray")
    if chosen["inline"]:
        if slots is not None or address is not None:
            raise AutopruneError(
                "inline=True runs one trial at a time; leave slots and address out"
            )
        return InlineExecutor()
    gpus = float(chosen["device"].startswith("cuda"))
    return TuneExecutor(slots, Demand(gpus=gpus), address=address, code_paths=code_paths)


def _show_end(console: Console, launched: Launched) -> None:
    result = launched.result
    if console.is_jupyter:  # the live table is still there
        show_summary(console, result.view)
    else:
        show_front(console, result.view)
    for line in launched.exported:
        console.print(f"exported  {line}", highlight=False, markup=False, soft_wrap=True)
    for line in launched.warnings:
        console.print(f"warning   {line}", highlight=False, markup=False, soft_wrap=True)
    if not result.complete:
        hint = f"interrupted; {result.view.command('resume')} goes on"
        console.print(hint, highlight=False, markup=False, soft_wrap=True)
