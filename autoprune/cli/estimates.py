"""`autoprune estimate`."""

import json

from autoprune.cli.call import DONE, Call
from autoprune.domain.profile import ProfilePoint
from autoprune.orchestration.folders import check_writable
from autoprune.orchestration.reports.estimate import estimate_json, estimate_lines, estimate_table
from autoprune.orchestration.reports.profile import point_line
from autoprune.orchestration.understanding.estimate import estimate as estimated
from autoprune.settings.estimates import build_estimate


def estimate(call: Call) -> int:
    """What equal pruning ratios would give, and what speaks against pruning the network."""
    request = build_estimate(call.config, code_paths=call.code_paths)
    check_writable(request.sweep.output)
    main = request.sweep.task.metrics[0].name

    def trained(epoch: int, value: float) -> None:
        if not call.as_json:
            call.say(f"baseline epoch {epoch}  {main} {value:.4f}")

    def measured(point: ProfilePoint, done: int, total: int) -> None:
        if not call.as_json:
            call.say(point_line(point, main, done, total))

    found = estimated(request, on_epoch=trained, on_point=measured)
    if call.as_json:
        print(json.dumps(estimate_json(found), indent=1))
        return DONE
    call.console.print(estimate_table(found))
    call.say(*estimate_lines(found))
    return DONE
