"""Every chart of every scenario, on the page and as a picture."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from browser import opened
from gallery import gallery
from scenarios import SCENARIOS

from tracepaper.replay.document.charts import Chart, Layer
from tracepaper.replay.document.pictures import figure_of
from tracepaper.replay.document.values import Paragraph, TitledParts
from tracepaper.replay.page.export import write_document_page
from tracepaper.replay.report.charts import picture_chart
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.report import build_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def of_run(database: Path) -> list[Chart]:
    """Return the charts of the run's report, and the price of ``report --chart``."""
    with closing(sqlite3.connect(database)) as connection:
        [(run_id,)] = connection.execute("SELECT run_id FROM v_runs")
    report = build_report(database, run_id)
    parts = report_document(report).parts
    return [*(part for part in parts if isinstance(part, Chart)), picture_chart(report, last=1_000)]


def assert_drawn(charts: list[Chart]) -> None:
    """Draw *charts* as pictures: nothing is empty."""
    for chart in charts:
        figure = figure_of(chart)
        figure.set_layout_engine("none")  # places nothing: that is most of the cost
        figure.draw_without_rendering()
        drawn = [axes for axes in figure.axes if axes.has_data()]
        layers = [panel for panel in chart.panels if panel.layers]
        assert len(drawn) == len(layers), chart.title


def test_every_kind_of_layer_is_drawn_by_every_renderer() -> None:
    charts = [part for part in gallery() if isinstance(part, Chart)]
    layers = {type(layer) for chart in charts for panel in chart.panels for layer in panel.layers}
    assert layers == {*get_args(Layer)}
    assert_drawn(charts)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_chart_of_a_run_is_drawn_as_a_picture(name: str) -> None:
    assert_drawn(of_run(SCENARIOS[name].recorded()))


def test_a_page_draws_every_chart_of_every_scenario(browser: Browser, tmp_path: Path) -> None:
    charts = [chart for scenario in SCENARIOS.values() for chart in of_run(scenario.recorded())]
    file = tmp_path / "charts.html"
    write_document_page(TitledParts("Charts", (Paragraph("All of them.", "lead"), *charts)), file)
    with opened(browser, file.as_uri(), offline=True) as page:
        page.wait_for_selector(".document figure svg[role]")
        assert page.locator("figure").count() == len(charts)
        assert page.locator("figure:not(:has(svg[role]))").count() == 0
