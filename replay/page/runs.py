"""Answers about runs: the list, one run's summary, and its columns over time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.daemon.engine.state import HELD, SHADOWS
from tracepaper.replay.document.charts import RUN_LINE, shadow_line
from tracepaper.replay.document.values import Paragraph, TitledParts
from tracepaper.replay.explain.decision import missed_text, stored_decision
from tracepaper.replay.explain.decision_document import decision_document
from tracepaper.replay.explain.position import orders_after, row_text
from tracepaper.replay.explain.warming import warming_of
from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import Databases, OpenRun, as_number, from_row
from tracepaper.replay.page.rollups import ACCOUNTS, OWN, TIME, RollupMissing, filled, numbers_of
from tracepaper.replay.report.report import HELD_AT_EXPOSURE
from tracepaper.replay.report.states import (
    LastingState,
    below_zero,
    lasting_states,
    short_history,
    without_fills,
)
from tracepaper.replay.run_columns import Floats
from tracepaper.storage.checks import newest_check
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.storage.sweeps import read_sweep
from tracepaper.strategies.errors import DataInvalid, TracepaperError
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.evaluator import is_movable, threshold_key
from tracepaper.strategies.gates.gate import GATES, ThresholdForm
from tracepaper.strategies.position_text import FLAT
from tracepaper.strategies.types.decisions import Regime
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome, Side
from tracepaper.strategies.units import BASE_FEES, DAY_MS, MONEY_SCALE, without_zeros

# ---------------------------------------------------------------- all runs


def runs(databases: Databases, *, counted: bool = False) -> answers.Runs:
    """Return all runs of all databases, the newest first; *counted* waits for all counts."""
    rows: list[answers.RunRow] = []
    sweeps: list[answers.SweepRow] = []
    refused: list[answers.UnreadableDatabase] = []
    shown_in: dict[str, str] = {}

    def reject(path: Path, sentence: str) -> None:
        refused.append(answers.UnreadableDatabase(path.name, " ".join(sentence.split())))

    for path in databases.paths:
        try:
            ids = databases.reader(path).run_ids()
        except (TracepaperError, sqlite3.Error) as error:
            reject(path, str(error))
            continue
        for run_id in ids:
            if run_id in shown_in:
                twice = f"Run {run_id} is shown from {shown_in[run_id]}; name this file alone."
                reject(path, twice)
                continue
            try:
                shown = databases.listed(path, run_id)
                if counted:
                    shown.rollups.totals()
                rows.append(run_row(shown, databases.served))
                shown_in[run_id] = path.name
            except (TracepaperError, sqlite3.Error, ValueError, TypeError, LookupError) as error:
                reject(path, f"Run {run_id}: {error}")
    rows.sort(key=lambda row: row.started_ms, reverse=True)
    for path in databases.sweeps:
        try:
            sweep = read_sweep(path)
        except DataInvalid as error:
            reject(path, str(error))
            continue
        row = answers.SweepRow(
            sweep_id=sweep.sweep_id,
            strategy=str(sweep.header["strategy"] or "as configured"),
            objective=str(sweep.header["objective"]),
            cells=sweep.cells,
            is_whole=sweep.document is not None,
            database=path.name,
        )
        sweeps.append(row)
    return answers.Runs(rows, refused, sweeps)


def run_row(shown: OpenRun, served: str = "") -> answers.RunRow:
    """Return one run as a row of the list."""
    row = shown.views.run()
    first, last = _decided(shown)
    totals = shown.rollups.known_totals()
    equity = shown.views.rows("v_equity", newest=1)
    now = as_number(equity[0]["equity"]) if equity else None
    start = _start(shown)
    return answers.RunRow(
        run_id=shown.run_id,
        kind=row["kind"],
        strategy=row["strategy"],
        instruments=row["instruments"].split(","),
        interval_ms=row["interval_ms"],
        started_ms=row["started_ms"],
        ended_ms=row["ended_ms"],
        first_ms=None if first is None else shown.columns.rows.open_ms(first),
        last_ms=None if last is None else shown.columns.rows.open_ms(last),
        decisions=None if totals is None else totals.decisions,
        fills=shown.views.count("v_fills"),
        equity=now,
        total_return=None if now is None or not start else now / start - 1,
        model_id=row["model_id"] or "",
        database=shown.database.name,
        is_served=shown.run_id == served,
        state=_state(shown, first, is_counted=totals is not None),
    )


def _state(shown: OpenRun, first: int | None, *, is_counted: bool) -> str:
    if is_counted and damage_of(shown):  # the check counts the steps as well
        return "damaged"
    if (held := halt(shown)) is not None:
        return f"halted by {held.by}"
    return "no bar yet" if first is None else ""


def damage_of(shown: OpenRun) -> str:
    """Return a sentence on the damage of the record, or an empty text."""
    return shown.rollups.kept_value("damage", lambda: shown.reader.damage(shown.run_id))


def with_warnings(shown: OpenRun, document: TitledParts) -> TitledParts:
    """Return a document of the run that begins with the warnings on the run."""
    states = [part for part in _warnings(shown) if part not in document.parts]
    return TitledParts(document.title, (*states, *document.parts))


def _warnings(shown: OpenRun) -> Iterator[Paragraph]:
    if damage := damage_of(shown):
        yield Paragraph(damage, "warning")
    if (held := halt(shown)) is not None:
        yield Paragraph(held.sentence, "warning")
    if _decided(shown) == (None, None):
        yield Paragraph("No bar was decided yet; the first that closes makes a decision.", "note")


def _decided(shown: OpenRun) -> tuple[int | None, int | None]:
    """Return the sequences of the first and the last decision."""
    columns = shown.columns
    first, last = (columns.rows.decided_at(columns.span, newest=newest) for newest in (False, True))
    return first, last


# ---------------------------------------------------------------- one run


def run(
    shown: OpenRun,
    served: str = "",
    *,
    counted: bool = False,
    verified: answers.ParityState | None = None,
) -> answers.Run:
    """Return a run's summary, configuration and accounts; *counted* waits for its counts."""
    if counted:
        shown.rollups.build()
    row, columns = shown.views.run(), shown.columns
    first, last = _decided(shown)
    refused = shown.rollups.refusals()
    thresholds, config = columns.thresholds, json.loads(row["config"])
    return answers.Run(
        row=run_row(shown, served),
        config=config,
        fees=_fees(config),
        instruments=[
            answers.Instrument(
                instrument.id, instrument.symbol, instrument.base_coin, instrument.quote_coin,
                instrument.price_decimals,
            )
            for instrument in columns.instruments.values()
        ],
        gates=[
            answers.GateInfo(
                gate=gate,
                threshold=thresholds[gate],
                **{name: getattr(GATES[gate], name) for name in _GATE_FIELDS},
                refused=None if refused is None else refused[gate],
                key=threshold_key(GATES[gate]) if is_movable(GATES[gate]) else "",
                is_count=getattr(GATES[gate].threshold, "form", "") == ThresholdForm.COUNT,
            )
            for gate in columns.gates
        ],
        accounts=accounts(shown),
        holdings=holdings(shown),
        last_refusal=_last_refusal(shown),
        last_fill=_last_fill(shown.views),
        parity=newest_parity(shown, verified),
        damage=damage_of(shown),
        halt="" if (held := halt(shown)) is None else held.sentence,
        below_zero=_below_zero(shown),
        without_fills=shown.rollups.kept_value(
            "without fills",
            lambda: " ".join(
                filter(None, (without_fills(shown.columns), short_history(shown.columns)))
            ),
        ),
        absent="".join(state.sentence for state in _states(shown) if state.kind == "absent"),
        notes=shown.rollups.kept_value("noted", lambda: _noted_names(shown)),
        bars_from_ms=None if (bounds := shown.rollups.bounds_ms()) is None else bounds[0],
        first_sequence=first,
        last_sequence=last,
        warm_sequence=shown.rollups.warm_sequence(),
        warming=_warming(shown, last) if row["ended_ms"] is None else "",
        has_model=bool(row["model_id"]),
        has_attention=bool(row["model_id"]) and columns.rows.is_attributed(columns.span),
        has_regime=any(each.regime != Regime.UNKNOWN for each in columns.rows.outcomes),
        gate_horizon=row["gate_horizon"],
    )  # fmt: skip


def _warming(shown: OpenRun, last: int | None) -> str:
    """Return the card's words on the warm-up, by the newest decision; empty once one was warm."""
    if last is None or shown.rollups.warm_sequence() is not None:
        return ""
    document = decision_document(shown.columns, stored_decision(shown.reader, shown.columns, last))
    reasons = document.parts[0]
    return f"{document.title}. {reasons.text}" if isinstance(reasons, Paragraph) else document.title


_GATE_FIELDS: Final = ("meaning", "unit", "is_switch", "is_capped")


def _fees(config: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the fees of a stored *config*, which another version may have written."""
    execution = config.get("execution", {})
    usual = BASE_FEES.get(config.get("market", {}).get("category", ""), ("0", "0"))
    taker, maker = usual if execution.get("fee_per_share") is None else ("0", "0")
    fees = {"taker_fee": taker, "maker_fee": maker}
    return {key: float(execution.get(key) or fee) for key, fee in fees.items()}


def _noted_names(shown: OpenRun) -> list[answers.NoteSeries]:
    """Return the names of all series of numbers that the strategy noted."""
    columns, last = shown.columns, shown.columns.span[1]
    until, noted = shown.rollups.followed.get("noted", (-1, {}))
    noted |= dict.fromkeys(columns.rows.noted((until + 1, last)))
    shown.rollups.followed["noted"] = max(until, last), noted  # a live run continues from there
    names = list(columns.instruments)
    return [
        answers.NoteSeries(names[place], name) for place, name in sorted(noted, key=itemgetter(0))
    ]


def holdings(shown: OpenRun) -> list[answers.InstrumentPosition]:
    """Return the newest position of every instrument."""
    nothing: Row = {"side": "FLAT", "quantity": 0.0, "quantity_text": "0"}
    instruments = shown.columns.instruments
    rows = [
        next(iter(shown.views.rows("v_positions", newest=1, instrument=name)), nothing)
        for name in instruments
    ]
    is_held = any(row["quantity"] for row in rows)
    orders = orders_after(shown.reader, shown.run_id, shown.columns.span[1]) if is_held else []
    return [
        answers.InstrumentPosition(
            instrument=name,
            side=row["side"],
            quantity_text=without_zeros(row["quantity_text"]).lstrip("-"),
            average_price_text=row.get("average_price_text")  # None if it is not an exact decimal
            or (row.get("average_price") and f"{row['average_price']:.{item.price_decimals}f}"),
            text=row_text(shown.columns, row, orders) if row["quantity"] else FLAT,
            unrealized=as_number(row.get("unrealized_pnl")),
            margin=as_number(row.get("margin")),
            liquidation_price=as_number(row.get("liquidation_price")),
        )
        for (name, item), row in zip(instruments.items(), rows, strict=True)
    ]


def _last_refusal(shown: OpenRun) -> answers.LastRefusal | None:
    stored = shown.columns.rows.outcomes
    keys = [outcome.key for outcome in stored if outcome.refused_by is not None]
    sequence = shown.rollups.newest_of(keys)
    if sequence is None:
        return None
    (decision,) = shown.views.rows("v_decisions", sequence=sequence)
    gate = decision["refused_by"]
    (judged,) = shown.views.rows("v_gates", sequence=sequence, gate=gate)
    measure = judged["measure"]
    missed = missed_text(gate, None if measure is None else measure - judged["threshold"])
    if gate == warm.name and not missed:
        lacks = warming_of(shown.reader, shown.columns.run.run_id, decision["instrument"])
        missed = "" if lacks is None else f"{lacks.warming} held"
    return answers.LastRefusal(
        sequence=sequence,
        instrument=decision["instrument"],
        open_time_ms=decision["open_time_ms"],
        gate=gate,
        missed=missed,
    )


def _last_fill(views: RunViews) -> answers.LastFill | None:
    for row in views.rows("v_fills", newest=1):
        quantity, reason = without_zeros(row["quantity_text"]), row["reason"]
        # The reason of the strategy trend is a direction, also if it only reduces the position.
        if (row["side"], reason) in ((Side.BUY, "trend down"), (Side.SELL, "trend up")):
            reason = "a smaller target"
        return from_row(answers.LastFill, row, quantity_text=quantity, reason=reason)
    return None


def halt(shown: OpenRun) -> LastingState | None:
    """Return the state that halts the run, the operator's first, or None."""
    return next((state for state in _states(shown) if state.is_halt), None)


def _states(shown: OpenRun) -> tuple[LastingState, ...]:
    return shown.rollups.kept_value("states", lambda: lasting_states(shown.columns))


def newest_parity(
    shown: OpenRun, verified: answers.ParityState | None = None
) -> answers.ParityState | None:
    """Return the newest comparison of the run with its replay, or None.

    *verified*, made for this page, is used until the run stores a newer one. Otherwise a stored
    check of the run's last step is newer than every event of the run.
    """
    event = shown.reader.newest_of(shown.run_id, ParityCheck)
    if verified is not None and (event is None or event.market_ms <= verified.at_ms):
        return verified
    stored = shown.reader.stored_run(shown.run_id)
    check = newest_check(shown.reader.connection, stored.run_key, stored.head_digest)
    if check is not None:
        return parity_state(check.result, check.checked_ms)
    return None if event is None else parity_state(event, event.market_ms)


def parity_state(check: ParityCheck, at_ms: int) -> answers.ParityState:
    """Return a comparison with a replay, made at *at_ms*, for the page."""
    difference = ""
    if check.differs_at or check.field:
        difference = (
            f"{check.differs_at}, {check.field}: stored {check.stored}, replayed "
            f"{check.replayed}; the culprit is the {check.culprit}"
        )
    is_day = check.until_ms - check.from_ms == DAY_MS and check.from_ms % DAY_MS == 0
    return answers.ParityState(
        identical=check.identical + check.within_tolerance,
        decisions=check.compared,
        day=str(np.datetime64(check.from_ms, "ms"))[:10] if is_day else "",
        at_ms=at_ms,
        error=check.reason if check.outcome is ParityOutcome.FAILED else "",
        first_difference=difference.removeprefix(", "),
    )


# ---------------------------------------------------------------- accounts


_OWN_SOURCE: Final = "the run's own account"
_TITLES: Final = {HELD: HELD_AT_EXPOSURE}


def accounts(shown: OpenRun) -> list[answers.AccountFigures]:
    """Return the run's account, and its shadow accounts."""
    return list(_accounts(shown))


def _accounts(shown: OpenRun) -> Iterator[answers.AccountFigures]:
    views = shown.views
    names = [OWN, *sorted({row["shadow"] for row in views.rows("v_shadow_equity", newest=16)})]
    for place, name in enumerate(names):
        shadow: dict[str, Any] = {"shadow": name} if place else {}
        kind = "shadow_" if place else ""
        source = SHADOWS[name] if place else _OWN_SOURCE
        line = shadow_line(place - 1) if place else RUN_LINE
        start = _start(shown, shadow.get("shadow", ""))
        for account in views.rows(f"v_{kind}equity", newest=1, **shadow) if start else ():
            row = shown.columns.own_sums(account, shadow.get("shadow", ""))
            yield answers.AccountFigures(
                name=name,
                title=_TITLES.get(name) or name.replace("_", " "),
                source=source,
                start=start,
                equity=float(row["equity"]),
                total_return=float(row["equity"]) / start - 1,
                realized=as_number(row["realized_pnl"]),
                unrealized=as_number(row["unrealized_pnl"]),
                fees=as_number(row["fees_paid"]),
                funding=as_number(row["funding_paid"]),
                fills=views.count(f"v_{kind}fills", **shadow),
                mean_exposure=None if place else _mean_exposure(shown),
                tone=line.role,
                width=line.width,
                dash=line.dash,
            )


def _mean_exposure(shown: OpenRun) -> float | None:
    """Return the run's mean exposure over all symbols, with their signs, from the first warm bar.

    None without such a bar, if the equity was used up, or if a roll-up is still missing.
    """
    try:
        return shown.rollups.kept_value("mean exposure", lambda: _mean_of_bars(shown))
    except RollupMissing:
        return None


def _mean_of_bars(shown: OpenRun) -> float | None:
    block = shown.rollups.full_range(ACCOUNTS)
    bars = float(np.sum(block.get("warm", 0.0)))
    if not bars or np.nanmin(block[f"low:{OWN}"]) <= 0:
        return None
    return float(np.sum(block["warm_exposure"])) / bars


def _below_zero(shown: OpenRun) -> str:
    """Return the sentence on an account that had nothing left; empty while roll-ups are missing."""
    try:
        return shown.rollups.kept_value("below zero", lambda: _below_zero_of_bars(shown))
    except RollupMissing:
        return ""


def _below_zero_of_bars(shown: OpenRun) -> str:
    block = shown.rollups.full_range(ACCOUNTS)
    lowest = block.get(f"low:{OWN}", np.empty(0))
    is_known = ~np.isnan(lowest)
    closes_ms = shown.columns.times.closes_of(block[TIME][is_known].astype(np.int64))
    return below_zero(closes_ms, lowest[is_known], _start(shown))


def _start(shown: OpenRun, shadow: str = "") -> float:
    """Return an account's first equity, or the configured cash without a decision."""
    first, _ = _decided(shown)
    if first is None and (before := shown.columns.totals_before(shadow)) is not None:
        return before.equity / MONEY_SCALE
    if first is None:
        return float(json.loads(shown.views.run()["config"])["account"]["cash"])
    return shown.columns.first_equity(first, shadow)


# ---------------------------------------------------------------- columns over time


def candles(
    shown: OpenRun, instrument: str, from_ms: int | None, until_ms: int | None, points: int
) -> answers.Candles:
    """Return candles of one instrument with decisions and notes, at most *points*."""
    cell_ms, block = shown.rollups.cells(instrument, from_ms, until_ms, points)

    def column(name: str) -> Floats:
        return block.get(name, np.empty(0))

    def with_prefix(prefix: str) -> dict[str, Floats]:
        return {
            name.removeprefix(prefix): values
            for name, values in block.items()
            if name.startswith(prefix)
        }

    outcome = np.nan_to_num(column("outcome"), nan=-1).astype(np.int64)
    action, refused_by, regime = (
        shown.columns.of_outcomes(outcome, name).tolist()
        for name in ("action", "refused_by", "regime")
    )
    return answers.Candles(
        instrument=instrument,
        interval_ms=cell_ms,
        open_time_ms=_integers(block[TIME]),
        open=_numbers(column("open")),
        high=_numbers(column("high")),
        low=_numbers(column("low")),
        close=_numbers(column("close")),
        volume=_numbers(column("volume")),
        sequence=[None if at is None else int(at) for at in numbers_of(column("sequence"))],
        action=action,
        refused_by=[gate or None for gate in refused_by],
        regime=regime,
        confidence_entropy=numbers_of(column("confidence_entropy")),
        held=_numbers(column("quantity")),
        mean_return=numbers_of(column("mean_return")),
        stdev_return=numbers_of(column("stdev_return")),
        spare={gate: numbers_of(values) for gate, values in with_prefix("spare:").items()},
        failed={gate: _integers(values) for gate, values in with_prefix("failed:").items()},
        numbers={name: numbers_of(values) for name, values in with_prefix("note:").items()},
    )


def equity(
    shown: OpenRun, from_ms: int | None, until_ms: int | None, points: int
) -> answers.Equity:
    """Return the equity of every account at the end of each cell."""
    cell_ms, block = shown.rollups.cells(ACCOUNTS, from_ms, until_ms, points)
    columns = {name: column if name == TIME else filled(column) for name, column in block.items()}
    times = columns[TIME]
    names = [name.partition(":")[2] for name in columns if name.startswith("equity:")]
    names.sort(key=lambda name: (name != OWN, name))
    ends = times + cell_ms
    if cell_ms == shown.columns.interval_ms:  # a session's first and last bar may be shorter
        ends = shown.columns.times.closes_of(times.astype(np.int64)).astype(np.float64)
    return answers.Equity(
        interval_ms=cell_ms,
        time_ms=_integers(ends),
        equity={name: columns[f"equity:{name}"].tolist() for name in names},
        low={name: columns[f"low:{name}"].tolist() for name in names},
        exposure=columns.get("exposure", times).tolist(),
    )


def _integers(values: Floats) -> list[int]:
    return list(np.nan_to_num(values).astype(np.int64).tolist())


def _numbers(values: Floats) -> list[float]:
    return list(np.nan_to_num(values).tolist())
