"""Promotion: prove a member of the front afresh, judge the proof, and register the network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Metric
from autoprune.domain.trial import Observation
from autoprune.orchestration.artifacts import MODEL_FOLDER, load
from autoprune.orchestration.baseline import Baseline
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.exports import Exported, export_network
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.preparation import load_baseline
from autoprune.orchestration.promotion.proof import Proof, Subject, prove_afresh
from autoprune.orchestration.promotion.registry import Evidence, Registered, register
from autoprune.orchestration.promotion.selection import drop
from autoprune.orchestration.reports.console import outcome_line
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.tracking.connection import answering, check_existing
from autoprune.orchestration.tracking.entries import Entries, log_entries
from autoprune.orchestration.tracking.finding import find_run
from autoprune.orchestration.tracking.serving import log_model, prove_ready
from autoprune.orchestration.view import SweepView

EQUAL_OUTPUTS = 1e-5
"""Rebuilt on the same machine outputs are equal bit for bit; another processor rounds otherwise."""


@dataclass(frozen=True, slots=True)
class ProofGate:
    """What a proof must show to pass.

    The lower bound of the speedup's interval lies above `min_speedup`, and the main metric on
    the test split is at most `max_drop` worse than the baseline's, as far as its 95% interval
    can tell where the task gives one.
    """

    min_speedup: float = 1.0
    max_drop: float = 0.05


def faults(proof: Proof, gate: ProofGate, metric: Metric) -> list[str]:
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
class FinishedSweep:
    """What promotion needs of a sweep: its folder and view, how it was asked for, and its store.

    `uri` is None where the sweep was not tracked.
    """

    folder: Path
    view: SweepView
    request: SweepRequest
    uri: str | None

    @property
    def metric(self) -> Metric:
        """The task's metric that the sweep's front is judged by."""
        main = self.view.goal.main.metric
        return next(metric for metric in self.request.task.metrics if metric.name == main)

    def gate(self, *, min_speedup: float = 1.0, max_drop: float | None = None) -> ProofGate:
        """The gate with these bounds; the drop is that to the edge of use where none is given."""
        if max_drop is None:
            base = self.view.baseline[self.metric.name]
            max_drop = abs(base - self.metric.edge(base))
        return ProofGate(min_speedup, max_drop)


@dataclass(frozen=True)
class Promotion:
    """A member of a sweep with its proof, why it fails (nothing: it passes), and the evidence.

    `folder` is the network's, `evidence_file` holds all of it as JSON.
    """

    member: Observation
    folder: Path
    baseline: Baseline
    proof: Proof
    gate: ProofGate
    faults: tuple[str, ...]
    evidence_file: Path


class RefusedError(AutopruneError):
    """A proof that does not pass its gate: nothing was moved, and the evidence is kept."""


def promote(
    sweep: FinishedSweep,
    member: Observation,
    gate: ProofGate,
    *,
    name: str | None = None,
    replace: bool = False,
    say: Callable[[str], None] = print,
) -> Registered:
    """Prove a member of a sweep in a fresh process, and register it as `name`.

    The name is the sweep's experiment by default. The registry decides whether it becomes
    champion; `replace` makes it that whatever the present one is. `say` hears of every step. Raises
    RefusedError for a proof that fails, AutopruneError for a sweep without a store, a network that
    is gone, and a proof that cannot be made.
    """
    if sweep.uri is None:
        raise AutopruneError(
            f"{sweep.view.sweep_id} was not tracked, so it has no runs to register from; sweep "
            "again with tracking"
        )
    check_existing(sweep.uri)
    client = MlflowClient(sweep.uri, sweep.uri)
    with answering(sweep.uri):
        run_id = find_run(client, sweep.view, member.trial.number)
        say(f"chosen    {outcome_line(member, sweep.view)}")
        promotion = _proved(sweep, member, gate)
        _keep_evidence(client, run_id, promotion)
        for line in _proof_lines(promotion, sweep.metric):
            say(line)
        if promotion.faults:
            raise RefusedError(
                "\n".join(
                    [
                        *(f"refused   {fault}" for fault in promotion.faults),
                        f"Nothing was moved. The evidence is in {promotion.evidence_file}.",
                    ]
                )
            )
        model_id = _served(client, run_id, promotion, sweep)
        registered = register(
            client,
            name or sweep.view.experiment,
            model_id,
            evidence=_evidence(promotion, sweep.metric),
            tags=_tags(promotion, sweep),
            replace=replace,
        )
    say(
        f"registered {registered.name} version {registered.version}: "
        f"{'champion' if registered.verdict.wins else 'challenger'} ({registered.verdict.reason})"
    )
    return registered


def _proved(sweep: FinishedSweep, member: Observation, gate: ProofGate) -> Promotion:
    """Prove a member in a fresh process; the evidence stays in the sweep's folder."""
    request, number = sweep.request, member.trial.number
    place = trial_folder(sweep.folder, number) / MODEL_FOLDER
    if not place.is_dir():
        raise AutopruneError(
            f"the network of trial {number} is not in {place}; choose a member of the front, or "
            "sweep with tracking.keep_models=all to keep those that are not on it"
        )
    baseline = load_baseline(request)
    subject = Subject(
        place,
        baseline.model,
        request.task,
        request.meter,
        step_guard=request.gate.step,
        device=request.device,
        threads=request.threads,
    )
    proof = prove_afresh(subject, code_paths=request.code_paths)
    found = tuple(faults(proof, gate, sweep.metric))
    at = datetime.now(UTC)
    evidence = sweep.folder / "promotions" / f"trial-{number:04d}-{at:%Y%m%dT%H%M%S.%f}.json"
    evidence.parent.mkdir(exist_ok=True)
    facts = {
        "sweep": sweep.view.sweep_id,
        "at": at.isoformat(),
        **evidence_json(member, proof, gate, found),
    }
    replace_text(evidence, json.dumps(facts, indent=1))
    return Promotion(member, place, baseline, proof, gate, found, evidence)


def _keep_evidence(client: MlflowClient, run_id: str, promotion: Promotion) -> None:
    """Put the evidence on the trial's run, passed or not: the file, and tags that say so.

    The tags are of the last proof, the files of all of them.
    """
    client.log_artifact(run_id, str(promotion.evidence_file), "promotions")
    tags = {
        "promotion": "refused" if promotion.faults else "passed",
        "promotion.faults": "; ".join(promotion.faults),
    }
    log_entries(client, run_id, Entries(tags=tags))


def _served(client: MlflowClient, run_id: str, promotion: Promotion, sweep: FinishedSweep) -> str:
    """The model that the trial's run serves, logged where it is not there yet, and compared.

    What is registered is what was proved: the model in the store predicts as the network does.
    """
    network = load(promotion.folder, model=promotion.baseline.model)
    example = sweep.request.task.example()
    with sweep.request.gate.step():
        tags = _tags(promotion, sweep)
        model_id = log_model(client, run_id, network, example=example, tags=tags)
        prove_ready(client, model_id, network, example=example)
    return model_id


def exported(sweep: FinishedSweep, member: Observation) -> Exported:
    """The network of a member as a file for other programs. Raises what `export_network` raises."""
    place = trial_folder(sweep.folder, member.trial.number) / MODEL_FOLDER
    with sweep.request.gate.step():
        network = load(place, model=load_baseline(sweep.request).model)
        return export_network(network, sweep.request.task, place)


def _tags(promotion: Promotion, sweep: FinishedSweep) -> dict[str, str]:
    number = str(promotion.member.trial.number)
    return {"autoprune.sweep": sweep.view.sweep_id, "autoprune.trial": number}


def _evidence(promotion: Promotion, metric: Metric) -> Evidence:
    proof = promotion.proof
    return Evidence(
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


def _proof_lines(promotion: Promotion, metric: Metric) -> list[str]:
    proof, main = promotion.proof, metric.name
    speed = proof.speedup
    return [
        f"outputs   differ by {proof.difference:.1g} from those it was saved with",
        f"test      {main} {proof.candidate[main]:.4f}, baseline {proof.baseline[main]:.4f}",
        f"speed     {speed.ratio:.3f}x [{speed.low:.3f}, {speed.high:.3f}] on {speed.runtime}: "
        f"{speed.candidate_ms:.3f} ms against {speed.baseline_ms:.3f} ms"
        + ("" if speed.settled else "  (noisy: the interval did not settle)"),
    ]


def evidence_json(
    observation: Observation, proof: Proof, gate: ProofGate, found: Sequence[str]
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
