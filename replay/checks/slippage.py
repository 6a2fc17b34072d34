"""Slippage of real fills against paper's, by symbol, size and hour, and the settings that fit.

Standard errors are by UTC day. Settings are fitted on the earlier days and tested on the later
ones.

The rules are docs/money.md, M42 to M44.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.replay.archive.executions import Executions
from tracepaper.replay.checks.paper_fills import (
    LATENCY_MOST_MS,
    BookFills,
    OpenFills,
    PaperFills,
    TakenOrder,
    cost_bp,
    orders_of,
)
from tracepaper.replay.document.values import TOO_FEW_DAYS, Estimate, Paragraph, Part, Table, of_row
from tracepaper.replay.learning.statistics import block_figure, block_mean
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.units import (
    DAY_MS,
    HOUR_MS,
    RATE_SCALE,
    count_of,
    day_text,
    duration,
)

LEAST_ORDERS: Final = 30
LEAST_DAYS: Final = 15
"""With fewer orders or UTC days no settings are proposed."""
FITTED_SHARE: Final = 2 / 3
LEVEL: Final = 0.95
VARIANCE_SHARE: Final = 0.05
"""Share by which the variance of costs must differ over latencies to identify one."""
LATENCIES_LEAST: Final = 10
SETTING_MOST: Final = 1_000.0
"""Basis points; the greatest value that the configuration accepts."""
BASIS_POINT: Final = RATE_SCALE // 10_000
FAR: Final = "orders over 1,000 bp from paper's price: another symbol, unit or time zone"
_BIAS: Final = (
    of_row("name", "", "text"),
    of_row("orders", "orders", "count"),
    of_row("days", "days", "count"),
    of_row("bias_bp", "bias bp ± error", "gain"),
    of_row("std_bp", "std bp", "money"),
)
SIZES: Final = ("smallest third", "middle third", "largest third")


# ---------------------------------------------------------------- figures


class Bias(NamedTuple):
    """A mean cost in bp, its error by day (None for too few days), and the deviation."""

    orders: int
    days: int
    mean: float
    error: float | None
    deviation: float
    interval: tuple[float, float] | None  # of 95 %; None for one block of days

    @property
    def cells(self) -> tuple[int, int, Estimate, float]:
        """Its cells in a table."""
        return self.orders, self.days, (self.mean, self.error), self.deviation

    def sentence(self) -> str:
        """Return the mean with its error, if the days are enough for one, and its interval."""
        if self.interval is None:
            return f"{self.mean:+.2f} bp ({TOO_FEW_DAYS})"
        low, high = self.interval
        few = f"; {TOO_FEW_DAYS} for an error" if self.error is None else ""
        error = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{self.mean:+.2f}{error} bp (95 %: {low:+.2f} to {high:+.2f}{few})"


def bias(costs: Array, days: NDArray[np.int64]) -> Bias:
    """Return the mean of *costs* [order] with its error over *days* [order]."""
    count = len(np.unique(days))
    estimate = block_mean(costs, days)
    deviation = float(costs.std(ddof=1)) if len(costs) > 1 else 0.0
    return Bias(len(costs), count, *estimate.daily, deviation, estimate.interval(LEVEL))


class SettingFit(NamedTuple):
    """A setting: its present value, the fitted one, and that one's 95 % interval."""

    key: str
    now: float
    proposed: float | None  # None: unchanged
    error: float | None
    low: float | None
    high: float | None


class HeldOut(NamedTuple):
    """The mean bias on the later days, with the present and with the proposed settings."""

    from_ms: int
    before: Bias
    after: Bias | None


@dataclass
class SlippageFindings:
    """The comparison of a file of fills with paper, and settings; costs are in basis points."""

    model: str
    rows: int
    orders: int  # compared
    left_out: dict[str, int]
    tables: list[Table] = field(default_factory=list)
    settings: list[SettingFit] = field(default_factory=list)
    held_out: HeldOut | None = None
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Sample:
    """Orders that paper can fill, and their costs under given settings."""

    def __init__(self, orders: Sequence[TakenOrder], paper: PaperFills) -> None:
        self.orders = orders
        self.days = days_of(orders)
        self.paper = paper

    def costs(self, costs: ExecutionCosts, latency_ms: int) -> Array:
        """Return the cost of each order in bp; NaN where *latency_ms* leads outside the books."""
        order_costs = []
        for order in self.orders:
            fill = self.paper.fill(order, costs, latency_ms)
            decimals = self.paper.decimals(order.symbol)
            order_costs.append(np.nan if fill is None else cost_bp(order, fill, decimals))
        return np.array(order_costs, dtype=np.float64)

    def select(self, chosen: NDArray[np.bool_]) -> _Sample:
        """Return the *chosen* orders: a mask."""
        return _Sample([self.orders[row] for row in np.flatnonzero(chosen).tolist()], self.paper)


def calibrate(
    executions: Executions, paper: PaperFills, costs: ExecutionCosts, latency_ms: int
) -> SlippageFindings:
    """Compare *executions* with *paper* under *costs* and *latency_ms*; propose better settings."""
    left_out, notes = Counter(executions.left_out), list(executions.notes)
    orders = []
    for order in orders_of(executions.taken):
        if order.symbol not in paper.symbols:
            left_out[f"orders of {order.symbol}, for which nothing was given"] += 1
        elif (fill := paper.fill(order, costs, latency_ms)) is None:
            left_out["orders outside what was given"] += 1
        elif abs(cost_bp(order, fill, paper.decimals(order.symbol))) > SETTING_MOST:
            left_out[FAR] += 1
        else:
            orders.append(order)
    findings = SlippageFindings(
        paper.model, executions.rows, len(orders), dict(sorted(left_out.items())), notes=notes
    )
    if not orders:
        findings.sentences.append("No order could be compared, so nothing is proposed.")
        return findings
    sample = _Sample(orders, paper)
    findings.tables = tables_of(orders, sample.costs(costs, latency_ms))
    if isinstance(paper, OpenFills):
        age = duration(float(np.median([paper.age_ms(order) for order in orders])))
        findings.notes.append(f"the median order was sent {age} after the open that paper fills at")
    days = np.unique(sample.days)
    if len(orders) < LEAST_ORDERS or len(days) < LEAST_DAYS:
        findings.sentences.append(
            f"Too little to propose settings: {count_of(len(orders), 'order')} on "
            f"{count_of(len(days), 'day')}, and "
            f"{LEAST_ORDERS} on {LEAST_DAYS} days are wanted."
        )
        return findings
    _propose(findings, sample, costs, latency_ms, executions.in_minutes)
    return findings


def days_of(orders: Sequence[TakenOrder]) -> NDArray[np.int64]:
    """Return the UTC day of each order, counted from 1970: int64 [order]."""
    return np.array([order.time_ms // DAY_MS for order in orders], dtype=np.int64)


def tables_of(orders: Sequence[TakenOrder], costs: Array) -> list[Table]:
    """Return the bias of all orders, by symbol, by third of notional, and by hour of day.

    *costs* [order] are in basis points.
    """
    days = days_of(orders)
    symbols = np.array([order.symbol for order in orders])
    notional = np.array([float(order.price * order.quantity) for order in orders])
    hours = np.array([order.time_ms % DAY_MS // HOUR_MS for order in orders])
    edges = np.quantile(notional, [1 / 3, 2 / 3])
    third = np.searchsorted(edges, notional)
    *smaller, largest = SIZES
    ends = zip(smaller, edges.tolist(), strict=True)
    texts = [*(f"{name} (to {end:,.0f})" for name, end in ends), largest]
    every = np.ones(len(costs), dtype=np.bool_)
    named = [(name, symbols == name) for name in sorted(set(symbols.tolist()))]
    parts = {
        "all": ("All orders", [("all", every)]),
        "symbol": ("By symbol", named),
        "size": ("By size (notional)", [(text, third == at) for at, text in enumerate(texts)]),
        "hour": ("By hour (UTC)", [(f"{hour:02d}", hours == hour) for hour in range(24)]),
    }
    return [
        Table(
            key,
            title,
            _BIAS,
            tuple(
                (name, *row_bias.cells)
                for name, chosen in rows
                if chosen.any() and (row_bias := bias(costs[chosen], days[chosen]))
            ),
            whole=True,
        )
        for key, (title, rows) in parts.items()
    ]


# ---------------------------------------------------------------- fitted settings


def _propose(
    findings: SlippageFindings,
    sample: _Sample,
    costs: ExecutionCosts,
    latency_ms: int,
    in_minutes: bool,  # noqa: FBT001 - of the file
) -> None:
    """Fit the settings on the earlier days, test them on the later ones, and add the result."""
    days = np.unique(sample.days)
    turn = int(days[int(np.ceil(len(days) * FITTED_SHARE))])
    early, late = sample.select(sample.days < turn), sample.select(sample.days >= turn)
    latency = _latency(findings, early, costs, latency_ms, in_minutes)
    if latency.proposed is not None:
        then, now = (_bias_of(late, costs, at) for at in (int(latency.proposed), latency_ms))
        if then.deviation >= now.deviation:
            findings.sentences.append(
                f"No change of latency_ms is shown: {latency.proposed:.0f} fits the earlier days, "
                "and on the held-out days costs do not spread less by it."
            )
            latency = latency._replace(proposed=None)
    chosen = latency_ms if latency.proposed is None else int(latency.proposed)
    fitted = _bias_of(early, costs, chosen)
    changed = _shifted_costs(costs, fitted.mean, by_open=findings.model == OpenFills.model)
    low, high = fitted.interval or (-np.inf, np.inf)
    before, after = _bias_of(late, costs, latency_ms), _bias_of(late, changed, chosen)
    if low <= 0.0 <= high or abs(after.mean) >= abs(before.mean):
        findings.sentences.append(
            f"No change of costs is shown: the mean bias of the earlier days is "
            f"{fitted.sentence()}, that of the held-out days {before.sentence()}, and after the "
            f"change {after.sentence()}."
        )
        changed, after = costs, _bias_of(late, costs, chosen)
    is_changed = changed != costs or chosen != latency_ms
    findings.held_out = HeldOut(turn * DAY_MS, before, after if is_changed else None)
    findings.settings = [*_settings(findings, costs, changed, fitted), latency]


def _shifted_costs(costs: ExecutionCosts, bias_bp: float, *, by_open: bool) -> ExecutionCosts:
    """Return *costs* raised by *bias_bp*; the spread changes only where half of it exceeds them."""
    half = costs.half_spread / BASIS_POINT if by_open else 0.0
    total = min(max(costs.slippage / BASIS_POINT + half + bias_bp, 0.0), SETTING_MOST)
    slippage = round(round(max(total - half, 0.0), 2) * BASIS_POINT)
    spread = round(2 * total, 2) if total < half else 2 * half
    half_spread = round(spread * BASIS_POINT / 2) if by_open else costs.half_spread
    return structs.replace(costs, slippage=slippage, half_spread=half_spread)


def _settings(
    findings: SlippageFindings, costs: ExecutionCosts, changed: ExecutionCosts, fitted: Bias
) -> list[SettingFit]:
    """Return the present and the fitted slippage, and for ``next_open`` the spread."""
    now, proposed = costs.slippage / BASIS_POINT, changed.slippage / BASIS_POINT
    interval = fitted.interval or (-np.inf, np.inf)
    low, high = (min(max(now + end, 0.0), SETTING_MOST) for end in interval)
    proposal = None if proposed == now else proposed
    fits = [SettingFit("slippage_bp", now, proposal, fitted.error, low, high)]
    if findings.model == OpenFills.model:
        now, proposed = (2 * each.half_spread / BASIS_POINT for each in (costs, changed))
        spread = None if proposed == now else proposed
        fits.append(SettingFit("spread_bp", now, spread, None, None, None))
        findings.sentences.append(
            "not identified: spread_bp separately from slippage_bp (both move fills alike); it "
            "stays unless less than half of it fits."
        )
    return fits


def _bias_of(sample: _Sample, costs: ExecutionCosts, latency_ms: int) -> Bias:
    values = sample.costs(costs, latency_ms)
    finite = np.isfinite(values)
    return bias(values[finite], sample.days[finite])


def _latency(
    findings: SlippageFindings,
    sample: _Sample,
    costs: ExecutionCosts,
    now_ms: int,
    in_minutes: bool,  # noqa: FBT001 - of the file
) -> SettingFit:
    """Fit the latency at which costs vary least, or add a sentence why it is not identified."""
    kept = SettingFit("latency_ms", float(now_ms), None, None, None, None)
    paper, fitted = sample.paper, None
    # Costs of orders whose creation is not known are equal at all latencies, so none stands out.
    if (
        isinstance(paper, BookFills)
        and not in_minutes
        and len(paper.latency_grid) >= LATENCIES_LEAST
    ):
        grid = np.array(paper.latency_grid, dtype=np.float64)
        values = np.stack([sample.costs(costs, int(latency)) for latency in grid])
        finite = np.isfinite(values).all(axis=0)
        if finite.sum() >= LEAST_ORDERS:
            fitted = _fitted_latency(values[:, finite], sample.days[finite], grid)
    if fitted is None or fitted.interval is None:
        findings.sentences.append(
            "not identified: latency_ms. It needs books (--depth) at most "
            f"{duration(LATENCY_MOST_MS / LATENCIES_LEAST)} apart that go on for "
            f"{duration(LATENCY_MOST_MS)} after an order, and the second in which each was created."
        )
        return kept
    low, high = fitted.interval
    proposal = None if low <= now_ms <= high else fitted.mean
    return kept._replace(proposed=proposal, error=fitted.error, low=max(low, 0.0), high=high)


def _fitted_latency(values: Array, days: NDArray[np.int64], grid: Array) -> Bias | None:
    """Return the latency at which *values* [latency, order] vary least; None if none stands out.

    Its error is by resampled blocks of days, and at least that of the grid.
    """
    terms = np.concatenate([values, values**2, np.ones_like(values[:1])])
    best = block_figure(terms, days, _least_varied(grid))
    if best.standard_error is None:
        return None
    error = max(best.standard_error, float(grid[1] - grid[0]) / 12**0.5)
    best = best._replace(standard_error=error)
    variance = values.var(axis=1)
    deviation = float(variance.min()) ** 0.5
    count, interval = len(np.unique(days)), best.interval(LEVEL)
    fitted = Bias(values.shape[1], count, *best.daily, deviation, interval)
    assert fitted.interval is not None
    low, high = fitted.interval
    is_distinct = variance.max() > variance.min() * (1 + VARIANCE_SHARE)
    return fitted if is_distinct and high - low <= grid[-1] / 2 and best.value < grid[-1] else None


def _least_varied(grid: Array) -> Callable[[Array], Array]:
    """Return the function that maps sums [.., value, square, count] to the best value of *grid*."""

    def combine(sums: Array) -> Array:
        count = sums[:, -1:]
        average = sums[:, : len(grid)] / count
        variance = sums[:, len(grid) : -1] / count - average**2
        best: Array = grid[np.argmin(variance, axis=1)]
        return best

    return combine


# ---------------------------------------------------------------- shown


_FIT: Final = (
    of_row("key", "", "text"),
    *(of_row(name, name, "money") for name in ("now", "proposed", "error")),
    *(of_row(name, f"95 % {name}", "money") for name in ("low", "high")),
)
_HELD_OUT: Final = (*_BIAS, *(of_row(name, f"95 % {name}", "gain") for name in ("low", "high")))


def fitted_tables(findings: SlippageFindings) -> list[Table]:
    """Return the settings and their result on the later days; none where nothing was fitted."""
    if (held := findings.held_out) is None:
        return []
    settings = Table(
        "settings", "[execution], fitted on the earlier days", _FIT, (*findings.settings,)
    )
    rows = [
        (name, *each.cells, *(each.interval or (None, None)))
        for name, each in (("present settings", held.before), ("proposed", held.after))
        if each is not None
    ]
    title = f"Held out, from {day_text(held.from_ms)}"
    return [settings, Table("held_out", title, _HELD_OUT, tuple(rows), whole=True)]


def counted(what: str, left_out: Mapping[str, int], notes: Iterable[str]) -> list[Part]:
    """Return *what* was compared, what was left out and the notes, as paragraphs."""
    return [
        Paragraph(what),
        *(Paragraph(f"Left out: {count:,} {why}.") for why, count in left_out.items()),
        *(Paragraph(f"Note: {note}.") for note in notes),
    ]


def parts_of(findings: SlippageFindings, what: str) -> list[Part]:
    """Return the findings as paragraphs and tables; *what* is a sentence about their extent."""
    return [
        *counted(what, findings.left_out, findings.notes),
        *(*findings.tables, *fitted_tables(findings)),
        *map(Paragraph, findings.sentences),
    ]


def as_document(findings: SlippageFindings) -> dict[str, object]:
    """Return the findings as plain values, with the figures that the tables show."""
    names = ("model", "rows", "orders", "left_out", "sentences", "notes")
    fitted = {each.key: each.documents() for each in fitted_tables(findings)}
    return {
        **{name: getattr(findings, name) for name in names},
        "figures": {each.key: each.documents() for each in findings.tables},
        "settings": [],
        "held_out": [],
        **fitted,
    }
