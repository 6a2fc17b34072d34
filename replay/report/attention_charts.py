"""Charts of attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.charts import (
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    EdgeLayer,
    FlowLayer,
    HeatLayer,
    Layer,
    LineLayer,
    RuleLayer,
    category_axis,
    close_panel,
    packed,
    percent_axis,
    rounded,
    time_axis,
)
from tracepaper.replay.report.attention import Heatmap, InfluenceReport
from tracepaper.replay.report.charts import broken
from tracepaper.replay.report.report import Report
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.types.decisions import Regime
from tracepaper.strategies.units import iso, percent

if TYPE_CHECKING:
    from tracepaper.replay.report.heads import HeadReport
    from tracepaper.strategies.forecasters.attribution import RolloutMap

CONFIDENCE_BINS: Final = 60
SCALE: Final = 10_000
"""Integer that stands for an edge's share of 1."""
SHOWN_SHARE: Final = 0.995
"""Share of the attention that is drawn by age; the oldest cells beyond it are noise."""
REGIMES: Final = (Regime.MEAN_REVERSION, Regime.MIXED, Regime.MOMENTUM)


def rollout_chart(report: Report, heatmap: Heatmap) -> Chart:
    """Draw price, regimes, rollout by age and confidence over one time axis."""
    times = heatmap.times_ms.tolist()
    # The newest cells of age, which together have most of the rollout.
    by_age = heatmap.weights[:-1].mean(axis=1)
    newest = 1 + int(np.searchsorted(np.cumsum(by_age), SHOWN_SHARE * by_age.sum()))
    weights = heatmap.weights[:newest]
    usual = weights.mean(axis=1, keepdims=True)
    shown = np.log2(np.maximum(weights, 1e-9) / np.maximum(usual, 1e-9))
    # Weigh each cell by its mean attention. Otherwise bars in a hole, which have no share, and the
    # oldest bars, whose tiny shares double by chance, would stretch the scale of all others.
    order = np.argsort(np.abs(shown), axis=None)
    mass = np.cumsum(np.broadcast_to(usual, shown.shape).ravel()[order])
    at_98 = np.abs(shown).ravel()[order][np.searchsorted(mass, 0.98 * mass[-1])]
    far = float(np.clip(at_98, 0.1, 3.0))
    ages = (np.arange(weights.shape[0]) * report.record.run["bucket_bars"]).tolist()
    at, (close, confidence) = broken(heatmap.times_ms, heatmap.close, heatmap.confidence_entropy)
    row, names = [_regimes(report, heatmap)], [regime.value for regime in REGIMES]
    regimes = HeatLayer("regime", times, (0,), 0.0, 2.0, row, palette="steps", names=names)
    confident: list[Layer] = [LineLayer("confidence_entropy", at, rounded(confidence), width=1.2)]
    if (threshold := report.record.thresholds.get("confidence_entropy")) is not None:
        confident.append(RuleLayer(threshold, name="its gate"))
    by_age = ChartAxis("age, bars", unit=" bars", digits=0, is_reversed=True)
    panels = [
        close_panel(at, close, 130),
        ChartPanel([regimes], time_axis(), category_axis(["regime"]), 36),
        ChartPanel([_usual("usual", times, ages, shown, far)], time_axis(), by_age, 300),
        ChartPanel(confident, time_axis(), ChartAxis("confidence_entropy"), 100),
    ]
    caption = (
        f"{heatmap.instrument}: close, regime, {_stored(report)} by age as a multiple of its mean "
        f"over the run (the ages that hold {percent(SHOWN_SHARE, 1)} of it), confidence."
    )
    return Chart(heatmap.instrument, caption, panels, is_aligned=True)


def _usual(
    name: str, x: Sequence[float], y: Sequence[float], logarithms: Floats, far: float
) -> HeatLayer:
    """Return cells as multiples of the mean, from 2^-far to 2^far; *logarithms* have base 2."""
    rows = [rounded(row, 3) for row in logarithms]
    return HeatLayer(name, x, y, -far, far, rows, scale="log2", unit=" ×", digits=2)


def _regimes(report: Report, heatmap: Heatmap) -> list[float | None]:
    """Return the most frequent regime of each column, as an index of ``REGIMES`` or None."""
    decisions = report.record.decisions
    places = decisions.places[heatmap.instrument]
    places = places[np.isfinite(decisions.confidence_entropy[places])]
    ends = np.searchsorted(decisions.open_time_ms[places], heatmap.times_ms, side="right")
    commonest: list[float | None] = []
    for column in np.split(decisions.regime[places], ends[:-1]):
        counts = [int(np.count_nonzero(column == regime.value)) for regime in REGIMES]
        commonest.append(float(np.argmax(counts)) if any(counts) else None)
    return commonest


def confidence_chart(report: Report) -> Chart:
    """Draw the distribution of confidence, below and above its gate."""
    record = report.record
    values = record.decisions.confidence_entropy[np.isfinite(record.decisions.confidence_entropy)]
    low, high = np.quantile(values, (0.001, 0.999))
    counts, edges = np.histogram(values, bins=CONFIDENCE_BINS, range=(low, max(high, low + 1e-9)))
    middles = 0.5 * (edges[1:] + edges[:-1])
    threshold = record.thresholds.get("confidence_entropy", -1.0)
    roles: list[ChartRole] = ["accent" if at >= threshold else "soft" for at in middles]
    layers: list[Layer] = [BarLayer("bars", rounded(middles), counts.tolist(), roles)]
    if threshold >= 0:
        layers.append(RuleLayer(threshold, "x", "gate", "ink"))
    across = ChartAxis("confidence: 1 less the normalised entropy", digits=4)
    panel = ChartPanel(layers, across, ChartAxis("bars", digits=0, has_zero=True))
    return Chart("", "Decisions by confidence; pale bars are refused.", [panel])


def groups_chart(report: Report) -> Chart | None:
    """Draw the mean rollout by age at the entries of winners and losers; None if one has none."""
    groups = [group for group in report.groups if group.rollout]
    if len(groups) < 2:
        return None
    roles: tuple[ChartRole, ...] = ("accent", "muted")
    bucket_bars = report.record.run["bucket_bars"]
    ages = (np.arange(len(groups[0].rollout) - 1) * bucket_bars).tolist()
    lines = []
    for group, role in zip(groups, roles, strict=True):
        shares = rounded([100 * share for share in group.rollout[:-1]])
        lines.append(LineLayer(f"{group.trades} {group.name}", ages, shares, role, 2.0))
    across = ChartAxis("age, bars", unit=" bars", digits=0)
    panel = ChartPanel(lines, across, percent_axis("share, %"))
    return Chart("Winners and losers", f"Mean {_stored(report)} at the entries, by age.", [panel])


def _stored(report: Report) -> str:
    """Return the name of the stored shares; relevance is drawn without signs."""
    return "size of relevance" if report.record.config.model.by_relevance else "rollout"


def _cells(
    name: str,
    rows: Floats,
    ends: tuple[float, float],
    figures: int = 3,
    **options: Any,  # noqa: ANN401 - fields of ``HeatLayer``
) -> HeatLayer:
    """Return a heat map of *rows* [row, column] on a scale between *ends*."""
    cells = [rounded(row, figures) for row in rows]
    return HeatLayer(name, range(rows.shape[1]), range(len(rows)), *ends, cells, **options)


def head_confidence_chart(report: Report, heads: int) -> Chart | None:
    """Draw the mean confidence of every layer and head over the run."""
    if report.attention is None or not heads:
        return None
    table = report.attention.head_confidence.reshape(-1, heads)
    ends = float(table.min()), float(table.max())
    across = category_axis([f"head {head + 1}" for head in range(heads)])
    down = category_axis([f"layer {layer + 1}" for layer in range(len(table))])
    cells = _cells("confidence", table, ends, 4, digits=3, is_written=True)
    panel = ChartPanel([cells], across, down, 30 + 44 * len(table))
    caption = "Mean confidence of every layer and head over the run."
    return Chart("Confidence of heads", caption, [panel])


def heads_over_time_chart(heatmap: Heatmap, heads: int) -> Chart | None:
    """Draw each head's confidence over the run as a multiple of its mean; None without heads."""
    if not heads or not heatmap.heads.size:
        return None
    usual = heatmap.heads.mean(axis=1, keepdims=True)
    shown = np.log2(np.maximum(heatmap.heads, 1e-9) / np.maximum(usual, 1e-9))
    far = float(np.clip(np.quantile(np.abs(shown), 0.98), 0.1, 3.0))
    names = [f"{at // heads + 1}.{at % heads + 1}" for at in range(len(shown))]
    cells = _usual("usual", heatmap.times_ms.tolist(), range(len(names)), shown, far)
    panel = ChartPanel(
        [cells], time_axis(), category_axis(names, "layer.head"), 40 + 16 * len(names)
    )
    caption = f"{heatmap.instrument}: how the confidence of each head moved over the run."
    return Chart("Heads over time", caption, [panel])


COLUMNS_MAX: Final = 512
HEIGHT: Final = 480
FAINTEST: Final = 1e-3
"""Shares per bar below this fraction of an even share have one colour."""


def by_age_of(rollout_map: RolloutMap) -> Floats:
    """Return the map as [row, age of the attended bar]; NaN if the window has no such bar."""
    bars = rollout_map.weights.shape[1]
    source = bars - 1 - rollout_map.ages[:, None] - np.arange(bars)
    aged = np.take_along_axis(rollout_map.weights, np.maximum(source, 0), axis=1)
    return np.where(source < 0, np.nan, aged)


def cells_of(weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the mean share per bar [row, cell] of *weights* [row, bar], and the cells' first bars.

    There are at most ``COLUMNS_MAX`` cells; a cell without bars is NaN.
    """
    bars = weights.shape[1]
    cells = np.linspace(0, bars, min(bars, COLUMNS_MAX), endpoint=False)
    firsts = np.unique(cells.astype(np.int64))
    finite = np.isfinite(weights)
    counts = np.add.reduceat(finite.astype(np.float64), firsts, axis=1)
    sums = np.add.reduceat(np.where(finite, weights, 0.0), firsts, axis=1)
    shares = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.where(shares > 0, shares, np.nan), firsts


def position_map_chart(rollout_map: RolloutMap, open_time_ms: Sequence[int]) -> Chart:
    """Draw the map by position; *open_time_ms* has its bars' open times, oldest first."""
    shares, firsts = cells_of(rollout_map.weights)
    times = [int(open_time_ms[place]) for place in firsts]
    across = time_axis("attended bar, UTC")
    caption = (
        f"{len(rollout_map.ages):,} bars of the window: a row is the exact attention of a decision "
        "at that bar; the newest is at the bottom."
    )
    panel = _map(rollout_map, shares, open_time_ms, times, across)
    return Chart("Rollout of every bar, by position", caption, [panel])


def age_map_chart(rollout_map: RolloutMap, open_time_ms: Sequence[int]) -> Chart:
    """Draw the map by age; *open_time_ms* has its bars' open times, oldest first."""
    shares, firsts = cells_of(by_age_of(rollout_map))
    across = ChartAxis("age of the attended bar, bars", unit=" bars", digits=0)
    caption = "The same rows by the age of the bars. Bars before the window are left out."
    panel = _map(rollout_map, shares, open_time_ms, firsts.tolist(), across)
    return Chart("Rollout of every bar, by age", caption, [panel])


def _map(
    rollout_map: RolloutMap,
    shares: Floats,
    open_time_ms: Sequence[int],
    x: list[int],
    across: ChartAxis,
) -> ChartPanel:
    bars = rollout_map.weights.shape[1]
    faintest, low, high = np.log10([FAINTEST / bars, *np.nanquantile(shares, (0.005, 0.995))])
    low = min(max(low, faintest), high - 0.1)
    with np.errstate(invalid="ignore"):
        logarithms = np.log10(shares)
    times = [int(open_time_ms[bars - 1 - age]) for age in rollout_map.ages]
    heat = _by_logarithm(x, times, float(low), float(high), packed(logarithms, low, high))
    down = ChartAxis("decided bar, UTC", kind="time", is_reversed=True)
    return ChartPanel([heat], across, down, HEIGHT)


def _by_logarithm(
    x: Sequence[float], y: Sequence[float], low: float, high: float, cells: str
) -> HeatLayer:
    """Return a heat map of packed shares per bar; *low* and *high* are powers of ten."""
    return HeatLayer(
        "a bar", x, y, low, high, packed=cells, scale="log10", unit=" %", times=100.0, digits=3
    )


NAMED_MOST: Final = 40
"""Most symbols with which an axis has labels."""


def influence_chart(influence: InfluenceReport) -> Chart:
    """Draw the mean matrix: rows are forecasts of a symbol, columns are bars of a symbol."""
    count = len(influence.symbols)
    texts = [
        [f"{100 * mean:.2f} ± {percent(spread)}" for mean, spread in zip(*rows, strict=True)]
        for rows in zip(influence.mean, influence.spread, strict=True)
    ]
    has_labels = count <= NAMED_MOST
    titles = "whose bars", "whose forecast"
    across, down = _symbol_axes(influence, *titles, has_labels=has_labels)
    cells = _matrix(influence.mean, influence, texts)
    caption = (
        "Rows: forecasts of a symbol. Columns: bars of a symbol. A cell is the mean share of the "
        "attention. The scale ends at the largest share of another symbol."
    )
    panel = ChartPanel([cells], across, down, 60 + min(24 * count, 480))
    return Chart("Attention between symbols", caption, [panel])


def influence_quarters_chart(influence: InfluenceReport) -> Chart | None:
    """Draw the matrices of the run's quarters side by side; None for a single decision."""
    if len(influence.quarters) < 2:
        return None
    across, down = _symbol_axes(influence)
    begins = [f"from {iso(ms)[:16].replace('T', ' ')}" for ms in influence.quarter_from_ms]
    panels = [
        ChartPanel([_matrix(matrix, influence)], across, down, 220, begin)
        for matrix, begin in zip(influence.quarters, begins, strict=True)
    ]
    caption = "The same in each quarter of the run's decisions, on one scale."
    return Chart("By quarter", caption, panels, columns=len(panels))


def _symbol_axes(
    influence: InfluenceReport, across: str = "", down: str = "", *, has_labels: bool = False
) -> tuple[ChartAxis, ChartAxis]:
    names = list(influence.symbols)
    return (
        ChartAxis(across, "category", names=names, has_labels=has_labels),
        ChartAxis(down, "category", names=names, has_labels=has_labels, is_reversed=True),
    )


def _matrix(
    matrix: Floats, influence: InfluenceReport, texts: Sequence[Sequence[str]] = ()
) -> HeatLayer:
    """Return a heat map of *matrix*; the scale ends at the largest share of another symbol."""
    count = len(influence.symbols)
    others = influence.mean[~np.eye(count, dtype=np.bool_)]
    far = 100 * float(max(others.max(initial=0.0), 1.0 / count))
    return _cells("of the attention", 100 * matrix, (0.0, far), unit=" %", digits=2, texts=texts)


def heads_chart(heads: HeadReport) -> Chart:
    """Draw one panel per head, the highest layer on top: age down, decisions to the right."""
    layers, count = heads.maps.shape[:2]
    shown = np.log10(np.maximum(heads.maps, 1e-7))
    low, high = map(float, np.quantile(shown, (0.02, 0.995)))
    cells, rows = len(heads.cell_ages), shown.shape[-1]
    ticks = [(float(cell), str(heads.cell_ages[cell])) for cell in range(0, cells, 10)]
    across = ChartAxis("decisions", digits=0, has_labels=False)
    panels = []
    for layer, head in product(reversed(range(layers)), range(count)):
        packed_cells = packed(shown[layer, head], low, high)
        heat = _by_logarithm(range(rows), range(cells), low, high, packed_cells)
        down = ChartAxis("age, bars", ticks=ticks, is_reversed=True, has_labels=head == 0)
        kind = heads.activity.readings[layer][head].kind.value
        title = f"layer {layer + 1}, head {head + 1}: {kind}"
        panels.append(ChartPanel([heat], across, down, 140, title))
    caption = (
        "One panel per head: age in bars downwards (logarithmic), decisions to the right; a fuller "
        "colour is a larger share per bar (logarithmic)."
    )
    return Chart("Each head by age", caption, panels, columns=count)


def layers_chart(heads: HeadReport) -> Chart:
    """Draw one row per head, the highest layer on top: its share in each cell of age."""
    layers, count = heads.maps.shape[:2]
    widths = np.diff([*heads.cell_ages, heads.window])
    shares = (heads.maps[..., -1] * widths).reshape(layers * count, -1)
    names = [f"{layer}.{head}" for layer in range(1, layers + 1) for head in range(1, count + 1)]
    spans = [
        f"{first}" if width == 1 else f"{first} to {first + width - 1}"
        for first, width in zip(heads.cell_ages, widths.tolist(), strict=True)
    ]
    far = float(100 * shares.max())
    cells = _cells("of the head", 100 * shares, (0.0, far), unit=" %", digits=2)
    panel = ChartPanel(
        [cells],
        category_axis(spans, "age, bars"),
        category_axis(names, "layer.head"),
        40 + 18 * len(names),
    )
    caption = (
        "Where each head of each layer looked from the decided bar, by age in bars (logarithmic): "
        "the share of its attention in each cell."
    )
    return Chart("Layer by layer, from the decision", caption, [panel])


def edges_chart(heads: HeadReport) -> Chart:
    """Draw the attention of the newest decided bars as edges."""
    edges = heads.edges
    drawn = EdgeLayer(
        edges.firsts,
        edges.bars,
        SCALE,
        [int(time) for time in heads.open_time_ms[-heads.decisions :]],
        np.round(edges.shares * SCALE).astype(int).tolist(),
    )
    caption = (
        "Decided bars above, the bars that they attended to below, one colour per head; a wider "
        "and fuller line is a larger share."
    )
    return Chart("One bar's edges", caption, [ChartPanel([drawn], height=330)])


def flow_chart(heads: HeadReport, title: str) -> Chart:
    """Draw the decision's attention flowing through the layers, by groups of age."""
    from tracepaper.replay.report.heads import FLOW_NOTE, held_by_level, levels  # imports torch

    flow = FlowLayer(
        levels(heads),
        heads.groups,
        [rounded(shares) for shares in held_by_level(heads)],
        [[rounded(row) for row in layer] for layer in heads.activity.flow],
    )
    return Chart(title, FLOW_NOTE, [ChartPanel([flow], height=372)])


def head_charts(heads: HeadReport, flow: str) -> list[Chart]:
    """Return the charts of heads; *flow* is the title of the flow through the layers."""
    mapped = heads.open_time_ms[-heads.activity.map.weights.shape[1] :]
    return [
        heads_chart(heads),
        layers_chart(heads),
        edges_chart(heads),
        flow_chart(heads, flow),
        position_map_chart(heads.activity.map, mapped),
        age_map_chart(heads.activity.map, mapped),
    ]
