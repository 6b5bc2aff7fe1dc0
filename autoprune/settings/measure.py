"""From a composed config of `autoprune measure` to a request of plain objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError, check_once, first_line
from autoprune.measurement.meter import MeterSettings, PairedMeter, calibrated
from autoprune.measurement.runtimes.protocol import uncalibrated
from autoprune.orchestration.baseline import BaselineCache, load_checkpoint
from autoprune.orchestration.comparison.compare import ComparisonRequest, MeterOrNone, NoMeter
from autoprune.orchestration.comparison.networks import (
    Network,
    Origin,
    artifact_in,
    load_network,
    unpruned,
)
from autoprune.orchestration.comparison.pair import pair_of
from autoprune.orchestration.folders import BASELINE_FILE
from autoprune.settings.build import baseline_of, model_of, store_of, task_of
from autoprune.settings.choices import choose
from autoprune.settings.compose import compose_config, given_keys, options_of, plain, quoted
from autoprune.settings.rules import SEED, Faults, check_ranges, usable_seed
from autoprune.settings.running import gate_of, meter_of
from autoprune.tasks.protocol import Inputs, Task

DESCRIBES = ("experiment", "model", "data", "task")
"""What on a command line says how the networks are built and what they are given."""


@dataclass(frozen=True)
class MeasureCommand:
    """What `autoprune measure` was asked.

    `config` was composed from `words`, with the user's configs in `config_dir`. `candidate` is
    what names the network; `sweep` is the folder of the sweep that it lies in and `sweep_config`
    what that one ran with, None where there is no such thing.
    """

    config: Mapping[str, Any]
    candidate: str
    words: Sequence[str] = ()
    config_dir: str | None = None
    sweep: Path | None = None
    sweep_config: Mapping[str, Any] | None = None

    @cached_property
    def given(self) -> frozenset[str]:
        """The keys that the command line set."""
        return given_keys(self.words)

    @property
    def named(self) -> bool:
        """Whether anybody said how the networks are built; otherwise there are defaults only."""
        described = any(key.partition(".")[0] in DESCRIBES for key in self.given)
        return described or self.sweep_config is not None

    @cached_property
    def own(self) -> Mapping[str, Any]:
        """The config that says so: the sweep's, with what the command line says otherwise."""
        sweep = self.sweep_config
        if sweep is None or "experiment" in self.given:
            return self.config
        own = {key: self._section(key) for key in ("model", "data", "task", "meter")}
        if sweep["task"].get("data") == sweep["data"]:
            own["task"] = {**own["task"], "data": own["data"]}
        return {**sweep, **own}

    def _section(self, key: str) -> Mapping[str, Any]:
        """A section of the sweep's config; another option replaces it, single keys change it."""
        assert self.sweep_config is not None
        if key in self.given:
            return dict(self.config[key])
        return _overlaid(self.sweep_config[key], self.config[key], self.given, key)

    @property
    def origin(self) -> Origin:
        """What the files of the networks do not say."""
        tracked = self.config if "tracking.uri" in self.given else self.own
        return Origin(
            lambda: model_of(self.own["model"], seed=usable_seed(self.own)),
            named=self.named,
            store=store_of(tracked["tracking"], self.config["output"]),
            allow=self.config["allow"],
        )

    @cached_property
    def task(self) -> Task:
        """The task, with its data."""
        return task_of(self.own["task"], self.own["data"])


def build_comparison(asked: MeasureCommand, *, code_paths: Sequence[str] = ()) -> ComparisonRequest:
    """The request that a command line describes; nothing is measured, or written.

    Raises FaultsError for what cannot be measured.
    """
    faults = Faults()
    faults.of(lambda: check_ranges("", asked.config, {"seed": SEED}))
    sizes = tuple(asked.config["batch_sizes"])
    if sizes:
        faults.of(lambda: MeterSettings(batch_sizes=sizes))
    meters = faults.of(lambda: _meters(asked))
    candidate = faults.of(lambda: load_network(asked.candidate, asked.origin))
    baseline = faults.of(lambda: _baseline(asked))
    faults.check()
    pair = pair_of(baseline, candidate, _example(asked, baseline, candidate))
    return ComparisonRequest(
        pair,
        {
            name: _or_reason(partial(_calibrated, meter, asked, baseline))
            for name, meter in meters.items()
        },
        batch_sizes=sizes,
        memory=asked.config["memory"],
        code_paths=code_paths,
    )


def named_meters(
    names: Sequence[str], words: Sequence[str] = (), config_dir: str | None = None
) -> dict[str, MeterOrNone]:
    """The meters of the options `names` of the group `meter`, with the overrides `words`.

    Instead of one that cannot be had here there is the reason. Raises FaultsError for names that
    there are not.
    """
    known = options_of("meter", config_dir)
    faults = Faults()
    faults.lines += [
        f"runtimes: there is no runtime {name!r}; {choose(name, known)}"
        for name in names
        if name not in known
    ]
    faults.of(lambda: check_once("runtimes", names))
    faults.check()
    configs = {name: faults.of(partial(_config_on, name, words, config_dir)) for name in names}
    faults.check()
    return {name: _or_reason(partial(_meter, config)) for name, config in configs.items()}


def _config_on(name: str, words: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    return plain(compose_config("measure", [*words, f"meter={name}"], config_dir=config_dir))


def _or_reason(make: Callable[[], MeterOrNone]) -> MeterOrNone:
    """A meter, or why it cannot be had: that costs its own rows only."""
    try:
        return make()
    except AutopruneError as error:
        return NoMeter(str(error))


def _meters(asked: MeasureCommand) -> Mapping[str, MeterOrNone]:
    """The meters by the names in `runtimes`; without any the config's, or the sweep's, own."""
    names, given = asked.config["runtimes"], asked.given
    if names and "meter" in given:
        raise AutopruneError("meter= and runtimes= both choose runtimes; leave meter= out")
    if "meter.where" in given and asked.own["meter"]["where"] != "trial":
        raise AutopruneError(
            "autoprune measure measures where it runs, and meter.where is "
            f"{asked.own['meter']['where']}; run it on the bench itself, and leave meter.where out"
        )
    if names:
        words = list(asked.words)
        if "executor" not in given and "executor.device" not in given:
            words.append(f"executor.device={asked.own['executor']['device']}")
        # the gate is the node's, whatever runs on it
        folder = asked.own["meter"]["gate_folder"]
        if folder is not None and "meter.gate_folder" not in given:
            words.append(f"meter.gate_folder={quoted(folder)}")
        return named_meters(names, words, asked.config_dir)
    meter = _meter({**asked.own, "seed": asked.config["seed"]})
    return {meter.runtime.name: meter}


def _meter(config: Mapping[str, Any]) -> PairedMeter:
    section = config["meter"]
    return meter_of(section, gate_of(section), seed=usable_seed(config))


def _overlaid(
    section: Mapping[str, Any], other: Mapping[str, Any], given: frozenset[str], at: str
) -> dict[str, Any]:
    """A section of a sweep's config, with what the command line set in the same section."""
    found = dict(section)
    for key, value in other.items():
        name = f"{at}.{key}"
        if name in given:
            found[key] = value
        elif isinstance(value, Mapping) and isinstance(section.get(key), Mapping):
            found[key] = _overlaid(section[key], value, given, name)
    return found


def _baseline(asked: MeasureCommand) -> Network:
    """The baseline: the one named, or that of the candidate's sweep, or the experiment's own."""
    origin, checkpoint = asked.origin, asked.config["baseline"]["checkpoint"]
    if checkpoint:
        return load_network(checkpoint, origin)
    if asked.sweep is not None and not {"baseline", "baseline.checkpoint"} & asked.given:
        weights = asked.sweep / BASELINE_FILE
        artifact = artifact_in(Path(asked.candidate))
        if origin.named:
            return Network(load_checkpoint(origin.model(), str(weights)).model, str(weights))
        if artifact is not None:
            return unpruned(artifact, weights, allow=origin.allow)
    request = baseline_of(asked.own)
    if asked.named and request.plan is not None:
        kept = BaselineCache.below(Path(asked.config["output"]).resolve())
        found = kept.find(request.identity, origin.model())
        if found is not None:
            return Network(found.model, found.source)
    raise AutopruneError(
        f"no baseline is named{', and the experiment has trained none' if asked.named else ''}; "
        "set baseline= to a network, as candidate= takes them"
    )


def _example(asked: MeasureCommand, baseline: Network, candidate: Network) -> Inputs:
    """What the networks are given: as a program was exported, or as the task has it."""
    both = (candidate, baseline)
    own = [n.example for n in both if n.program and n.example is not None]
    if not own and not asked.named:
        own = [n.example for n in both if n.example is not None]
    return own[0] if own else asked.task.example()


def _calibrated(meter: MeterOrNone, asked: MeasureCommand, network: Network) -> MeterOrNone:
    if isinstance(meter, NoMeter) or uncalibrated(meter.runtime) is None:
        return meter
    try:
        return calibrated(meter, network.model, asked.task)
    except AutopruneError:
        raise
    except Exception as error:  # whatever the task's loss makes of the network
        raise AutopruneError(
            f"the runtime {meter.runtime.name} is calibrated on samples of train, and the network "
            f"does not take them ({type(error).__name__}: {first_line(error)}); set "
            "experiment=..., or data and task, to those that it was made for"
        ) from error
