"""`autoprune compare`."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.cli.call import DONE, INTERRUPTED, Call, broken_off, say, stderr, warn
from autoprune.cli.progress import epoch_lines, point_lines
from autoprune.cli.sweeps import answer
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.contest.contest import ContestRequest, run_contest
from autoprune.orchestration.contest.records import Contest, Origin, find_contest
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.executors.user_code import importable
from autoprune.orchestration.folders import output_word
from autoprune.orchestration.launch import Listeners
from autoprune.orchestration.reports.contest import entry_line, standings_table
from autoprune.orchestration.reports.contest_page import contest_html
from autoprune.orchestration.tracking.contests import publish
from autoprune.settings.build import tracking_of
from autoprune.settings.compose import completed
from autoprune.settings.contests import build_contest, rebuild_contest

PAGE_FILE = "compare.html"


def compare(call: Call) -> int:
    """Run every searcher with every seed; who won, by how much, and how sure that is."""
    request, config, folder = _asked(call)
    main = request.sweep.task.metrics[0].name
    listeners = Listeners(
        on_epoch=epoch_lines(call, main),
        on_prepared=lambda prepared: warn(prepared.warnings),
        on_point=point_lines(call, main),
    )
    begun: list[Path] = []
    try:
        contest, folder = run_contest(
            replace(request, sweep=replace(request.sweep, on_signal=answer)),
            folder=folder,
            listeners=listeners,
            on_start=begun.append,
            on_entry=lambda contest: _tell(call, contest),
            on_timed=lambda done, of: _tell_timed(call, done, of),
        )
    except (AutopruneError, KeyboardInterrupt) as error:
        if not begun:
            raise
        return broken_off(error, _resume(begun[0]))
    if contest.untimed:
        warn([f"the final fronts are as they were told, not timed again: {contest.untimed}"])
    replace_text(folder / PAGE_FILE, contest_html(contest))
    _publish(config, contest, folder)
    return _show_end(call, contest, folder)


def _asked(call: Call) -> tuple[ContestRequest, Mapping[str, Any], Path | None]:
    """What is asked for, its config, and the folder of a contest that goes on, which it does as it
    began.
    """
    config = call.config
    if config["resume"] is None:
        found = build_contest(
            config, given=call.given, code_paths=call.code_paths, config_dir=call.config_dir
        )
        return found, config, None
    others = sorted(call.given - {"resume", "output"})
    if others:
        raise AutopruneError(
            f"resume goes on with a contest as it was begun; leave out {', '.join(others)}, or "
            "start a new one"
        )
    folder = find_contest(Path(config["output"]), config["resume"])
    origin = Origin.read(folder)
    if origin is None:
        raise AutopruneError(
            f"{folder.name} was started from Python, where its model and task are; go on there"
        )
    importable(origin.code_paths)
    began = {**completed(origin.config), "output": str(folder.parent)}
    return rebuild_contest(began, code_paths=origin.code_paths), began, folder


def _tell(call: Call, contest: Contest) -> None:
    call.progress(entry_line(contest))
    warn(contest.entries[-1].warnings)


def _tell_timed(call: Call, done: int, of: int) -> None:
    if done == of:
        call.progress(f"{of} networks of the final fronts timed again, one after the other")


def _publish(config: Mapping[str, Any], contest: Contest, folder: Path) -> None:
    uri = tracking_of(config).uri
    if uri is None:
        return
    experiment = config["tracking"]["experiment"] or config["name"]
    try:
        publish(contest, folder, uri=uri, experiment=experiment)
    except AutopruneError as error:
        warn([str(error)])


def _resume(folder: Path) -> str:
    output = output_word(folder.parent)
    where = f" output={shlex.quote(output)}" if output else ""
    return f"autoprune compare resume={folder.name}{where}"


def _show_end(call: Call, contest: Contest, folder: Path) -> int:
    standings = contest.standings
    if call.as_json:
        print(json.dumps(contest.to_json(), indent=1))
    elif standings is not None:
        call.console.print(standings_table(contest, standings))
        call.say(standings.statement)
    if not contest.complete:
        say(stderr(), [f"autoprune: interrupted; `{_resume(folder)}` goes on"])
        return INTERRUPTED
    call.progress(f"Results are in {folder}: compare.json and {PAGE_FILE}")
    return DONE
