"""Rules for single values, with every fault at once and the key that the user wrote."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.measurement.runtimes.protocol import is_device
from autoprune.settings.choices import choose

T = TypeVar("T")
Rule = tuple[Callable[[Any], bool], str]

POSITIVE: Rule = (lambda value: value > 0, "more than 0")
TASK_NAMES = ("metrics", "batches", "loss", "evaluate", "example")
"""What an object needs to be a Task (autoprune.tasks.protocol)."""
RUNTIME_NAMES = ("prepare", "name", "library", "device", "threads", "tolerance")
"""What an object needs to be a Runtime (autoprune.measurement.runtimes)."""

NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")
ONE_OR_MORE: Rule = (lambda value: value >= 1, "1 or more")
SEED: Rule = (lambda value: 0 <= value < 2**63, "0 or more, below 2**63")
"""Torch takes no others."""


class Faults:
    """Gathers the faults of several steps; what a faulty step gave is never used."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def of(self, make: Callable[[], T]) -> T:
        """What `make` gives; its faults are kept for `check`."""
        try:
            return make()
        except FaultsError as error:
            self.lines += error.faults
        except AutopruneError as error:
            self.lines.append(str(error))
        return None  # type: ignore[return-value]  # `check` raises before anybody reads it

    def check(self) -> None:
        """Raise FaultsError where there was any fault."""
        if self.lines:
            raise FaultsError(list(dict.fromkeys(self.lines)))


def check_ranges(section: str, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise FaultsError with every value of `config` that breaks its rule; null breaks none."""
    prefix = f"{section}." if section else ""
    faults = [
        f"{prefix}{key} is {config[key]}; choose {remedy}"
        for key, (holds, remedy) in rules.items()
        if config[key] is not None and not holds(config[key])
    ]
    if faults:
        raise FaultsError(faults)


def usable_seed(config: Mapping[str, Any]) -> int:
    """The seed of a config, and 0 where it breaks its rule, which is told by itself."""
    seed: int = config["seed"]
    holds, _ = SEED
    return seed if holds(seed) else 0


def check_finite(config: Mapping[str, Any]) -> None:
    """Raise FaultsError with every NaN and infinity: the journal, which is JSON, takes none."""

    def faults(value: Any, key: str) -> Iterator[str]:
        if isinstance(value, float) and not math.isfinite(value):
            unbounded = ", or null for no bound" if math.isinf(value) else ""
            yield f"{key} is {value}; choose a finite number{unbounded}"
        parts = value if isinstance(value, Mapping) else {}
        if isinstance(value, list):
            parts = dict(enumerate(value))
        for name, part in parts.items():
            yield from faults(part, f"{key}.{name}" if key else str(name))

    found = list(faults(config, ""))
    if found:
        raise FaultsError(found)


def check_one_of(key: str, value: str, options: Sequence[str]) -> None:
    """Raise AutopruneError unless `value` is one of `options`."""
    if value not in options:
        raise AutopruneError(f"{key}={value}: {choose(value, options)}")


def check_device(key: str, device: str) -> None:
    """Raise AutopruneError unless torch has the device on this machine."""
    check_device_name(key, device)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise AutopruneError(
            f"{key}={device}: torch finds no CUDA device on this machine, where the baseline is "
            "trained and judged; choose cpu"
        )


def check_device_name(key: str, device: str) -> None:
    """Raise AutopruneError unless some machine may have such a device."""
    if not is_device(device):
        raise AutopruneError(f"{key}={device}: no such device; choose cpu, cuda or cuda:0")


def check_offers(section: str, thing: object, names: Sequence[str], *, what: str) -> None:
    """Raise AutopruneError unless what a ``_target_`` gave has the attributes of a protocol."""
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise AutopruneError(
            f"{section}: the _target_ gave a {type(thing).__name__} without "
            f"{', '.join(missing)}; it must give {what}"
        )
