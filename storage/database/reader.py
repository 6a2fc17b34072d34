"""Reads runs back, by run and sequence, over a read-only connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from tracepaper.storage.database.chunks import (
    CHUNK_STEPS,
    INSTRUMENT_ROWS,
    RANGES,
    RUN_ROW,
    WITHIN,
    RunLocation,
    Span,
    StoredRun,
    chain_head,
    close_of,
    confirmed_since,
    find_step,
    gate_set_of,
    gate_set_rows,
    interned,
    latest_state,
    run_span,
    select,
    snapshot,
    step_rows,
)
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.decode import BAR_READ, StepDecoder, StoredRows, buckets_of
from tracepaper.storage.record.rows import EVENT_KINDS, OPENED_AT, run_of
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import (
    Confirmation,
    DecisionOutcome,
    Forecast,
    GateSet,
    LastDecision,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import Bar, Depths, FrameBar, Gap, ModelChange

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

    from tracepaper.storage.database.chunks import StoredRow
    from tracepaper.storage.database.run_rows import RunRows
    from tracepaper.strategies.types.decisions import Fill, Order, Prediction, RunRow
    from tracepaper.strategies.types.market import CloseStart, Event, RunKind


_Kind = TypeVar("_Kind", bound="Event")
Fed = tuple[int, bool, "Event", "Prediction"]
"""A step's sequence, whether it was accepted, its event and its prediction."""
Wait = Callable[[int, "Iterator[Bar | CloseStart]"], int]
"""Called with a step and the bars from it on; returns how many of the bars it consumed."""


def _fed(
    decoder: StepDecoder,
    row: StoredRow,
    events: Mapping[int, StoredRow],
    answers: Mapping[int, StoredRow],
) -> Fed:
    """Decode one step as it was fed, from its *row* and the rows of *events* and *answers*."""
    sequence = row[0]
    event_row = events.get(sequence) if events else None
    prediction = decoder.given(answers[sequence]) if sequence in answers else None
    event: Event
    event = decoder.unit_of(row) if event_row is None else decoder.event(event_row)
    return sequence, row[1] is None, event, prediction


_IS_FED: Final = (
    "open_time_ms IS NOT NULL OR EXISTS (SELECT 1 FROM events e WHERE e.run_key = s.run_key "
    "AND e.sequence = s.sequence AND e.kind "
    "IN ('closed', 'frame_bar', 'funding', 'gap'))"
)
_FED_STEPS: Final = f"SELECT {', '.join(BAR_READ)} FROM steps WHERE {WITHIN} ORDER BY sequence"
_EVENTS: Final = f"SELECT {', '.join(stored_columns('events'))} FROM events"
_DECIDED: Final = (
    f"SELECT instrument, max(sequence) FROM steps WHERE {WITHIN} AND outcome IS NOT NULL GROUP BY 1"
)
_RECENT: Final = 8
"""An instrument's last decision is mostly among this many of its last steps."""
_COUNTED: Final = (
    "SELECT run_key, step_count, head_digest, opened_digest FROM runs WHERE run_id = ?"
)
_STORED: Final = "SELECT count(*) FROM steps WHERE run_key = ?"
_BALANCE: Final = (
    f"SELECT balance FROM ledger WHERE {WITHIN} ORDER BY sequence DESC, ordinal DESC LIMIT 1"
)
OPEN_STATUSES: Final = (OrderStatus.NEW, OrderStatus.ACCEPTED, OrderStatus.PARTIALLY_FILLED)


def resolve(path: Path | None, spec: str) -> RunLocation:
    """Find the run that *spec* names: an id, a unique prefix or ``last``, or ``FILE#`` and one.

    *path* is the database if *spec* names none. Raises ``DataInvalid`` unless exactly one run
    matches.
    """
    file, separator, wanted = spec.rpartition("#")
    database = Path(file) if separator else path
    if database is None:
        raise DataInvalid(f"{spec} names no database; write FILE#RUN or give --db.")
    with Reader.open(database) as reader:
        return RunLocation(database, reader.find(wanted or "last"))


class Reader:
    """Reads the runs of a database over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection: Final = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database *path* read-only; raise ``DataInvalid`` if that fails."""
        return cls(open_reader(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def run_rows(self, run_key: int) -> RunRows:
        """Return the rows of one run as columns."""
        from tracepaper.storage.database.run_rows import RunRows  # loads NumPy, which few need

        return RunRows(self.connection, run_key)

    # ------------------------------------------------------------ runs

    def find(self, wanted: str) -> str:
        """Return the id of the run *wanted*: an id, a unique prefix, or ``last``."""
        ids = self.run_ids()
        if not ids:
            raise DataInvalid(
                "The database has no run yet; `tracepaper run` or `replay` makes one."
            )
        if wanted == "last":
            return ids[-1]
        if wanted in ids:
            return wanted
        matches = [run_id for run_id in ids if run_id.startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise DataInvalid(f"There is no run {wanted}; the last one is {ids[-1]}.")
        raise DataInvalid(f"{wanted} could be {matches[0]} or {matches[1]}; write more of it.")

    def run_ids(self) -> list[str]:
        """Return the id of every run, in the order in which they were opened."""
        query = "SELECT run_id FROM runs ORDER BY run_key"
        return [str(run_id) for (run_id,) in self.connection.execute(query)]

    def stored_run(self, run_id: str) -> StoredRun:
        """Return *run_id* with the columns of its row; raise ``DataInvalid`` if it is missing."""
        row = self.connection.execute(RUN_ROW, (run_id,)).fetchone()
        if row is None:
            raise DataInvalid(f"There is no run {run_id} in the database.")
        instruments = self.connection.execute(INSTRUMENT_ROWS, (row[0],))
        return StoredRun(
            row[0], run_of(row[:OPENED_AT], instruments), row[:OPENED_AT], *row[OPENED_AT:]
        )

    def damage(self, run_id: str) -> str:
        """Return one sentence if the run's row contradicts its steps, else ''.

        This takes a few milliseconds; only ``audit verify`` reads every row.
        """
        with snapshot(self.connection):
            run_key, count, head, opened = self.connection.execute(_COUNTED, (run_id,)).fetchone()
            (stored,) = self.connection.execute(_STORED, (run_key,)).fetchone()
            last, chain_end = self._last_sequence(run_key), chain_head(self.connection, run_key)
        reached, digest = (-1, opened) if chain_end is None else chain_end
        if (stored, last, reached, digest) == (count, count - 1, count - 1, head):
            return ""
        return (
            f"The row of run {run_id} counts {count} steps and {stored} are stored, or its head "
            "is not that of its last step: run `tracepaper audit verify` before you use this run."
        )

    def balance(self, run_id: str, *, until: int | None = None) -> int | None:
        """Return the ledger's balance after step *until*; None if *run_id* has no ledger."""
        span = run_span(self.stored_run(run_id).run_key, until)
        row = self.connection.execute(_BALANCE, span).fetchone()
        return None if row is None else int(row[0])

    def ended_at_ms(self, run_id: str) -> int | None:
        """Return when the run ended in good order; None if it was resumed or killed."""
        query = "SELECT ended_ms FROM v_runs WHERE run_id = ?"
        row = self.connection.execute(query, (run_id,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def run(self, run_id: str) -> RunRow:
        """Return the run as it was opened."""
        return self.stored_run(run_id).run

    def gate_sets(self, run_key: int) -> tuple[GateSet, ...]:
        """Return the gate sets of the run, in the order of their keys."""
        rows = gate_set_rows(self.connection, run_key)
        return tuple(gate_set_of(rows[key]) for key in sorted(rows))

    # ------------------------------------------------------------ steps

    def step(self, run_id: str, sequence: int) -> Step:
        """Return one step; raise ``DataInvalid`` if it is missing."""
        for step in self.steps(run_id, after=sequence - 1, until=sequence):
            return step
        raise DataInvalid(f"Run {run_id} has no step {sequence}.")

    def steps(self, run_id: str, *, after: int = -1, until: int | None = None) -> Iterator[Step]:
        """Yield the steps after sequence *after*, up to and including *until*, in order."""
        _, decoder = self._decoding(run_id)
        for rows in self.rows(run_id, after=after, until=until):
            yield decoder.step(rows)

    def steps_at(self, run_id: str, sequences: Iterable[int]) -> Iterator[Step]:
        """Yield the steps with these *sequences*."""
        stored, decoder = self._decoding(run_id)
        for sequence in sequences:
            for rows in step_rows(self.connection, stored.run_key, sequence, sequence):
                yield decoder.step(rows)

    def rows(
        self, run_id: str, *, after: int = -1, until: int | None = None
    ) -> Iterator[StoredRows]:
        """Yield the rows of the steps that ``steps`` would yield."""
        run_key = self.stored_run(run_id).run_key
        last = self._last_sequence(run_key)
        end = last if until is None else min(until, last)
        return step_rows(self.connection, run_key, after + 1, end)

    def events(self, run_id: str, after: int = -1, wait: Wait | None = None) -> Iterator[Fed]:
        """Yield (sequence, accepted, event, prediction) in order, as the engine received them.

        A non-finite forecast was stored without its numbers: here they are NaN. *wait* may consume
        bars before they are yielded; those are skipped.
        """
        stored, decoder = self._decoding(run_id)
        last, execute = self._last_sequence(stored.run_key), self.connection.execute
        of_events, of_answers = RANGES["events"], RANGES["answers"]
        for start in range(after + 1, last + 1, CHUNK_STEPS):
            span = stored.run_key, start, min(start + CHUNK_STEPS - 1, last)
            events = {row[1]: row for row in execute(of_events, span)}
            answers = {row[1]: row for row in execute(of_answers, span)} if wait is None else {}
            rows, waited = execute(_FED_STEPS, span).fetchall(), 0
            for place, row in enumerate(rows):
                if place < waited:
                    continue
                sequence = row[0]
                if wait is not None:
                    ahead = map(rows.__getitem__, range(place, len(rows)))
                    if taken := wait(sequence, map(decoder.unit_of, ahead)):
                        waited = place + taken
                        continue
                    at = execute(of_answers, (stored.run_key, sequence, sequence))
                    answers = {row[1]: row for row in at}
                yield _fed(decoder, row, events, answers)

    def forecasts(self, run_id: str, most: int) -> list[Forecast]:
        """Return the first *most* forecasts of *run_id* whose numbers are stored."""
        stored, decoder = self._decoding(run_id)
        query = select("answers", f"{WITHIN} AND horizon IS NOT NULL")
        rows = self.connection.execute(f"{query} LIMIT ?", (*run_span(stored.run_key), most))
        given = map(decoder.prediction, rows)
        return [forecast for forecast in given if isinstance(forecast, Forecast)]

    def bars_before(self, run_key: int, instrument: int, open_time_ms: int, most: int) -> list[int]:
        """Return the open times of the last *most* bars of an instrument before a time."""
        span = run_span(run_key, self._last_sequence(run_key))
        next_step = self.run_rows(run_key).opened_at(instrument, span[1:], open_time_ms)
        query = (
            f"SELECT open_time_ms FROM steps WHERE {WITHIN} AND instrument = ? "
            "AND ignored IS NULL ORDER BY sequence DESC LIMIT ?"
        )
        rows = self.connection.execute(query, (*run_span(run_key, next_step - 1), instrument, most))
        return [opened for (opened,) in rows][::-1]

    def explanations(self, run_id: str) -> Iterator[list[tuple[int, bytes, float, bytes]]]:
        """Yield (sequence, buckets, older mass, entropy) of every explained forecast, in order.

        They come in lists of a few thousand, as plain tuples: a report reads all of a run.
        """
        cursor = self.connection.execute(
            "SELECT sequence, buckets, older_mass, entropy FROM answers "
            f"WHERE {WITHIN} AND buckets IS NOT NULL ORDER BY sequence",
            run_span(self.stored_run(run_id).run_key),
        )
        while rows := cursor.fetchmany(CHUNK_STEPS):
            yield [(at, buckets_of(text), *others) for at, text, *others in rows]

    def bars(
        self,
        run_id: str,
        instrument: str,
        last_n: int | None = None,
        *,
        until: int | None = None,
    ) -> list[Bar]:
        """Return the accepted bars of *instrument*, up to step *until*, oldest first.

        Only the *last_n* if given, so that the older bars of a long run are not read.
        """
        stored = self.stored_run(run_id)
        ids = [item.id for item in stored.run.instruments]
        if instrument not in ids:
            raise DataInvalid(f"Run {run_id} has no instrument {instrument}, only {ids}.")
        decoder = StepDecoder(stored.run, interned(self.connection, stored.run_key))
        rows = self.connection.execute(
            f"SELECT {', '.join(BAR_READ)} FROM steps "
            f"WHERE {WITHIN} AND instrument = ? AND ignored IS NULL ORDER BY sequence DESC LIMIT ?",
            (
                *run_span(stored.run_key, until),
                ids.index(instrument),
                -1 if last_n is None else last_n,
            ),
        ).fetchall()
        units = map(decoder.unit_of, reversed(rows))
        return [unit for unit in units if isinstance(unit, Bar)]

    def frame_bars(self, run_id: str, *, until: int | None = None) -> list[FrameBar]:
        """Return the accepted candles of higher frames that did not come of the run's bars.

        Only those up to step *until*, if given.
        """
        stored, decoder = self._decoding(run_id)
        rows = self.connection.execute(
            f"SELECT {', '.join(f'e.{name}' for name in stored_columns('events'))} FROM events e "
            "LEFT JOIN steps s ON s.run_key = e.run_key AND s.sequence = e.sequence "
            "WHERE e.run_key = ? AND e.sequence BETWEEN ? AND ? "
            "AND e.kind = 'frame_bar' AND s.ignored IS NULL ORDER BY e.sequence",
            run_span(stored.run_key, until),
        )
        events = (decoder.event(row) for row in rows)
        return [event for event in events if isinstance(event, FrameBar)]

    def open_orders(self, run_id: str, *, until: int | None = None) -> tuple[Order, ...]:
        """Return the orders that rest after step *until* (default: the last), oldest first."""
        latest = self.changed_orders(run_id, after=-1, until=until)
        return tuple(order for order in latest.values() if order.status in OPEN_STATUSES)

    def changed_orders(
        self, run_id: str, *, after: int, until: int | None = None
    ) -> dict[str, Order]:
        """Return by id, as of step *until*, the orders that changed after step *after*."""
        stored, decoder = self._decoding(run_id)
        run_key, _, last = run_span(stored.run_key, until)
        span = run_key, after + 1, last
        rows = self.connection.execute(select("orders", WITHIN), span)
        return {(order := decoder.order(row)).order_id: order for row in rows}

    def _last_sequence(self, run_key: int) -> int:
        """Return the sequence of the run's last stored step, or -1."""
        step = find_step(self.connection, *run_span(run_key), "steps", newest=True)
        return -1 if step is None else step

    def counted(self, run_id: str) -> tuple[int, int]:
        """Return the step count in the run's row, and the number of steps, from one snapshot."""
        run_key = self.stored_run(run_id).run_key
        query = (
            "SELECT step_count, (SELECT max(sequence) FROM steps s WHERE s.run_key = r.run_key) "
            "FROM runs r WHERE run_key = ?"
        )
        count, last = self.connection.execute(query, (run_key,)).fetchone()
        return int(count), 0 if last is None else last + 1

    def step_opened(self, run_key: int, open_time_ms: int) -> int | None:
        """Return the first step whose bar opened at *open_time_ms* or later, if any."""
        opened = "open_time_ms >= ? AND instrument IS NOT NULL AND ignored IS NULL"
        return find_step(self.connection, *run_span(run_key), "steps", opened, open_time_ms)

    def steps_before(self, run_key: int, open_time_ms: int) -> int:
        """Count the steps up to the last bar that opened before *open_time_ms*."""
        opened = "open_time_ms < ? AND instrument IS NOT NULL AND ignored IS NULL"
        span = run_span(run_key)
        step = find_step(self.connection, *span, "steps", opened, open_time_ms, newest=True)
        return 0 if step is None else step + 1

    def decided_within(
        self, run_key: int, from_ms: int | None, until_ms: int | None
    ) -> tuple[int, int] | None:
        """Return the open times of the first and last decided bars within a period."""
        query = (
            f"SELECT min(open_time_ms), max(open_time_ms) FROM steps WHERE {WITHIN} "
            "AND outcome IS NOT NULL AND open_time_ms >= coalesce(?, open_time_ms) "
            "AND open_time_ms <= coalesce(? - 1, open_time_ms)"
        )
        bounds = (*run_span(run_key), from_ms, until_ms)
        first, last = self.connection.execute(query, bounds).fetchone()
        return None if first is None else (first, last)

    def decided_before(self, run_key: int, sequence: int) -> tuple[int | None, int]:
        """Return the open time of the first bar from *sequence* on, and the decisions before it."""
        (opened,) = self.connection.execute(
            "SELECT open_time_ms FROM steps WHERE run_key = ? AND sequence >= ? "
            "AND instrument IS NOT NULL ORDER BY sequence LIMIT 1",
            (run_key, sequence),
        ).fetchone() or (None,)
        (decisions,) = self.connection.execute(
            "SELECT count(outcome) FROM steps WHERE run_key = ? AND sequence < ?",
            (run_key, sequence),
        ).fetchone()
        return opened, decisions

    # ------------------------------------------------------------ resuming

    def newest(self, kind: RunKind) -> RunRow | None:
        """Return the run of *kind* that was opened last, if any."""
        query = "SELECT run_id FROM runs WHERE kind = ? ORDER BY run_key DESC LIMIT 1"
        row = self.connection.execute(query, (kind.value,)).fetchone()
        return None if row is None else self.run(row[0])

    def begun_ms(self, kind: RunKind) -> int | None:
        """Return when the period of the first run of *kind* begins; None without any."""
        query = "SELECT min(period_start_ms) FROM runs WHERE kind = ?"
        row: tuple[int | None] = self.connection.execute(query, (kind.value,)).fetchone()
        return row[0]

    def before(self, run: RunRow) -> RunRow | None:
        """Return the run of the same kind that was opened before *run*, if any."""
        query = (
            "SELECT run_id FROM runs WHERE kind = ? AND run_key < "
            "(SELECT run_key FROM runs WHERE run_id = ?) ORDER BY run_key DESC LIMIT 1"
        )
        row = self.connection.execute(query, (run.kind.value, run.run_id)).fetchone()
        return None if row is None else self.run(row[0])

    def last_open_ms(self, run_id: str) -> dict[str, int]:
        """Return the open time of the newest bar of *run_id*, by instrument; none without a bar."""
        stored = self.stored_run(run_id)
        query = (
            "SELECT instrument, max(open_time_ms) FROM steps "
            f"WHERE {WITHIN} AND instrument IS NOT NULL GROUP BY 1"
        )
        rows = self.connection.execute(query, run_span(stored.run_key))
        return {stored.run.instruments[place].id: opened for place, opened in rows}

    def depths(self, run_id: str, instrument: str, *, until: int, books: int) -> list[Depths]:
        """Return the newest events with *books* order books up to step *until*, oldest first.

        Fewer if the model's last start came later.
        """
        depths: list[Depths] = []
        chosen = "kind IN ('depth', 'model_change') ORDER BY sequence DESC"
        for event in self._events(run_id, chosen, until=until):
            if not isinstance(event, Depths) or books <= 0:
                break
            if event.instrument == instrument:
                depths.append(event)
                books -= event.count
        return depths[::-1]

    def gaps_since_start(self, run_id: str, *, until: int) -> list[Gap]:
        """Return the gaps up to step *until* since the newest start before it, oldest first."""
        gaps: list[Gap] = []
        chosen = "kind IN ('gap', 'model_change') ORDER BY sequence DESC"
        for event in self._events(run_id, chosen, until=until):
            if isinstance(event, Gap):
                gaps.append(event)
            elif isinstance(event, ModelChange):
                break
        return gaps[::-1]

    def newest_of(
        self, run_id: str, kind: type[_Kind], *, until: int | None = None
    ) -> _Kind | None:
        """Return the last event of *kind* of the run, up to step *until*, if any."""
        chosen = "kind = ? ORDER BY sequence DESC LIMIT 1"
        event = next(self._events(run_id, chosen, EVENT_KINDS[kind], until=until), None)
        return event if isinstance(event, kind) else None

    def newest_fed(self, run_id: str) -> Event | None:
        """Return the run's last bar, close, frame bar, settlement or gap."""
        span = run_span(self.stored_run(run_id).run_key)
        step = find_step(self.connection, *span, "steps s", _IS_FED, newest=True)
        return None if step is None else self.step(run_id, step).event

    def of_type(self, run_id: str, kind: type[_Kind], *, until: int | None = None) -> list[_Kind]:
        """Return the events of *kind* of the run, up to step *until*, oldest first."""
        events = self._events(run_id, "kind = ? ORDER BY sequence", EVENT_KINDS[kind], until=until)
        return [event for event in events if isinstance(event, kind)]

    def _events(
        self, run_id: str, chosen: str, *values: str, until: int | None = None
    ) -> Iterator[Event]:
        """Yield the events of *run_id* up to step *until*; *chosen* is an SQL condition."""
        stored, decoder = self._decoding(run_id)
        query = f"{_EVENTS} WHERE {WITHIN} AND {chosen}"
        rows = self.connection.execute(query, (*run_span(stored.run_key, until), *values))
        return (decoder.event(row) for row in rows)

    def _decoding(self, run_id: str) -> tuple[StoredRun, StepDecoder]:
        stored = self.stored_run(run_id)
        return stored, StepDecoder(stored.run, interned(self.connection, stored.run_key))

    def configurations(self, kind: RunKind) -> list[str]:
        """Return the configuration, as JSON, of every run of *kind*."""
        query = "SELECT DISTINCT config FROM runs WHERE kind = ?"
        return [text for (text,) in self.connection.execute(query, (kind.value,))]

    def first_state(self, run_id: str) -> tuple[bytes, int] | None:
        """Return the oldest stored state of the engine, and the step after which it was stored."""
        run_key = self.stored_run(run_id).run_key
        query = "SELECT state, sequence FROM states WHERE run_key = ? ORDER BY sequence LIMIT 1"
        row: tuple[bytes, int] | None = self.connection.execute(query, (run_key,)).fetchone()
        return row

    def state_at(self, run_id: str, *, until: int | None = None) -> tuple[bytes, int] | None:
        """Return the engine's newest state up to step *until*, and the step that stored it."""
        return latest_state(self.connection, self.stored_run(run_id).run_key, until)

    def steps_since_state(self, run_id: str, *, until: int | None = None) -> Iterator[Step]:
        """Yield the steps from the one that stored the newest state on, up to step *until*."""
        stored = self.state_at(run_id, until=until)
        return self.steps(run_id, after=-1 if stored is None else stored[1] - 1, until=until)

    def confirmations(self, run_id: str, *, until: int | None = None) -> list[Confirmation]:
        """Return the last confirmation of each position since the newest state was stored."""
        stored, state = self.stored_run(run_id), self.state_at(run_id, until=until)
        run_key, _, last = run_span(stored.run_key, until)
        since = confirmed_since(
            self.connection, (run_key, 0 if state is None else state[1] + 1, last)
        )
        instruments = stored.run.instruments
        return [Confirmation(shadow, instruments[place].id, time) for shadow, place, time in since]

    def since_decided(self, run_id: str, *, until: int | None = None) -> dict[str, LastDecision]:
        """Return each instrument's last outcome, up to step *until*, and the fills since."""
        stored = self.stored_run(run_id)
        span = run_span(stored.run_key, until)
        steps = self._last_decided(stored, span)
        since: dict[str, LastDecision] = {}
        for place, item in enumerate(stored.run.instruments):
            decided = steps.get(place, -1)
            step = self.step(run_id, decided) if decided >= 0 else None
            outcome = None if step is None or step.decision is None else step.decision.outcome
            if decided >= 0:
                # A decision knows all fills of its close, also those by another symbol's price.
                decided = close_of(self.connection, stored.run_key, decided, len(steps))[1]
            fills = self.fills(run_id, after=decided, until=until)
            item_fills = tuple(fill for fill in fills if fill.instrument == item.id)
            since[item.id] = LastDecision(outcome, item_fills)
        return since

    def verdicts_since(
        self, run_id: str, after: int, *, until: int | None = None
    ) -> dict[str, DecisionOutcome]:
        """Return each instrument's last outcome, if it was decided after step *after*."""
        stored = self.stored_run(run_id)
        steps = self._last_decided(stored, run_span(stored.run_key, until))
        decided = [self.step(run_id, at) for at in steps.values() if at > after]
        return {
            step.event.instrument: step.decision.outcome
            for step in decided
            if isinstance(step.event, Bar) and step.decision is not None
        }

    def _last_decided(self, stored: StoredRun, span: Span) -> dict[int, int]:
        """Return by place the last step in *span* that decided an instrument."""
        last, places = min(span[-1], self._last_sequence(span[0])), len(stored.run.instruments)
        steps: dict[int, int] = {}
        for first in (last - _RECENT * places, 0):  # the recent steps mostly suffice
            steps = dict(self.connection.execute(_DECIDED, (span[0], first, last)).fetchall())
            if len(steps) == places:
                break
        return steps

    def fills(self, run_id: str, *, after: int = -1, until: int | None = None) -> Iterator[Fill]:
        """Yield the fills of the run's account after step *after* up to *until*, in order."""
        stored, decoder = self._decoding(run_id)
        query = select("fills", f"{WITHIN} AND account = 0")
        span = (stored.run_key, after + 1, run_span(stored.run_key, until)[-1])
        for row in self.connection.execute(query, span):
            yield decoder.fill(row)
