"""Where trials run and save, and how speed is measured, by the sections of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import Gate, NoGate, QuietNode
from autoprune.orchestration.executors.inline import InlineExecutor
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.executors.tune_driver import RETRIES
from autoprune.orchestration.interrupt import OnInterrupt
from autoprune.orchestration.request import Executor
from autoprune.orchestration.store import Store, store_at
from autoprune.settings.rules import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    POSITIVE,
    RUNTIME_NAMES,
    Faults,
    check_device_name,
    check_offers,
    check_one_of,
    check_ranges,
)
from autoprune.settings.targets import build_target


def gate_of(config: Mapping[str, Any]) -> Gate:
    """The quiet gate of a meter's config."""
    folder = config["gate_folder"]
    if folder is not None and not Path(folder).is_absolute():
        raise AutopruneError(
            f"meter.gate_folder is {folder!r}; name it from the root on, like /mnt/gate, because "
            "every process of the node looks for it by itself"
        )
    return QuietNode(None if folder is None else Path(folder)) if config["gate"] else NoGate()


def meter_of(config: Mapping[str, Any], gate: Gate, *, seed: int) -> PairedMeter:
    """The meter of a config."""
    bounds = ("half_width", "max_s", "others_limit")
    check_ranges("meter", config, dict.fromkeys(bounds, POSITIVE))
    settings = MeterSettings(
        batch_sizes=tuple(config["batch_sizes"]),
        half_width=config["half_width"],
        max_s=config["max_s"],
        others_limit=config["others_limit"],
        seed=seed,
    )
    runtime = build_target("meter.runtime", config["runtime"])
    check_offers(
        "meter.runtime",
        runtime,
        RUNTIME_NAMES,
        what="a Runtime (autoprune.measurement.runtimes)",
    )
    return PairedMeter(runtime, gate, settings)


def executor_of(config: Mapping[str, Any], code_paths: Sequence[str]) -> Executor:
    """Where trials run, by a config; whether its device is there is another question."""
    faults, kind = Faults(), config["kind"]
    faults.of(lambda: check_one_of("executor.kind", kind, ["ray", "inline"]))
    faults.of(
        lambda: check_one_of(
            "executor.on_interrupt", config["on_interrupt"], [str(policy) for policy in OnInterrupt]
        )
    )
    faults.of(lambda: check_device_name("executor.device", config["device"]))
    rules = dict.fromkeys(("slots", "threads", "cpus"), ONE_OR_MORE)
    faults.of(lambda: check_ranges("executor", config, rules))
    asked = ("cpus", "gpus", "memory_gb", "resources", "accelerator", "labels")
    demand = faults.of(lambda: Demand(**{name: config[name] for name in asked}))
    retries = {cause: config["retries"][cause.name.lower()] for cause in RETRIES}
    allowed = dict.fromkeys((cause.name.lower() for cause in retries), NOT_NEGATIVE)
    faults.of(lambda: check_ranges("executor.retries", config["retries"], allowed))
    faults.check()
    if kind == "inline":
        return InlineExecutor()
    return TuneExecutor(
        wanted_slots=config["slots"],
        demand=demand,
        address=config["address"],
        retries=retries,
        code_paths=tuple(code_paths),
    )


def storage_of(place: str | None) -> Store | None:
    """Where trials save, None for the sweep's own folder."""
    return None if place is None else store_at(place, key="executor.storage")
