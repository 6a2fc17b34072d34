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

from tracepaper.replay.document.charts import Chart, EdgeLayer, FlowLayer, Layer
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


def test_every_kind_of_layer_is_in_the_gallery_and_drawn() -> None:
    """Edges and flows are drawn by the page alone."""
    charts = [part for part in gallery() if isinstance(part, Chart)]
    layers = [{type(each) for panel in chart.panels for each in panel.layers} for chart in charts]
    assert set().union(*layers) == {*get_args(Layer)}
    pairs = zip(charts, layers, strict=True)
    assert_drawn([chart for chart, kinds in pairs if kinds.isdisjoint({EdgeLayer, FlowLayer})])


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
