"""From a sweep's config to what is examined for it: the network, data and search are left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.orchestration.doctor.examination import Examination
from autoprune.orchestration.doctor.tracking import TrackingStore
from autoprune.orchestration.executors.bench import check_where
from autoprune.orchestration.folders import check_name
from autoprune.settings.build import tracking_of
from autoprune.settings.parts import precisions_in
from autoprune.settings.rules import SEED, Faults, check_finite, check_ranges, usable_seed
from autoprune.settings.running import executor_of, gate_of, meter_of, storage_of


def build_examination(config: Mapping[str, Any], *, code_paths: Sequence[str] = ()) -> Examination:
    """What to examine for the sweep that a plain config describes; nothing is started.

    Raises FaultsError with every fault of the sections that are examined. That a device is not
    there is for the examination to find.
    """
    faults = Faults()
    executor, meter = config["executor"], config["meter"]
    experiment = config["tracking"]["experiment"] or config["name"]
    faults.of(lambda: check_finite(config))
    faults.of(lambda: check_ranges("", config, {"seed": SEED}))
    faults.of(lambda: check_name(config["name"]))
    gate = faults.of(lambda: gate_of(meter))
    measured = faults.of(lambda: meter_of(meter, gate, seed=usable_seed(config)))
    if measured is not None:
        faults.of(lambda: precisions_in(config["precisions"], measured.runtime))
    faults.of(lambda: check_where(meter["where"], executor["address"]))
    runner = faults.of(lambda: executor_of(executor, code_paths))
    storage = faults.of(lambda: storage_of(executor["storage"]))
    tracking = faults.of(lambda: tracking_of(config))
    faults.check()
    return Examination(
        executor=runner,
        meter=measured,
        output=Path(config["output"]).resolve(),
        storage=storage,
        tracking=None if tracking.uri is None else TrackingStore(tracking.uri, experiment),
        where=meter["where"],
        device=executor["device"],
    )
