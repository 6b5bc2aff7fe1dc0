"""Names and reasons that are HTML, in every page that autoprune makes, in a real browser."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from autoprune.domain.trial import Cause, Failure, Measurement, Stage
from autoprune.orchestration.contest.records import CONTEST_FILE, read_contest
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.reports.contest_page import contest_html
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.explained_page import front_html, network_html
from autoprune.orchestration.reports.page import html_page
from autoprune.orchestration.reports.sparsity_page import sparsity_html
from autoprune.orchestration.view import SweepView
from tests.browser.test_contest_page import SEARCHERS, SEEDS, contest, entry
from tests.browser.test_dashboard_in_browser import WAIT_MS, Told
from tests.browser.test_explain_page import front, network
from tests.browser.test_sparsity_page import STUDY
from tests.programs import needs_chromium
from tests.sweeps import Quality, make_goal, make_space, make_sweep

pytestmark = needs_chromium

ATTACKS = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"><svg onload='window.hacked = 1'>",
    '<a href="javascript:window.hacked = 1">click</a>',
    '<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>',
    "]]><!--<style>body{display:none}</style>",
)
EVERYTHING = "".join(ATTACKS)
HOVER = """() => {
  let seen = 0;
  for (const plot of document.querySelectorAll('.js-plotly-plot'))
    plot.data.forEach((trace, curve) => {
      if (trace.x && trace.x.length && trace.type !== 'heatmap')
        Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: 0}]);
      seen += document.querySelectorAll('.hovertext').length;
    });
  return seen;
}"""


def swept() -> SweepView:
    """A sweep of which every text is an attack."""
    quality = Quality(EVERYTHING)
    space = make_space(dict.fromkeys(ATTACKS, 32))
    view = make_sweep(
        24, quality=quality, space=space, goal=make_goal(quality), sweep_id=EVERYTHING
    )
    first, second, *others = view.observations
    failed = replace(first, outcome=Failure(Stage.PRUNE, Cause.GRAPH, EVERYTHING), host=EVERYTHING)
    stopped = replace(second, outcome=Measurement({"macs": 9e9}, stopped_by=EVERYTHING))
    return replace(
        view,
        observations=(failed, stopped, *others),
        experiment=EVERYTHING,
        output=EVERYTHING,
        run_ids=dict.fromkeys(range(24), EVERYTHING),
        figures={EVERYTHING: 1.0},
        lost={EVERYTHING: 2},
    )


def fought(folder: Path) -> str:
    """The page of a contest, from a folder that a stranger wrote."""
    whole = contest([entry(name, seed) for seed in SEEDS for name in SEARCHERS])
    goal = make_goal(Quality(EVERYTHING))
    facts = replace(whole, name=EVERYTHING, goal=goal, device=EVERYTHING, untimed=EVERYTHING)
    warned = [replace(one, warnings=(EVERYTHING,)) for one in whole.entries]
    replace_text(folder / CONTEST_FILE, json.dumps(replace(facts, entries=tuple(warned)).to_json()))
    return contest_html(read_contest(folder))


def pages(folder: Path) -> Mapping[str, str]:
    return {
        "dashboard": dashboard_html(swept()),
        "contest": fought(folder),
        "sparsity": sparsity_html(replace(STUDY, name=EVERYTHING, weights=EVERYTHING)),
        "groups": network_html(network(EVERYTHING, EVERYTHING)),
        "front": front_html(front(EVERYTHING)),
    }


@pytest.mark.parametrize("kind", ["dashboard", "contest", "sparsity", "groups", "front"])
def test_no_text_becomes_a_script(browser: Browser, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"{kind}.html"
    file.write_text(pages(tmp_path)[kind], encoding="utf-8")
    page, told = browser.new_page(), Told()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    told.listen(page)
    page.goto(file.as_uri())
    page.locator(".main-svg").first.wait_for(state="attached", timeout=WAIT_MS)
    assert "window.hacked = 1" in page.locator("h1").first.inner_text()
    hovered = page.evaluate(HOVER)
    silent = ("sparsity", "groups", "front")  # their first trace has no text
    assert hovered > 0 or kind in silent
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, a[href^=javascript]").count() == 0
    assert page.locator("body").is_visible()
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []
    assert told.errors == []
    page.close()


def test_a_script_that_came_in_all_the_same_is_not_run(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(html_page("a page", f"<h1>{EVERYTHING}</h1>", {}), encoding="utf-8")
    page, told = browser.new_page(), Told()
    told.listen(page)
    page.goto(file.as_uri())
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in message for message in told.complaints)
    page.close()
