"""The page is measured with and without a browser, and the daemon with and without pages."""

from __future__ import annotations

import pytest

from tracepaper.replay.bench import page
from tracepaper.replay.bench.page import find_browser, measure_page, quantiles, spread


def test_figures_are_medians_beside_what_lies_around_them() -> None:
    values = [float(value) for value in range(1, 101)]
    assert quantiles(values) == {"p50": 50.5, "p95": pytest.approx(95.95)}
    assert spread(values) == {"median": 50.5, "from": 25.25, "to": 75.75}
    assert spread([3.0]) == {"median": 3.0}


@pytest.mark.slow
def test_the_server_is_measured_where_no_browser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "BROWSERS", ("no-such-browser",))
    found = measure_page(300, updates=24, export_bars=300)
    assert "none was found" in found["browser"]
    assert found["bars"] == 302
    assert all(each["p50"] > 0 for each in found["routes_ms"].values())
    beside = found["decision_beside_pages_ms"]
    assert min(beside["p99_without"], beside["p99_with"]) > 0
    assert found["export_mb"] > 0
    assert found["export_cpu_s"] > 0
    assert not {"first_paint_ms", "heap_mb"} & found.keys()


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium was found in PATH")
def test_a_browser_is_timed_to_what_it_has_painted() -> None:
    found = measure_page(2_000, updates=60, export_bars=300)
    assert found["first_paint_ms"]["median"] > 0
    assert found["first_paint_ms"]["median"] <= found["first_paint_ms"]["with_the_card"] * 1.5
    assert 0 < found["click_to_card_ms"]["p50"] <= found["click_to_card_ms"]["p95"]
    assert found["update_script_ms"]["median"] <= found["update_page_ms"]["median"]
    assert min(found["heap_mb"].values()) > 1
