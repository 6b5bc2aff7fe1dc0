"""`autoprune sweep` and `autoprune resume`."""

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from autoprune.cli.again import config_of, request_of
from autoprune.cli.call import BROKE_OFF, DONE, INTERRUPTED, Call, broken_off, say, stderr
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.interrupt import OnInterrupt
from autoprune.orchestration.launch import Launched, Listeners, launch
from autoprune.orchestration.preparation import Prepared
from autoprune.orchestration.reports.console import ConsoleWatcher, count, short, show_front
from autoprune.orchestration.reports.profile import point_line
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.tracking.optuna_watcher import OPTUNA_FILE
from autoprune.orchestration.view import SweepView
from autoprune.settings.build import build_request, tracking_of


def sweep(call: Call) -> int:
    """Search, and show the front."""
    return _run(call, build_request(call.config, code_paths=call.code_paths), call.config)


def resume(call: Call) -> int:
    """Go on with a sweep from its journal."""
    folder, record = call.sweep()
    config = config_of(folder, record)
    budget = call.config["budget"]
    wanted = {key: value for key, value in budget.items() if f"budget.{key}" in call.given}
    config = config | {"budget": config["budget"] | wanted}
    return _run(call, request_of(folder, config, record), config, folder=folder)


def _run(
    call: Call, request: SweepRequest, config: Mapping[str, Any], *, folder: Path | None = None
) -> int:
    total = request.baseline.plan.epochs if request.baseline.plan else 0
    main, watcher = request.task.metrics[0].name, _Lines(call.console, request)
    try:
        launched = launch(
            replace(request, on_signal=answer),
            tracking_of(config),
            folder=folder,
            listeners=Listeners(
                watchers=(watcher,),
                on_epoch=lambda epoch, value: call.say(
                    f"baseline epoch {epoch}/{total}  {main} {value:.4f}"
                ),
                on_prepared=lambda prepared: _show_prepared(call, prepared),
                on_point=lambda point, done, of: call.say(point_line(point, main, done, of)),
            ),
        )
    except (AutopruneError, KeyboardInterrupt) as error:
        if watcher.started is None:
            raise
        return broken_off(error, watcher.started.command("resume"))
    assert watcher.started is not None, "a sweep that ended has begun"
    result = launched.result
    if result.complete and result.view.observations == watcher.started.observations:
        call.say(
            "complete  its budget was used up before: nothing ran; resume with a larger budget"
        )
    return _show_end(call, launched)


class _Lines(ConsoleWatcher):
    """A line ahead of all trials: from there on the first Ctrl-C ends them in good order."""

    def __init__(self, console: Console, request: SweepRequest) -> None:
        super().__init__(console)
        self._request = request

    def on_start(self, view: SweepView) -> None:
        """Say how many run at a time, which may be more or fewer than when the sweep began."""
        say(self.console, [f"running   {self._request.executor.slots} trials at a time"])
        super().on_start(view)


def answer(policy: OnInterrupt) -> None:
    """Say at the first Ctrl-C what it does, past the streams that may be in use at this moment."""
    doing = "finishing" if policy is OnInterrupt.FINISH else "giving up"
    with suppress(OSError):
        os.write(2, f"\nautoprune: {doing} the running trials; Ctrl-C again ends now\n".encode())


def _show_prepared(call: Call, prepared: Prepared) -> None:
    request, metrics, space = prepared.request, prepared.metrics, prepared.plan.space
    main = request.task.metrics[0].name
    call.say(
        f"baseline  {main} {metrics[main]:.4f}, {metrics['latency_ms']:.3f} ms, "
        f"{short(metrics['macs'])} MACs, {short(metrics['params'])} parameters "
        f"({prepared.baseline.source})",
        f"space     {len(space.axes)} groups, {count(space.size)} specs",
        *(f"warning   {warning}" for warning in prepared.warnings),
    )


def _show_end(call: Call, launched: Launched) -> int:
    result = launched.result
    show_front(call.console, result.view)
    following = [result.view.command("dashboard")]
    if not result.complete:
        following.insert(0, result.view.command("resume"))
    elif result.view.front.members:
        following.append(result.view.command("promote"))
    study = result.folder / OPTUNA_FILE
    if study.exists() and find_spec("optuna_dashboard") is not None:
        following.append(f"optuna-dashboard {shlex.quote(str(study))}")
    call.say(
        *(f"exported  {line}" for line in launched.exported),
        *(f"warning   {line}" for line in launched.warnings),
        "",
        f"Results are in {result.folder}. Next:",
        *(f"  {line}" for line in following),
    )
    if result.complete or result.interrupted:
        return DONE if result.complete else INTERRUPTED
    say(stderr(), ["autoprune: the sweep ended before its budget was used up; see its journal"])
    return BROKE_OFF
