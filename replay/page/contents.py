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
    client = _RouteClient(database, run_id)
    run = client.of_run()
    client.hold_list()
    candles = _columns(client, run)
    for rest in ("/marks", "/health", "/refusals", *["/model"] * run["has_model"]):
        client.of_run(rest)
    path = f"/runs/{run_id}/account"
    client.hold(path, client.answer(path, limit=ROWS_MAX))
    if document is None:
        progress("working out the report")
        client.of_run("/report")
    else:
        client.hold(f"/runs/{run_id}/report", as_document(document))
    blocks: list[DecisionBlock] = []
    chosen = client.decided() if full else _chosen(client, run, candles)
    if full:
        blocks = list(_blocks(client, chosen, progress))
    else:
        for sequence in chosen:
            client.of_run(f"/decisions/{sequence}")
    client.hold("/file", {"database": database.name, "run_id": run_id, "whole": len(chosen)})
    return FileContents(client.answers, blocks)


class _RouteClient:
    """Asks the routes of the interface in this process, and keeps what they answer."""

    def __init__(self, database: Path, run_id: str) -> None:
        self.answers: Answer = {}
        self.run_id = run_id
        self._shelf = Databases([database])

    @property
    def shown(self) -> ShownRun:
        """The run."""
        return self._shelf.find(self.run_id)

    def __call__(self, path: str) -> Any:  # noqa: ANN401 - plain values
        """Hold the answer of *path*."""
        answer = self.answer(path)
        self.hold(path, answer)
        return answer

    def of_run(self, rest: str = "") -> Any:  # noqa: ANN401 - plain values
        """Hold the answer of *rest* of the run's own path."""
        return self(f"/runs/{self.run_id}{rest}")

    def hold_list(self) -> None:
        """Hold the list of this run alone, and its document."""
        listed = runs.runs(self._shelf)
        rows = [row for row in listed.runs if row.run_id == self.run_id]
        listed = msgspec.structs.replace(listed, runs=rows, sweeps=[])
        self.hold("/runs", msgspec.to_builtins(listed))
        self.hold("/overview", as_document(lists.runs_document(listed)))
        beside = runs.begun(self.shown, lists.beside_document(self.shown, listed))
        self.hold(f"/runs/{self.run_id}/compare", as_document(beside))

    def answer(self, path: str, **query: str | float) -> Any:  # noqa: ANN401
        """Return the answer of *path*, as plain values."""
        call = match(path, {name: str(value) for name, value in query.items()})
        return msgspec.to_builtins(call.respond(self._shelf, lambda _share, _doing: None))

    def hold(self, path: str, answer: Answer | list[Answer], instrument: str = "") -> None:
        """Hold *answer*; of the query its name says the *instrument* alone."""
        name = f"?instrument={quote(instrument)}" if instrument else ""
        self.answers[PREFIX + path + name] = answer

    def decided(self) -> list[int]:
        """Return the sequence of every decision."""
        decided: list[int] = self.shown.columns.decisions()["sequence"].tolist()
        return decided


# ---------------------------------------------------------------- columns and rows


def _columns(client: _RouteClient, run: Answer) -> list[Answer]:
    """Hold the columns of every instrument in cells of several lengths; return the shortest."""
    names = [each["id"] for each in run["instruments"]]
    points = min(POINTS_MAX, max(POINTS_LEAST, CELLS_MAX // max(1, len(names))))
    candles = []
    wanted = [("candles", {"instrument": name}) for name in names]
    for kind, query in [*wanted, ("equity", {})]:
        path = f"/runs/{client.run_id}/{kind}"
        levels = list(_levels(client, path, query, points, run["row"]["interval_ms"]))
        client.hold(path, levels, **query)
        if query:
            candles.append(levels[0])
    return candles


def _levels(
    client: _RouteClient, path: str, query: dict[str, str], points: int, interval_ms: int
) -> Iterator[Answer]:
    """Yield columns in ever longer cells, of each length at most so many *points*, the newest.

    ``from_ms`` is where a level begins, 0 of one that holds the whole run.
    """
    begin_ms, end_ms = client.shown.rollups.bounds_ms(**query) or (0, 0)
    last_ms = 0
    for cell_ms in (bars * interval_ms for bars in LEVELS):
        from_ms = max(begin_ms, end_ms - (points - 3) * cell_ms)
        count = max(2, math.ceil((end_ms - from_ms) / cell_ms) + 1)
        level = client.answer(path, points=count, from_ms=from_ms, **query)
        if level["interval_ms"] == last_ms:
            return
        last_ms = level["interval_ms"]
        _round(level)
        yield level | {"from_ms": from_ms if from_ms > begin_ms else 0}


def _round(answer: Answer) -> None:
    for name, digits in DIGITS.items():
        match answer.get(name):
            case dict() as columns:
                answer[name] = {
                    key: rounded(np.array(each, np.float64), digits)
                    for key, each in columns.items()
                }
            case list() as column:
                answer[name] = rounded(np.array(column, np.float64), digits)
    for gate, column in answer.get("spare", {}).items():
        answer["spare"][gate] = numbers_of(np.array(column, np.float64).round(SPARE_DECIMALS))


# ---------------------------------------------------------------- decisions


def _blocks(
    client: _RouteClient, sequences: list[int], progress: Progress
) -> Iterator[DecisionBlock]:
    for start in range(0, len(sequences), BLOCK):
        progress(f"reading decision {start:,} of {len(sequences):,}")
        block = sequences[start : start + BLOCK]
        paths = [f"/runs/{client.run_id}/decisions/{sequence}" for sequence in block]
        text = packed({PREFIX + path: client.answer(path) for path in paths})
        yield DecisionBlock(block[0], block[-1], text)


def _chosen(client: _RouteClient, run: Answer, candles: list[Answer]) -> list[int]:
    """Choose the decisions that are held whole."""
    picked = {run["first_sequence"], run["warm_sequence"], run["last_sequence"]}
    for newest in (run["last_refusal"], run["last_fill"]):
        if newest is not None:
            picked |= {newest.get("decision_sequence", newest["sequence"])}
    share = max(1, len(candles))
    for columns in candles:
        picked |= _of_instrument(columns, share)
    views = client.shown.views
    picked |= {fill["decision_sequence"] for fill in views.rows("v_fills", newest=FILLED)}
    first = run["first_sequence"] or 0  # a trade outlives a prune, its decision does not
    newest = views.rows("v_trades", newest=ROWS_MAX)
    trades = [of for of in newest if of["entry_sequence"] >= first]
    trades.sort(key=lambda trade: trade["net"] or 0.0)
    picked |= {trade["entry_sequence"] for trade in trades[:TRADED] + trades[-TRADED:]}
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
