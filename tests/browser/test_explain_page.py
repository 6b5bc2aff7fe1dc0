"""The pages of `autoprune explain` in a real browser."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from autoprune.domain.objective import Direction, Objective
from autoprune.domain.profile import ProfilePoint
from autoprune.domain.space import Axis, Group
from autoprune.domain.trial import Speedup
from autoprune.models import resnet, vgg, vit
from autoprune.orchestration.reports.explained_page import front_html, network_html
from autoprune.orchestration.reports.figure import shorten
from autoprune.orchestration.understanding.front import (
    ExplainedFront,
    ExplainedMember,
    Survivors,
)
from autoprune.orchestration.understanding.network import (
    ExplainedGroup,
    ExplainedNetwork,
    explain_network,
)
from autoprune.pruning.anatomy import Part, Role
from autoprune.pruning.checks import Refused
from tests.browser.test_dashboard_in_browser import WAIT_MS, Told, picture
from tests.criteria_tasks import Noise
from tests.programs import needs_chromium
from tests.sweeps import make_sweep
from tests.tiny import request

pytestmark = needs_chromium
SPEED = Speedup(1.2, 1.1, 1.3, 2.0, 1.7, 40, "eager", "a machine", 0.02)


def explained(name: str, kind: str, size: int, *parts: tuple[str, Role]) -> ExplainedGroup:
    group = Group(name, kind, size)
    return ExplainedGroup(
        group,
        tuple(Part(layer, role) for layer, role in parts),
        tuple(map(str, range(size))),
        Axis(group, 1, size),
        params=1000,
        time_share=0.25,
        alone=ProfilePoint({name: size // 2}, SPEED, {"accuracy": 0.8}),
    )


def network(name: str = "<b>net</b>", attack: str = "") -> ExplainedNetwork:
    """Two groups of a chain of three layers, of which texts may be an attack."""
    first, second, last = (f"{attack}{layer}" for layer in ("stem", "body", "head"))
    return ExplainedNetwork(
        name,
        (
            explained(first, "channels", 8, (first, Role.MAKES), (second, Role.READS)),
            explained(second, "channels", 4, (second, Role.MAKES), (last, Role.READS)),
        ),
        (Refused(last, f"{attack}its units are part of the network's output"),),
        (first, second, last),
        {"params": 4000.0, "macs": 1e6, "size_mb": 0.016},
        Objective("accuracy", Direction.MAX),
        whole=0.9,
    )


def front(attack: str = "") -> ExplainedFront:
    """The front of a sweep with what is left of blocks and heads."""
    view = replace(make_sweep(24), sweep_id=f"{attack}sweep")
    survivors = {f"{attack}blocks.0": Survivors((f"{attack}blocks.0",), (f"{attack}blocks.1",))}
    members = [ExplainedMember(member, survivors) for member in view.front.members]
    return ExplainedFront(view, tuple(members), (f"{attack}not kept",))


def shown(browser: Browser, file: Path, text: str, *, width: int = 1280) -> tuple[Page, Told]:
    file.write_text(text, encoding="utf-8")
    page, told = browser.new_page(viewport={"width": width, "height": 900}), Told()
    told.listen(page)
    page.goto(file.as_uri())
    page.locator(".main-svg").first.wait_for(state="attached", timeout=WAIT_MS)
    return page, told


@pytest.mark.parametrize("width", [1280, 420])
def test_groups_are_rows_and_layers_are_columns(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page, told = shown(browser, tmp_path / "explain.html", network_html(network()), width=width)
    picture(page, f"explain-{width}")
    assert page.locator("h1").text_content() == "<b>net</b>: what must be pruned together"
    assert page.locator("#groups .ytick text").all_text_contents() == ["stem (8)", "body (4)"]
    assert page.locator("#groups .xtick text").all_text_contents() == ["stem", "body", "head"]
    # two marks a group, and one for each of the two roles in the legend
    assert page.locator("#groups .scatterlayer .point").count() == 4
    assert page.locator("#groups .legend .traces").count() == 2
    # a line a group, and where the second layer leads from one to the other
    assert page.locator("#groups .scatterlayer .js-line").count() == 3
    cells = page.locator("tbody tr").first.locator("td").all_text_contents()
    assert cells == [
        *("stem", "channels", "8", "1 to 8", "25.0%", "25.0%", "-0.1000 at 4"),
        "made by stem; read by body",
    ]
    assert "not pruned: its units are part of the network's output" in page.inner_text("dl")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert told.complaints == []
    page.close()


@pytest.mark.parametrize("attack", ["", "<img src=x onerror='window.hacked=1'>"])
def test_a_hover_tells_what_a_layer_is_to_a_group(
    browser: Browser, tmp_path: Path, attack: str
) -> None:
    page, _ = shown(browser, tmp_path / "explain.html", network_html(network(attack=attack)))
    text = page.evaluate(
        """() => {
          const plot = document.getElementById('groups');
          const curve = plot.data.findIndex(trace => trace.mode === 'markers');
          Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: 1}]);
          return document.querySelector('#groups .hovertext').textContent;
        }"""
    )
    name = shorten(f"{attack}stem", 28)
    assert text == f"{attack}bodyreads {name}: 8 channels"
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    page.close()


@pytest.mark.parametrize(
    "net",
    [
        vgg(depth=8, width=4, in_channels=1, image_side=8),
        resnet(depth=20, width=4, in_channels=1),
        vit(width=32, depth=6, in_channels=1, image_side=8),
    ],
    ids=["vgg", "resnet20", "vit"],
)
def test_real_networks_are_legible(browser: Browser, tmp_path: Path, net: object) -> None:
    asked = request(tmp_path, model=net, task=Noise((1, 8, 8), classes=10))  # type: ignore[arg-type]
    found = explain_network(asked)
    page, told = shown(browser, tmp_path / "explain.html", network_html(found))
    picture(page, f"explain-{type(net).__name__}")
    for axis, count in (("x", len(found.layers)), ("y", len(found.groups))):
        texts = page.locator(f"#groups .{axis}tick text")
        assert texts.count() == count, "every layer and every group has its name"
        boxes = [box for box in (texts.nth(i).bounding_box() for i in range(count)) if box]
        ends = sorted(b["y"] if axis == "y" else b["x"] + b["width"] for b in boxes)
        gaps = [after - before for before, after in pairwise(ends)]
        assert min(gaps) >= 12, "names do not lie on each other"
    assert told.complaints == []
    page.close()


def test_a_front_is_a_heat_map_and_tells_named_units(browser: Browser, tmp_path: Path) -> None:
    found = front()
    page, told = shown(browser, tmp_path / "explain.html", front_html(found))
    page.locator("#heat .heatmaplayer image, #heat .heatmaplayer .hm").first.wait_for(
        state="attached", timeout=WAIT_MS
    )
    picture(page, "explain-front")
    assert page.locator("#heat .ytick text").count() == len(found.view.space.groups)
    rows = page.locator("tbody tr")
    assert rows.count() == len(found.members)
    assert "blocks.1 gone, blocks.0 left" in rows.first.inner_text()
    assert page.locator(".line").first.inner_text() == "not kept"
    assert told.complaints == []
    page.close()


def test_a_front_without_named_units_has_no_table(browser: Browser, tmp_path: Path) -> None:
    found = front()
    bare = tuple(replace(member, survivors={}) for member in found.members)
    page, _ = shown(browser, tmp_path / "explain.html", front_html(replace(found, members=bare)))
    assert page.locator("table").count() == 0
    page.close()
