"""`autoprune profile`."""

import json

from autoprune.cli.call import DONE, Call, say, stderr, warn
from autoprune.cli.progress import epoch_lines, point_lines
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.folders import PROFILE_FILE, check_writable
from autoprune.orchestration.preparation import prepare
from autoprune.orchestration.profiling import profile_network
from autoprune.orchestration.reports.profile import model_lines, profile_table
from autoprune.orchestration.reports.profile_page import profile_html
from autoprune.settings.build import build_request
from autoprune.settings.rules import NOT_NEGATIVE, check_ranges

PAGE_FILE = "profile.html"


def profile(call: Call) -> int:
    """Measure and judge every group alone; write a table, a picture and JSON."""
    check_ranges("", call.config, {"checks": NOT_NEGATIVE})
    request = build_request(call.config, code_paths=call.code_paths)
    check_writable(request.output)
    prepared = prepare(request, report=epoch_lines(call, request.task.metrics[0].name))
    warn(prepared.doubts)
    main = prepared.goal.main
    found = profile_network(
        prepared, checks=call.config["checks"], report=point_lines(call, main.metric)
    )
    title = f"{request.name}: what each group gives and costs"
    replace_text(found.folder / PAGE_FILE, profile_html(found, main, title=title))
    say(stderr(), (f"autoprune: not profiled: {failure}" for failure in found.failures))
    if call.as_json:
        print(json.dumps(found.to_json(), indent=1))
        return DONE
    call.console.print(profile_table(found.profile, main))
    call.say(*model_lines(found), "", f"Kept in {found.folder}: {PROFILE_FILE} and {PAGE_FILE}")
    return DONE
