"""``RUN:WHERE``: the decision that a command is about, as people type it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tracepaper.daemon.commands.options import located
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, iso

LAST: Final = "last"
FORMS: Final = (
    "write RUN:WHERE, where WHERE is a sequence (last:6000), a time of the run's last day "
    "(last:14:05), a time (last:2025-05-31T14:05, UTC) or last"
)
_CLOCK: Final = r"([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?"
_DATE: Final = r"\d{4}-\d\d-\d\d.*"
_TIMED: Final = re.compile(rf"(?:(?P<run>.*?):)?(?P<time>{_DATE}|{_CLOCK})")
_SEQUENCE: Final = re.compile(r"[0-9]{1,18}")


class DecisionPlace(NamedTuple):
    """A database, a run in it, and the sequence of a decision; None names no decision."""

    path: Path
    run_id: str
    sequence: int | None


def find_decision(text: str, database: Path | None) -> tuple[Path, str, int]:
    """Return (database, run id, sequence) of ``RUN:WHERE``, by default the run's last decision.

    Raises as :func:`locate` does, and ``DataInvalid`` if the run has no decision.
    """
    path, run_id, sequence = locate(text, database)
    if sequence is None:
        sequence = last_decision(path, run_id)
    return path, run_id, sequence


def locate(text: str, database: Path | None) -> DecisionPlace:
    """Find the run and the decision of ``RUN:WHERE``, where RUN may be ``FILE#RUN``.

    RUN alone names no decision, and a time alone one of the last run. A time is that of a moment
    while the bar was open. Raises ``ConfigInvalid`` for another form, ``DataInvalid`` if the run
    decided no such bar or several.
    """
    run, where = _split(text)
    timed = where is not None and _TIMED.fullmatch(where)
    if not (where in {None, LAST} or timed or _SEQUENCE.fullmatch(where or "")):
        raise ConfigInvalid(f"{text!r} is not a decision; {FORMS}.")
    path, run_id = located(run, database)
    if where is None or where == LAST:
        return DecisionPlace(path, run_id, None if where is None else last_decision(path, run_id))
    return DecisionPlace(path, run_id, _decided_at(path, run_id, where) if timed else int(where))


def names_place(text: str) -> bool:
    """Return whether *text* names a decision, not only a run."""
    return _split(text)[1] is not None


def _split(text: str) -> tuple[str, str | None]:
    """Return the run and the place that *text* names."""
    file, separator, name = text.rpartition("#")
    if (timed := _TIMED.fullmatch(name)) is not None:
        run, where = timed["run"] or LAST, timed["time"]
    else:
        run, colon, where = name.rpartition(":")
        if not colon:
            run, where = name, None
    return f"{file}{separator}{run}", where


def last_decision(database: Path, run_id: str) -> int:
    """Return the sequence of the run's last decision; raise ``DataInvalid`` if it has none."""
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        with views.snapshot():
            if newest := views.rows("v_decisions", newest=1):
                return int(newest[0]["sequence"])
            raise DataInvalid(no_such_decision(views, 0))


def no_such_decision(views: RunViews, sequence: int) -> str:
    """Return the error for a step that is no decision; it names the nearest decision."""
    if (nearest := views.nearest("v_decisions", sequence)) is None:
        return f"Run {views.run_id} holds no decision yet; choose another run."
    return (
        f"Run {views.run_id} has no decision {sequence}; the nearest is {views.run_id}:{nearest}."
    )


def decided_open_ms(reader: Reader, run_id: str, sequence: int) -> int:
    """Return the open time of the decided bar; raise ``DataInvalid`` if it is no decision."""
    views = RunViews(reader.connection, run_id)
    if rows := views.rows("v_decisions", sequence=sequence):
        return int(rows[0]["open_time_ms"])
    raise DataInvalid(no_such_decision(views, sequence))


def _decided_at(database: Path, run_id: str, time: str) -> int:
    """Return the sequence of the decision of the bar that was open at *time*."""
    with Reader.open(database) as reader:
        columns = RunColumns(reader, run_id)
        views, times = columns.views, columns.times
        if not (newest := views.rows("v_decisions", newest=1)):
            raise DataInvalid(no_such_decision(views, 0))
        at_ms = _moment(time, times.close_ms(newest[0]["open_time_ms"]))
        decided = reader.decided_within(columns.run_key, None, at_ms + 1)
        if decided is None or times.close_ms(open_ms := decided[1]) <= at_ms:
            first_ms, last_ms = reader.decided_within(columns.run_key, None, None) or (0, 0)
            raise DataInvalid(
                f"Run {run_id} decided no bar that was open at {iso(at_ms)}; those that it decided "
                f"opened from {iso(first_ms)} to {iso(last_ms)}."
            )
        rows = views.rows("v_decisions", open_time_ms=open_ms)
    if len(rows) == 1:
        return int(rows[0]["sequence"])
    each = ", ".join(f"{run_id}:{row['sequence']} ({row['instrument']})" for row in rows)
    raise DataInvalid(
        f"Several decisions have bars that opened at {iso(open_ms)}; choose one of {each}."
    )


def _moment(time: str, until_ms: int) -> int:
    """Return the UTC milliseconds of *time*; without a date, the newest before *until_ms*."""
    if re.fullmatch(_DATE, time):
        from tracepaper.replay.archive.columns import instant  # imports every reader of candles

        return instant(time)
    hours, minutes, *seconds = map(int, time.split(":"))
    of_day_ms = hours * HOUR_MS + minutes * MINUTE_MS + 1000 * sum(seconds)
    return of_day_ms + (until_ms - 1 - of_day_ms) // DAY_MS * DAY_MS
