"""One run as arrays, read through the stable views in one snapshot of its database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.daemon.session.build import costs_for
from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import ANY, Condition, Row, RunViews
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import MONEY_SCALE, Instrument

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
    funding: Floats  # the rates settled since the bar before closed, summed; longs pay where > 0


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
        """The places of each instrument's decisions, by its id: found once for the whole report."""
        names, which = np.unique(self.instrument, return_inverse=True)
        if names.size == 1:
            return {str(names[0]): np.arange(which.size)}
        order = np.argsort(which, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
        return dict(zip(names.tolist(), parts, strict=True))


@dataclass(frozen=True)
class Ledger:
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


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report says of a run."""

    database: Path
    run: Row
    instruments: dict[str, Instrument]
    config: Config
    terms: ExecutionCosts
    every_bar: bool  # False where only steps that traded, and the ends of days, are kept
    times_ms: Ints
    bars: dict[str, Bars]
    decisions: Decisions
    account: Ledger
    twins: tuple[Ledger, ...]
    gaps: tuple[Row, ...]
    thresholds: dict[str, float]  # of every gate, as they were last

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return int(self.run["interval_ms"])

    @property
    def cost_rate(self) -> float:
        """What one fill costs by configuration, as a fraction of its notional."""
        return self.terms.round_trip / 2


# ---------------------------------------------------------------- reading

_DECIDED: Final = {
    "sequence": "i", "instrument": "s", "open_time_ms": "i", "action": "s", "allowed": "b",
    "refused_by": "s", "unfilled_reason": "s", "regime": "s",
}  # fmt: skip
"""Columns of ``v_decisions``, and what each is read as: see ``_arrays``."""
_PREDICTED: Final = {
    "mean_return": "f", "p_up": "f", "p_down": "f", "confidence": "f", "content_free": "f",
    "recent_mass": "f", "older_mass": "f", "shift": "f",
}  # fmt: skip
"""Those that a run without a model leaves null: it is not asked for them."""
_CANDLES: Final = {
    "sequence": "i", "instrument": "s", "open_time_ms": "i",
    "open": "f", "high": "f", "low": "f", "close": "f",
}  # fmt: skip
_CURVE: Final = {"sequence": "i", "equity": "f", "quantity": "f"}
_TYPES: Final[dict[str, Any]] = {"i": np.int64, "f": np.float64, "s": np.str_, "b": np.bool_}


class _Frame(NamedTuple):
    """What every account of the run is laid over."""

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
        times = np.unique(decisions.open_time_ms) + int(run["interval_ms"])
        config = restore(run["config"])
        stored = reader.stored_run(run_id)
        instruments = {known.id: known for known in stored.run.instruments}
        frame = _Frame(decisions, times, _steps(instruments))
        return RunRecord(
            database=database,
            run=run,
            instruments=instruments,
            config=config,
            terms=costs_for(config),
            every_bar=stored.run.keeps_every_step,
            times_ms=times,
            bars=_bars(views, decisions, int(run["interval_ms"])),
            decisions=decisions,
            account=_account(views, frame),
            twins=tuple(_twins(views, frame)),
            gaps=tuple(views.rows("v_gaps")),
            thresholds={
                gate: threshold
                for gates in reader.gate_sets(stored.run_key)
                for gate, threshold in zip(gates.gates, gates.thresholds, strict=True)
            },
        )


def _arrays(
    views: RunViews, view: str, kinds: dict[str, str], equal: Mapping[str, Condition] = ANY
) -> dict[str, Any]:
    """Return columns of *view* as arrays by name; a letter of *kinds* is one's type.

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
    columns = _arrays(views, "v_decisions", _DECIDED | (_PREDICTED if predicted else {}))
    if not predicted:
        columns |= dict.fromkeys(_PREDICTED, np.full(columns["sequence"].size, np.nan))
    columns["unfilled"] = columns.pop("unfilled_reason")
    return Decisions(**columns)


def _bars(views: RunViews, decisions: Decisions, interval_ms: int) -> dict[str, Bars]:
    """Return the decided bars of every instrument, by its id."""
    columns = _arrays(views, "v_bars", _CANDLES, {"accepted": 1})
    # Both are in the order of the run, so one index by sequence serves decisions and bars alike.
    at = np.searchsorted(columns["sequence"], decisions.sequence).clip(
        max=max(columns["sequence"].size - 1, 0)
    )
    if not np.array_equal(columns["sequence"][at], decisions.sequence):
        raise DataInvalid(
            f"Run {views.run_id} holds decisions without their bars; run `tracepaper audit verify` "
            "and restore a backup."
        )
    settled = [
        (row["instrument"], row["market_ms"], json.loads(row["content"])["rate"])
        for row in views.rows("v_events", kind="funding")
    ]
    found = {}
    for name, own in decisions.places.items():
        of = {column: values[at[own]] for column, values in columns.items()}
        rates = [row[1:] for row in settled if row[0] == name]
        found[name] = Bars(
            of["sequence"],
            of["open_time_ms"],
            of["open"],
            of["high"],
            of["low"],
            of["close"],
            _funding(of["open_time_ms"] + interval_ms, rates),
        )
    return found


def _funding(closes_ms: Ints, settled: Sequence[tuple[int, int]]) -> Floats:
    """Return the rates that were settled within each bar; those after the last are left out."""
    rates = np.zeros(closes_ms.size)
    for market_ms, rate in settled:
        place = int(np.searchsorted(closes_ms, market_ms, side="right"))
        if place < closes_ms.size:
            rates[place] += rate / MONEY_SCALE
    return rates


def _steps(instruments: dict[str, Instrument]) -> dict[str, float]:
    """Return every instrument's quantity step as a quantity."""
    return {
        name: known.quantity_step / 10**known.quantity_decimals
        for name, known in instruments.items()
    }


def _account(views: RunViews, frame: _Frame) -> Ledger:
    """Return the run's own account."""
    curve = _arrays(views, "v_equity", _CURVE)
    (last,) = views.rows("v_equity", newest=1)
    return _ledger("this run", curve, views.rows("v_fills"), last, frame)


def _twins(views: RunViews, frame: _Frame) -> list[Ledger]:
    """Return the shadow accounts of the run, by name."""
    found = []
    for name, _ in sorted(views.counts("v_twin_equity", "twin")):
        curve = _arrays(views, "v_twin_equity", _CURVE, {"twin": name})
        (last,) = views.rows("v_twin_equity", newest=1, twin=name)
        found.append(_ledger(name, curve, views.rows("v_twin_fills", twin=name), last, frame))
    return found


def _ledger(
    name: str,
    steps: dict[str, Any],
    fills: Sequence[Row],
    last: Row,
    frame: _Frame,
) -> Ledger:
    """Return one account from its sequence, equity and position after each of its *steps*."""
    decisions, times_ms = frame.decisions, frame.times_ms
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
        # Dust that spot fees leave behind cannot be sold and is no position.
        held[instrument] = np.where(np.abs(own) < (1.0 - 1e-9) * frame.steps[instrument], 0.0, own)
    return Ledger(
        name=name,
        equity=np.concatenate((equity[before : before + 1], curve)),
        held=held,
        fills=tuple(fills),
        fees_paid=float(last["fees_paid"]),
        funding_paid=float(last["funding_paid"]),
        realized_pnl=float(last["realized_pnl"]),
        unrealized_pnl=float(last["unrealized_pnl"]),
    )
