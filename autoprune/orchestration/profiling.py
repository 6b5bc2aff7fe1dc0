"""The profile of a network: every group cut alone, measured and judged, and kept for later."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune.domain.errors import AutopruneError
from autoprune.domain.latency import (
    Prediction,
    PredictionError,
    Timing,
    predicted_speedups,
    unseen_error,
)
from autoprune.domain.objective import SIZE_METRICS
from autoprune.domain.profile import Profile, ProfilePoint, profile_widths
from autoprune.domain.space import FP32, PruningSpec, SearchSpace
from autoprune.domain.trial import Failure, Measurement, Trial, trial_seed
from autoprune.evaluation import TrialContext, run_trial
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.folders import JOURNAL_FILE, PROFILE_FILE, check_writable, held
from autoprune.orchestration.preparation import Prepared
from autoprune.orchestration.profile_file import read_profile
from autoprune.orchestration.record import Record, last_told, read_journal
from autoprune.pruning.healing import Recovery
from autoprune.tasks.protocol import tensors_of

PROFILES = "profiles"

PointReport = Callable[[ProfilePoint, int, int], None]
"""Hears of a point that was measured now, of how many there are and of how many are wanted."""


@dataclass(frozen=True, slots=True)
class FailedCut:
    """Widths that gave no network to measure, and why."""

    widths: Mapping[str, int]
    reason: str

    def __str__(self) -> str:
        cut = ", ".join(f"{name} to {width}" for name, width in self.widths.items())
        return f"{cut}: {self.reason}"


@dataclass(frozen=True)
class Profiled:
    """A profile, the folder that keeps it, and the cuts that failed, with the reason.

    `measured` are what sweeps of the same network measured since, on the same runtime and device.
    """

    profile: Profile
    folder: Path
    measured: tuple[Timing, ...] = ()
    failures: tuple[FailedCut, ...] = ()

    @cached_property
    def error(self) -> PredictionError | None:
        """The error of the profile's own latency model on the checks; None for fewer than two."""
        checks = [point.timing for point in self.profile.checks]
        return self.profile.model.error(checks) if len(checks) > 1 else None

    @cached_property
    def corrected(self) -> PredictionError | None:
        """The same of a model that learns from checks and sweeps, each of them unseen in turn."""
        known = [*(point.timing for point in self.profile.checks), *self.measured]
        if len(known) < 2:
            return None
        return unseen_error(self.profile.groups, self.profile.timings, known)

    def speedups(self, wanted: Sequence[Mapping[str, int]]) -> list[Prediction]:
        """The speedups of networks by their widths, from all that is known, with 95% intervals."""
        known = [*(point.timing for point in self.profile.checks), *self.measured]
        return predicted_speedups(self.profile.groups, self.profile.timings, known, wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "profile": self.profile.to_json(),
            "latency_model": {
                "profile_alone": None if self.error is None else asdict(self.error),
                "corrected": None if self.corrected is None else asdict(self.corrected),
                "sweep_measurements": len(self.measured),
            },
            "failures": list(map(str, self.failures)),
        }


def profile_network(
    prepared: Prepared,
    *,
    checks: int,
    further: Sequence[Mapping[str, int]] = (),
    report: PointReport | None = None,
) -> Profiled:
    """Cut every group alone to some widths, all of them at random `checks` times, and to `further`.

    Each is pruned, mended as the sweep's first recovery does before it trains, measured and judged
    on val as a trial is, and not fine-tuned.
    What an earlier profile of the same weights, runtime and device found is not measured again;
    every point is on disk before the next is begun. A cut that fails is told of and left out.
    """
    identity, space = _identity(prepared), prepared.plan.space
    folder = _folder(prepared, identity)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "profiles this network"):
        wanted: list[tuple[bool, Mapping[str, int]]] = [(False, w) for w in _alone(space)]
        wanted += [(True, widths) for widths in (*_random(space, checks), *further)]
        found, failures = _completed(folder, identity, prepared, wanted=wanted, report=report)
    asked = found.within(space)
    return Profiled(asked, folder, tuple(_swept(prepared, identity)), tuple(failures))


def kept_profile(prepared: Prepared) -> Profile | None:
    """What earlier profiles of the network found in its space; None where there is none.

    Nothing is measured. Raises AutopruneError where the file is damaged.
    """
    file = _folder(prepared, _identity(prepared)) / PROFILE_FILE
    found = _kept(file, prepared).within(prepared.plan.space) if file.is_file() else None
    return found if found is not None and found.points else None


def _folder(prepared: Prepared, identity: Mapping[str, Any]) -> Path:
    """Where the profile of an identity is kept."""
    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return prepared.request.output / PROFILES / digest


def with_profile(prepared: Prepared, *, report: PointReport | None = None) -> Prepared:
    """The sweep with the profile of its network, for a searcher that reads it."""
    return replace(prepared, profile=profile_network(prepared, checks=0, report=report).profile)


def _completed(
    folder: Path,
    identity: Mapping[str, Any],
    prepared: Prepared,
    *,
    wanted: Sequence[tuple[bool, Mapping[str, int]]],
    report: PointReport | None,
) -> tuple[Profile, list[FailedCut]]:
    """All that the folder's profile knows when it holds what is wanted, and what failed.

    What is wanted are widths, and whether they are a check.
    """
    found = _kept(folder / PROFILE_FILE, prepared)
    context = _context(prepared)
    failures = []
    for number, (check, widths) in enumerate(wanted):
        if any(point.widths == widths for point in (found.checks if check else found.points)):
            continue
        point = _measured(number, widths, context)
        if isinstance(point, FailedCut):
            failures.append(point)
            continue
        found = found.plus(point, check=check)
        replace_text(
            folder / PROFILE_FILE, json.dumps({"identity": identity, **found.to_json()}, indent=1)
        )
        if report is not None:
            report(point, number + 1, len(wanted))
    return found, failures


def _identity(prepared: Prepared) -> dict[str, Any]:
    """What a profile's figures depend on; not times, which differ a little whenever taken."""
    conditions = prepared.request.conditions
    told = {*(metric.name for metric in prepared.request.task.metrics), *SIZE_METRICS}
    return {
        "weights": prepared.baseline.digest,
        "device": prepared.speed.device,
        "data": _digest(tensors_of(next(iter(prepared.request.task.batches("val")), ()))),
        "inputs": [list(x.shape) for x in tensors_of(prepared.request.task.example())],
        "worth": {name: round(prepared.metrics[name], 6) for name in sorted(told)},
        "recovery": repr(_mending(prepared)),
        **{name: conditions[name] for name in ("meter", "criteria", "limits")},
    }


def _digest(tensors: Sequence[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def _kept(file: Path, prepared: Prepared) -> Profile:
    groups = tuple(prepared.plan.dependencies.groups)
    new = Profile(groups, dict(prepared.metrics))
    kept = read_profile(file, without="the network is profiled anew")
    return new if kept is None or kept.groups != groups else kept


def _alone(space: SearchSpace) -> Iterator[dict[str, int]]:
    for axis in space.axes:
        for width in profile_widths(axis):
            yield {axis.group.name: width}


def _random(space: SearchSpace, checks: int) -> Iterator[dict[str, int]]:
    rng = np.random.default_rng(0)  # the same ones every time, so that they are found again
    for _ in range(checks):
        yield dict(space.sample(rng).widths)


def _context(prepared: Prepared) -> TrialContext:
    """The sweep's, without training and without constraints, which would end a trial early."""
    context, recovery = prepared.context, _mending(prepared)
    goal = replace(context.goal, constraints=())
    return replace(context, goal=goal, recoveries={recovery.name: recovery})


def _mending(prepared: Prepared) -> Recovery:
    return next(iter(prepared.request.recoveries.values())).at_once


def _measured(
    number: int, widths: Mapping[str, int], context: TrialContext
) -> ProfilePoint | FailedCut:
    criterion, recovery = next(iter(context.criteria)), next(iter(context.recoveries))
    spec = PruningSpec.of(widths, criterion=criterion, recovery=recovery)
    observation = run_trial(Trial(number, spec, trial_seed(0, number)), context)
    outcome = observation.outcome
    if isinstance(outcome, Failure):
        return FailedCut(widths, outcome.reason)
    assert outcome.speedup is not None
    metrics = dict(outcome.metrics)
    return ProfilePoint(dict(widths), outcome.speedup, metrics, seconds=observation.seconds)


def sweeps_of(prepared: Prepared) -> Iterator[Record]:
    """The journals of sweeps of the same weights in the same output folder."""
    for journal in sorted(prepared.request.output.glob(f"*/{JOURNAL_FILE}")):
        try:
            record = read_journal(journal)
        except AutopruneError:
            continue  # a damaged journal is for `status` to tell of
        if record.header["baseline_digest"] == prepared.baseline.digest:
            yield record


def _swept(prepared: Prepared, identity: Mapping[str, Any]) -> Iterator[Timing]:
    """What sweeps in the same output folder measured of the same network in the same way."""
    for record in sweeps_of(prepared):
        header = record.header
        alike = (
            header["conditions"].get("meter") == identity["meter"]
            and header["baseline"].get("macs") == identity["worth"]["macs"]
        )
        if not alike:
            continue
        for observation in last_told(record.events).values():
            outcome = observation.outcome
            speed = outcome.speedup if isinstance(outcome, Measurement) else None
            alone = observation.trial.spec.precision == FP32  # then speed is the widths' doing
            if speed is not None and speed.device == identity["device"] and alone:
                yield Timing.of(observation.trial.spec.widths, speed)
