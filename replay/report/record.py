"""One run as arrays, read in one snapshot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.state import HELD
from tracepaper.daemon.session.build import costs_for
from tracepaper.replay.report.states import (
    LastingState,
    below_zero,
    lasting_states,
    odd_levels,
    open_positions,
    rejections,
    short_history,
    without_fills,
    without_value,
)
from tracepaper.replay.run_columns import (
    BarTimes,
    Floats,
    Ints,
    NoteColumns,
    RunColumns,
    Texts,
    funding_in_bars,
    without_dust,
)
from tracepaper.storage.checkpoints import FittedSpan, fitted_spans
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import Columns
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.types.market import GapCause, Instrument, Side
from tracepaper.strategies.units import DAY_MS, RATE_SCALE


@dataclass(frozen=True)
class Bars:
    """The decided bars of one instrument, oldest first; prices in quote currency."""

    sequence: Ints
    open_time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    funding: Floats  # sum of the rates settled since the previous close; longs pay if positive


@dataclass(frozen=True)
class Decisions:
    """One decision per closed bar, in the run's order; without a model its figures are NaN."""

    sequence: Ints
    instrument: Texts
    open_time_ms: Ints
    action: Texts
    allowed: npt.NDArray[np.bool_]
    refused_by: Texts  # empty if allowed
    unfilled: Texts  # why no order was sent for the target; empty if one was sent or not needed
    regime: Texts
    mean_return: Floats  # at the gate's horizon
    p_up: Floats
    p_down: Floats
    confidence_entropy: Floats
    recent_mass: Floats
    older_mass: Floats
    shift: Floats

    @cached_property
    def places(self) -> dict[str, Ints]:
        """The indices of each instrument's decisions, by its id; computed once for the report."""
        names, inverse = np.unique(self.instrument, return_inverse=True)
        if names.size == 1:
            return {str(names[0]): np.arange(inverse.size)}
        order = np.argsort(inverse, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        return dict(zip(names.tolist(), parts, strict=True))


@dataclass(frozen=True)
class AccountRecord:
    """One account of the run; money in quote currency.

    ``equity`` has a value before the first decided bar, then one at each of ``times_ms``, the
    closes of the decided bars. ``held`` is the signed position of each instrument after each of its
    decided bars.
    """

    name: str
    equity: Floats
    held: dict[str, Floats]
    fills: tuple[Row, ...]
    trades: tuple[Row, ...]  # of ``v_trades``
    fees_paid: float  # in this run, as the next two
    funding_paid: float
    net: float  # until its newest step, which may come after the last close

    def holds(self, instrument: str, at_ms: int) -> bool:
        """Return whether fills before *at_ms* left a position in *instrument*."""
        held = Decimal(0)
        for fill in self.fills:
            if fill["instrument"] == instrument and fill["filled_ms"] <= at_ms:
                quantity = Decimal(fill["quantity_text"])
                held += quantity if fill["side"] == Side.BUY else -quantity
        return held != 0


@dataclass(frozen=True)
class RunRecord:
    """All data of a run that a report uses."""

    database: Path
    run: Row
    instruments: dict[str, Instrument]
    bar_times: BarTimes
    thresholds: dict[str, float]  # the last threshold of every gate
    config: Config
    terms: ExecutionCosts
    times_ms: Ints
    bars: dict[str, Bars]
    rates: dict[str, dict[int, float]]  # settled funding by instrument and time
    decisions: Decisions
    account: AccountRecord
    shadows: tuple[AccountRecord, ...]
    gaps: tuple[Row, ...]
    missing: tuple[Row, ...]  # missing funding settlements
    notes: dict[str, dict[str, NoteColumns]]  # by instrument and name
    margins: tuple[Row, ...]  # of ``v_positions``: positions on margin at the end
    states: tuple[LastingState, ...] = ()  # that hold the run at its end
    fitted: tuple[FittedSpan, ...] = ()  # periods on which the run's model was fitted
    without_fills: str = ""  # why nothing filled, in sentences; empty if an order filled
    without_value: str = ""  # a sentence on bars that were decided without a value, if it has fills
    short_history: str = ""  # a sentence on a class that answers otherwise with a longer one
    rejections: str = ""  # a sentence on rejected orders, if it has fills
    open_positions: str = ""  # those at the end, in words
    odd_levels: str = ""  # a sentence on exits at distances that are probably mistakes
    parts: tuple[RunRecord, ...] = ()  # of an account over several runs: theirs, oldest first
    begins: str = ""  # sentences on what is not in this record of its account

    @property
    def newest(self) -> RunRecord:
        """The record of the newest run."""
        return self.parts[-1] if self.parts else self

    @cached_property
    def warm_from(self) -> dict[str, int]:
        """The index of each instrument's first bar after the warm-up; its count of bars if none."""
        refused_by = self.decisions.refused_by
        places = {}
        for name, rows in self.decisions.places.items():
            warmed = np.flatnonzero(refused_by[rows] != warm.name)
            places[name] = int(warmed[0]) if warmed.size else rows.size
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
        return int(
            np.searchsorted(self.times_ms, self.bar_times.closes_of(np.array([min(starts)]))[0])
        )

    @property
    def held_shadow(self) -> AccountRecord | None:
        """The shadow account that holds the run's mean exposure so far, if the run has it."""
        return next((shadow for shadow in self.shadows if shadow.name == HELD), None)

    @cached_property
    def cautions(self) -> tuple[str, ...]:
        """Sentences before all figures: an account without money, lasting states, no fill."""
        gone = below_zero(self.times_ms, self.account.equity[1:], float(self.account.equity[0]))
        states = (state.sentence for state in self.states)
        parts = (
            self.begins,
            gone,
            *states,
            self.without_fills,
            self.without_value,
            self.short_history,
            self.rejections,
            self.odd_levels,
        )
        return tuple(filter(None, parts))

    @property
    def risk_free(self) -> float:
        """The configured risk-free rate a year."""
        return float(self.config.report.risk_free)

    @property
    def cost_rate(self) -> float:
        """The configured cost of one fill, as a fraction of its notional.

        A fee per share is converted at the median open; a minimum fee is ignored.
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

    def spans_of(self, opens_ms: Ints, bars: int) -> Ints:
        """Return the number of each open's span of whole days; a span has at least *bars* bars."""
        calendar = self.bar_times.calendar
        if calendar is None:
            length_ms = DAY_MS * max(1, math.ceil(bars * self.bar_times.interval_ms / DAY_MS))
            return opens_ms // length_ms
        places = calendar.places(opens_ms)
        days = np.unique(calendar.days, return_inverse=True)[1]
        length = max(1, math.ceil(bars * (int(days[-1]) + 1) / len(calendar)))
        return days[places] // length


# ---------------------------------------------------------------- reading

_PREDICTED: Final = (
    *("mean_return", "p_up", "p_down", "confidence_entropy"),
    *("recent_mass", "older_mass", "shift"),
)


def read_record(reader: Reader, database: Path, run_id: str) -> RunRecord:
    """Return the record of *run_id*; raise ``DataInvalid`` if it has no decision yet."""
    with RunViews(reader.connection, run_id).snapshot():
        columns = RunColumns(reader, run_id)
        views, run = columns.views, columns.views.run()
        bar_columns = columns.bars_by_instrument()
        decisions = _decisions(columns, bar_columns)
        config = restore(run["config"])
        account, *shadows = _accounts(columns, decisions)
        gaps, (rates, _) = views.rows("v_gaps"), columns.settled()
        return RunRecord(
            database=database,
            run=run,
            instruments=columns.instruments,
            bar_times=columns.times,
            thresholds=columns.thresholds,
            config=config,
            terms=costs_for(config),
            times_ms=columns.times.closes_of(np.unique(decisions.open_time_ms)),
            bars=_bars(columns, bar_columns, decisions, rates),
            rates={name: dict(each) for name, each in rates.items()},
            decisions=decisions,
            account=account,
            shadows=tuple(shadows),
            gaps=tuple(row for row in gaps if row["cause"] != GapCause.FUNDING),
            missing=tuple(row for row in gaps if row["cause"] == GapCause.FUNDING),
            notes={name: notes for name in columns.instruments if (notes := columns.notes(name))},
            margins=tuple(
                position
                for name in columns.instruments
                for position in views.rows("v_positions", newest=1, instrument=name)
                if position["margin"] is not None
            ),
            states=lasting_states(columns),
            without_fills=without_fills(columns),
            without_value=without_value(columns),
            short_history=short_history(columns),
            rejections=rejections(columns),
            odd_levels=odd_levels(columns),
            open_positions=open_positions(columns),
            fitted=fitted_spans(views.card(run["model_sha256"])) if run["model_id"] else (),
        )


def _decisions(columns: RunColumns, bar_columns: Mapping[str, Columns]) -> Decisions:
    run_id = columns.run.run_id
    counts = columns.rows.outcome_counts(columns.span).values()
    if not (decided := sum(outcome.times for outcome in counts)):
        raise DataInvalid(
            f"Run {run_id} has decided no bar yet; let it run on, or choose another run."
        )
    arrays = columns.decisions(_PREDICTED if columns.run.model_id else (), bar_columns)
    if arrays["sequence"].size != decided:
        raise DataInvalid(
            f"Run {run_id} holds decisions without their bars; run `tracepaper audit verify` "
            "and restore a backup."
        )
    nothing = np.full(decided, np.nan)
    return Decisions(
        **{name: arrays[name] for name in ("sequence", "instrument", "open_time_ms", "allowed")},
        **{name: arrays[name] for name in ("action", "refused_by", "regime")},
        unfilled=arrays["unfilled_reason"],
        **{name: arrays.get(name, nothing) for name in _PREDICTED},
    )


def _bars(
    columns: RunColumns,
    bar_columns: Mapping[str, Columns],
    decisions: Decisions,
    rates: Mapping[str, Mapping[int, float]],
) -> dict[str, Bars]:
    bars = {}
    for name in decisions.places:
        decided = bar_columns[name]["outcome"] >= 0
        chosen = ("sequence", "open_time_ms", "open", "high", "low", "close")
        kept = {key: bar_columns[name][key][decided] for key in chosen}
        closes_ms = columns.times.closes_of(kept["open_time_ms"])
        bars[name] = Bars(**kept, funding=funding_in_bars(closes_ms, rates[name].items()))
    return bars


def _accounts(columns: RunColumns, decisions: Decisions) -> Iterator[AccountRecord]:
    """Yield the run's account, then the shadow accounts by name."""
    views, times_ms = columns.views, np.unique(decisions.open_time_ms)
    for name, steps in sorted(columns.accounts().items()):
        of_account: dict[str, Any] = {"shadow": name} if name else {}
        (row,) = views.rows("v_shadow_equity" if name else "v_equity", newest=1, **of_account)
        last = columns.own_sums(row, name)
        at = np.searchsorted(steps["sequence"], decisions.sequence, side="right") - 1
        # Several instruments may close at one time; the last of these steps has the final equity.
        curve = np.empty(times_ms.size)
        curve[np.searchsorted(times_ms, decisions.open_time_ms)] = steps["equity"][at]
        before = columns.first_equity(int(decisions.sequence[0]), name)
        held = {}
        for instrument, places in decisions.places.items():
            step = columns.quantity_step(instrument)
            held[instrument] = without_dust(steps["quantity"][at[places]], step)
        yield AccountRecord(
            name=name or "this run",
            equity=np.concatenate(([before], curve)),
            held=held,
            fills=tuple(views.rows("v_shadow_fills" if name else "v_fills", **of_account)),
            trades=tuple(views.shadow_trades(name) if name else views.rows("v_trades")),
            fees_paid=float(last["fees_paid"]),
            funding_paid=float(last["funding_paid"]),
            net=float(last["equity"]) - before,
        )
