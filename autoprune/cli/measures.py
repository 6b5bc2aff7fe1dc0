"""`autoprune measure`."""

import json
from pathlib import Path

from autoprune.cli.again import config_of
from autoprune.cli.call import DONE, INTERRUPTED, Call, say, stderr
from autoprune.domain.errors import AutopruneError, FaultsError
from autoprune.orchestration.artifacts import MODEL_FOLDER
from autoprune.orchestration.baseline import MODEL_URI_SCHEMES
from autoprune.orchestration.comparison.compare import compare
from autoprune.orchestration.comparison.networks import NAMEABLE, sweep_of
from autoprune.orchestration.comparison.records import Comparison
from autoprune.orchestration.executors.user_code import importable
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.promotion.selection import Selection, choose
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.reports.comparison import ComparisonDrawing
from autoprune.orchestration.view import view_of
from autoprune.settings.measure import MeasureCommand, build_comparison


def measure(call: Call) -> int:
    """Time a candidate against a baseline on every runtime and at every batch size named."""
    drawing = None if call.as_json else ComparisonDrawing(call.console)
    request = build_comparison(_asked(call), code_paths=call.code_paths)
    found: list[Comparison] = []

    def report(comparison: Comparison) -> None:
        found.append(comparison)
        if drawing is not None:
            drawing.update(comparison)

    code = DONE
    try:
        compare(request, report=report)
    except KeyboardInterrupt:
        say(stderr(), ["autoprune: ended at once; the rows that were measured are shown"])
        code = INTERRUPTED
    finally:
        if drawing is not None:
            drawing.stop()
    last = found[-1]
    if not last.timed and code == DONE:
        raise FaultsError([str(row) for row in last.untimed])
    if call.as_json:
        print(json.dumps(last.to_json(), indent=2))
    return code


def _asked(call: Call) -> MeasureCommand:
    candidate = _candidate(call)
    sweep = None if candidate.startswith(MODEL_URI_SCHEMES) else sweep_of(Path(candidate))
    if sweep is not None and sweep.resolve().parent != Path(call.config["output"]).resolve():
        sweep = None  # a stranger's journal names code to import: only those of one's own sweeps do
    config = None
    if sweep is not None:
        record = read_journal(sweep / JOURNAL_FILE)
        if record.header["config"] is not None:
            config = config_of(sweep, record)
        importable(record.header["code_paths"])
    return MeasureCommand(
        call.config,
        candidate,
        words=call.words,
        config_dir=call.config_dir,
        sweep=sweep,
        sweep_config=config,
    )


def _candidate(call: Call) -> str:
    """What names the candidate: itself, or a rule for the networks of a sweep."""
    candidate, sweep, select = (call.config[key] for key in ("candidate", "sweep", "select"))
    if (candidate is None) == (sweep is None):
        raise AutopruneError(
            "measure takes its candidate from candidate= or from sweep=, one of the two: set "
            f"candidate= to {NAMEABLE}, or sweep=latest"
        )
    if candidate is not None:
        return str(candidate)
    folder, record = call.sweep()
    rule = Selection(select["max_accuracy_drop"], select["min_speedup"], select["trial"])
    number = choose(view_of(record), rule).trial.number
    place = trial_folder(folder, number) / MODEL_FOLDER
    if not place.is_dir():
        raise AutopruneError(
            f"the network of trial {number} is not in {place}; choose a member of the front, or "
            "sweep with tracking.keep_models=all to keep those that are not on it"
        )
    return str(place)
