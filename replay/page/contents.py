"""The contents of an exported file: the interface's answers for a run, by request path."""

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
from tracepaper.replay.page.databases import Databases, OpenRun
from tracepaper.replay.page.export import PAGE_START, DecisionBlock, one_file, packed
from tracepaper.replay.page.records import ROWS_MAX
from tracepaper.replay.page.rollups import numbers_of
from tracepaper.replay.page.routes import POINTS_MAX, PREFIX, match
from tracepaper.strategies.gates.declared import warm

CELLS_MAX: Final = 200_000
"""Most cells of all instruments together; one has at most ``POINTS_MAX``."""
LEVELS: Final = (1, 5, 15, 60, 240, 1_440, 10_080)
"""Cell lengths, in bars, for which the file has columns."""
POINTS_MIN: Final = 1_000
NEWEST: Final = 24
FILLED: Final = 60
REFUSED: Final = 24
TRADED: Final = 10
SPREAD: Final = 24
"""Numbers of complete decisions: the newest, the newest that filled, the newest refusals, the best
and the worst trades each, and an even spread over those with a forecast."""
BLOCK: Final = 256
"""Decisions that are compressed together if the file has all."""
DIGITS: Final = {
    "confidence_entropy": 5, "mean_return": 5, "stdev_return": 5, "exposure": 5, "numbers": 7,
    "equity": 7, "low": 7,
}  # fmt: skip
"""Significant digits of the columns that are only drawn."""
SPARE_DECIMALS: Final = 3
"""Decimals of ``spare``, the margin as a share of the threshold."""

Progress = Callable[[str], None]
Answer = dict[str, Any]


class FileContents(NamedTuple):
    """Answers by request path and, in a full file, blocks of decisions."""

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
    """Return the answers for the file of a run, by address.

    *document* is the run's report, which is built here by default. With *full*, every decision is
    complete; otherwise only selected ones are, and the others have the values of the columns.
    Raises the errors of the interface.
    """
    progress("reading the run")
    asked = _RunAnswers(database, run_id)
    run, shown = asked.hold(""), asked.shown
    candles = [
        _hold_levels(asked, run, "/candles", instrument=item["id"])[0]
        for item in run["instruments"]
    ]
    _hold_levels(asked, run, "/equity")
    for rest in ("/marks", "/health", "/refusals", *["/model"] * run["has_model"]):
        asked.hold(rest)
    asked.hold("/account", asked.answer("/account", limit=ROWS_MAX))
    if document is None:
        progress("building the report")
    asked.hold("/report", None if document is None else as_document(document))
    chosen = shown.columns.decisions()["sequence"].tolist() if full else None
    if chosen is None:
        chosen = _chosen(shown, run, candles)
        for sequence in chosen:
            asked.hold(f"/decisions/{sequence}")
    blocks = list(_blocks(asked, chosen, progress)) if full else []
    # The file lists this run alone, and no run for a comparison.
    listed = runs.runs(asked.databases)
    rows = [row for row in listed.runs if row.run_id == run_id]
    listed = msgspec.structs.replace(listed, runs=rows, sweeps=[])
    comparison = runs.with_warnings(shown, lists.beside_document(shown, listed))
    asked.hold("/compare", as_document(comparison))
    others = {
        "/runs": msgspec.to_builtins(listed),
        "/overview": as_document(lists.runs_document(listed)),
        "/file": {"database": database.name, "run_id": run_id, "whole": len(chosen)},
    }
    return FileContents(
        asked.answers | {PREFIX + path: each for path, each in others.items()}, blocks
    )


def run_page(
    database: Path,
    run_id: str,
    *,
    document: TitledParts | None = None,
    full: bool = False,
    progress: Progress = lambda _text: None,
) -> str:
    """Return the page of ``tracepaper ui`` as one file with one run.

    The arguments are those of :func:`contents_of`.
    """
    held = contents_of(database, run_id, document=document, full=full, progress=progress)
    progress("writing the page")
    name = held.record[f"/api/v1/runs/{run_id}"]["row"]["strategy"]
    styles = ("page.css", "document.css")
    return one_file(f"{name} {run_id[:8]}", PAGE_START, styles, held.record, held.blocks)


class _RunAnswers:
    """The answers of a run's routes, computed in this process, by address."""

    def __init__(self, database: Path, run_id: str) -> None:
        self.answers: Answer = {}
        self.path, self.databases = f"/runs/{run_id}", Databases([database])
        self.shown = self.databases.find(run_id)

    def answer(self, rest: str, **query: str | float) -> Any:  # noqa: ANN401 - plain values
        """Return the answer of the path *rest* below the run's path."""
        call = match(self.path + rest, {name: str(value) for name, value in query.items()})
        return msgspec.to_builtins(call.respond(self.databases, lambda _share, _doing: None))

    def hold(self, rest: str, answer: Any = None) -> Any:  # noqa: ANN401 - plain values
        """Store *answer* under the path *rest* below the run's path; None: its own answer."""
        held = self.answer(rest) if answer is None else answer
        self.answers[PREFIX + self.path + rest] = held
        return held


# ---------------------------------------------------------------- columns


def _hold_levels(asked: _RunAnswers, run: Answer, kind: str, **query: str) -> list[Answer]:
    """Store columns in ever longer cells, of each length the newest that fit; return these levels.

    ``from_ms`` is where a level begins, or 0 if it has the whole run.
    """
    points = min(POINTS_MAX, max(POINTS_MIN, CELLS_MAX // max(1, len(run["instruments"]))))
    begin_ms, end_ms = asked.shown.rollups.bounds_ms(**query) or (0, 0)
    levels: dict[int, Answer] = {}
    for bars in LEVELS:
        cell_ms = bars * run["row"]["interval_ms"]
        from_ms = max(begin_ms, end_ms - (points - 3) * cell_ms)
        count = max(2, math.ceil((end_ms - from_ms) / cell_ms) + 1)
        level = asked.answer(kind, points=count, from_ms=from_ms, **query)
        if level["interval_ms"] in levels:
            break
        _round(level)
        levels[level["interval_ms"]] = level | {"from_ms": from_ms if from_ms > begin_ms else 0}
    text = "".join(f"?{name}={quote(value)}" for name, value in query.items())
    return asked.hold(kind + text, [*levels.values()])


def _round(answer: Answer) -> None:
    """Round the columns of *answer* that are only drawn."""
    for name, digits in DIGITS.items():
        match answer.get(name):
            case dict() as columns:
                answer[name] = {key: _rounded(each, digits) for key, each in columns.items()}
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


def _chosen(shown: OpenRun, run: Answer, candles: list[Answer]) -> list[int]:
    """Return the decisions that are stored completely."""
    views = shown.views
    picked = {run["first_sequence"], run["warm_sequence"], run["last_sequence"]}
    if run["last_refusal"] is not None:
        picked |= {run["last_refusal"]["sequence"]}
    picked |= {fill["decision_sequence"] for fill in views.rows("v_fills", newest=FILLED)}
    trades = sorted(views.rows("v_trades", newest=ROWS_MAX), key=lambda trade: trade["net"] or 0.0)
    own = [trade for trade in trades if trade["entry_run_id"] == shown.run_id]
    picked |= {trade["entry_sequence"] for trade in own[:TRADED] + own[-TRADED:]}
    share = max(1, len(candles))
    for columns in candles:
        picked |= _of_instrument(columns, share)
    return sorted(sequence for sequence in picked if sequence is not None)


def _of_instrument(candles: Answer, share: int) -> set[int]:
    """Return decisions of one of *share* instruments: newest, refusals by each gate, a spread."""
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
