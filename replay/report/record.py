"""One run as arrays, read in one snapshot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.state import BUY_AND_HOLD
from tracepaper.daemon.session.build import costs_for
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.replay.report.states import LastingState, lasting_states
from tracepaper.storage.checkpoints import FittedSpan, fitted_spans
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import ANY, Condition, Row, RunViews, actions_of
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.sessions import Calendar, closes_of, named_splits, opens_later
from tracepaper.strategies.types.market import CorporateAction, GapCause, Instrument, Side
from tracepaper.strategies.units import DAY_MS, RATE_SCALE

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Bars:
    """The decided bars of one instrument, oldest first; prices in quote currency."""

    sequence: Ints
    open_time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    funding: Floats  # the rates settled since the bar before closed, summed; longs pay where > 0,
    # and a dividend is a rate below 0


@dataclass(frozen=True)
class Decisions:
    """One decision a closed bar, in the order of the run; figures of the model NaN without one."""

    sequence: Ints
    instrument: Texts
    open_time_ms: Ints
    action: Texts
    allowed: npt.NDArray[np.bool_]
    refused_by: Texts  # empty where allowed
    unfilled: Texts  # why no order was sent for the target; empty where one was, or none needed
    regime: Texts
    mean_return: Floats  # at the gate's horizon
    p_up: Floats
    p_down: Floats
    confidence: Floats
    content_free: Floats
    recent_mass: Floats
    older_mass: Floats
    shift: Floats

    @cached_property
    def places(self) -> dict[str, Ints]:
        """The indices of each instrument's decisions, by its id; computed once for the report."""
        names, which = np.unique(self.instrument, return_inverse=True)
        if names.size == 1:
            return {str(names[0]): np.arange(which.size)}
        order = np.argsort(which, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
        return dict(zip(names.tolist(), parts, strict=True))


@dataclass(frozen=True)
class AccountRecord:
    """One account of the run; money in quote currency.

    ``equity`` has a value before the first decided bar and then one at each of ``times_ms``,
    the closes of the decided bars. ``held`` is the signed position of every instrument after
    each of its own decided bars.
    """

    name: str
    equity: Floats
    held: dict[str, Floats]
    fills: tuple[Row, ...]
    fees_paid: float
    funding_paid: float
    realized_pnl: float
    unrealized_pnl: float

    def holds(self, instrument: str, at_ms: int) -> bool:
        """Return whether fills before *at_ms* left a position in *instrument*."""
        held = Decimal(0)
        for fill in self.fills:
            if fill["instrument"] == instrument and fill["filled_ms"] <= at_ms:
                quantity = Decimal(fill["quantity_text"])
                held += quantity if fill["side"] == Side.BUY else -quantity
        return held != 0


@dataclass(frozen=True)
class Settlements:
    """Funding that the run's own account did not book as it was due."""

    missing: tuple[Row, ...] = ()  # gaps in the settlements
    missing_held: int = 0  # of those, how many were due while a position was held
    twice: int = 0  # settlements that came again, and were booked once


@dataclass(frozen=True)
class Noted:
    """The strategy's notes of one name at bars of one instrument, oldest first."""

    open_time_ms: Ints
    number: Floats  # NaN where it is a text, or was not finite
    text: Texts  # empty where it is a number


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report reads of a run."""

    database: Path
    run: Row
    instruments: dict[str, Instrument]
    config: Config
    terms: ExecutionCosts
    times_ms: Ints
    bars: dict[str, Bars]
    decisions: Decisions
    account: AccountRecord
    twins: tuple[AccountRecord, ...]
    gaps: tuple[Row, ...]
    settlements: Settlements
    thresholds: dict[str, float]  # of every gate, as they were last
    calendar: Calendar | None  # of the sessions; None where the market never closes
    notes: dict[str, dict[str, Noted]]  # by instrument and name
    margins: tuple[Row, ...]  # of ``v_positions``: what is held on margin at the end
    actions: tuple[tuple[int, CorporateAction], ...] = ()  # splits and dividends, by sequence
    states: tuple[LastingState, ...] = ()  # what lets the run look idle at its end
    fitted: tuple[FittedSpan, ...] = ()  # where the run's model was fitted

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return int(self.run["interval_ms"])

    @cached_property
    def warm_from(self) -> dict[str, int]:
        """The index of each instrument's first bar after the warm-up; its count of bars if none."""
        refused_by = self.decisions.refused_by
        places = {}
        for name, own in self.decisions.places.items():
            warmed = np.flatnonzero(refused_by[own] != warm.name)
            places[name] = int(warmed[0]) if warmed.size else own.size
        return places

    @property
    def decidable_from(self) -> int:
        """The index in ``times_ms`` at which the first instrument was warm; their number if none.

        Benchmarks and figures of exposure begin there.
        """
        starts = [
            self.bars[name].open_time_ms[place]
            for name, place in self.warm_from.items()
            if place < self.bars[name].open_time_ms.size
        ]
        if not starts:
            return self.times_ms.size
        return int(np.searchsorted(self.times_ms, self.closes_of(np.array([min(starts)]))[0]))

    @cached_property
    def splits(self) -> dict[str, list[tuple[int, float]]]:
        """The splits that the run's warnings name, by instrument: (place of the bar, new per old).

        Unadjusted candles jump there by the ratio, although a holder neither wins nor loses.
        """
        named = named_splits(json.loads(self.run["warnings"] or "[]"))
        splits = {}
        for name, bars in self.bars.items():
            size = bars.open_time_ms.size
            places = [
                (int(np.searchsorted(bars.open_time_ms, split.open_time_ms)), split.new / split.old)
                for split in named.get(self.instruments[name].symbol, ())
            ]
            if inside := [split for split in places if 0 < split[0] < size]:
                splits[name] = inside
        return splits

    def holds_over_split(self, ledger: AccountRecord) -> bool:
        """Whether *ledger* held an instrument over its split: its equity is wrong from there on."""
        return any(
            ledger.held[name][place - 1] != 0
            for name, every in self.splits.items()
            for place, _ in every
        )

    def adjusted(self, instrument: str) -> Bars:
        """Return the bars of *instrument*; prices before a split are divided by its ratio.

        That is one that the warnings name, or one that was applied.
        """
        bars = self.bars[instrument]
        ratio = self.shares_of(instrument)
        for place, new_per_old in self.splits.get(instrument, ()):
            ratio[:place] *= new_per_old
        prices = {name: getattr(bars, name) / ratio for name in ("open", "high", "low", "close")}
        return replace(bars, **prices)

    def shares_of(self, instrument: str) -> Floats:
        """Return [bar] how many shares at the end one share of that bar is, by applied splits."""
        opens_ms = self.bars[instrument].open_time_ms
        shares = np.ones(opens_ms.size)
        for _, action in self.actions:
            if action.instrument == instrument and action.is_split:
                shares[opens_ms < action.market_ms] *= action.new / action.old
        return shares

    @property
    def held_twin(self) -> AccountRecord | None:
        """The twin that bought and held the run's exposure so far, if the run has it."""
        return next((twin for twin in self.twins if twin.name == BUY_AND_HOLD), None)

    @property
    def risk_free(self) -> float:
        """The configured risk-free rate a year."""
        return float(self.config.report.risk_free)

    @property
    def cost_rate(self) -> float:
        """The configured cost of one fill, as a fraction of its notional.

        A fee per share is taken at the median open; a minimum fee is left out.
        """
        return self.terms.round_trip / 2 + self._share_rate

    @property
    def maker_rate(self) -> float:
        """The configured fee of one fill as maker, as a fraction of its notional."""
        return self.terms.maker_fee / RATE_SCALE + self._share_rate

    @property
    def _share_rate(self) -> float:
        if not self.terms.per_share:
            return 0.0
        opens = np.concatenate([bars.open for bars in self.bars.values()])
        return self.terms.per_share / RATE_SCALE / float(np.median(opens))

    def closes_of(self, opens_ms: Ints) -> Ints:
        """Return when the bars that open at *opens_ms* close."""
        return closes_of(opens_ms, self.interval_ms, self.calendar)

    def opens_later(self, opens_ms: Ints, bars: int) -> Ints:
        """Return when the bar opens that is so many *bars* after each of *opens_ms*."""
        return opens_later(opens_ms, bars, self.interval_ms, self.calendar)

    def bars_between(self, first_ms: Ints, second_ms: Ints) -> Ints:
        """Count the bars from the opens *first_ms* to the opens *second_ms*."""
        if self.calendar is None:
            return (second_ms - first_ms) // self.interval_ms
        return self.calendar.places(second_ms) - self.calendar.places(first_ms)

    def spans_of(self, opens_ms: Ints, bars: int) -> Ints:
        """Return the number of the span of whole days, at least *bars* long, that has each open."""
        if self.calendar is None:
            length_ms = DAY_MS * max(1, math.ceil(bars * self.interval_ms / DAY_MS))
            return opens_ms // length_ms
        places = self.calendar.places(opens_ms)
        days = np.unique(self.calendar.days, return_inverse=True)[1]
        length = max(1, math.ceil(bars * (int(days[-1]) + 1) / len(self.calendar)))
        spans: Ints = days[places] // length
        return spans


# ---------------------------------------------------------------- reading

_DECIDED: Final = {
    "sequence": "i", "instrument": "s", "open_time_ms": "i", "action": "s", "allowed": "b",
    "refused_by": "s", "unfilled_reason": "s", "regime": "s",
}  # fmt: skip
"""Columns of ``v_decisions``, and what each is read as: see ``view_arrays``."""
_PREDICTED: Final = {
    "mean_return": "f", "p_up": "f", "p_down": "f", "confidence": "f", "content_free": "f",
    "recent_mass": "f", "older_mass": "f", "shift": "f",
}  # fmt: skip
"""Those that a run without a model leaves null: it is not asked for them."""
_CANDLES: Final = {
    "sequence": "i", "instrument": "s", "open_time_ms": "i",
    "open": "f", "high": "f", "low": "f", "close": "f",
}  # fmt: skip
_NOTED: Final = {"instrument": "s", "open_time_ms": "i", "name": "s", "number": "f", "text": "s"}
_CURVE: Final = {"sequence": "i", "equity": "f", "quantity": "f"}
_TYPES: Final[dict[str, Any]] = {"i": np.int64, "f": np.float64, "s": np.str_, "b": np.bool_}


class _TimeAxis(NamedTuple):
    """The decisions and times at which every account of the run is read."""

    decisions: Decisions
    times_ms: Ints
    steps: dict[str, float]  # the least quantity of each instrument


def read_record(reader: Reader, database: Path, run_id: str) -> RunRecord:
    """Return the record of *run_id*; raise ``DataInvalid`` where it has no decision yet."""
    views = RunViews(reader.connection, run_id)
    with views.snapshot():
        run = views.run()
        decisions = _decisions(views, predicted=bool(run["model_id"]))
        if not decisions.sequence.size:
            raise DataInvalid(
                f"Run {run_id} has decided no bar yet; let it run on, or choose another run."
            )
        stored = reader.stored_run(run_id)
        sessions, interval_ms = sessions_of(stored.run), stored.run.interval_ms
        calendar = None if sessions is None else Calendar(sessions, interval_ms)
        times = closes_of(np.unique(decisions.open_time_ms), interval_ms, calendar)
        config = restore(run["config"])
        instruments = {item.id: item for item in stored.run.instruments}
        axis = _TimeAxis(decisions, times, quantity_steps(instruments))
        account, settled = _account(views, axis), views.rows("v_events", kind="funding")
        gaps = views.rows("v_gaps")
        actions = tuple(actions_of(reader.connection, stored.run))
        return RunRecord(
            database=database,
            run=run,
            instruments=instruments,
            config=config,
            terms=costs_for(config),
            times_ms=times,
            bars=_bars(views, decisions, interval_ms, calendar, settled, actions, instruments),
            decisions=decisions,
            calendar=calendar,
            account=account,
            twins=tuple(_twins(views, axis)),
            gaps=tuple(row for row in gaps if row["cause"] != GapCause.FUNDING),
            settlements=_settlements(gaps, settled, account),
            thresholds={
                gate: threshold
                for gates in reader.gate_sets(stored.run_key)
                for gate, threshold in zip(gates.gates, gates.thresholds, strict=True)
            },
            notes=_notes(views),
            margins=tuple(_margins(views, instruments)),
            actions=actions,
            states=lasting_states(reader, run_id),
            fitted=fitted_spans(views.card(run["model_sha256"])) if run["model_id"] else (),
        )


def _margins(views: RunViews, instruments: Iterable[str]) -> Iterator[Row]:
    """Yield the last position of each instrument that is held on margin, in hedge mode both."""
    for instrument in instruments:
        rows = views.rows("v_positions", newest=2, instrument=instrument)
        for row in sorted(rows, key=itemgetter("side")):
            is_newest = row["sequence"] == max(one["sequence"] for one in rows)
            if is_newest and row["margin"] is not None:
                yield row


def _notes(views: RunViews) -> dict[str, dict[str, Noted]]:
    """Read the strategy's notes by instrument and name, in the order of their first rows."""
    columns = view_arrays(views, "v_notes", _NOTED)
    notes: dict[str, dict[str, Noted]] = {}
    keys = list(zip(columns["instrument"].tolist(), columns["name"].tolist(), strict=True))
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if not number_of:
        return notes
    which = np.array([number_of[key] for key in keys])
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
    for (instrument, name), at in zip(number_of, parts, strict=True):
        own = {column: columns[column][at] for column in ("open_time_ms", "number", "text")}
        notes.setdefault(instrument, {})[name] = Noted(**own)
    return notes


def view_arrays(
    views: RunViews, view: str, kinds: dict[str, str], equal: Mapping[str, Condition] = ANY
) -> dict[str, Any]:
    """Return columns of *view* as arrays by name; *kinds* gives each one's type by a letter.

    ``i`` int64, ``f`` float64 (NaN for null), ``s`` text (empty for null), ``b`` bool.
    """
    parts: dict[str, list[Any]] = {
        name: [np.empty(0, dtype=_TYPES[kind])] for name, kind in kinds.items()
    }
    for batch in views.batches(view, tuple(kinds), equal=equal):
        for (name, kind), column in zip(kinds.items(), batch, strict=True):
            values = [value or "" for value in column] if kind == "s" else column
            parts[name].append(np.array(values, dtype=_TYPES[kind]))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _decisions(views: RunViews, *, predicted: bool) -> Decisions:
    columns = view_arrays(views, "v_decisions", _DECIDED | (_PREDICTED if predicted else {}))
    if not predicted:
        columns |= dict.fromkeys(_PREDICTED, np.full(columns["sequence"].size, np.nan))
    columns["unfilled"] = columns.pop("unfilled_reason")
    return Decisions(**columns)


def _settlements(
    gaps: Sequence[Row], settled: Sequence[Row], account: AccountRecord
) -> Settlements:
    """List missing settlements, and count those that came twice."""
    missing = tuple(row for row in gaps if row["cause"] == GapCause.FUNDING)
    held = sum(account.holds(row["instrument"], row["from_ms"]) for row in missing)
    known = {(row["instrument"], row["market_ms"]) for row in settled}
    return Settlements(missing, held, len(settled) - len(known))


def _bars(
    views: RunViews,
    decisions: Decisions,
    interval_ms: int,
    calendar: Calendar | None,
    settlements: Sequence[Row],
    actions: Sequence[tuple[int, CorporateAction]],
    instruments: Mapping[str, Instrument],
) -> dict[str, Bars]:
    columns = view_arrays(views, "v_bars", _CANDLES, {"accepted": 1})
    # Both are in the order of the run, so one index by sequence serves decisions and bars alike.
    at = np.searchsorted(columns["sequence"], decisions.sequence).clip(
        max=max(columns["sequence"].size - 1, 0)
    )
    if not np.array_equal(columns["sequence"][at], decisions.sequence):
        raise DataInvalid(
            f"Run {views.run_id} holds decisions without their bars; run `tracepaper audit verify` "
            "and restore a backup."
        )
    rates_of: dict[tuple[str, int], int] = {}
    for row in settlements:  # one that comes twice is booked once
        rate = json.loads(row["content"])["rate"]
        rates_of.setdefault((row["instrument"], row["market_ms"]), rate)
    bars = {}
    for name, places in decisions.places.items():
        own = {
            column: values[at[places]]
            for column, values in columns.items()
            if column != "instrument"
        }
        rates: list[tuple[int, float]] = [
            (time, rate) for (instrument, time), rate in rates_of.items() if instrument == name
        ]
        rates += dividend_rates(actions, name, instruments[name])
        closes_ms = closes_of(own["open_time_ms"], interval_ms, calendar)
        bars[name] = Bars(**own, funding=funding_in_bars(closes_ms, rates))
    return bars


def dividend_rates(
    actions: Sequence[tuple[int, CorporateAction]], name: str, instrument: Instrument
) -> list[tuple[int, float]]:
    """Return the time of each dividend of *name* and its rate, as of funding that is received."""
    return [
        (action.market_ms, dividend_rate(action, instrument))
        for _, action in actions
        if action.instrument == name and not action.is_split
    ]


def dividend_rate(action: CorporateAction, instrument: Instrument) -> float:
    """Return a dividend as a rate of funding that is received: 10⁻¹⁰ of the close before it."""
    return -action.amount * 10**instrument.price_decimals / action.close


def funding_in_bars(closes_ms: Ints, settled: Sequence[tuple[int, float]]) -> Floats:
    """Return the rates that were settled within each bar; those after the last are left out."""
    rates = np.zeros(closes_ms.size)
    for market_ms, rate in settled:
        place = int(np.searchsorted(closes_ms, market_ms, side="right"))
        if place < closes_ms.size:
            rates[place] += rate / RATE_SCALE
    return rates


def quantity_steps(instruments: dict[str, Instrument]) -> dict[str, float]:
    """Return every instrument's quantity step as a quantity."""
    return {
        name: item.quantity_step / 10**item.quantity_decimals for name, item in instruments.items()
    }


def without_dust(held: Floats, step: float) -> Floats:
    """Return *held* without the rests under a *step* that spot fees leave: none can be sold."""
    return np.where(np.abs(held) < (1.0 - 1e-9) * step, 0.0, held)


def _account(views: RunViews, axis: _TimeAxis) -> AccountRecord:
    curve = view_arrays(views, "v_equity", _CURVE)
    (last,) = views.rows("v_equity", newest=1)
    return _ledger("this run", curve, views.rows("v_fills"), last, axis)


def _twins(views: RunViews, axis: _TimeAxis) -> list[AccountRecord]:
    accounts = []
    for name, _ in sorted(views.counts("v_twin_equity", "twin")):
        curve = view_arrays(views, "v_twin_equity", _CURVE, {"twin": name})
        (last,) = views.rows("v_twin_equity", newest=1, twin=name)
        fills = views.rows("v_twin_fills", twin=name)
        accounts.append(_ledger(name, curve, fills, last, axis))
    return accounts


def _ledger(
    name: str,
    steps: dict[str, Any],
    fills: Sequence[Row],
    last: Row,
    axis: _TimeAxis,
) -> AccountRecord:
    """Return one account from its sequence, equity and position after each of its *steps*."""
    decisions, times_ms = axis.decisions, axis.times_ms
    sequences, equity = steps["sequence"], steps["equity"]
    quantity = np.nan_to_num(steps["quantity"])
    at = np.searchsorted(sequences, decisions.sequence, side="right") - 1
    # Several instruments close at one time: the last step of that time has the whole account.
    curve = np.empty(times_ms.size)
    curve[np.searchsorted(times_ms, decisions.open_time_ms, side="right")] = equity[at]
    before = max(int(at[0]) - 1, 0)
    held = {}
    for instrument, places in decisions.places.items():
        own = quantity[at[places]]
        held[instrument] = without_dust(own, axis.steps[instrument])
    return AccountRecord(
        name=name,
        equity=np.concatenate((equity[before : before + 1], curve)),
        held=held,
        fills=tuple(fills),
        fees_paid=float(last["fees_paid"]),
        funding_paid=float(last["funding_paid"]),
        realized_pnl=float(last["realized_pnl"]),
        unrealized_pnl=float(last["unrealized_pnl"]),
    )
