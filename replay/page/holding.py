"""Buy and hold for comparison with a run: the report's figure, updated while the run continues."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.engine.state import HELD
from tracepaper.daemon.session.build import costs_for
from tracepaper.replay.page.rollups import ACCOUNTS, OWN, TIME, RollupMissing
from tracepaper.replay.report.benchmarks import BOUGHT, HeldUnit, held_source
from tracepaper.replay.report.states import below_zero
from tracepaper.strategies.sessions import SuspectedSplit, named_splits
from tracepaper.strategies.units import RATE_SCALE

if TYPE_CHECKING:
    from tracepaper.daemon.broker.execution import ExecutionCosts
    from tracepaper.replay.page.databases import OpenRun
    from tracepaper.replay.run_columns import Floats, Ints
    from tracepaper.storage.database.run_rows import Span

BUY_AND_HOLD: Final = "buy_and_hold"
"""The name of the account that holds with all the money."""


class HeldUnits(NamedTuple):
    """One unit of each instrument, bought as soon as the run could have bought it."""

    start: float  # the run's initial money
    bought: dict[str, HeldUnit]
    newest: dict[str, tuple[float, float]]  # open time and close of the last bar
    splits: dict[str, list[SuspectedSplit]]

    def adjusted(self, name: str, opens_ms: Ints | Floats, prices: Floats) -> Floats:
        """Return *prices* of bars; those before a split are divided by its ratio."""
        for split in self.splits[name]:
            ratio = split.new / split.old
            prices = np.where(opens_ms < split.open_time_ms, prices / ratio, prices)
        return prices


@dataclass(frozen=True)
class HoldingAccount:
    """An account that buys for *shares* of the initial money, or sells short, and holds."""

    name: str
    title: str
    source: str
    shares: dict[str, float]  # by instrument
    units: HeldUnits

    @property
    def share(self) -> float:
        """The share of the initial money in all instruments, with their signs."""
        return sum(self.shares.values())

    @property
    def start(self) -> float:
        """The initial money."""
        return self.units.start

    def equity(self, opens_ms: Floats, closes: dict[str, Floats]) -> Floats:
        """Return the equity at *closes*, after the last bars that open until *opens_ms*."""
        grown = np.ones(opens_ms.size)
        for name, unit in self.units.bought.items():
            prices = self.units.adjusted(name, opens_ms, closes[name])
            grown += unit.profit(self.shares[name], opens_ms, prices)
        return self.start * grown

    @property
    def newest(self) -> float:
        """The equity after the run's newest bars."""
        at = np.array([max((bar[0] for bar in self.units.newest.values()), default=0.0)])
        closes = {name: np.array([close]) for name, (_, close) in self.units.newest.items()}
        return float(self.equity(at, closes)[0])


def _units(shown: OpenRun) -> HeldUnits:
    columns, run = shown.columns, shown.views.run()
    config, (_, end) = restore(run["config"]), columns.span
    decided = columns.rows.decided_at(columns.span, newest=False)
    cash = float(config.account.cash)
    units = HeldUnits(
        cash if decided is None else columns.equity_before(decided), {}, {}, _splits(shown)
    )
    (rates, _), cost_rate = columns.settled(), _cost_rate(shown, costs_for(config))
    for place, (name, settlements) in enumerate(rates.items()):
        last = columns.rows.bar_at(place, columns.span, newest=True)
        if last is not None:
            bar = columns.bars(name, (last.sequence, last.sequence))
            units.newest[name] = (last.open_time_ms, float(bar["close"][0]))
        if (first := _first_bar(shown, place)) is None:
            continue
        bar = columns.bars(name, (first, first))
        # Cache the places: a run of a year has a thousand funding settlements.
        places = shown.rollups.followed.setdefault(f"settled {name}", {})
        settled: list[tuple[int, int, float, float]] = []
        for market_ms, rate in settlements.items():
            if market_ms not in places:
                places |= _bar_of_settlement(shown, name, (first, end), market_ms)
            if (place_of := places.get(market_ms)) is not None:
                settled.append((*place_of, rate / RATE_SCALE))
        within_ms, before_ms, closes, paid = np.array(sorted(settled)).reshape(-1, 4).T
        price = units.adjusted(name, bar[TIME], bar["open"])[0]
        paid = (units.adjusted(name, before_ms, closes) * paid).cumsum()
        units.bought[name] = HeldUnit(
            float(price), cost_rate, int(bar[TIME][0]), within_ms, np.concatenate(([0.0], paid))
        )
    return units


def _bar_of_settlement(
    shown: OpenRun, name: str, span: Span, market_ms: int
) -> dict[int, tuple[int, int, float] | None]:
    """Return {market_ms: (open of its bar, open of the previous bar, close of the previous bar)}.

    The value is None if the settlement is before *span*. The result is empty if its bar is still
    missing.
    """
    columns, rows = shown.columns, shown.columns.rows
    place = columns.place(name)
    edge = rows.opened_at(place, span, columns.times.open_closing_after(market_ms))
    within = rows.bar_at(place, (edge, span[1]), newest=False)
    if within is None:
        return {}
    before = rows.bar_at(place, (span[0], edge - 1), newest=True)
    if before is None:
        return {market_ms: None}
    close = columns.bars(name, (before.sequence, before.sequence))["close"]
    return {market_ms: (within.open_time_ms, before.open_time_ms, float(close[0]))}


def _splits(shown: OpenRun) -> dict[str, list[SuspectedSplit]]:
    """Return the splits in the run's warnings and those that were applied, by instrument."""
    columns = shown.columns
    warned = named_splits(json.loads(shown.views.run()["warnings"] or "[]"))
    splits = {
        name: warned.get(item.symbol, []).copy() for name, item in columns.instruments.items()
    }
    for _, action in columns.actions():
        if action.is_split:
            split = SuspectedSplit(action.market_ms, action.new, action.old)
            splits[action.instrument].append(split)
    return splits


def _cost_rate(shown: OpenRun, terms: ExecutionCosts) -> float:
    """Return the cost of one fill as a fraction of its notional, as ``RunRecord.cost_rate``."""
    rate = terms.round_trip / 2
    if terms.per_share:
        until, opens = shown.rollups.followed.get("opens", (-1, np.empty(0)))
        for name in shown.columns.instruments:
            bars = shown.columns.bars(name, (until + 1, shown.columns.span[1]))
            opens = np.append(opens, bars["open"][bars["outcome"] >= 0])
        shown.rollups.followed["opens"] = shown.columns.span[1], opens
        if opens.size:
            rate += terms.per_share / RATE_SCALE / float(np.median(opens))
    return rate


def _first_bar(shown: OpenRun, place: int) -> int | None:
    """Return the sequence of an instrument's bar after its first bar past the warm-up."""
    rows, last = shown.columns.rows, shown.columns.span[1]
    if (since := shown.rollups.warm_sequence()) is None:
        return None
    keys = shown.rollups.warm_keys()
    warmed = rows.decided_at((since, last), keys, instrument=place, newest=False)
    if warmed is None:
        return None
    bar = rows.bar_at(place, (warmed + 1, last), newest=False)
    return None if bar is None else bar.sequence


def shadows(shown: OpenRun) -> list[str]:
    """Return the names of the shadow accounts, from the rows of the newest step."""
    rows = shown.views.rows("v_shadow_equity", newest=16)
    return sorted({row["shadow"] for row in rows})


def mean_exposure(shown: OpenRun) -> float | None:
    """Return the run's mean exposure over all symbols, with their signs; None if unknown."""
    shares = mean_exposures(shown)
    return None if shares is None else sum(shares.values())


def mean_exposures(shown: OpenRun) -> dict[str, float] | None:
    """Return the run's mean exposure in each symbol, from the first warm bar on.

    None without such a bar, if the equity was used up, or if a roll-up is still missing.
    """
    try:
        return shown.rollups.kept_value("exposures", lambda: _means(shown))
    except RollupMissing:
        return None


def below_zero_of(shown: OpenRun) -> str:
    """Return the sentence on an account that had nothing left; empty while roll-ups are missing."""
    try:
        return shown.rollups.kept_value("below zero", lambda: _below_zero(shown))
    except RollupMissing:
        return ""


def _below_zero(shown: OpenRun) -> str:
    block = shown.rollups.full_range(ACCOUNTS)
    lowest = block.get(f"low:{OWN}", np.empty(0))
    is_known = ~np.isnan(lowest)
    closes_ms = shown.columns.times.closes_of(block[TIME][is_known].astype(np.int64))
    return below_zero(closes_ms, lowest[is_known])


def _means(shown: OpenRun) -> dict[str, float] | None:
    block = shown.rollups.full_range(ACCOUNTS)
    bars = float(np.sum(block.get("exposed", 0.0)))
    if not bars or np.nanmin(block[f"low:{OWN}"]) <= 0:
        return None
    return {
        name: float(np.sum(block[f"exposures:{name}"])) / bars for name in shown.columns.instruments
    }


def held(shown: OpenRun) -> list[HoldingAccount]:
    """Return the accounts that buy and hold: at the run's mean exposure, and with all the money.

    The first is left out if the run has the shadow account that holds its exposure so far.
    """
    shares = mean_exposures(shown)
    return shown.rollups.kept_value(f"held {shares}", lambda: _held_by(shown, shares))


def _held_by(shown: OpenRun, shares: dict[str, float] | None) -> list[HoldingAccount]:
    units = _units(shown)
    if not units.bought:
        return []
    pruned = ", over the rest of a pruned run" if shown.columns.span[0] else ""
    has_shadow, accounts = HELD in shadows(shown), []
    if shares and any(shares.values()) and not has_shadow:
        instruments = shown.columns.instruments
        source = held_source({instruments[name].symbol: share for name, share in shares.items()})
        title = "buy and hold at its own exposure"
        accounts.append((HELD, title, f"{source}{pruned}", shares))
    source = f"computed: all the money, {BOUGHT}{pruned}"
    in_full = dict.fromkeys(units.newest, 1.0 / len(units.newest))
    accounts.append((BUY_AND_HOLD, "buy and hold", source, in_full))
    return [HoldingAccount(*account, units) for account in accounts]
