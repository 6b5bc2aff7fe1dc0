"""Promotion: prove a member of the front afresh, judge the proof, and register the network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Metric
from autoprune.domain.trial import Observation
from autoprune.orchestration.artifacts import MODEL_FOLDER, load, replace_text
from autoprune.orchestration.baseline import Baseline
from autoprune.orchestration.promotion.proof import Proof, Subject, prove_afresh
from autoprune.orchestration.promotion.registry import Evidence, Registered, register
from autoprune.orchestration.promotion.selection import drop
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.session import load_baseline
from autoprune.orchestration.tracking.entries import Entries, log_entries
from autoprune.orchestration.tracking.serving import log_model
from autoprune.orchestration.work import trial_folder

EQUAL_OUTPUTS = 1e-5
"""Rebuilt on the same machine outputs are equal bit for bit; another processor rounds otherwise."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a proof must show to pass.

    The lower bound of the speedup's interval lies above `min_speedup`, and the main metric on
    the test split is at most `max_drop` worse than the baseline's, as far as its 95% interval
    can tell where the task gives one.
    """

    min_speedup: float = 1.0
    max_drop: float = 0.05


def faults(proof: Proof, gate: Gate, metric: Metric) -> list[str]:
    """Why a proof fails, one line each; empty where it passes."""
    found = []
    if not proof.difference <= EQUAL_OUTPUTS:
        found.append(
            f"the rebuilt network's outputs differ by {proof.difference:.2g} (relative) from "
            f"those it was saved with; at most {EQUAL_OUTPUTS:g} is allowed"
        )
    if not proof.speedup.low > gate.min_speedup:
        found.append(
            f"speedup {proof.speedup.ratio:.3f} [{proof.speedup.low:.3f}, "
            f"{proof.speedup.high:.3f}]: its lower bound is not above {gate.min_speedup:g}"
        )
    # the optimistic end of the interval: a test split of a few hundred cannot tell finer
    end = "high" if metric.direction is Direction.MAX else "low"
    best = proof.candidate.get(f"{metric.name}_{end}", proof.candidate[metric.name])
    # not `>`: a metric that is NaN must not pass
    if not drop(metric, proof.baseline, {metric.name: best}) <= gate.max_drop:
        found.append(
            f"{metric.name} on test {proof.candidate[metric.name]:.4f} (at best {best:.4f}) "
            f"against the baseline's {proof.baseline[metric.name]:.4f}: worse by more than "
            f"{gate.max_drop:g}"
        )
    return found


@dataclass(frozen=True)
class Promotion:
    """A member of a sweep with its proof, why it fails (nothing: it passes), and the evidence.

    `folder` is the network's, `evidence_file` holds all of it as JSON.
    """

    sweep_id: str
    member: Observation
    folder: Path
    baseline: Baseline
    proof: Proof
    gate: Gate
    faults: tuple[str, ...]
    evidence_file: Path


def prove_member(
    request: SweepRequest, member: Observation, *, folder: Path, gate: Gate
) -> Promotion:
    """Prove a member of the sweep in `folder` in a fresh process; keeps the evidence there."""
    number = member.trial.number
    place = trial_folder(folder, number) / MODEL_FOLDER
    if not place.is_dir():
        raise AutopruneError(
            f"the network of trial {number} is not in {place}; choose a member of the front, or "
            "sweep with tracking.keep_models=all to keep those that are not on it"
        )
    baseline = load_baseline(request)
    subject = Subject(
        place, baseline.model, request.task, request.meter, request.device, request.threads
    )
    proof = prove_afresh(subject, code_paths=request.code_paths)
    found = tuple(faults(proof, gate, request.task.metrics[0]))
    at = datetime.now(UTC)
    evidence = folder / "promotions" / f"trial-{number:04d}-{at:%Y%m%dT%H%M%S.%f}.json"
    evidence.parent.mkdir(exist_ok=True)
    facts = {
        "sweep": folder.name,
        "at": at.isoformat(),
        **evidence_json(member, proof, gate, found),
    }
    replace_text(evidence, json.dumps(facts, indent=1))
    return Promotion(folder.name, member, place, baseline, proof, gate, found, evidence)


def keep_evidence(client: MlflowClient, run_id: str, promotion: Promotion) -> None:
    """Put the evidence on the trial's run, passed or not: the file, and tags that say so.

    The tags are of the last proof, the files of all of them.
    """
    client.log_artifact(run_id, str(promotion.evidence_file), "promotions")
    tags = {
        "promotion": "refused" if promotion.faults else "passed",
        "promotion.faults": "; ".join(promotion.faults),
    }
    log_entries(client, run_id, Entries(tags=tags))


def register_member(
    client: MlflowClient, run_id: str, promotion: Promotion, *, request: SweepRequest, name: str
) -> Registered:
    """Register a member whose proof passed; the registry decides on the champion.

    The network is logged to the trial's run where it is not there yet.
    """
    assert not promotion.faults
    network = load(promotion.folder, model=promotion.baseline.model)
    number = str(promotion.member.trial.number)
    tags = {"autoprune.sweep": promotion.sweep_id, "autoprune.trial": number}
    model_id = log_model(client, run_id, network, example=request.task.example(), tags=tags)
    proof, metric = promotion.proof, request.task.metrics[0]
    evidence = Evidence(
        metric=metric.name,
        direction=metric.direction,
        value=proof.candidate[metric.name],
        margin=promotion.gate.max_drop,
        speedup=proof.speedup.ratio,
        speedup_low=proof.speedup.low,
        speedup_high=proof.speedup.high,
        baseline=promotion.baseline.digest,
        runtime=proof.speedup.runtime,
        device=proof.speedup.device,
    )
    return register(client, name, model_id, evidence=evidence, tags=tags)


def evidence_json(
    observation: Observation, proof: Proof, gate: Gate, found: Sequence[str]
) -> dict[str, Any]:
    """The proof and its verdict as plain JSON, to keep whatever becomes of it."""
    return {
        "trial": observation.trial.number,
        "spec": observation.trial.spec.digest,
        "passed": not found,
        "faults": list(found),
        "gate": {"min_speedup": gate.min_speedup, "max_drop": gate.max_drop},
        "proof": proof.to_json(),
    }
