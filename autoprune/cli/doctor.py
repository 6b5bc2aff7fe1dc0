"""`autoprune doctor`."""

import json

from autoprune.cli.call import BAD_INPUT, DONE, Call
from autoprune.orchestration.doctor.findings import Finding, State
from autoprune.orchestration.reports.findings import FindingsDrawing
from autoprune.settings.doctor import build_examination


def doctor(call: Call) -> int:
    """Examine what a sweep would run on; what is wrong, and how to mend it."""
    asked = build_examination(call.config, code_paths=call.code_paths)
    drawing = None if call.as_json else FindingsDrawing(call.console)
    found: list[Finding] = []

    def report(finding: Finding) -> None:
        found.append(finding)
        if drawing is not None:
            drawing.add(finding)

    try:
        asked.examine(report)
    finally:
        if drawing is not None:
            drawing.stop()
    if call.as_json:
        print(json.dumps([finding.to_json() for finding in found], indent=2))
    faulty = any(finding.verdict.state is State.FAULT for finding in found)
    return BAD_INPUT if faulty else DONE
