"""The dashboard inside a real MLflow server's artifact page, drawn by a real browser."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Frame, Page

from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import place_of
from autoprune.orchestration.tracking.pages import sweep_page
from autoprune.orchestration.tracking.tracker import MlflowTracker, Patience
from autoprune.orchestration.view import SweepView
from tests.programs import needs_chromium
from tests.servers import MlflowServer
from tests.sweeps import ACCURACY, PERPLEXITY, Quality, make_sweep

pytestmark = needs_chromium
WAIT_MS = 60_000
PICTURES = os.environ.get("AUTOPRUNE_TEST_PICTURES")


@dataclass
class Told:
    """What a page complained of."""

    console: list[ConsoleMessage] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self.console.append(message))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    @property
    def complaints(self) -> list[str]:
        return [*self.errors, *(m.text for m in self.console if m.type in ("error", "warning"))]


def picture(page: Page, name: str) -> None:
    """Keep a picture where someone asked for it, to be looked at."""
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def marks(frame: Frame | Page, figure: str) -> int:
    return frame.locator(f"#{figure} .scatterlayer .point").count()


def assert_drawn(frame: Frame | Page, view: SweepView) -> None:
    """Every mark, line, cell and interval that the sweep has is in the drawing."""
    frame.locator("#heat .heatmaplayer image, #heat .heatmaplayer .hm").first.wait_for(
        state="attached", timeout=WAIT_MS
    )
    measured = sum(place_of(view, o) != "failed" for o in view.observations)
    assert marks(frame, "front") == measured + 1
    assert marks(frame, "prediction") == measured
    assert frame.locator("#front .errorbar .xerror").count() >= len(view.front)
    assert frame.locator("#front .errorbar .yerror").count() >= len(view.front)
    assert frame.locator("#front .js-line").count() == 1
    assert frame.locator("#front .shapelayer path").count() == 2
    assert frame.locator("#hypervolume .js-line").count() == 1
    assert frame.locator("#heat .ytick text").count() == len(view.space.groups)


def test_the_artifact_page_of_mlflow_shows_the_dashboard(
    mlflow_server: MlflowServer, browser: Browser
) -> None:
    view = make_sweep(24, sweep_id="digits_vgg-20261120-143012")
    tracker = MlflowTracker(mlflow_server.uri, patience=Patience(refresh_s=60.0))
    tracker.on_start(view)
    tracker.on_finish(view, complete=True)
    assert tracker.unwritten == ()

    page, told = browser.new_page(viewport={"width": 1280, "height": 900}), Told()
    told.listen(page)
    place = sweep_page(mlflow_server.uri, view.experiment, view.sweep_id)
    page.goto(f"{mlflow_server.uri}/{place}/artifacts/dashboard/pareto.html")
    frame_element = page.wait_for_selector("iframe", timeout=WAIT_MS)
    assert frame_element is not None
    assert frame_element.get_attribute("sandbox") == "allow-scripts"
    frame = frame_element.content_frame()
    assert frame is not None
    assert_drawn(frame, view)
    picture(page, "mlflow")
    inside = [m.text for m in told.console if "srcdoc" in str(m.location) and m.type == "error"]
    assert inside == []
    assert not [e for e in told.errors if "lotly" in e]
    page.close()


@pytest.mark.parametrize("width", [1280, 700])
@pytest.mark.parametrize("quality", [ACCURACY, PERPLEXITY], ids=lambda q: q.name)
def test_the_page_fits_its_window_and_complains_of_nothing(
    browser: Browser, tmp_path: Path, quality: Quality, width: int
) -> None:
    view = make_sweep(40, quality=quality)
    file = tmp_path / "pareto.html"
    file.write_text(dashboard_html(view), encoding="utf-8")
    page, told = browser.new_page(viewport={"width": width, "height": 900}), Told()
    told.listen(page)
    page.goto(file.as_uri())
    assert_drawn(page, view)
    picture(page, f"{quality.name}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("front", "hypervolume", "prediction", "heat"):
        box = page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert told.complaints == []
    page.close()


def test_a_hover_shows_the_units_kept(browser: Browser, tmp_path: Path) -> None:
    view = make_sweep(24)
    file = tmp_path / "pareto.html"
    file.write_text(dashboard_html(view), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    assert_drawn(page, view)
    name = f"front ({len(view.front)})"
    member = page.evaluate(
        """name => {
          const plot = document.getElementById('front');
          const curve = plot.data.findIndex(trace => trace.name === name);
          Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: 0}]);
          return plot.data[curve].hovertext[0];
        }""",
        name,
    )
    shown = page.locator("#front .hoverlayer .hovertext").first.text_content()
    assert shown is not None
    assert "features.0.conv" in member
    assert "features.0.conv" in shown
    page.close()


def test_text_from_users_is_shown_as_it_is_written(browser: Browser, tmp_path: Path) -> None:
    view = make_sweep(24, sweep_id="<b>bold</b><script>window.hacked = 1</script>")
    file = tmp_path / "pareto.html"
    file.write_text(dashboard_html(view), encoding="utf-8")
    page, told = browser.new_page(), Told()
    told.listen(page)
    page.goto(file.as_uri())
    assert_drawn(page, view)
    assert page.locator("h1").text_content() == view.sweep_id
    assert page.evaluate("window.hacked") is None
    assert told.complaints == []
    page.close()
