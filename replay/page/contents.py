"""What an exported file holds of a run: answers of the interface by the paths of requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np

from tracepaper.replay.document.charts import rounded
from tracepaper.replay.document.values import TitledParts, as_document
from tracepaper.replay.page import lists, runs
from tracepaper.replay.page.databases import Databases, ShownRun
from tracepaper.replay.page.export import packed
from tracepaper.replay.page.records import ROWS_MAX
from tracepaper.replay.page.rollups import numbers_of
from tracepaper.replay.page.routes import POINTS_MAX, PREFIX, match
from tracepaper.strategies.gates.declared import warm

CELLS_MAX: Final = 200_000
"""Cells of all instruments together; each has at most ``POINTS_MAX``."""
LEVELS: Final = (1, 5, 15, 60, 240, 1_440, 10_080)
"""Lengths of cells, in bars, that columns are held in."""
POINTS_LEAST: Final = 1_000
NEWEST: Final = 24
FILLED: Final = 60
REFUSED: Final = 24
TRADED: Final = 10
SPREAD: Final = 24
"""So many of the newest decisions, of those that filled, of the newest refusals, of the best and
of the worst trades, and of all that asked a model are held whole."""
BLOCK: Final = 256
"""Decisions that are compressed together where all are held."""
DIGITS: Final = {
    "confidence": 5, "mean_return": 5, "stdev_return": 5, "exposure": 5, "net_exposure": 5,
    "numbers": 7, "equity": 7, "low": 7,
}  # fmt: skip
"""Columns that are drawn alone are rounded to so many digits."""
SPARE_DECIMALS: Final = 3
"""``spare``, the margin as a share of the threshold, is rounded to so many decimals."""

Progress = Callable[[str], None]
Answer = dict[str, Any]


class DecisionBlock(NamedTuple):
    """Whole decisions from *first* to *last*, as :func:`packed` writes them."""

    first: int
    last: int
    text: str


class FileContents(NamedTuple):
    """Plain answers by the paths of their requests, and with ``full`` blocks of decisions."""

    record: Answer
    blocks: list[DecisionBlock]


def contents_of(
    database: Path,
    run_id: str,
    *,
    document: TitledParts | None = None,
    full: bool = False,
    progress: Progress = lambda _text: None,
) -> FileContents:
    """Return the answers that a file of a run holds, by address.

    *document* is the run's report, made here where it is not given. *full* holds every decision
    whole; else chosen ones are, and the others have what the columns say. Raises what the
    interface refuses with.
    """
    progress("reading the run")
    asked = _RunAnswers(database, run_id)
    run, shown = asked.hold(""), asked.shown
    candles = [
        _hold_levels(asked, run, "/candles", instrument=of["id"])[0] for of in run["instruments"]
    ]
    _hold_levels(asked, run, "/equity")
    for rest in ("/marks", "/health", "/refusals", *["/model"] * run["has_model"]):
        asked.hold(rest)
    asked.hold("/account", asked.answer("/account", limit=ROWS_MAX))
    if document is None:
        progress("working out the report")
    asked.hold("/report", None if document is None else as_document(document))
    chosen = shown.columns.decisions()["sequence"].tolist() if full else None
    if chosen is None:
        chosen = _chosen(shown, run, candles)
        for sequence in chosen:
            asked.hold(f"/decisions/{sequence}")
    blocks = list(_blocks(asked, chosen, progress)) if full else []
    # The list is of this run alone, and what may stand beside it is nothing.
    listed = runs.runs(asked.shelf)
    rows = [row for row in listed.runs if row.run_id == run_id]
    listed = msgspec.structs.replace(listed, runs=rows, sweeps=[])
    beside = runs.begun(shown, lists.beside_document(shown, listed))
    asked.hold("/compare", as_document(beside))
    others = {
        "/runs": msgspec.to_builtins(listed),
        "/overview": as_document(lists.runs_document(listed)),
        "/file": {"database": database.name, "run_id": run_id, "whole": len(chosen)},
    }
    return FileContents(asked.answers | {PREFIX + path: of for path, of in others.items()}, blocks)


class _RunAnswers:
    """What the routes of a run, asked in this process, answer for a file, by address."""

    def __init__(self, database: Path, run_id: str) -> None:
        self.answers: Answer = {}
        self.path, self.shelf = f"/runs/{run_id}", Databases([database])
        self.shown = self.shelf.find(run_id)

    def answer(self, rest: str, **query: str | float) -> Any:  # noqa: ANN401 - plain values
        """Return the answer of *rest* of the run's path."""
        call = match(self.path + rest, {name: str(value) for name, value in query.items()})
        return msgspec.to_builtins(call.respond(self.shelf, lambda _share, _doing: None))

    def hold(self, rest: str, answer: Any = None) -> Any:  # noqa: ANN401 - plain values
        """Hold an answer of *rest* of the run's path, by default its own."""
        held = self.answer(rest) if answer is None else answer
        self.answers[PREFIX + self.path + rest] = held
        return held


# ---------------------------------------------------------------- columns


def _hold_levels(asked: _RunAnswers, run: Answer, kind: str, **of: str) -> list[Answer]:
    """Hold columns in ever longer cells, of each length the newest that a file takes.

    ``from_ms`` is where a level begins, 0 of one that holds the whole run. Returns the levels.
    """
    points = min(POINTS_MAX, max(POINTS_LEAST, CELLS_MAX // max(1, len(run["instruments"]))))
    begin_ms, end_ms = asked.shown.rollups.bounds_ms(**of) or (0, 0)
    levels: dict[int, Answer] = {}
    for bars in LEVELS:
        cell_ms = bars * run["row"]["interval_ms"]
        from_ms = max(begin_ms, end_ms - (points - 3) * cell_ms)
        count = max(2, math.ceil((end_ms - from_ms) / cell_ms) + 1)
        level = asked.answer(kind, points=count, from_ms=from_ms, **of)
        if level["interval_ms"] in levels:
            break
        _round(level)
        levels[level["interval_ms"]] = level | {"from_ms": from_ms if from_ms > begin_ms else 0}
    query = "".join(f"?{name}={quote(value)}" for name, value in of.items())
    return asked.hold(kind + query, [*levels.values()])


def _round(answer: Answer) -> None:
    """Round the columns of *answer* that are drawn alone."""
    for name, digits in DIGITS.items():
        match answer.get(name):
            case dict() as columns:
                answer[name] = {key: _rounded(of, digits) for key, of in columns.items()}
            case list() as column:
                answer[name] = _rounded(column, digits)
    for gate, column in answer.get("spare", {}).items():
        answer["spare"][gate] = numbers_of(np.array(column, np.float64).round(SPARE_DECIMALS))


def _rounded(column: list[float], digits: int) -> list[float | None]:
    return rounded(np.array(column, np.float64), digits)


# ---------------------------------------------------------------- decisions


def _blocks(
    asked: _RunAnswers, sequences: list[int], progress: Progress
) -> Iterator[DecisionBlock]:
    for start in range(0, len(sequences), BLOCK):
        progress(f"reading decision {start:,} of {len(sequences):,}")
        block = sequences[start : start + BLOCK]
        paths = [f"/decisions/{sequence}" for sequence in block]
        text = packed({PREFIX + asked.path + path: asked.answer(path) for path in paths})
        yield DecisionBlock(block[0], block[-1], text)


def _chosen(shown: ShownRun, run: Answer, candles: list[Answer]) -> list[int]:
    """Choose the decisions that are held whole."""
    views, first = shown.views, run["first_sequence"] or 0
    picked = {run["first_sequence"], run["warm_sequence"], run["last_sequence"]}
    if run["last_refusal"] is not None:
        picked |= {run["last_refusal"]["sequence"]}
    picked |= {fill["decision_sequence"] for fill in views.rows("v_fills", newest=FILLED)}
    # A trade outlives a prune, its decision does not.
    newest = views.rows("v_trades", newest=ROWS_MAX)
    trades = [of for of in newest if of["entry_sequence"] >= first]
    trades.sort(key=lambda trade: trade["net"] or 0.0)
    picked |= {trade["entry_sequence"] for trade in trades[:TRADED] + trades[-TRADED:]}
    share = max(1, len(candles))
    for columns in candles:
        picked |= _of_instrument(columns, share)
    return sorted(sequence for sequence in picked if sequence is not None)


def _of_instrument(candles: Answer, share: int) -> set[int]:
    """Choose of one of *share* instruments: the newest, refusals of every gate, and a spread."""
    sequences, refused = candles["sequence"], candles["refused_by"]
    judged = [(at, gate) for at, gate in zip(sequences, refused, strict=True) if gate]
    refusals = [at for at, gate in judged if gate != warm.name]
    forecasts = [
        at for at, mean in zip(sequences, candles["mean_return"], strict=True)
        if mean is not None and math.isfinite(mean)
    ]  # fmt: skip
    each = max(1, len(forecasts) * share // SPREAD)
    return {
        *[at for at in sequences if at is not None][-max(1, NEWEST // share) :],
        *{gate: at for at, gate in judged}.values(),
        *refusals[-max(1, REFUSED // share) :],
        *forecasts[::each],
    }
