"""Buy and hold beside a run: the report's figure, brought up to date while the run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.engine.state import BUY_AND_HOLD
from tracepaper.daemon.session.build import costs_for
from tracepaper.replay.page.rollups import ACCOUNTS, OWN, TIME, RollupMissing
from tracepaper.replay.report.benchmarks import BOUGHT, HeldUnit, bought
from tracepaper.replay.report.record import Bars
from tracepaper.replay.run_columns import dividend_rate, funding_in_bars
from tracepaper.storage.database.run_views import action_of
from tracepaper.strategies.sessions import SuspectedSplit, named_splits
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import RATE_SCALE

if TYPE_CHECKING:
    from tracepaper.replay.page.databases import ShownRun
    from tracepaper.replay.run_columns import Floats, Ints

HELD_ALIKE: Final = "held"


@dataclass(frozen=True)
class HoldingAccount:
    """An account that bought a *share* of the start's money in equal parts, and holds it."""

    name: str
    title: str
    source: str
    start: float
    share: float
    parts: int
    units: _Units

    def equity(self, opens_ms: Floats, closes: dict[str, Floats]) -> Floats:
        """Return the equity after the bars that open last by *opens_ms*, at their *closes*."""
        gains = np.zeros(opens_ms.size)
        for name, unit in self.units.bought.items():
            gains += unit.gain(opens_ms, self.units.adjusted(name, opens_ms, closes[name]))
        return self.start * (1.0 + self.share * gains / self.parts)

    @property
    def newest(self) -> float:
        """The equity after the run's newest bars."""
        at = np.array([max((bar[0] for bar in self.units.newest.values()), default=0.0)])
        closes = {name: np.array([close]) for name, (_, close) in self.units.newest.items()}
        return float(self.equity(at, closes)[0])


class _Units:
    """A unit of each instrument, bought as soon as the run could have bought it.

    Only what is new is read: a run of a year settles its funding a thousand times.
    """

    def __init__(self, shown: ShownRun) -> None:
        columns, run = shown.columns, shown.views.run()
        first = columns.rows.decided_at(columns.span, newest=False)
        cash = float(json.loads(run["config"])["account"]["cash"])
        self.start = cash if first is None else columns.equity_before(first)
        self.bought: dict[str, HeldUnit] = {}
        self.newest: dict[str, tuple[float, float]] = {}  # open time and close of the last bar
        self._terms = costs_for(restore(run["config"]))
        self._opens = np.empty(0)  # of the decided bars, where fees are by the share
        self._splits = named_splits(json.loads(run["warnings"] or "[]"))
        self._symbols = {
            name: instrument.symbol for name, instrument in columns.instruments.items()
        }
        self._after = -1  # the run is read up to this sequence
        self._rates: dict[str, dict[int, float]] = {name: {} for name in columns.instruments}
        self._pending: dict[str, list[int]] = {name: [] for name in columns.instruments}
        self._needed: dict[str, list[int]] = {}  # bars that say what a unit cost, by sequence

    def follow(self, shown: ShownRun) -> None:
        """Take note of the bars and settlements since the last time."""
        columns, rows = shown.columns, shown.columns.rows
        names, end = tuple(columns.instruments), columns.span[1]
        for event in rows.events("funding", (self._after + 1, end)):
            name = names[event.instrument or 0]
            if event.market_ms not in self._rates[name]:  # one that comes twice is booked once
                self._rates[name][event.market_ms] = json.loads(event.content)["rate"]
                self._pending[name].append(event.market_ms)
        self._act(shown, end)
        is_share = any(item.category is Category.STOCK for item in columns.instruments.values())
        for place, name in enumerate(names):
            if self._terms.per_share:
                bars = columns.bars(name, (self._after + 1, end))
                self._opens = np.append(self._opens, bars["open"][bars["outcome"] >= 0])
            last = rows.bar_at(place, columns.span, newest=True)
            if last is not None:
                bar = columns.bars(name, (last.sequence, last.sequence))
                self.newest[name] = (last.open_time_ms, float(bar["close"][0]))
            if name not in self._needed and (first := _first_bar(shown, place)) is not None:
                self._needed[name] = [first]
        self._after = end
        for place, name in enumerate(names):
            if name in self._needed and (
                self._settle(shown, name, place) or is_share or name not in self.bought
            ):
                self.bought[name] = self._bought(shown, name)

    @property
    def _cost_rate(self) -> float:
        """The cost of one fill by its notional, as ``RunRecord.cost_rate`` has it."""
        rate = self._terms.round_trip / 2
        if self._terms.per_share and self._opens.size:
            rate += self._terms.per_share / RATE_SCALE / float(np.median(self._opens))
        return rate

    def _act(self, shown: ShownRun, end: int) -> None:
        """Take note of the splits and dividends of shares since the last time."""
        instruments = shown.columns.instruments
        if not any(item.category is Category.STOCK for item in instruments.values()):
            return
        for row in shown.views.rows("v_events", kind="corporate_action"):
            if not self._after < row["sequence"] <= end:
                continue
            action = action_of(row)
            item = instruments[action.instrument]
            if action.is_split:
                split = SuspectedSplit(action.market_ms, action.new, action.old)
                self._splits.setdefault(item.symbol, []).append(split)
            else:
                self._rates[item.id][action.market_ms] = dividend_rate(action, item)
                self._pending[item.id].append(action.market_ms)

    def _settle(self, shown: ShownRun, name: str, place: int) -> bool:
        """Find the bars around each settlement; return whether there are new ones."""
        rows, end, needed = shown.columns.rows, shown.columns.span[1], self._needed[name]
        count, later = len(needed), []
        for market_ms in self._pending[name]:
            opened_ms = shown.columns.times.open_closing_after(market_ms)
            edge = rows.opened_at(place, (needed[0], end), opened_ms)
            before = rows.bar_at(place, (needed[0], edge - 1), newest=True)
            within = rows.bar_at(place, (edge, end), newest=False)
            if within is None:
                later.append(market_ms)
            elif before is not None:
                needed += [before.sequence, within.sequence]
        self._pending[name] = later
        needed[:] = sorted(set(needed))
        return len(needed) > count

    def _bought(self, shown: ShownRun, name: str) -> HeldUnit:
        columns = shown.columns
        parts = [columns.bars(name, (at, at)) for at in self._needed[name]]
        opens_ms, opened, close = (
            np.concatenate([part[key] for part in parts]) for key in (TIME, "open", "close")
        )
        opened, close = (self.adjusted(name, opens_ms, each) for each in (opened, close))
        funding = funding_in_bars(columns.times.closes_of(opens_ms), self._rates[name].items())
        bars = Bars(np.array(self._needed[name]), opens_ms, opened, opened, opened, close, funding)
        return bought(bars, 0, self._cost_rate)

    def adjusted(self, name: str, opens_ms: Ints | Floats, prices: Floats) -> Floats:
        """Return *prices* of bars, those before a split that the run names by its ratio."""
        for split in self._splits.get(self._symbols[name], ()):
            ratio = split.new / split.old
            prices = np.where(opens_ms < split.open_time_ms, prices / ratio, prices)
        return prices


def _first_bar(shown: ShownRun, place: int) -> int | None:
    """Return the sequence of an instrument's bar after its first that was no warm-up."""
    rows, last = shown.columns.rows, shown.columns.span[1]
    if (since := shown.rollups.warm_sequence()) is None:
        return None
    keys = shown.rollups.warm_keys()
    warmed = rows.decided_at((since, last), keys, instrument=place, newest=False)
    if warmed is None:
        return None
    bar = rows.bar_at(place, (warmed + 1, last), newest=False)
    return None if bar is None else bar.sequence


def twins(shown: ShownRun) -> list[str]:
    """Name the twins, by the account rows of the newest step."""
    rows = shown.views.rows("v_twin_equity", newest=16)
    return sorted({row["twin"] for row in rows})


def mean_exposure(shown: ShownRun, sums: str = "exposures") -> float | None:
    """Return the mean exposure that buy and hold is compared at, from the first warm bar on.

    Of ``grosses`` that of all that is held by the equity; in hedge mode both sides added up. None
    where there is none yet, the equity was used up, or a roll-up is not made yet.
    """
    try:
        return shown.rollups.kept_value(sums, lambda: _mean(shown, sums))
    except RollupMissing:
        return None


def _mean(shown: ShownRun, sums: str) -> float | None:
    block = shown.rollups.whole(ACCOUNTS)
    bars = float(np.sum(block.get("exposed", 0.0)))
    if not bars or np.nanmin(block[f"low:{OWN}"]) <= 0:
        return None
    return float(np.sum(block.get(sums, block["exposures"]))) / bars


def held(shown: ShownRun) -> list[HoldingAccount]:
    """Return the accounts that buy and hold: at the run's mean exposure, and with all the money.

    Where the run has the twin that holds its exposure so far, that one stands for the first.
    """
    share = mean_exposure(shown)
    return shown.rollups.kept_value(f"held {share}", lambda: _held_by(shown, share))


def _held_by(shown: ShownRun, share: float | None) -> list[HoldingAccount]:
    kept = shown.rollups.followed
    if (units := kept.get("units")) is None:
        units = kept["units"] = _Units(shown)
    units.follow(shown)
    if not units.bought:
        return []
    left = ", of what is left of a pruned run" if shown.columns.span[0] else ""
    has_twin, accounts = BUY_AND_HOLD in twins(shown), []
    if share and not has_twin:
        source = f"computed: the run's mean exposure, {share:.2%} of the start, {BOUGHT}{left}"
        accounts.append((HELD_ALIKE, "buy and hold at its own exposure", source, share))
    name = f"{BUY_AND_HOLD} in full" if has_twin else BUY_AND_HOLD
    accounts.append((name, "buy and hold", f"computed: all the money, {BOUGHT}{left}", 1.0))
    parts = len(units.newest)
    return [
        HoldingAccount(name, title, source, units.start, part, parts, units)
        for name, title, source, part in accounts
    ]
