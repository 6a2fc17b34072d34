"""What the open positions of a run could lose: exposure, tails, stress and margin.

Today's positions are held over the days (or hours) on which all their symbols have a return. The
rules are docs/risk.md, H1 to H5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from tracepaper.replay.document.charts import (
    BarLayer,
    Chart,
    ChartPanel,
    RuleLayer,
    category_axis,
    percent_axis,
    rounded,
)
from tracepaper.replay.document.values import (
    Estimate,
    Paragraph,
    Part,
    Table,
    TitledParts,
    estimate,
    of_field,
    table,
    written,
)
from tracepaper.replay.report.metrics import blocks_of, jackknife_error
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.shortfall import (
    DAYS_LEAST,
    LEVEL,
    Returns,
    book_profits,
    common_days,
    day_returns,
    expected_shortfall,
    has_shortfall,
    tail_weights,
    value_at_risk,
)
from tracepaper.strategies.types.market import FrameBar, Instrument
from tracepaper.strategies.units import DAY_MS, HOUR_MS, RATE_SCALE, count_of, iso

LEVELS: Final = (0.05, LEVEL, 0.01)
"""Shares of the worst periods."""
PERIODS_MOST: Final = 1_000
"""The newest periods that count."""
DECAY: Final = 0.94
"""Weight of the past in the forecast variance of a day: RiskMetrics (1996)."""
SEED_PERIODS: Final = 20
"""Periods whose mean square begins the forecast variance."""
FALL: Final = -0.2
FUNDING_TIMES: Final = 3
Period = Literal["day", "hour"]
LENGTHS: Final[Mapping[str, int]] = {"day": DAY_MS, "hour": HOUR_MS}


@dataclass(frozen=True)
class CoinExposure:
    """The positions in one coin; money in quote currency, shares of equity."""

    coin: str
    net: float
    gross: float
    share: float | None  # net ÷ equity
    beta: Estimate | None  # to the largest coin
    correlation: Estimate | None  # with the largest coin
    shortfall: float | None  # mean loss in the book's worst periods, as a share of equity


@dataclass(frozen=True)
class Tail:
    """Value at risk and expected shortfall of the book, as shares of equity."""

    method: str
    level: float
    value_at_risk: Estimate
    shortfall: Estimate | None  # None with too few worst periods
    money: float | None  # the shortfall in quote currency


@dataclass(frozen=True)
class Stress:
    """What a case would cost or earn."""

    case: str
    profit: float
    share: float | None  # of equity


@dataclass(frozen=True)
class MarginLeft:
    """A position and the price at which it is liquidated."""

    position: str
    notional: float
    mark: float
    margin: float | None
    liquidation_price: float | None
    distance: float | None  # from the mark, as a share of it


@dataclass(frozen=True)
class BookRisk:
    """The risk of a run's positions at its newest step."""

    period: Period
    periods: int  # that all symbols share
    at_ms: int
    equity: float
    coins: tuple[CoinExposure, ...]  # the largest first
    tails: tuple[Tail, ...]  # empty if the periods are too few
    stress: tuple[Stress, ...]
    margins: tuple[MarginLeft, ...]
    margin_left: float | None  # equity less the margin of all positions; None without margin

    @property
    def sentence(self) -> str:
        """What the book could lose, in one sentence."""
        if not self.coins:
            return "No position is open, so nothing is at risk."
        net, gross = (sum(getattr(coin, name) for coin in self.coins) for name in ("net", "gross"))
        held = (
            f"{count_of(len(self.margins), 'position')} of {written(net, 'gain')} net and "
            f"{written(gross, 'money')} gross, with equity of {written(self.equity, 'money')}"
        )
        name = count_of(self.periods, self.period)
        if not self.tails:
            return (
                f"{held}: too few {self.period}s ({name} that all symbols share, and {DAYS_LEAST} "
                "are wanted)."
            )
        worst = next(tail for tail in self.tails if tail.level == LEVEL)
        loss = written(worst.shortfall, "percent")  # DAYS_LEAST is enough for this level
        return f"{held}: in the worst 2.5 % of {name} it would lose {loss} of equity in the mean."


def read_book_risk(columns: RunColumns, period: Period = "day") -> BookRisk:
    """Return the risk of the positions at the newest step of a run, by days or hours."""
    newest = columns.views.rows("v_equity", newest=1)
    equity = newest[0]["equity"] if newest else 0.0
    held = [
        (item, row)
        for name, item in columns.instruments.items()
        for row in columns.views.rows("v_positions", newest=1, instrument=name)
        if row["quantity"]
    ]
    before = columns.frame_bars() if held and period == "day" else []
    # Every bar of a calendar: a session ends when it ends, not with a UTC day or hour.
    length_ms = 1 if columns.times.calendar else LENGTHS[period]
    closes = columns.rows.closes(columns.interval_ms, length_ms) if held else ()
    returns = {
        item.id: returns_of(*_closes(columns, item, period, closes, before), LENGTHS[period])
        for item, _ in held
    }
    notionals = {item.id: 0.0 for item, _ in held}
    for item, row in held:
        notionals[item.id] += _notional(row)
    periods = common_days([returns[key] for key in notionals])[-PERIODS_MOST:]
    tails: list[Tail] = []
    profits = by_symbol = np.zeros(0)
    if len(periods) >= DAYS_LEAST and equity > 0:
        series = [np.array([returns[key][at] for at in periods]) for key in notionals]
        profits = book_profits(list(notionals.values()), series) / equity
        by_symbol = np.array([size * each for size, each in zip(notionals.values(), series,
                              strict=True)]) / equity  # fmt: skip
        tails = list(tails_of(profits, np.array(periods) * LENGTHS[period] // DAY_MS, equity))
    margins = tuple(_margin_left(item, row) for item, row in held)
    used = [each.margin for each in margins if each.margin is not None]
    coins = _coins([item for item, _ in held], held, returns, equity, profits, by_symbol)
    return BookRisk(
        period,
        len(periods),
        int(newest[0]["market_ms"]) if newest else 0,
        equity,
        coins,
        tuple(tails),
        tuple(_stress(columns, notionals, coins, equity, periods, profits, by_symbol, period)),
        margins,
        equity - sum(used) if used else None,
    )


# ---------------------------------------------------------------- returns of days and hours


def returns_of(closed_ms: Ints, closes: Floats, length_ms: int) -> dict[int, float]:
    """Return the return of each period between *closes* [row] at the times *closed_ms* [row].

    A period counts if one bar closes at its end, and another one did at its beginning.
    """
    at_end = closed_ms % length_ms == 0
    ends = (closed_ms[at_end] // length_ms).tolist()
    return day_returns(list(zip(ends, closes[at_end].tolist(), strict=True)))


def _closes(
    columns: RunColumns,
    item: Instrument,
    period: Period,
    closes: Sequence[Ints],
    fetched: Sequence[FrameBar],
) -> tuple[Ints, Floats]:
    """Return times and prices of closes: of *fetched* candles of a day, then of its own bars.

    *closes* are instruments, open times and prices of the bars that end a period. Of shares each
    session closes at the end of its rank among the sessions.
    """
    of_item = closes[0] == columns.place(item.id)
    times = columns.times.closes_of(closes[1][of_item])
    prices = closes[2][of_item] / 10.0**item.price_decimals
    if period == "day":
        first_ms = int(times[0]) if times.size else 2**62
        earlier = [
            (candle.open_time_ms + candle.interval_ms, candle.close / 10.0**item.price_decimals)
            for candle in fetched
            if (candle.instrument, candle.interval_ms) == (item.id, DAY_MS)
            and candle.open_time_ms + candle.interval_ms < first_ms
        ]
        before = np.array(earlier).reshape(-1, 2)
        times = np.concatenate((before[:, 0].astype(np.int64), times))
        prices = np.concatenate((before[:, 1], prices))
    if (calendar := columns.times.calendar) is not None and period == "day":
        days = calendar.days_at(times)
        last = np.append(np.flatnonzero(np.diff(days)), days.size - 1)
        ranks = np.searchsorted(np.unique(calendar.sessions.days), days[last]) + 1
        times, prices = ranks * DAY_MS, prices[last]
    return times, prices


# ---------------------------------------------------------------- tails


def forecast_scaled(profits: Floats) -> Floats:
    """Return *profits* [period] in units of the volatility forecast before each, times the newest.

    The forecast variance is an exponentially weighted mean of squares (``DECAY``). The first
    ``SEED_PERIODS`` begin it and are left out (Hull and White 1998).
    """
    variance = float((profits[:SEED_PERIODS] ** 2).mean())
    deviations = []
    for profit in profits[SEED_PERIODS:].tolist():
        deviations.append(variance**0.5)
        variance = DECAY * variance + (1 - DECAY) * profit**2
    before = np.array(deviations)
    scaled: Floats = profits[SEED_PERIODS:] / np.where(before > 0, before, np.inf) * variance**0.5
    return scaled


def tails_of(profits: Floats, days: Ints, equity: float) -> Iterator[Tail]:
    """Yield the tails of *profits* [period], shares of equity, by history and by forecast."""
    methods: list[tuple[str, Floats, Ints]] = [("history", profits, days)]
    if profits.size >= SEED_PERIODS + DAYS_LEAST:
        scaled = forecast_scaled(profits)
        methods.append(("forecast", scaled, days[SEED_PERIODS:]))
    for method, values, of_days in methods:
        figures = _tail_figures(values)
        blocks = blocks_of(of_days)
        errors = None
        if blocks.max():  # a single block has no rows beside it
            without = [_tail_figures(values[blocks != at]) for at in range(blocks.max() + 1)]
            errors = jackknife_error(np.array(without), of_days)
        spreads = [None] * figures.size if errors is None else errors.tolist()
        for place, level in enumerate(LEVELS):
            at, is_known = 2 * place, has_shortfall(values.size, level)
            yield Tail(
                method,
                level,
                (float(figures[at]), spreads[at]),
                (float(figures[at + 1]), spreads[at + 1]) if is_known else None,
                float(figures[at + 1]) * equity if is_known else None,
            )


def _tail_figures(profits: Floats) -> Floats:
    """Return value at risk and expected shortfall of each level, in turns."""
    return np.array(
        [of(profits, level) for level in LEVELS for of in (value_at_risk, expected_shortfall)]
    )


# ---------------------------------------------------------------- exposure, stress, margin


def _notional(row: Row) -> float:
    """Return the signed value of a position at its newest mark."""
    value: float = row["entry_notional"] + row["unrealized_pnl"]
    return value


def _coin(item: Instrument) -> str:
    return item.base_coin or item.symbol


def _coins(
    items: Sequence[Instrument],
    held: Sequence[tuple[Instrument, Row]],
    returns: Mapping[str, Returns],
    equity: float,
    profits: Floats,
    by_symbol: Floats,
) -> tuple[CoinExposure, ...]:
    """Return the exposures by coin, the largest first; a coin moves as its largest instrument."""
    sizes: dict[str, dict[str, float]] = {}
    gross: dict[str, float] = {}
    for item, row in held:
        of_coin = sizes.setdefault(_coin(item), {})
        of_coin[item.id] = of_coin.get(item.id, 0.0) + _notional(row)
        gross[_coin(item)] = gross.get(_coin(item), 0.0) + abs(_notional(row))
    order = sorted(gross, key=lambda coin: (-gross[coin], coin))
    series = {coin: returns[max(sizes[coin], key=lambda key: abs(sizes[coin][key]))]
              for coin in order}  # fmt: skip
    weights = tail_weights(profits.size)
    worst = np.argsort(profits, kind="stable")[: len(weights)]
    symbols = list(dict.fromkeys(item.id for item in items))
    losses = {key: -float(by_symbol[place][worst] @ weights) for place, key in enumerate(symbols)
              if profits.size}  # fmt: skip
    coins = []
    for coin in order:
        beta, correlation = _moves_with(series[coin], series[order[0]])
        net = sum(sizes[coin].values())
        coins.append(
            CoinExposure(
                coin,
                net,
                gross[coin],
                net / equity if equity > 0 else None,
                beta,
                correlation,
                sum(losses[key] for key in sizes[coin]) if losses else None,
            )
        )
    return tuple(coins)


def _moves_with(returns: Returns, largest: Returns) -> tuple[Estimate | None, Estimate | None]:
    """Return beta to and correlation with the *largest* coin; None with too few periods."""
    periods = common_days([returns, largest])[-PERIODS_MOST:]
    if len(periods) < DAYS_LEAST:
        return None, None
    x, y = (np.array([each[at] for at in periods]) for each in (returns, largest))
    x, y, days = x - x.mean(), y - y.mean(), np.array(periods)
    blocks = blocks_of(days)
    parts = [np.ones(x.size), x, y, x * x, y * y, x * y]
    summed = np.array([np.bincount(blocks, part) for part in parts])  # [part, block]
    total = summed.sum(axis=1, keepdims=True)
    if not total[3] or not total[4]:
        return None, None
    if returns is largest:
        return (1.0, None), (1.0, None)
    beta, correlation = _slopes(total)[0].tolist()
    errors = jackknife_error(_slopes(total - summed), days)
    spreads = [None, None] if errors is None else errors.tolist()
    return estimate(beta, spreads[0]), estimate(correlation, spreads[1])


def _slopes(sums: Floats) -> Floats:
    """Return beta and correlation [case, 2] of sums [part, case]: of 1, x, y, x², y² and xy."""
    count, x, y, xx, yy, xy = sums
    of_x, of_y, of_both = xx - x**2 / count, yy - y**2 / count, xy - x * y / count
    return np.array([of_both / of_y, of_both / np.sqrt(of_x * of_y)]).T


def _stress(
    columns: RunColumns,
    notionals: Mapping[str, float],
    coins: Sequence[CoinExposure],
    equity: float,
    periods: Sequence[int],
    profits: Floats,
    by_symbol: Floats,
    period: Period,
) -> Iterator[Stress]:
    """Yield what each case would earn, or cost as a number below zero."""

    def case(name: str, profit: float) -> Stress:
        return Stress(name, profit, profit / equity if equity > 0 else None)

    if not coins:
        return
    yield case("all coins fall by 20 %", FALL * sum(coin.net for coin in coins))
    yield case(f"{coins[0].coin} alone falls by 20 %", FALL * coins[0].net)
    if profits.size:
        worst = int(profits.argmin())
        named = f"the worst {period} of the data"
        if columns.times.calendar is None:
            begin_ms = (periods[worst] - 1) * LENGTHS[period]
            named += f", {iso(begin_ms)[: 10 if period == 'day' else 16].replace('T', ' ')}"
        yield case(named, float(profits[worst]) * equity)
        together = sum(expected_shortfall(each) for each in by_symbol)
        yield case("each at its own worst 2.5 % at once (correlation 1)", -together * equity)
    rates, _ = columns.settled()
    if any(rates.get(key) for key in notionals):
        paid = 0.0
        for key, notional in notionals.items():
            settled = rates.get(key, {})
            since_ms = max(settled, default=0) - DAY_MS
            day = sum(rate for at_ms, rate in settled.items() if at_ms > since_ms)
            paid += notional * day / RATE_SCALE
        yield case("a day of three times the newest funding", -FUNDING_TIMES * paid)


def _margin_left(item: Instrument, row: Row) -> MarginLeft:
    notional, liquidation_price = _notional(row), row["liquidation_price"]
    mark = notional / row["quantity"]
    return MarginLeft(
        f"{item.symbol} {'long' if row['quantity'] > 0 else 'short'} {abs(row['quantity']):g}",
        notional,
        mark,
        row["margin"],
        liquidation_price,
        None if liquidation_price is None else liquidation_price / mark - 1,
    )


# ---------------------------------------------------------------- a document

COINS: Final = (
    of_field("coin", "coin", "text"),
    of_field("net", "net", "gain"),
    of_field("gross", "gross", "money"),
    of_field("share", "net ÷ equity", "gain percent"),
    of_field("beta", "beta ± error", "ratio"),
    of_field("correlation", "correlation ± error", "ratio", wide=True),
    of_field("shortfall", "its shortfall", "percent"),
)
TAILS: Final = (
    of_field("method", "by", "text"),
    of_field("level", "worst", "percent"),
    of_field("value_at_risk", "value at risk ± error", "percent"),
    of_field("shortfall", "expected shortfall ± error", "percent"),
    of_field("money", "in money", "money"),
)
STRESS: Final = (
    of_field("case", "case", "text"),
    of_field("profit", "profit", "gain"),
    of_field("share", "of equity", "gain percent"),
)
MARGINS: Final = (
    of_field("position", "position", "text"),
    of_field("notional", "notional", "gain"),
    of_field("mark", "mark", "measure"),
    of_field("margin", "margin", "money"),
    of_field("liquidation_price", "liquidated at", "measure"),
    of_field("distance", "from the mark", "gain percent"),
)
_COINS_NOTE: Final = (
    "Beta and correlation are to the largest coin. The shortfall is the coin's mean loss in the "
    "worst 2.5 % of the book's periods, as a share of equity."
)
_TAILS_NOTE: Final = (
    "Today's positions over past returns, as shares of equity; errors by blocks of at least five "
    "days. By forecast volatility, each period is scaled from its volatility to the newest."
)


def risk_tables(risk: BookRisk) -> dict[str, Table]:
    """Return the tables of *risk* by their keys; only what is known has rows."""
    tables = []
    if risk.coins:
        tables.append(
            table("book_exposure", "Exposure by coin", COINS, risk.coins, notes=(_COINS_NOTE,))
        )
    if risk.tails:
        title = f"What {count_of(risk.periods, risk.period)} say of the book"
        tables.append(table("book_tails", title, TAILS, risk.tails, notes=(_TAILS_NOTE,)))
    if risk.stress:
        tables.append(table("book_stress", "Stress", STRESS, risk.stress))
    if risk.margin_left is not None:
        note = f"Equity less the margin of all positions is {written(risk.margin_left, 'money')}."
        tables.append(table("book_margin", "Margin", MARGINS, risk.margins, notes=(note,)))
    return {each.key: each for each in tables}


def risk_chart(risk: BookRisk) -> Chart | None:
    """Draw exposure by coin and stress as bars of equity; None without a position or equity."""
    if not risk.coins or risk.equity <= 0:
        return None
    coins, stress = list(range(len(risk.coins))), list(range(len(risk.stress)))
    exposures = ChartPanel(
        [
            BarLayer("net", _shares([coin.net for coin in risk.coins], risk), coins),
            BarLayer("gross", _shares([coin.gross for coin in risk.coins], risk), coins, ("soft",)),
            RuleLayer(0.0, "x"),
        ],
        percent_axis("exposure, % of equity"),
        category_axis([coin.coin for coin in risk.coins], is_reversed=True),
        60 + 40 * len(coins),
        is_grouped=True,
    )
    profits = [case.profit for case in risk.stress]
    cases = BarLayer("profit", _shares(profits, risk), stress,
                     ["gain" if profit > 0 else "loss" for profit in profits])  # fmt: skip
    stressed = ChartPanel(
        [cases, RuleLayer(0.0, "x")],
        percent_axis("stress, % of equity"),
        category_axis([case.case for case in risk.stress], is_reversed=True),
        60 + 28 * len(stress),
    )
    caption = "Shares of equity; a position's gain or loss if the case came now."
    return Chart("Exposure and stress", caption, [exposures, stressed])


def _shares(amounts: Sequence[float], risk: BookRisk) -> list[float | None]:
    return rounded([100 * amount / risk.equity for amount in amounts])


def risk_parts(risk: BookRisk) -> tuple[Part, ...]:
    """Return the sentence, the picture and the tables of *risk*."""
    drawn = risk_chart(risk)
    pictures = () if drawn is None else (drawn,)
    return (Paragraph(risk.sentence, "strong"), *pictures, *risk_tables(risk).values())


def risk_document(run_id: str, risk: BookRisk) -> TitledParts:
    """Return *risk* as a document."""
    at = f" at {iso(risk.at_ms)}" if risk.at_ms else ""
    return TitledParts(f"Risk of the book of run {run_id}{at}", risk_parts(risk))


def risk_json(run_id: str, risk: BookRisk) -> dict[str, Any]:
    """Return *risk* as JSON values."""
    return {
        "run_id": run_id,
        "at_ms": risk.at_ms,
        "period": risk.period,
        "periods": risk.periods,
        "too_few": bool(risk.coins) and not risk.tails,
        "equity": risk.equity,
        "margin_left": risk.margin_left,
        "sentence": risk.sentence,
        **{key: each.documents() for key, each in risk_tables(risk).items()},
    }
