"""`autoprune promote` and `autoprune rollback`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from autoprune.cli.again import config_of, request_of, uri_of
from autoprune.cli.call import DONE, PROOF_FAILED, Call
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.folders import view_of
from autoprune.orchestration.promotion import registry
from autoprune.orchestration.promotion.promote import (
    Gate,
    Promotion,
    keep_evidence,
    prove_member,
    register_member,
)
from autoprune.orchestration.promotion.selection import Selection, choose
from autoprune.orchestration.record import Record
from autoprune.orchestration.reports.console import outcome_line
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.tracking.connection import check_existing
from autoprune.orchestration.tracking.runs import find_run
from autoprune.orchestration.view import SweepView


def promote(call: Call) -> int:
    """Choose a member of the front, prove it in a fresh process, and register it."""
    (folder, record), wanted = call.sweep(), call.config
    config, view = config_of(folder, record), view_of(record)
    selection = Selection(
        max_drop=wanted["select"]["max_accuracy_drop"],
        min_speedup=wanted["select"]["min_speedup"],
        trial=wanted["select"]["trial"],
    )
    member = choose(view, selection)
    uri = _store_of(folder, config, record)
    client = MlflowClient(uri, uri)
    run_id = find_run(client, view, member.trial.number)
    call.say(f"chosen    {outcome_line(member, view)}")
    request = request_of(folder, config, record)
    promotion = prove_member(request, member, folder=folder, gate=_gate(wanted, request, view))
    keep_evidence(client, run_id, promotion)
    _show_proof(call, promotion, main=view.goal.main.metric)
    if promotion.faults:
        call.say(
            *(f"refused   {fault}" for fault in promotion.faults),
            f"Nothing was moved. The evidence is in {promotion.evidence_file}.",
        )
        return PROOF_FAILED
    name = wanted["name"] or view.experiment
    registered = register_member(client, run_id, promotion, request=request, name=name)
    call.say(
        f"registered {registered.name} version {registered.version}: "
        f"{'champion' if registered.verdict.wins else 'challenger'} ({registered.verdict.reason})"
    )
    return DONE


def _store_of(folder: Path, config: Mapping[str, Any], record: Record) -> str:
    """Where a sweep's runs are. Raises AutopruneError for one that was not tracked."""
    if not config["tracking"]["enabled"]:
        raise AutopruneError(
            f"{folder.name} was not tracked (tracking=none), so it has no runs to register from; "
            "sweep again with tracking"
        )
    uri = uri_of(folder, record)
    check_existing(uri)
    return uri


def _gate(wanted: Mapping[str, Any], request: SweepRequest, view: SweepView) -> Gate:
    """What the proof must show; the drop allowed on val is allowed on test, too."""
    metric = request.task.metrics[0]
    base = view.baseline[metric.name]
    allowed = wanted["gate"]["max_test_drop"]
    if allowed is None:
        allowed = wanted["select"]["max_accuracy_drop"]
    if allowed is None:
        allowed = abs(base - metric.edge(base))
    return Gate(min_speedup=wanted["gate"]["min_speedup"], max_drop=allowed)


def _show_proof(call: Call, promotion: Promotion, *, main: str) -> None:
    proof = promotion.proof
    speed = proof.speedup
    call.say(
        f"outputs   differ by {proof.difference:.1g} from those it was saved with",
        f"test      {main} {proof.candidate[main]:.4f}, baseline {proof.baseline[main]:.4f}",
        f"speed     {speed.ratio:.3f}x [{speed.low:.3f}, {speed.high:.3f}] on {speed.runtime}: "
        f"{speed.candidate_ms:.3f} ms against {speed.baseline_ms:.3f} ms"
        + ("" if speed.settled else "  (noisy: the interval did not settle)"),
    )


def rollback(call: Call) -> int:
    """Give the champion alias of a registered model back to the version before."""
    folder, record = call.sweep()
    uri = uri_of(folder, record)
    check_existing(uri)
    name = call.config["name"] or record.header["experiment"]
    champion, previous = registry.rollback(MlflowClient(uri, uri), name)
    call.say(f"{name}: version {champion} is champion again, {previous} is previous")
    return DONE
