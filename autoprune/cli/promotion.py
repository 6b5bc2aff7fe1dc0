"""`autoprune promote` and `autoprune rollback`."""

from mlflow import MlflowClient

from autoprune.cli.again import config_of, request_of, uri_of
from autoprune.cli.call import DONE, PROOF_FAILED, Call
from autoprune.orchestration.exports import check_formats
from autoprune.orchestration.promotion import registry
from autoprune.orchestration.promotion.promote import FinishedSweep, RefusedError, exported
from autoprune.orchestration.promotion.promote import promote as promote_member
from autoprune.orchestration.promotion.selection import Selection, choose
from autoprune.orchestration.tracking.connection import answering, check_existing
from autoprune.orchestration.view import view_of


def promote(call: Call) -> int:
    """Choose a member of the front, prove it in a fresh process, and register it."""
    (folder, record), select, bounds = call.sweep(), call.config["select"], call.config["gate"]
    config, view = config_of(folder, record), view_of(record)
    check_formats("export", call.config["export"])
    allowed = select["max_accuracy_drop"]
    member = choose(view, Selection(allowed, select["min_speedup"], select["trial"]))
    uri = uri_of(folder, record) if config["tracking"]["enabled"] else None
    sweep = FinishedSweep(folder, view, request_of(folder, config, record), uri)
    # the drop allowed on val is allowed on test, too
    on_test = allowed if bounds["max_test_drop"] is None else bounds["max_test_drop"]
    try:
        promote_member(
            sweep,
            member,
            sweep.gate(min_speedup=bounds["min_speedup"], max_drop=on_test),
            name=call.config["name"],
            replace=call.config["replace"],
            say=call.say,
        )
    except RefusedError as error:
        call.say(str(error))
        return PROOF_FAILED
    if call.config["export"]:
        call.say(f"exported  {exported(sweep, member)}")
    return DONE


def rollback(call: Call) -> int:
    """Give the champion alias of a registered model back to the version before."""
    folder, record = call.sweep()
    uri = uri_of(folder, record)
    check_existing(uri)
    name = call.config["name"] or record.header["experiment"]
    with answering(uri):
        champion, previous = registry.rollback(MlflowClient(uri, uri), name)
    call.say(f"{name}: version {champion} is champion again, {previous} is previous")
    return DONE
