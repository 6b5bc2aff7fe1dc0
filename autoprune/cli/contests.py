"""`autoprune compare`."""

import json
from pathlib import Path

from autoprune.cli.call import DONE, INTERRUPTED, Call, say, stderr
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.contest.contest import run_contest
from autoprune.orchestration.contest.records import Contest, find_contest, read_contest
from autoprune.orchestration.folders import replace_text
from autoprune.orchestration.launch import Listeners
from autoprune.orchestration.reports.contest import entry_line, standings_table
from autoprune.orchestration.reports.contest_page import contest_html
from autoprune.orchestration.reports.profile import point_line
from autoprune.orchestration.tracking.contests import publish
from autoprune.settings.build import tracking_of
from autoprune.settings.contests import build_contest

PAGE_FILE = "compare.html"


def compare(call: Call) -> int:
    """Run every searcher with every seed; who won, by how much, and how sure that is."""
    resumed, config = call.config["resume"], call.config
    folder = None if resumed is None else find_contest(Path(config["output"]), resumed)
    if folder is not None:
        config = {**(read_contest(folder).config or config), "output": str(folder.parent)}
    request = build_contest(
        config, given=call.given, code_paths=call.code_paths, config_dir=call.config_dir
    )
    main = request.sweep.task.metrics[0].name
    listeners = Listeners(
        on_epoch=lambda epoch, value: _say(call, f"baseline epoch {epoch}  {main} {value:.4f}"),
        on_point=lambda point, done, of: _say(call, point_line(point, main, done, of)),
    )
    contest, folder = run_contest(
        request,
        folder=folder,
        listeners=listeners,
        on_entry=lambda contest: _say(call, entry_line(contest)),
    )
    replace_text(folder / PAGE_FILE, contest_html(contest))
    _publish(call, contest, folder)
    return _show_end(call, contest, folder)


def _say(call: Call, line: str) -> None:
    """Progress; nothing stands beside JSON."""
    if not call.as_json:
        call.say(line)


def _publish(call: Call, contest: Contest, folder: Path) -> None:
    config = contest.config or call.config
    uri = tracking_of(config).uri
    if uri is None:
        return
    experiment = config["tracking"]["experiment"] or config["name"]
    try:
        publish(contest, folder, uri=uri, experiment=experiment)
    except AutopruneError as error:
        say(stderr(), [f"autoprune: warning: {error}"])


def _show_end(call: Call, contest: Contest, folder: Path) -> int:
    standings = contest.standings
    if call.as_json:
        print(json.dumps(contest.to_json(), indent=1))
    elif standings is not None:
        call.console.print(standings_table(contest, standings))
        call.say(standings.statement)
    if not contest.complete:
        again = f"autoprune compare resume={contest.name}"
        say(stderr(), [f"autoprune: interrupted; `{again}` goes on"])
        return INTERRUPTED
    _say(call, f"Results are in {folder}: compare.json and {PAGE_FILE}")
    return DONE
