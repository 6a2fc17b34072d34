"""One decision as a page that needs no network: where it looked, what moved it, and its heads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tracepaper.replay.archive.times import iso
from tracepaper.replay.explain.compared import SideBySide
from tracepaper.replay.explain.page_charts import (
    age_chart,
    attribution_chart,
    features_chart,
    layer_chart,
    looked_chart,
)
from tracepaper.replay.explain.recomputed import Full, Past
from tracepaper.replay.explain.stored import StoredDecision, verdict_of
from tracepaper.replay.explain.terminal import BASIS_POINTS
from tracepaper.replay.report.heads import HeadReport, head_tables, heads_of
from tracepaper.replay.report.html import Markup, element, figures, joined, table
from tracepaper.replay.report.page import Charts, head_pictures, whole_page, write_text
from tracepaper.storage.reader import Reader
from tracepaper.strategies.forecasters.looking import DECISIONS

FEWEST: Final = 2
"""Decisions that heads are read from at least."""


def read_heads_at(database: Path, past: Past) -> HeadReport | None:
    """Return what the heads do at the decision; None where the run has too few bars before it."""
    wanted = past.forecaster.context + DECISIONS - 1
    with Reader.open(database) as reader:
        bars = reader.bars(past.run.run_id, past.decided.instrument, wanted, until=past.sequence)
    if len(bars) < past.forecaster.context + FEWEST - 1:
        return None
    return heads_of(past.forecaster, bars, past.sequence, half=past.is_half)


def write_page(
    path: Path,
    stored: StoredDecision,
    full: Full,
    heads: HeadReport | None,
    compared: SideBySide | None,
) -> None:
    """Write the page of one decision to *path*, beside another where *compared* is given.

    Raises ``ConfigInvalid`` where plotly is missing or *path* cannot be written.
    """
    charts = Charts()
    decision = stored.decision
    title = f"{decision['instrument']} at {iso(decision['open_time_ms'])}"
    button = element("button", "light / dark", class_="theme", type="button")
    body = element(
        "main",
        element("header", element("h1", title), _lead(stored, full), button),
        _section("Where it looked", _looked(full, charts)),
        _section("What moved it", _moved(full, charts)),
        *([_section("Beside another", _beside(compared, charts))] if compared else ()),
        _section("Heads", _heads(heads, charts)),
    )
    write_text(whole_page(f"tracepaper · {title}", body, charts.figures), path)


def _section(title: str, *content: Markup) -> Markup:
    return element("section", element("h2", title), *content)


def _lead(stored: StoredDecision, full: Full) -> Markup:
    decision, again = stored.decision, full.agreement
    verdict, _ = verdict_of(decision)
    return element(
        "p",
        f"Decision {decision['sequence']} of run {stored.run['run_id']}: {decision['action']}, "
        f"{verdict}. Model {decision['model_id']} expected "
        f"{BASIS_POINTS * again.recomputed.mean_return:+.2f} bp over {again.horizon} bars, up less "
        f"down {again.recomputed.lean:+.3f}.",
        class_="lead",
    )


def _looked(full: Full, charts: Charts) -> Markup:
    found = full.attribution
    return charts.put(
        looked_chart(full),
        f"Each past bar's share of the rollout, and what it added to the mean. The decided bar "
        f"itself, not drawn, holds {found.weights[-1]:.1%} and added "
        f"{BASIS_POINTS * full.moves.by_bar[-1]:+.2f} bp. Where attention "
        "flowed is not why. Times are UTC.",
    )


def _moved(full: Full, charts: Charts) -> Markup:
    moves = full.moves
    return charts.put(
        attribution_chart(full),
        f"Integrated gradients from rows that say nothing "
        f"({BASIS_POINTS * moves.neutral:+.2f} bp) to these ({BASIS_POINTS * moves.forecast:+.2f} "
        f"bp): the largest features of {len(moves.features)}.",
    )


def _beside(found: SideBySide, charts: Charts) -> Markup:
    sides = (found.first, found.second)
    rows = [
        (
            side.name,
            side.model_id,
            iso(side.open_time_ms),
            f"{BASIS_POINTS * side.mean_return:+.2f} bp over {side.horizon} bars",
            f"{side.lean:+.3f}",
        )
        for side in sides
    ]
    layers = range(len(found.common_by_layer))
    return joined(
        [
            table(("", "model", "decided bar", "expected", "up less down"), rows, texts=(0, 1, 2)),
            element("p", sentence(found), class_="note"),
            charts.put(age_chart(found), "The rollout of both by age, the decided bar at 0."),
            charts.put(features_chart(found), "What each feature added to both."),
            *(
                charts.put(
                    layer_chart(found, layer),
                    f"Layer {layer + 1}: the mean of its heads from the decided bar; they have "
                    f"{found.common_by_layer[layer]:.0%} in common.",
                )
                for layer in layers
            ),
        ]
    )


def sentence(found: SideBySide) -> str:
    """Return what the two have in common, in a sentence."""
    ranks = found.rank_correlation
    alike = "no order to compare" if ranks is None else f"a rank correlation of {ranks:+.2f}"
    return (
        f"They give {found.common_ages:.0%} of their weight to the same ages and "
        f"{found.common_bars:.0%} to the same bars; over past ages they have {alike}."
    )


def _heads(found: HeadReport | None, charts: Charts) -> Markup:
    if found is None:
        return element("p", "The run has too few bars before it to read its heads.", class_="note")
    kinds, looks, flow = head_tables(found)
    return joined(
        [
            figures(kinds),
            element("h3", looks.title),
            figures(looks),
            head_pictures(found, charts, flow.title),
        ]
    )
