"""The page of the sparsity study in a real browser."""

from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from autoprune.domain.trial import Speedup
from autoprune.orchestration.reports.sparsity_page import sparsity_html
from autoprune.orchestration.studies.records import (
    Kernels,
    Kind,
    Row,
    SparsityStudy,
    Unmeasured,
)
from autoprune.pruning.sparse_storage import Size
from tests.browser.test_dashboard_in_browser import WAIT_MS, Told, picture
from tests.programs import needs_chromium

pytestmark = needs_chromium


def speed(ratio: float) -> Speedup:
    low, high = 0.97 * ratio, 1.02 * ratio
    return Speedup(ratio, low, high, 2.0, 2.0 / ratio, 40, "eager", "a machine", 0.02)


def row(kind: Kind, asked: float, ratio: float, size: int, onnx: float | None = None) -> Row:
    there = Unmeasured("no kernels") if onnx is None else speed(onnx)
    macs = 1e7 * (asked if kind is Kind.STRUCTURED else asked**0.8)
    return Row(
        kind,
        asked,
        round(1e6 * asked),
        macs,
        Size(size, size * 9 // 10),
        {"eager": speed(ratio), "onnx": there},
        kernels=Kernels(0, 9, there=False) if kind is Kind.TWO_OF_FOUR else None,
    )


STUDY = SparsityStudy(
    "<b>vgg</b>",
    "not trained",
    ("eager", "onnx"),
    (
        row(Kind.UNPRUNED, 1.0, 1.0, 4_000_000, 1.0),
        row(Kind.CSR, 1.0, 0.9, 8_000_000),
        row(Kind.STRUCTURED, 0.5, 1.8, 2_000_000, 1.1),
        row(Kind.MASKED, 0.5, 1.0, 4_000_000, 1.0),
        row(Kind.CSR, 0.5, 1.5, 4_000_000),
        row(Kind.TWO_OF_FOUR, 0.5, 1.0, 2_125_000, 1.0),
        row(Kind.STRUCTURED, 0.1, 5.5, 400_000, 4.5),
        row(Kind.MASKED, 0.1, 1.0, 4_000_000, 1.0),
        row(Kind.CSR, 0.1, 4.0, 800_000),
    ),
)


def shown(browser: Browser, file: Path, width: int, study: SparsityStudy) -> tuple[Page, Told]:
    file.write_text(sparsity_html(study), encoding="utf-8")
    page, told = browser.new_page(viewport={"width": width, "height": 900}), Told()
    told.listen(page)
    page.goto(file.as_uri())
    page.locator("#figure2 .scatterlayer .point").first.wait_for(state="attached", timeout=WAIT_MS)
    return page, told


@pytest.mark.parametrize("width", [1280, 420])
def test_every_row_is_a_mark_in_every_figure_it_has_a_value_in(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page, told = shown(browser, tmp_path / "sparsity.html", width, STUDY)
    picture(page, f"sparsity-{width}")
    assert page.locator("h1").text_content() == "<b>vgg</b>: what sparsity buys"
    assert page.locator("tbody tr").count() == len(STUDY.rows)
    # a line from the unpruned network on has a mark of no size there: structured and masked
    for figure, marks in (("figure0", 8 + 2), ("figure1", 5 + 2), ("figure2", 8 + 2)):
        assert page.locator(f"#{figure} .scatterlayer .point").count() == marks
        box = page.locator(f"#{figure} .main-svg").first.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert page.locator("#figure0 .errorbar .yerror").count() >= 8
    ranges = page.evaluate(
        "[0, 1].map(i => document.getElementById(`figure${i}`).layout.yaxis.range)"
    )
    assert ranges[0] == ranges[1], "speeds of two runtimes are drawn on one scale"
    assert told.complaints == []
    page.close()


def test_a_hover_tells_interval_time_and_rho(browser: Browser, tmp_path: Path) -> None:
    page, _ = shown(browser, tmp_path / "sparsity.html", 1280, STUDY)
    text = page.evaluate(
        """() => {
          const plot = document.getElementById('figure0');
          const curve = plot.data.findIndex(trace => trace.name === 'structured');
          Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: 1}]);
          return document.querySelector('#figure0 .hovertext').textContent;
        }"""
    )
    for part in ("structured", "50.0% of the parameters", "1.80x [1.75, 1.84]", "ms", "rho 0.90"):
        assert part in text
    page.close()


def test_a_study_of_one_kind_on_one_runtime_is_drawn(browser: Browser, tmp_path: Path) -> None:
    alone = tuple(r for r in STUDY.rows if r.kind in (Kind.UNPRUNED, Kind.TWO_OF_FOUR))
    page, told = shown(browser, tmp_path / "sparsity.html", 1280, replace(STUDY, rows=alone))
    assert page.locator("#figure0 .scatterlayer .point").count() == 1
    assert told.complaints == []
    page.close()
