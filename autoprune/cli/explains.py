"""`autoprune explain`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from autoprune.cli.again import config_of
from autoprune.cli.call import DONE, Call
from autoprune.cli.progress import epoch_lines, point_lines
from autoprune.domain.errors import AutopruneError, first_line
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.executors.user_code import importable
from autoprune.orchestration.folders import check_writable, make_folder, new_id
from autoprune.orchestration.reports.explained import (
    front_json,
    front_lines,
    front_table,
    network_json,
    network_lines,
    network_table,
)
from autoprune.orchestration.reports.explained_page import front_html, network_html
from autoprune.orchestration.understanding.front import explain_front
from autoprune.orchestration.understanding.network import explain_network
from autoprune.orchestration.view import view_of
from autoprune.settings.build import build_request, model_of

JSON_FILE = "explain.json"
PAGE_FILE = "explain.html"


def explain(call: Call) -> int:
    """The dependency groups of a network, or what each member of a sweep's front cut."""
    return _network(call) if call.config["sweep"] is None else _front(call)


def _network(call: Call) -> int:
    request = build_request(call.config, code_paths=call.code_paths)
    check_writable(request.output)
    main = request.task.metrics[0].name
    found = explain_network(
        request, on_epoch=epoch_lines(call, main), on_point=point_lines(call, main)
    )
    folder = make_folder(request.output, new_id(f"{request.name}-explain"))
    _write(folder, network_json(found), network_html(found))
    return _show(call, folder, network_table(found), network_lines(found))


def _front(call: Call) -> int:
    others = sorted(call.given - {"sweep", "output"})
    if others:
        raise AutopruneError(
            f"sweep={call.config['sweep']} explains a sweep as it was; leave out "
            f"{', '.join(others)}, or sweep= to explain a network"
        )
    folder, record = call.sweep()
    view = view_of(record)
    config = None if record.header["config"] is None else config_of(folder, record)
    limit_s = 60.0 if config is None else config["space"]["graph_limit_s"]
    importable(record.header["code_paths"])
    found = explain_front(view, folder, _unpruned(config), time_limit_s=limit_s)
    _write(folder, front_json(found), front_html(found))
    return _show(call, folder, front_table(found), front_lines(found))


def _write(folder: Path, facts: Mapping[str, Any], page: str) -> None:
    replace_text(folder / JSON_FILE, json.dumps(facts, indent=1))
    replace_text(folder / PAGE_FILE, page)


def _show(call: Call, folder: Path, table: Table, lines: Iterable[str]) -> int:
    """What was written, on the standard output."""
    if call.as_json:
        print((folder / JSON_FILE).read_text())
        return DONE
    call.console.print(table)
    call.say(*lines, "", f"The same and a picture of it: {folder / PAGE_FILE}")
    return DONE


def _unpruned(config: Mapping[str, Any] | None) -> nn.Module | str:
    """The network of a sweep's config, or why it cannot be built."""
    if config is None:
        return "the sweep was started from Python, where its network is"
    try:
        return model_of(config["model"], seed=config["seed"])
    except AutopruneError as error:
        return first_line(error)
