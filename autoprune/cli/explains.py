"""`autoprune explain`."""

import json
from typing import Any

from torch import nn

from autoprune.cli.again import config_of
from autoprune.cli.call import DONE, Call
from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.profile import ProfilePoint
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
from autoprune.orchestration.reports.profile import point_line
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

    def trained(epoch: int, value: float) -> None:
        if not call.as_json:
            call.say(f"baseline epoch {epoch}  {main} {value:.4f}")

    def measured(point: ProfilePoint, done: int, total: int) -> None:
        if not call.as_json:
            call.say(point_line(point, main, done, total))

    found = explain_network(request, on_epoch=trained, on_point=measured)
    folder = make_folder(request.output, new_id(f"{request.name}-explain"))
    text = json.dumps(network_json(found), indent=1)
    replace_text(folder / JSON_FILE, text)
    replace_text(folder / PAGE_FILE, network_html(found))
    if call.as_json:
        print(text)
        return DONE
    call.console.print(network_table(found))
    call.say(*network_lines(found), "", f"The same and a picture of it: {folder / PAGE_FILE}")
    return DONE


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
    text = json.dumps(front_json(found), indent=1)
    replace_text(folder / JSON_FILE, text)
    replace_text(folder / PAGE_FILE, front_html(found))
    if call.as_json:
        print(text)
        return DONE
    call.console.print(front_table(found))
    call.say(*front_lines(found), "", f"The same and a picture of it: {folder / PAGE_FILE}")
    return DONE


def _unpruned(config: dict[str, Any] | None) -> nn.Module | str:
    """The network of a sweep's config, or why it cannot be built."""
    if config is None:
        return "the sweep was started from Python, where its network is"
    try:
        return model_of(config["model"], seed=config["seed"])
    except AutopruneError as error:
        return first_line(error)
