"""`autoprune estimate`."""

import json

from autoprune.cli.call import DONE, Call
from autoprune.cli.progress import epoch_lines, point_lines
from autoprune.orchestration.folders import check_writable
from autoprune.orchestration.reports.estimate import estimate_json, estimate_lines, estimate_table
from autoprune.orchestration.understanding.estimate import estimate as estimated
from autoprune.settings.estimates import build_estimate


def estimate(call: Call) -> int:
    """What equal pruning ratios would give, and what speaks against pruning the network."""
    request = build_estimate(call.config, code_paths=call.code_paths)
    check_writable(request.sweep.output)
    main = request.sweep.task.metrics[0].name
    found = estimated(request, on_epoch=epoch_lines(call, main), on_point=point_lines(call, main))
    if call.as_json:
        print(json.dumps(estimate_json(found), indent=1))
        return DONE
    call.console.print(estimate_table(found))
    call.say(*estimate_lines(found))
    return DONE
