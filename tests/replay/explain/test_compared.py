"""Comparisons of two decisions and of two models on one; the page of a decision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from explained_runs import LAST
from msgspec import structs
from pages import document_in, layers_of, said_in

from tracepaper.replay.explain.attribution import ComparisonSide, by_model, compare, comparison_side
from tracepaper.replay.explain.recompute import explain_fully
from tracepaper.replay.explain.recomputed import (
    age_chart,
    attention_chart,
    attribution_chart,
    features_chart,
)
from tracepaper.replay.report.past import Past, open_past
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.units import percent


@pytest.fixture(scope="module")
def database() -> Path:
    return explained_runs.recorded()


def past(database: Path, sequence: int = LAST) -> Past:
    return open_past(database, explained_runs.run_id(database), sequence)


def side(weights: list[float], newest: int, layers: list[list[float]]) -> ComparisonSide:
    """Return a side with one-minute bars; its decided bar opens at minute *newest*."""
    times = tuple(60_000 * (newest - age) for age in reversed(range(len(weights))))
    heads = tuple(np.array([layer]) for layer in layers)
    return ComparisonSide("a", "b", times[-1], 5, 0.0, 0.0, times, tuple(weights), {}, heads)


def test_what_two_have_in_common_is_counted_by_age_by_bar_and_by_layer() -> None:
    first = side([0.25, 0.25, 0.5], 10, [[0.5, 0.5], [1.0, 0.0]])
    comparison = compare(first, side([0.5, 0.25, 0.25], 11, [[0.25, 0.75], [0.0, 1.0], [1.0]]))
    assert comparison.common_ages == 0.25 + 0.25 + 0.25
    # Bar 10 has 0.5 and 0.25, bar 9 0.25 and 0.5.
    assert comparison.common_bars == 0.25 + 0.25
    assert comparison.common_by_layer == (0.75, 0.0)
    longer = compare(first, side([0.5, 0.0, 0.0, 0.5], 10, []))
    assert (longer.common_ages, longer.common_bars) == (0.5, 0.5)
    assert longer.common_by_layer == ()


def test_a_decision_has_all_in_common_with_itself_and_less_with_another(database: Path) -> None:
    view = comparison_side(past(database), "own")
    same = compare(view, comparison_side(past(database), "again"))
    assert same.common_ages == pytest.approx(1.0)
    assert same.common_bars == pytest.approx(1.0)
    assert same.common_by_layer == pytest.approx([1.0, 1.0])
    assert same.rank_correlation == pytest.approx(1.0)
    other = compare(view, comparison_side(past(database, LAST - 30), "earlier"))
    assert other.common_ages < 0.999
    assert other.common_bars < other.common_ages
    full = explain_fully(past(database))
    assert view.mean_return == full.agreement.recomputed.mean_return
    assert view.weights == full.attribution.weights
    assert view.features == {move.feature: move.all_bars for move in full.moves.features}


def test_another_model_is_asked_on_the_same_bars(database: Path, tmp_path: Path) -> None:
    other = explained_runs.checkpoint(tmp_path, replace(explained_runs.SMALL, window=20, layers=1))
    other_past = by_model(database, past(database), str(other))
    assert other_past.decided == past(database).decided
    assert other_past.bars[-1] == past(database).bars[-1]
    assert len(other_past.bars) == other_past.forecaster.context < past(database).forecaster.context
    comparison = compare(
        comparison_side(past(database), "own"), comparison_side(other_past, "other")
    )
    assert comparison.common_bars == pytest.approx(comparison.common_ages)
    assert 0.0 < comparison.common_bars < 0.99
    assert len(comparison.common_by_layer) == 1


def test_a_model_of_other_bars_or_without_attention_is_refused(database: Path) -> None:
    with pytest.raises(DataInvalid, match="flash-15m is for bars of 15 minutes and the decision"):
        by_model(database, past(database), "flash-15m")
    with pytest.raises(DataInvalid, match="looks back on 7,201; choose a later decision"):
        by_model(database, past(database), "flash-1m")


def printed(cli: Cli, code: int, *words: object) -> tuple[str, str]:
    read = cli("explain", *words)
    assert read.code == code
    return read.out, read.err


def test_explain_compares_on_the_terminal_and_as_json(database: Path, cli: Cli) -> None:
    words = (f"last:{LAST}", "--db", database)
    out, _ = printed(cli, 0, *words, "--with", f"last:{LAST - 30}")
    assert "Beside each other" in out
    assert f"decision {LAST - 30:,}" in out
    answer = json.loads(printed(cli, 0, *words, "--with", f"last:{LAST}", "--json")[0])["compared"]
    assert answer["common_bars"] == pytest.approx(1.0)
    path = database.parent / "small"
    answer = json.loads(printed(cli, 0, *words, "--compare", path, "--json")[0])["compared"]
    assert answer["common_by_layer"] == pytest.approx([1.0, 1.0])
    _, err = printed(cli, 2, *words, "--compare", path, "--with", "last")
    assert "leave --with or --compare out" in err
    _, err = printed(cli, 1, *words, "--with", "last:1")
    assert "has no forecast of a model" in err


def test_a_decisions_page_holds_its_charts_and_asks_nobody(
    database: Path, tmp_path: Path, cli: Cli
) -> None:
    page = tmp_path / "page.html"
    words = (f"last:{LAST}", "--db", database, "--with", f"last:{LAST - 30}", "--page", page)
    _, err = printed(cli, 0, *words)
    assert f"The page is {page}." in err
    document = document_in(page)
    charts = [part for part in document["parts"] if part["kind"] == "chart"]
    # Looked, moved; two beside each other and their features; heads, layers, edges, flow and two
    # maps.
    assert len(charts) == 2 + 2 + 6
    panels = [panel for chart in charts for panel in chart["panels"]]
    kinds = {layer["type"] for panel in panels for layer in panel["layers"]}
    assert {"line", "bars", "heat", "edges", "flow"} <= kinds
    text = said_in(page)
    for title in ("Where it looked", "What moved it", "Beside another", "One bar's edges"):
        assert title in text
    assert "Recomputed by the run's model" in text


def test_the_charts_show_what_was_recomputed(database: Path) -> None:
    full = explain_fully(past(database))
    layers = layers_of(attention_chart(full))
    decided_ms = full.attribution.open_time_ms[-1]
    assert decided_ms not in layers["attention"].x
    assert [*layers["decided bar"].x] == [layers["close"].x[-1]] == [decided_ms]
    whole = sum(layers["attention"].y)
    assert whole == pytest.approx(100 * (1 - full.attribution.weights[-1]), abs=1e-3)
    assert sum(layers["added"].y) == pytest.approx(1e4 * sum(full.moves.by_bar[:-1]), rel=1e-3)
    chart = attribution_chart(full)
    decided, before = (
        layers_of(chart)[name] for name in ("at the decided bar", "at all bars before")
    )
    largest = full.moves.features[0]
    assert chart.panels[0].y.names[0] == largest.feature
    assert decided.x[0] + before.x[0] == pytest.approx(1e4 * largest.all_bars, rel=1e-3)
    first, second = (comparison_side(past(database, at), str(at)) for at in (LAST, LAST - 30))
    comparison = compare(first, second)
    chart = age_chart(comparison)
    for panel in chart.panels:
        lines = layers_of(structs.replace(chart, panels=[panel]))
        assert list(lines) == [str(LAST - 30), str(LAST)]
        shares = [sum(line.y) for line in lines.values()]
        assert shares == pytest.approx([100.0, 100.0], abs=1e-2)
    features = features_chart(comparison)
    assert features is not None
    top = features.panels[0].y.names[0]
    for name, view in zip((str(LAST), str(LAST - 30)), (first, second), strict=True):
        bars = layers_of(features)[name]
        assert bars.x[0] == pytest.approx(1e4 * view.features[top], rel=1e-3)
    assert f"{percent(comparison.common_by_layer[1], 0)} in common" in chart.panels[2].title
    assert features_chart(replace(comparison, first=replace(first, features={}))) is None
