"""``Step`` to rows; pure."""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import chain, compress, repeat
from math import nan
from operator import attrgetter, itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec.structs import astuple

from tracepaper.storage.record.columns import (
    BAR_FIELDS,
    EXPLANATION_COLUMNS,
    FORECAST_COLUMNS,
    GIVEN_BITS,
    HEAD_COLUMNS,
    HORIZONS,
    PLAUSIBLE,
    SEQUENCE_LIMIT,
    SOURCE_CODES,
    TABLES,
    Row,
    Value,
    measure_name,
    row_reader,
    stored_columns,
)
from tracepaper.storage.record.hashing import (
    SEQUENCE_AT,
    Commit,
    all_finite,
    opened_digest,
    sealed,
    trimmed,
)
from tracepaper.storage.record.interning import (
    HeldRows,
    Outcomes,
    Rows,
    buckets_text,
    buckets_texts,
    json_text,
)
from tracepaper.storage.record.rows import (
    CHAINED_TABLES,
    EVENT_KINDS,
    FIRST,
    instrument_row,
    money_factor,
    run_row,
)
from tracepaper.storage.record.trades import TradeBooks
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Fill,
    Forecast,
    HeadForecasts,
    Position,
    QuietStretch,
)
from tracepaper.strategies.types.market import Bar, CloseStart, Depths, Instrument, InstrumentChange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tracepaper.storage.record.rows import Previous
    from tracepaper.strategies.types.decisions import (
        Account,
        AccountMarks,
        Answer,
        Decision,
        ForecastColumns,
        GateSet,
        Prediction,
        RunRow,
        ShadowSpan,
        ShadowStep,
        Step,
    )
    from tracepaper.strategies.types.market import Event


# ---------------------------------------------------------------- steps

_NO_BAR: Final[Row] = (None,) * len(BAR_FIELDS)  # instrument and all fields but the turnover
_SEEN_AT_CLOSE: Final[Row] = (None,) * 3  # no delays, source archive
_NO_FORECAST: Final[Row] = (None,) * (3 + len(FORECAST_COLUMNS))
_NO_EXPLANATION: Final[Row] = (None,) * len(EXPLANATION_COLUMNS)
_NOTE, _HEADS = map(stored_columns("answers").index, ("note", HEAD_COLUMNS[0]))
_STEP_COLUMNS: Final = stored_columns("steps")
_SEQUENCE, _OPENED, _DELAYS, _OUTCOME, _PLAUSIBLE, _MEASURES, _TURNOVER = map(
    _STEP_COLUMNS.index,
    (
        *("sequence", "open_time_ms", "market_delay_ms", "outcome"),
        *(measure_name(PLAUSIBLE), "measures", "turnover"),
    ),
)
_UNREALIZED, _ACCOUNT, _EQUITY, _SHADOWS = map(
    _STEP_COLUMNS.index, ("unrealized_pnl", "account_unrealized_pnl", "equity", "shadows")
)
_FOLLOWS: Final[Row] = (None,) * 3
"""The stored marks of an account whose worth can be computed from the close."""
_INTEGER_LIMIT: Final = 2**63
"""Larger integers do not fit SQLite's 64 bits, in which views compute."""
_CODE_OF: Final = {id(source): code for source, code in SOURCE_CODES.items()}
_OF_BAR: Final = attrgetter(*(name for name in BAR_FIELDS if name != "turnover"))
_OF_FORECAST: Final = attrgetter(*FORECAST_COLUMNS)
_OF_EXPLANATION: Final = attrgetter(*EXPLANATION_COLUMNS[:-2])
_OF_ORDER: Final = row_reader(TABLES["orders"][3:], "instrument")
_OF_FILL: Final = row_reader(TABLES["fills"][4:-1], "instrument")
_OF_ENTRY: Final = row_reader(TABLES["ledger"][3:], "instrument", "market_ms")


class StepEncoder:
    """Turns the steps of one run into the rows of commits, and remembers the interned rows.

    A new encoder can continue a stored run if it receives the run's open trades: it only stores
    shared rows again.
    """

    def __init__(
        self,
        run: RunRow,
        run_key: int,
        gate_sets: Sequence[GateSet] = (),
        *,
        head: bytes = b"",
        first: int = 0,
        trades: TradeBooks | None = None,
    ) -> None:
        """Take the run's stored *gate_sets*, its *head*, and the sequence of its next step.

        *trades* are its open trades; None for a new run.
        """
        self.outcomes = Outcomes(run_key, gate_sets)
        self.head = head
        self.first = first  # sequence of the first step of the next commit
        self.due = first  # sequence of the next step
        self._run_key = run_key
        self._interval_ms = run.interval_ms
        self._horizon = run.gate_horizon
        self._places = {instrument.id: i for i, instrument in enumerate(run.instruments)}
        self._scales = {instrument.id: scales(instrument) for instrument in run.instruments}
        self._factors: dict[int | None, int] = dict(enumerate(map(money_factor, run.instruments)))
        self._holdings = HeldRows()
        # By instrument: the shadow accounts' last rows, and their sequence if they are shared.
        self._shadows: dict[int | None, tuple[Sequence[Row], int | None]] = {}
        self._trades = TradeBooks(run) if trades is None else trades
        self._rows: Rows = {table: [] for table in CHAINED_TABLES}

    def opening(
        self, run: RunRow, gate_sets: int, previous: Previous = FIRST
    ) -> dict[str, list[Row]]:
        """Return the rows that open *run* with *gate_sets* gate sets; they start the chain."""
        sets = self.outcomes.opening_rows()
        opened = run_row(run, self._run_key, gate_sets, previous)
        instruments = [
            instrument_row(instrument, self._run_key, place)
            for place, instrument in enumerate(run.instruments)
        ]
        head = opened_digest(opened, instruments, sets)
        self.head = head
        return {"runs": [(*opened, head, 0, head)], "instruments": instruments, "gate_sets": sets}

    def forget(self) -> None:
        """Forget the rows that steps share; the next step stores its own again."""
        self.outcomes.forget()
        self._holdings.forget()
        self._shadows.clear()

    def seal(self) -> Commit:
        """Return the commit of the steps that were added since the last one."""
        commit = sealed(self.head, self.first, self.due - 1, self.take())
        self.head, self.first = commit.digest, self.due
        return commit

    def take(self) -> Rows:
        """Return the rows of the added steps, and remove them."""
        rows, self._rows = self._rows, {table: [] for table in CHAINED_TABLES}
        return rows

    def add_together(self, steps: Sequence[Step] | QuietStretch) -> None:
        """Add the rows of all *steps*, or of none if one fails."""
        if isinstance(steps, QuietStretch):
            self.add_stretch(steps)
            return
        due = self.due
        try:
            for step in steps:
                self.add(step)
        except BaseException:
            for table, rows in self._rows.items():
                at = SEQUENCE_AT[table]
                self._rows[table] = [row for row in rows if int(row[at] or 0) < due]
            self.due = due
            raise

    def add(self, step: Step) -> None:
        """Add the rows of *step*; raise ``InvariantBroken`` if no row can hold it."""
        sequence = step.sequence
        if not 0 <= sequence < SEQUENCE_LIMIT:
            raise InvariantBroken(f"A run holds {SEQUENCE_LIMIT} steps; open a new run.")
        self.due = sequence + 1
        key, rows = (self._run_key, sequence), self._rows
        event, decision, account = step.event, step.decision, step.account
        place, bar, turnover, delays = self._event_columns(event, key, step.price_verdict)
        shadows = None
        target = None if decision is None else decision.target_quantity
        holding = self._holdings.hold(key, (0, place), None, step.position, account, rows)
        unrealized = None if step.position is None else step.position.unrealized_pnl
        of_account, equity = _marks(account, unrealized)
        if step.state is not None:
            rows["states"].append((*key, step.state))
        outcome, plausible, measures = self._add_answer(key, decision, step.prediction)
        if step.orders or step.ledger or step.halted is not None:
            self._add_trades(step, key)
        if step.fills or holding == sequence:
            self._add_fills(step.fills, (*key, 0), None, place, step.position)
        if step.shadows:
            close = event.close if type(event) is Bar else None
            shadows = self._add_shadows(step.shadows, close, key, place)
        rows["steps"].append(
            trimmed(
                (
                    *key, holding, *bar, unrealized, outcome, target, plausible, turnover,
                    shadows, of_account, equity, *delays, measures, None if step.accepted else 1,
                )
            )
        )  # fmt: skip

    def _add_answer(
        self, key: tuple[int, int], decision: Decision | None, prediction: Prediction
    ) -> tuple[int | None, Value, Value]:
        """Add the rows of *decision* and *prediction*; return three columns of ``steps``.

        They are ``outcome``, the measure of ``plausible``, and ``measures``.
        """
        note = outcome = plausible = measures = None
        answered: Row = ()
        if decision is not None:
            note = json_text(decision.note)
            plan, outcome = self.outcomes.store(decision.outcome, key[1], self._rows)
            if len(decision.measures) != plan.length:
                raise InvariantBroken("A decision needs one measure for each of its gates.")
            judged = (*all_finite(decision.measures), None)
            plausible, measures = judged[plan.plausible_at], plan.measures(plan.pick_step(judged))
            if plan.judges_answer:
                answered = plan.pick_answer(judged)
        if prediction is not None or note is not None or answered.count(None) < len(answered):
            self._rows["answers"].append(self._answer_row(key, prediction, answered, note))
        return outcome, plausible, measures

    def _add_answers(self, sequences: Sequence[int], stretch: QuietStretch) -> list[list[Value]]:
        """Add the answers to the bars after the first unit; return three columns of ``steps``.

        They are those of :meth:`_add_answer`. The bars at *sequences* are of several instruments in
        turn, each judged by one gate set.
        """
        count = len(stretch.repeats)
        answers = stretch.answers[count:]
        decisions = [answer.decision for answer in answers]
        stored = [
            self.outcomes.store(decision.outcome, at, self._rows)
            for at, decision in zip(sequences, decisions, strict=True)
        ]
        plausible: list[Value] = [None] * len(stored)
        measures, rows = plausible.copy(), list[Row | None]([None]) * len(stored)
        for place, (key, (plan, _)) in enumerate(zip(stretch.repeats, stored[:count], strict=True)):
            at = slice(place, None, count)
            every = [decision.measures for decision in decisions[at]]
            if {*map(len, every)} != {plan.length}:
                raise InvariantBroken("A decision needs one measure for each of its gates.")
            judged = (*map(all_finite, zip(*every, strict=True)), (None,) * len(every))
            plausible[at] = judged[plan.plausible_at]
            measures[at] = [
                None if picked == plan.usual else plan.measures(picked)
                for picked in zip(*plan.pick_step(judged), strict=True)
            ]
            answered: Sequence[Row] = [()] * len(every)
            if plan.judges_answer:
                answered = [*zip(*plan.pick_answer(judged), strict=True)]
            rows[at] = self._answer_rows(
                sequences[at],
                answers[at],
                answered,
                stretch.forecasts.get(key),
            )
        self._rows["answers"] += filter(None, rows)
        return [[outcome for _, outcome in stored], plausible, measures]

    def add_stretch(self, stretch: QuietStretch) -> None:
        """Add the rows of each step of *stretch*: those that :meth:`add` would add.

        After the first unit only numbers, answers and notes change, so the other rows are copied
        from it.
        """
        if stretch.next_sequence > SEQUENCE_LIMIT:
            raise InvariantBroken(f"A run holds {SEQUENCE_LIMIT} steps; open a new run.")
        answers = len(self._rows["answers"])
        for step in stretch.steps(0):
            self.add(step)
        if stretch.units > 1:
            self._repeat(stretch, self._rows["answers"][answers:])
        self.due = stretch.next_sequence

    def _repeat(self, stretch: QuietStretch, answers: Sequence[Row]) -> None:
        """Add the rows of all units of *stretch* but the first, whose rows were just added.

        *answers* are the first unit's rows of ``answers``.
        """
        count, units, closes = len(stretch.repeats), stretch.units - 1, stretch.closes[1:]
        rows, width = self._rows["steps"], stretch.width
        first_close = rows[-width]  # the other closes differ only in key, time and marks
        bar_rows = [row + (None,) * (len(_STEP_COLUMNS) - len(row)) for row in rows[-count:]]
        columns: list[Sequence[Value]] = [values * units for values in zip(*bar_rows, strict=True)]
        sequences: Sequence[int] = range(self.due, stretch.next_sequence)
        at_close = sequences[::width]
        if closes:
            sequences = [at for first in at_close for at in range(first + 1, first + width)]
        columns[_SEQUENCE] = sequences
        opened, *prices, turnover, delay, seen, sources = _bar_columns(stretch)
        columns[_OPENED : _OPENED + 1 + len(prices)] = opened, *prices
        columns[_DELAYS : _DELAYS + 3] = delay, seen, sources
        if stretch.answers:
            columns[_OUTCOME], columns[_PLAUSIBLE], columns[_MEASURES] = self._add_answers(
                sequences, stretch
            )
        else:
            is_judged = [repeat.plausible_at is not None for repeat in stretch.repeats.values()]
            columns[_PLAUSIBLE] = [
                measure if is_measured else None
                for measure, is_measured in zip(
                    stretch.plausible[count:], is_judged * units, strict=True
                )
            ]
            self._repeat_answers(stretch, sequences, answers)
        columns[_TURNOVER] = turnover
        if stretch.shadows:
            columns[_SHADOWS] = self._repeat_shadows(stretch, sequences)
        self._rows["states"] += [
            (self._run_key, sequences[unit * count - 1], state)  # of the last bar of the unit
            for unit, state in stretch.states.items()
            if unit
        ]
        marks = _mark_columns(stretch.marks, count)
        columns[_UNREALIZED], columns[_ACCOUNT], columns[_EQUITY] = marks
        while columns[-1].count(None) == len(turnover):
            columns.pop()
        added: list[Row] = list(zip(*columns, strict=True))
        if None in columns[-1]:
            added = [*map(trimmed, added)]
        if not closes:
            rows += added
            return
        worth, is_stored = stretch.marks.worth, stretch.marks.worth != stretch.marks.account.cash
        before, after = first_close[_SEQUENCE + 1 : _OPENED], first_close[_OPENED + 1 : _ACCOUNT]
        for unit, (closed, at) in enumerate(zip(closes, at_close, strict=True)):
            key = (self._run_key, at)
            _, (_, opened_ms, *_), _, delays = self._event_columns(closed, key, None)
            profit = stretch.marks.account_unrealized[unit]
            of_account = profit, worth + profit if is_stored else None
            rows.append(trimmed((*key, *before, opened_ms, *after, *of_account, *delays)))
            rows += added[unit * count : (unit + 1) * count]

    def _repeat_answers(
        self, stretch: QuietStretch, sequences: Sequence[int], answers: Sequence[Row]
    ) -> None:
        """Add the notes of the bars at *sequences*, with the measures in the first *answers*."""
        if not (answers or any(repeated.notes for repeated in stretch.repeats.values())):
            return
        count, rows = len(stretch.repeats), self._rows["answers"]
        first = stretch.first + bool(stretch.closes)
        of_first = {row[_SEQUENCE]: row[_NOTE + 1 :] for row in answers}
        judged = [of_first.get(first + place, ()) for place in range(count)]
        for at, (bar, sequence) in enumerate(zip(stretch.bars[count:], sequences, strict=True)):
            note = stretch.repeats[bar.instrument].notes.get(bar.open_time_ms)
            if note is not None or judged[at % count]:
                rows.append((self._run_key, sequence, json_text(note), *judged[at % count]))

    def _repeat_shadows(self, stretch: QuietStretch, sequences: Sequence[int]) -> list[int | None]:
        """Return which rows of ``shadow_steps`` the bars at *sequences* use; add new ones."""
        count, rows = len(stretch.repeats), self._rows["shadow_steps"]
        begin, names = len(rows), list[int | None]()
        ends = [*(span.first for span in stretch.shadows[1:]), stretch.units]
        for span, end in zip(stretch.shadows, ends, strict=True):
            first = span.first * count
            if first:  # the rows of the first unit are there
                names += [
                    self._add_shadows(
                        stretch.shadow_steps(at),
                        stretch.bars[at].close,
                        (self._run_key, sequences[at - count]),
                        place,
                    )
                    for place, at in enumerate(range(first, first + count))
                ]
            names += self._follow_span(
                stretch,
                span,
                slice(first + count, end * count),
                sequences[first : (end - 1) * count],
            )
        rows[begin:] = sorted(rows[begin:], key=itemgetter(_SEQUENCE))
        return names

    def _follow_span(
        self, stretch: QuietStretch, span: ShadowSpan, of_span: slice, sequences: Sequence[int]
    ) -> list[int | None]:
        """Return the rows that the bars *of_span* at *sequences* use, after its first unit."""
        count, names = len(stretch.repeats), list[int | None](sequences)
        bars, answers = stretch.bars[of_span], stretch.answers[of_span]
        marked = [_mark_columns(marks, count) for marks in span.marks]
        for place, shadows in enumerate(span.steps.values()):
            at = slice(place, None, count)
            closes = [bar.close for bar in bars[at]]
            factor = self._factors[place]
            marks_of = [
                _follow_each(shadow.position, factor, closes, [column[at] for column in columns])
                for shadow, columns in zip(shadows, marked, strict=True)
            ]
            content = self._shadows[place][0]
            confirmed = [answer.confirmed for answer in answers[at]]
            shown = {
                flags: [
                    (*row[:2], int(is_confirmed))
                    for row, is_confirmed in zip(content, flags, strict=True)
                ]
                for flags in set(confirmed)
            }
            contents = [shown[flags] for flags in confirmed]
            names[at] = [
                self._name_shadows(place, rows, marks, (self._run_key, sequence))
                for sequence, rows, *marks in zip(sequences[at], contents, *marks_of, strict=True)
            ]
        return names

    # ------------------------------------------------------------ events

    def _event_columns(
        self, event: Event, key: tuple[int, int], price_verdict: str | None
    ) -> tuple[int | None, Row, int | None, Row]:
        """Return the index of the event's instrument, and its columns of ``steps``.

        If they cannot hold the event, or it has a *price_verdict*, its row of ``events`` is added.
        """
        if type(event) is Bar:
            place = self._place(event.instrument)
            if price_verdict is not None:
                self._add_event(event, key, price_verdict)
            return place, (place, *_OF_BAR(event)), event.turnover, self._seen(event)
        if type(event) is CloseStart and price_verdict is None and self._is_whole(event):
            return None, (None, event.open_time_ms, *_NO_BAR[2:]), None, self._seen(event)
        return self._add_event(event, key, price_verdict), _NO_BAR, None, _SEEN_AT_CLOSE

    def _is_whole(self, closed: CloseStart) -> bool:
        """Return whether a bar of every instrument follows; such a close needs no event row."""
        return closed.bars == len(self._places) and not closed.absent

    def _seen(self, unit: Bar | CloseStart) -> Row:
        """Return the delays and the source of *unit*, as columns of ``steps``."""
        source = None
        if type(unit) is Bar:
            if unit.interval_ms != self._interval_ms:
                raise InvariantBroken(
                    f"A bar has {unit.interval_ms} ms, but the run's bars have "
                    f"{self._interval_ms} ms."
                )
            source = SOURCE_CODES[unit.source]
        closed_ms, market_ms = unit.open_time_ms + self._interval_ms, unit.market_ms
        return market_ms - closed_ms or None, unit.seen_ms - market_ms or None, source

    def _place(self, instrument: str) -> int:
        place = self._places.get(instrument)
        if place is None:
            raise InvariantBroken(f"{instrument} is not an instrument of this run.")
        return place

    def _add_event(
        self, event: Event, key: tuple[int, int], price_verdict: str | None
    ) -> int | None:
        """Add the row of *event*, with its *price_verdict*; return the index of its instrument."""
        content = msgspec.to_builtins(event)
        place: int | None = None
        if isinstance(event, InstrumentChange):
            instrument = event.instrument
            place = self._place(instrument.id)
            # All integers of the run are scaled by the decimals with which it was opened.
            if scales(instrument) != self._scales[instrument.id]:
                raise DataInvalid(
                    f"The exchange changed the decimals of {instrument.id}, and a run keeps the "
                    "ones it was opened with; restart to open a new run."
                )
        elif "instrument" in content:
            place = self._place(content.pop("instrument"))
        market_ms, seen_ms = content.pop("market_ms"), content.pop("seen_ms")
        books = None
        if isinstance(event, Depths):
            del content["books"]
            books = event.books
        text = msgspec.json.encode(content).decode()
        kind = EVENT_KINDS[type(event)]
        row = (*key, kind, place, market_ms, seen_ms, text, books, price_verdict)
        self._rows["events"].append(row)
        return place

    # ------------------------------------------------------------ predictions and trades

    def _answer_row(
        self, key: tuple[int, int], prediction: Prediction, measures: Row, note: str | None
    ) -> Row:
        """Return the ``answers`` row; a blob holds the forecast at all but the gates' horizon."""
        forecast, explained = _NO_FORECAST, _NO_EXPLANATION
        rare: Row = ()  # the columns after the measures
        if isinstance(prediction, Forecast):
            forecast = _forecast_columns(prediction, self._horizon)
            if (explanation := prediction.explanation) is not None:
                figures = all_finite(_OF_EXPLANATION(explanation))
                explained = (*figures, explanation.entropy, buckets_text(explanation.buckets))
            if prediction.heads is not None:
                rare = self._head_columns(prediction, prediction.heads)
        elif prediction is not None:
            rare = (*(None,) * len(HEAD_COLUMNS), prediction.deadline_ms)
        row = (*key, note, *forecast, *explained, *measures)
        return trimmed((*row, *(None,) * (_HEADS - len(row)), *rare) if rare else row)

    def _answer_rows(
        self,
        sequences: Sequence[int],
        answers: Sequence[Answer],
        measures: Sequence[Row],
        columns: ForecastColumns | None,
    ) -> list[Row | None]:
        """Return the ``answers`` row of each bar at *sequences*; None if it needs none.

        Their values are taken from *columns*, if all forecasts are rows of them.
        """
        key, notes = self._run_key, [json_text(answer.decision.note) for answer in answers]
        if columns is not None:
            row_of = columns.rows.get
            places = [row_of(id(answer.prediction)) for answer in answers]
            if None not in places:
                values = _columns_at(columns, np.array(places, np.int64), self._horizon)
                rows = zip(repeat(key, len(answers)), sequences, notes, *values, strict=True)
                return [
                    row + of_gates
                    if of_gates and of_gates[-1] is not None
                    else trimmed(row + of_gates)
                    for row, of_gates in zip(rows, measures, strict=True)
                ]
        return [
            self._answer_row((key, at), answer.prediction, of_gates, note)
            if answer.prediction is not None
            or note is not None
            or of_gates.count(None) < len(of_gates)
            else None
            for at, answer, of_gates, note in zip(sequences, answers, measures, notes, strict=True)
        ]

    def _head_columns(self, prediction: Forecast, heads: HeadForecasts) -> Row:
        """Return the packed auxiliary *heads*, and their numbers at the gates' horizon."""
        at = _place(prediction.horizons, self._horizon)
        return (
            msgspec.msgpack.encode(heads.stored()),
            prediction.expected_shortfall(at, is_short=False),
            prediction.expected_shortfall(at, is_short=True),
            prediction.expected_drawdown(at),
            prediction.learned_regime(at),
            prediction.allocation(at),
            prediction.dropout_spread(at),
        )

    def _add_trades(self, step: Step, key: tuple[int, int]) -> None:
        """Add the rows of orders, ledger entries and a breached limit."""
        rows, event = self._rows, step.event
        for ordinal, order in enumerate(step.orders):
            instrument = self._place(order.instrument)
            rows["orders"].append((*key, ordinal, *_OF_ORDER(order, instrument)))
        for ordinal, entry in enumerate(step.ledger):
            place = None if entry.instrument is None else self._place(entry.instrument)
            rows["ledger"].append((*key, ordinal, *_OF_ENTRY(entry, place, event.market_ms)))
        if (halted := step.halted) is not None:
            rows["halts"].append((*key, *msgspec.structs.astuple(halted)))

    def _add_shadows(
        self,
        shadows: Sequence[ShadowStep],
        close: int | None,
        key: tuple[int, int],
        place: int | None,
    ) -> int | None:
        """Add the rows of *shadows* at a bar's *close*; return the sequence that the step names."""
        rows, content, marks = self._rows, [], []
        for number, shadow in enumerate(shadows, start=1):
            position, account, at = shadow.position, shadow.account, (number, place)
            holding = self._holdings.hold(key, at, shadow.shadow, position, account, rows)
            content.append((number, holding, int(shadow.confirmed)))
            unrealized = position.unrealized_pnl
            factor = position.quantity * self._factors.get(place, 0)
            of_account = _marks(account, unrealized)
            marks.append(_follow(factor, position.entry_notional, close, unrealized, *of_account))
            if shadow.fills or holding == key[1]:
                self._add_fills(shadow.fills, (*key, number), shadow.shadow, place, position)
        return self._name_shadows(place, content, marks, key) if content else None

    def _name_shadows(
        self, place: int | None, content: Sequence[Row], marks: Sequence[Row], key: tuple[int, int]
    ) -> int:
        """Return the sequence of the rows with *content* and *marks* per account; add new rows."""
        last, named = self._shadows.get(place, (None, None))
        if last != content:
            named = None
        follow = marks.count(_FOLLOWS) == len(marks)
        sequence = key[1] if named is None or not follow else named
        if sequence != named:
            rows = zip(content, marks, strict=True)
            self._rows["shadow_steps"] += [(*key, *row, *mark) for row, mark in rows]
        self._shadows[place] = content, sequence if follow else named
        return sequence

    def _add_fills(
        self,
        fills: Sequence[Fill],
        key: Row,
        shadow: str | None,
        place: int | None,
        held: Position | None,
    ) -> None:
        """Add the rows of an account's *fills* and of the trades that they close.

        *held* is its position after them, in the instrument at *place*, with the funding paid.
        """
        rows: list[Row] = [
            (*key, ordinal, *_OF_FILL(fill, self._place(fill.instrument)), shadow)
            for ordinal, fill in enumerate(fills)
        ]
        self._rows["fills"] += rows
        early = self._trades.before_settling(rows)
        closed = [self._trades.fill(row) for row in rows[:early]]
        if held is not None and place is not None:
            self._trades.pay(shadow, place, held.funding_paid)
        closed += [self._trades.fill(row) for row in rows[early:]]
        self._rows["trades"] += [row for row in closed if row is not None]


def _marks(account: Account, unrealized: int | None) -> tuple[int | None, int | None]:
    """Return the stored profit and equity of *account*: null if they follow from other columns.

    *unrealized* is the profit of the account's position.
    """
    of_account = account.unrealized_pnl
    return (
        None if of_account == unrealized else of_account,
        None if account.equity == account.cash + of_account else account.equity,
    )


def _follow(
    worth: int,
    entry: int,
    close: int | None,
    unrealized: int | None,
    of_account: int | None,
    equity: int | None,
) -> Row:
    """Return the last three arguments, an account's marks, or nulls if they follow from *close*.

    *worth* is the position's value at a price of 1, *entry* its cost.
    """
    if close and of_account is None and equity is None:
        worth *= close
        if unrealized == worth - entry and abs(worth) < _INTEGER_LIMIT:
            return _FOLLOWS
    return unrealized, of_account, equity


def _bar_columns(stretch: QuietStretch) -> list[Sequence[Value]]:
    """Return the columns of the bars of *stretch* after its first unit.

    They are ``open_time_ms``, prices, volume, turnover, both delays and the source.
    """
    count = len(stretch.repeats)
    bars = stretch.bars[count:]
    nothing: Sequence[None] = [None] * len(bars)
    if stretch.columns:  # bars of an archive are seen at their close
        units = stretch.units
        unknown = [None] * (units - 1)  # the turnover, if its file lacks it
        fields = [
            _in_turn(
                [
                    unknown if column is None else column[at + 1 : at + units].tolist()
                    for column, (_, at) in zip(of_each, stretch.columns, strict=True)
                ]
            )
            for of_each in zip(*(columns for columns, _ in stretch.columns), strict=True)
        ]
        return [*fields, nothing, nothing, nothing]
    _, opened, _, *others, market_ms, seen_ms, sources = zip(*map(astuple, bars), strict=True)
    # A bar of a stretch is seen at its close, so ``seen_ms`` is its close time.
    delays = [market - at or None for market, at in zip(market_ms, seen_ms, strict=True)]
    seen = [at - market or None for market, at in zip(market_ms, seen_ms, strict=True)]
    return [opened, *others, delays, seen, [_CODE_OF[id(source)] for source in sources]]


def _in_turn(columns: Sequence[Sequence[Value]]) -> Sequence[Value]:
    """Return the first value of each of *columns*, then the second of each, and so on."""
    return columns[0] if len(columns) == 1 else [*chain.from_iterable(zip(*columns, strict=True))]


def _follow_each(
    position: Position, factor: int, closes: Sequence[int], marks: Sequence[Sequence[int | None]]
) -> Sequence[Row]:
    """Return :func:`_follow` of *position* at each of *closes*, with the columns of its *marks*.

    *factor* is the worth of a unit of quantity at a price of 1.
    """
    worth, entry = position.quantity * factor, position.entry_notional
    unrealized, *rest = marks
    follows = bool(closes) and all(column.count(None) == len(closes) for column in rest)
    follows = follows and min(closes) > 0 and max(closes) * abs(worth) < _INTEGER_LIMIT
    if follows and unrealized == [worth * close - entry for close in closes]:  # in most spans
        return [_FOLLOWS] * len(closes)
    return [*map(partial(_follow, worth, entry), closes, *marks)]


def _mark_columns(marks: AccountMarks, count: int) -> tuple[Sequence[int | None], ...]:
    """Return profit and equity of every unit of *count* bars after the first, as columns.

    They are ``unrealized_pnl`` and the two values that :func:`_marks` returns.
    """
    unrealized: list[int | None] = [*marks.unrealized[count:]]
    nothing: list[int | None] = [None] * len(unrealized)
    profits, equities = nothing, nothing
    if count > 1 or marks.worth != marks.account.cash:
        of_account = [profit for profit in marks.account_unrealized[1:] for _ in range(count)]
        pairs = zip(of_account, unrealized, strict=True)
        profits = [None if profit == paid else profit for profit, paid in pairs]
        if marks.worth != marks.account.cash:  # spot, where the position adds to the equity
            equities = [marks.worth + profit for profit in of_account]
    return unrealized, profits, equities


def _forecast_columns(forecast: Forecast, preferred: int | None) -> Row:
    """Return horizon, the six columns at it, the packed other horizons, the auxiliary outputs."""
    horizons, columns = forecast.horizons, _OF_FORECAST(forecast)
    at, pack = _packing(horizons, tuple(map(len, columns)), preferred)
    numbers = [*all_finite(tuple(chain.from_iterable(columns)))]
    at_horizon = numbers[at :: len(horizons)]
    if len(at_horizon) < len(columns):
        # A column that the model does not give is null.
        given = iter(at_horizon)
        at_horizon = [next(given) if column else None for column in columns]
    del numbers[at :: len(horizons)]
    if None in numbers:
        numbers = [nan if number is None else number for number in numbers]
    return (horizons[at], *at_horizon, pack(*numbers), forecast.auxiliary or None)


def _columns_at(
    columns: ForecastColumns, rows: NDArray[np.int64], preferred: int | None
) -> list[Sequence[Value]]:
    """Return the values of ``answers`` of the forecasts in *rows*, as columns.

    They are those of :func:`_forecast_columns` and of the explanation.
    """
    chosen = itemgetter(*rows.tolist(), 0)(columns.forecasts)[:-1]  # at least two: a tuple
    explained = [forecast.explanation for forecast in chosen]
    horizons = chosen[0].horizons
    at, pack = _packing(horizons, (len(horizons),) * len(FORECAST_COLUMNS), preferred)
    numbers, figures = columns.numbers[rows] + 0.0, columns.figures[rows] + 0.0
    others = np.delete(numbers, at, axis=2).reshape(len(rows), -1).astype("<f8")
    width, packed = others[0].nbytes, others.tobytes()
    head = pack(*others[0])[: -width or None]
    return [
        [horizons[at]] * len(rows),
        *numbers[:, :, at].T.tolist(),
        [head + packed[row * width : (row + 1) * width] for row in range(len(rows))],
        [forecast.auxiliary or None for forecast in chosen],
        *figures.T.tolist(),
        [explanation.entropy for explanation in explained],
        buckets_texts([explanation.buckets for explanation in explained]),
    ]


@lru_cache(64)
def _packing(
    horizons: tuple[int, ...], lengths: tuple[int, ...], preferred: int | None
) -> tuple[int, Callable[..., bytes]]:
    """Return the index of the gates' horizon, and the packer of the numbers at the others."""
    count = len(horizons)
    if not horizons or not {0, count}.issuperset(lengths):
        raise InvariantBroken("A forecast needs one number per horizon in every column it gives.")
    given = [*compress(GIVEN_BITS, lengths)]
    layout = HORIZONS.format(horizons=count, numbers=len(given) * (count - 1))
    return _place(horizons, preferred), partial(Struct(layout).pack, sum(given), *horizons)


def _place(horizons: Sequence[int], preferred: int | None) -> int:
    return horizons.index(preferred) if preferred in horizons else 0


def scales(instrument: Instrument) -> tuple[int, int, int, int]:
    """Return the decimals that scale the integers of *instrument*."""
    return (
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
    )
