"""The page of a contest of searchers in a real browser."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from autoprune.domain.standings import Course, Moment
from autoprune.orchestration.contest.records import Contest, Entry
from autoprune.orchestration.reports.contest_page import contest_html
from tests.browser.test_dashboard_in_browser import WAIT_MS, Told, picture
from tests.programs import needs_chromium
from tests.sweeps import make_goal

pytestmark = needs_chromium

SEARCHERS, SEEDS = ("random", "<b>own</b>", "frontier"), (0, 1, 2)


def entry(searcher: str, seed: int) -> Entry:
    rng = np.random.default_rng([SEARCHERS.index(searcher), seed])
    gains = 0.02 * (1 + SEARCHERS.index(searcher)) * rng.random(24)
    seconds = np.cumsum(rng.uniform(2, 6, 24))
    values = tuple(map(float, np.cumsum(gains)))
    front = tuple((0.94 + 0.01 * i, 4.0 - i + 0.1 * seed) for i in range(4))
    moments = tuple(
        Moment(float(at), float(at), value) for at, value in zip(seconds, values, strict=True)
    )
    return Entry(Course(searcher, seed, values, moments), front, "")


def contest(entries: list[Entry]) -> Contest:
    return Contest(
        name="digits_vgg-compare",
        goal=make_goal(),
        baseline={"accuracy": 0.98},
        budget={"trials": 24, "wall_s": None, "trial_s": None},
        searchers=SEARCHERS,
        seeds=SEEDS,
        device="a machine",
        network="0",
        entries=tuple(entries),
    )


@pytest.mark.parametrize("width", [1280, 420])
def test_every_searcher_has_a_curve_and_its_fronts(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    whole = contest([entry(name, seed) for seed in SEEDS for name in SEARCHERS])
    file = tmp_path / "compare.html"
    file.write_text(contest_html(whole), encoding="utf-8")
    page, told = browser.new_page(viewport={"width": width, "height": 900}), Told()
    told.listen(page)
    page.goto(file.as_uri())
    page.locator("#fronts .scatterlayer .point").first.wait_for(state="attached", timeout=WAIT_MS)
    picture(page, f"contest-{width}")
    assert page.locator("tbody tr").count() == len(SEARCHERS)
    assert page.locator("tbody tr td").first.text_content() == "frontier", "the best comes first"
    assert page.locator("tbody tr").nth(1).locator("td").first.text_content() == "<b>own</b>"
    statement = page.locator("h2").first.text_content() or ""
    assert statement.startswith("frontier has the largest mean hypervolume")
    for figure in ("trials", "seconds"):
        names = page.evaluate(
            f"document.getElementById('{figure}').data.filter(t => t.name).map(t => t.name)"
        )
        assert names == ["frontier", "&lt;b&gt;own&lt;/b&gt;", "random"]
    marks = page.locator("#fronts .scatterlayer .point").count()
    assert marks == len(SEARCHERS) * len(SEEDS) * 4
    assert "<b>own</b>" in (page.locator("#trials .legend").text_content() or "")
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert told.complaints == []
    page.close()


def test_a_contest_under_way_shows_what_has_ended(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "compare.html"
    file.write_text(contest_html(contest([entry("random", 0)])), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.locator("#fronts .scatterlayer .point").first.wait_for(state="attached", timeout=WAIT_MS)
    assert "1 of 9 searches have ended" in (page.locator(".line").text_content() or "")
    assert page.locator("tbody tr").count() == 0
    page.close()
