"""`autoprune status`: imports neither torch nor mlflow, so that it answers at once."""

import json

from autoprune.cli.call import DONE, Call
from autoprune.orchestration.record import Asked
from autoprune.orchestration.reports.console import show_front
from autoprune.orchestration.reports.pareto import pareto_json
from autoprune.orchestration.view import view_of


def status(call: Call) -> int:
    """How a sweep stands, from its journal; works while it runs. Or how a job does."""
    if call.given & {"job", "executor.address"}:
        from autoprune.cli import jobs  # Ray takes a second to import

        return jobs.status(call)
    _, record = call.sweep()
    view = view_of(record)
    done = len(view.observations)
    open_trials = sum(isinstance(event, Asked) for event in record.events) - done
    if call.as_json:
        facts = pareto_json(view) | {"asked_not_told": open_trials, "trials": view.trials}
        print(json.dumps(facts, indent=2))
        return DONE
    show_front(call.console, view)
    total = "" if view.trials is None else f" of {max(view.trials, done)}"
    call.say(f"{done}{total} trials done, {open_trials} under way or interrupted")
    if record.torn is not None:
        # or a sweep that runs is writing it just now
        call.say(f"warning   {record.torn}; {view.command('resume')} cuts it off")
    return DONE
