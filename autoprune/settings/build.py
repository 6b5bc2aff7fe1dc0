"""From a composed config to a request of plain objects, with every fault at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line, shown
from autoprune.measurement.meter import calibrated
from autoprune.orchestration.executors.bench import check_where, placed
from autoprune.orchestration.exports import check_formats
from autoprune.orchestration.folders import check_name
from autoprune.orchestration.interrupt import OnInterrupt
from autoprune.orchestration.launch import Tracking
from autoprune.orchestration.planning import rehearse_goal
from autoprune.orchestration.request import BaselineRequest, SweepRequest, check_rewinding
from autoprune.orchestration.tracking.connection import recalled
from autoprune.searchers.grid import check_ratios
from autoprune.settings.parts import (
    budget_of,
    criteria_of,
    fit_plan,
    goal_of,
    ladder_of,
    limits_of,
    precisions_in,
    recoveries_of,
    space_of,
)
from autoprune.settings.rules import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    SEED,
    TASK_NAMES,
    Faults,
    check_device,
    check_finite,
    check_offers,
    check_one_of,
    check_ranges,
    usable_seed,
)
from autoprune.settings.running import executor_of, gate_of, meter_of, storage_of
from autoprune.settings.targets import build_target, source_digests
from autoprune.tasks.protocol import Task

CUDA_STEP = 8
"""In which steps groups shrink on CUDA, whose kernels want widths that are multiples of it."""


def build_request(config: Mapping[str, Any], *, code_paths: Sequence[str] = ()) -> SweepRequest:
    """The request that a plain sweep config describes.

    Raises FaultsError with every fault of every section. Data are loaded and the network is
    built; nothing is trained, measured or written.
    """
    faults = Faults()
    executor, meter = config["executor"], config["meter"]
    step = CUDA_STEP if executor["device"].startswith("cuda") else 1
    gate = faults.of(lambda: gate_of(meter))
    faults.of(lambda: check_finite(config))
    rules = {"seed": SEED, "calibration_batches": ONE_OR_MORE}
    faults.of(lambda: check_ranges("", config, rules))
    faults.of(lambda: check_device("executor.device", executor["device"]))
    faults.of(lambda: check_name(config["name"]))
    faults.of(lambda: check_ratios("uniform_first", config["uniform_first"]))
    task = faults.of(lambda: task_of(config["task"], config["data"]))
    goal = faults.of(lambda: goal_of(config["objective"]))
    measured = faults.of(lambda: meter_of(meter, gate, seed=usable_seed(config)))
    faults.of(lambda: check_where(meter["where"], executor["address"]))
    if task is not None and goal is not None and measured is not None:
        faults.of(lambda: rehearse_goal(goal, task, measured))
    parts: dict[str, Any] = {
        "model": faults.of(lambda: model_of(config["model"], seed=usable_seed(config))),
        "meter": measured,
        "searcher": faults.of(lambda: build_target("searcher", config["searcher"], partial=True)),
        "ladder": faults.of(lambda: ladder_of(config["ladder"])),
        "executor": faults.of(lambda: executor_of(executor, code_paths)),
        "storage": faults.of(lambda: storage_of(executor["storage"])),
        "budget": faults.of(lambda: budget_of(config["budget"])),
        "baseline": faults.of(lambda: baseline_of(config)),
        "space": faults.of(lambda: space_of(config["space"], default_step=step)),
        "criteria": faults.of(lambda: criteria_of(config["importance"])),
        "recoveries": faults.of(lambda: recoveries_of(config)),
        "limits": faults.of(lambda: limits_of(config)),
    }
    if measured is not None:
        found = faults.of(lambda: precisions_in(config["precisions"], measured.runtime))
        parts["precisions"] = found
    faults.of(lambda: tracking_of(config))
    if parts["baseline"] is not None and parts["recoveries"] is not None:
        faults.of(lambda: check_rewinding(parts["baseline"], parts["recoveries"]))
    faults.check()
    parts["meter"] = placed(
        calibrated(parts["meter"], parts["model"], task),
        meter["where"],
        address=executor["address"],
        code_paths=code_paths,
    )
    return SweepRequest(
        name=config["name"],
        task=task,
        goal=goal,
        output=Path(config["output"]).resolve(),
        graph_limit_s=config["space"]["graph_limit_s"],
        seed=config["seed"],
        uniform_first=tuple(config["uniform_first"]),
        profile=config["profile"],
        calibration_batches=config["calibration_batches"],
        gate=gate,
        device=executor["device"],
        threads=executor["threads"] or executor["cpus"],
        model_config=_recipe_model(config["model"]),
        config=_kept(config),
        code_paths=tuple(code_paths),
        experiment=config["tracking"]["experiment"],
        on_interrupt=OnInterrupt(executor["on_interrupt"]),
        **parts,
    )


def tracking_of(config: Mapping[str, Any]) -> Tracking:
    """Where the results of a sweep config go."""
    tracking = config["tracking"]
    keep = tracking["keep_models"]
    check_one_of("tracking.keep_models", keep, ["front", "all"])
    check_formats("tracking.export", tracking["export"])
    uri = store_of(tracking, config["output"])
    return Tracking(
        uri if tracking["enabled"] else None,
        keep_all_models=keep == "all",
        optuna=tracking["optuna"],
        export=tuple(tracking["export"]),
    )


def store_of(tracking: Mapping[str, Any], output: str) -> str:
    """The MLflow store of a config, used or not."""
    return recalled(tracking["uri"]) if tracking["uri"] else default_uri(Path(output))


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it is written down: `recalled` finds what the store's address lacks."""
    tracking = config["tracking"]
    return {**config, "tracking": {**tracking, "uri": tracking["uri"] and shown(tracking["uri"])}}


def default_uri(output: Path) -> str:
    """The MLflow database below an output folder."""
    return f"sqlite:///{output.resolve()}/mlflow.db"


def task_of(config: Mapping[str, Any], data: Mapping[str, Any]) -> Task:
    """The task of a config, with its data."""
    task: Task
    if config.get("data") == data and "_target_" in data:
        task = _task_with(config, data)
    else:
        task = build_target("task", config)
    check_offers("task", task, TASK_NAMES, what="a Task (autoprune.tasks.protocol)")
    return task


def _task_with(config: Mapping[str, Any], data: Mapping[str, Any]) -> Task:
    """The task with its data, which are built by themselves: their faults are not the task's."""
    faults = Faults()
    rest = {key: value for key, value in config.items() if key != "data"}
    found = faults.of(lambda: build_target("data", data))
    make = faults.of(lambda: build_target("task", rest, partial=True))
    faults.check()
    assert make is not None
    try:
        task: Task = make(data=found)
    except AutopruneError:
        raise
    except Exception as error:  # whatever the user's task raises
        raise AutopruneError(
            f"task: {config['_target_']} raised {type(error).__name__}: {first_line(error)}; "
            "change the arguments in task, or mend the target"
        ) from error
    return task


def model_of(config: Mapping[str, Any], *, seed: int) -> nn.Module:
    """The unpruned network of a config, with the first weights that the seed gives."""
    # Networks draw their first weights from torch's global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_target("model", config)
    if not isinstance(model, nn.Module):
        raise AutopruneError(
            f"model: {config['_target_']} gave a {type(model).__name__}; it must give an nn.Module"
        )
    return model


def _recipe_model(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a recipe may say of the model; None where its arguments are more than plain values.

    `autoprune.load` then needs the model from its caller.
    """

    def special(value: Any) -> bool:
        if isinstance(value, Mapping):
            return any(str(k).startswith("_") or special(v) for k, v in value.items())
        return isinstance(value, list) and any(map(special, value))

    return None if special({k: v for k, v in config.items() if k != "_target_"}) else config


def baseline_of(config: Mapping[str, Any]) -> BaselineRequest:
    """Where the unpruned network of a config has its weights from."""
    baseline = config["baseline"]
    if baseline["checkpoint"] == "":
        raise AutopruneError(
            "baseline.checkpoint has no value; set it to a file of weights, or choose "
            "baseline=train"
        )
    if baseline["checkpoint"] is not None:
        return BaselineRequest(
            checkpoint=baseline["checkpoint"], store=store_of(config["tracking"], config["output"])
        )
    described = {key: config[key] for key in ("model", "data", "task", "seed")}
    described["fit"] = baseline["fit"]
    check_ranges("baseline", baseline, {"keep_epoch": NOT_NEGATIVE})
    return BaselineRequest(
        plan=fit_plan("baseline.fit", baseline["fit"]),
        identity={**described, "sources": source_digests(described)},
        keep_epoch=baseline["keep_epoch"],
    )
