"""The perturbations of ``lookahead``: later bars, covariates, environment, source tables.

The rules are docs/strategies.md, U8 and U10.
"""

from __future__ import annotations

import ast
import csv
import os
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.covariates import covariates_path
from tracepaper.daemon.session.user_code import parsed
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import Difference
from tracepaper.storage.covariates import SYMBOL, TIME, read_covariates
from tracepaper.strategies.api.timeframes import Row, grid_of
from tracepaper.strategies.covariates import ALL_SYMBOLS, CovariateRows, rows_of
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import INTERVAL_NAMES, iso, unscaled

_NONSENSE: Final = -40.0
"""Later numbers are increased by one and multiplied by this."""

Change = Callable[[CovariateRows], CovariateRows]


@contextmanager
def replaced_covariates(config: Config, change: Change) -> Iterator[Config]:
    """Yield *config* with its covariates changed by *change*, or itself where it has none.

    Raises ``DataInvalid`` for an invalid file of covariates.
    """
    if config.model.covariates is None:
        yield config
        return
    file = read_covariates(covariates_path(config, config.model.covariates))
    with tempfile.TemporaryDirectory(prefix="tracepaper-vectors-") as folder:
        path = Path(folder) / "vectors.csv"
        is_shared = ALL_SYMBOLS in file.rows
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow([TIME, *([] if is_shared else [SYMBOL]), *file.columns])
            for symbol, rows in file.rows.items():
                whose, other = [] if is_shared else [symbol], change(rows)
                for at, values in zip(other.time_ms.tolist(), other.values.tolist(), strict=True):
                    writer.writerow([at, *whose, *values])
        model = config.model.model_copy(update={"covariates": str(path)})
        yield config.model_copy(update={"model": model})


def corrupt_later(at_ms: int, *, cut: bool) -> Change:
    """Return a change that corrupts or cuts the rows after *at_ms*; it never cuts off all."""

    def change(rows: CovariateRows) -> CovariateRows:
        later = rows.time_ms > at_ms
        if cut and not later.all():
            return rows_of(rows.time_ms[~later], rows.values[~later])
        nonsense = (rows.values + 1.0) * _NONSENSE
        return rows_of(rows.time_ms, np.where(later[:, None], nonsense, rows.values))

    return change


def shift_rows(milliseconds: int) -> Change:
    """Return a change that shifts all rows in time."""
    return lambda rows: rows_of(rows.time_ms + milliseconds, rows.values)


HASH_SEEDS: Final = (1, 2)
"""Seeds for the hashes of texts. A choice of two by hash agrees by chance in a quarter of all
cases: under both seeds and in the first process, whose seed is random.
"""

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Kept variables: another number of threads would round sums differently."""

_unset: Final[set[str]] = set()


def unset() -> tuple[str, ...]:
    """Return the variables that were read in an emptied environment, and are missing."""
    return tuple(sorted(_unset))


@dataclass(frozen=True)
class Surroundings:
    """A process's environment, emptied except for *kept*, and its working folder."""

    kept: frozenset[str] | None = None  # None: the environment as it is
    folder: str | None = None  # None: the working folder as it is

    def enter(self) -> None:
        """Empty the environment, and work in the folder."""
        if self.folder is not None:
            # The class is still imported from its folder; an empty entry means the working folder.
            here = os.path.abspath("")  # noqa: PTH100 - one more string of the path
            sys.path[:] = [os.path.join(here, entry) for entry in sys.path]  # noqa: PTH118 - likewise
            if here not in map(os.path.normpath, sys.path):
                sys.path.append(here)
            os.chdir(self.folder)
        if self.kept is not None:
            for name in set(os.environ) - self.kept - {*_THREADS}:
                del os.environ[name]
            variables = vars(os.environ)["_data"]
            setattr(os.environ, "_data", _Variables(variables))  # noqa: B010 - no public way


class _Variables(dict[bytes, bytes]):
    """Environment variables; collects the names that are read and missing."""

    def __missing__(self, name: bytes) -> bytes:
        _unset.add(os.fsdecode(name))
        raise KeyError(name)


def link(names: Sequence[str], folder: Path) -> None:
    """Link the paths *names* of the working folder into *folder* under the same names."""
    for name in names:
        path = Path(name)
        if name and not path.is_absolute() and ".." not in path.parts and path.exists():
            linked = folder / path
            linked.parent.mkdir(parents=True, exist_ok=True)
            if not linked.exists():
                linked.symlink_to(path.resolve())


VALUES: Final = 64
"""A table of at least so many values, or one text or number as long, is reported."""
_BYTES_OF_A_VALUE: Final = 8
_DISPLAYS: Final = (ast.Dict, ast.List, ast.Set, ast.Tuple)


def largest_table(source: Path) -> int:
    """Return the number of values in the largest table of *source*; 0 if below ``VALUES``."""
    try:
        tree = parsed(source)
    except (SyntaxError, ValueError):
        return 0  # not the source that Python ran
    docstrings = frozenset[int]()
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree))
    if "__doc__" not in names and all(node.value != "__doc__" for node in _constants(tree)):
        # Expression statements such as docstrings: only ``__doc__`` reads them.
        docstrings = frozenset(
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
        )
    most = max((_size(node, docstrings) for node in ast.walk(tree)), default=0)
    return most if most >= VALUES else 0


def _size(node: ast.AST, docstrings: frozenset[int]) -> int:
    """Return the number of values in a literal container or a constant."""
    if isinstance(node, _DISPLAYS):
        return sum(_size(part, docstrings) for part in _constants(node))
    if not isinstance(node, ast.Constant) or id(node) in docstrings:
        return 0
    value = node.value
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // _BYTES_OF_A_VALUE
    if isinstance(value, int):
        return 1 + value.bit_length() // (8 * _BYTES_OF_A_VALUE)  # 8 bits a byte
    return 1


def _constants(node: ast.AST) -> Iterator[ast.Constant]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Constant))


BARS_AFTER_PROBE: Final = 512
"""Corrupted bars after a probe: a batched pass processes them with the bars before."""


@dataclass(frozen=True)
class FutureProbe:
    """Everything after ``at_ms`` is cut off or corrupted; bars from ``from_ms`` on are derived."""

    from_ms: int
    at_ms: int
    cut: bool

    def window(self, data: MarketData) -> MarketData:
        """Return the bars of *data* that are derived."""
        after_ms = BARS_AFTER_PROBE * data.candles[0].interval_ms
        return data.opening(self.from_ms, self.at_ms + after_ms)

    @contextmanager
    def changed(self, config: Config, data: MarketData) -> Iterator[tuple[Config, MarketData]]:
        """Yield *config* and the window of *data* with another future."""
        later = corrupt_later(data.close_of(self.at_ms), cut=self.cut)
        with replaced_covariates(config, later) as other:
            yield other, self.window(data.until(self.at_ms, cut=self.cut))


WEEKS_LATER: Final = 64
"""64 weeks are a whole number of 64-bar blocks, which one week is not, and change the date."""
MONTHS_LATER: Final = 1_461
"""The weeks of 28 years, after which every month has the same first day and length again."""

PRICE_FACTOR: Final = 10


def weeks_later(interval_ms: int) -> int:
    """Return the number of weeks by which candles of *interval_ms* can be shifted unchanged."""
    return MONTHS_LATER if interval_ms == MONTH_MS else WEEKS_LATER


def first_false_frame(
    data: MarketData,
    instruments: Sequence[Instrument],
    framed: Iterable[tuple[Bar, tuple[tuple[int, int, Row | None], ...]]],
) -> tuple[int, Difference | None]:
    """Compare the bars of higher timeframes with the closed ones of the whole file.

    *framed* has, at each bar, each timeframe's length, the number of bars wanted and the newest one
    passed on. Return the number of compared bars, and the first at which that newest one had not
    closed or is not the aggregate of its bars.
    """
    scales = {item.id: item for item in instruments}
    closed = {
        part.instrument: _ClosedFrames(
            part,
            scales[part.instrument],
            [frame for frame in data.frames if frame.symbol == part.symbol],
        )
        for part in data.candles
    }
    compared = 0
    for compared, (event, frames) in enumerate(framed, 1):
        for length_ms, wanted, newest in frames:
            due = closed[event.instrument].newest(length_ms, wanted, event)
            if newest != due:
                name = f"the newest bar of the frame {INTERVAL_NAMES[length_ms]}"
                at = event.instrument, event.open_time_ms
                texts = [_row_text(row, scales[event.instrument]) for row in (newest, due)]
                return compared, Difference(*at, name, *texts)
    return compared, None


class _ClosedFrames:
    """Closed bars of higher timeframes, aggregated from candles, and from files before them."""

    def __init__(self, candles: Candles, instrument: Instrument, before: Sequence[Candles]) -> None:
        self._candles, *self._before = [part.aligned(instrument) for part in (candles, *before)]
        self._by_length: dict[int, list[Row]] = {}
        self._calendars: dict[int, Calendar] = {}

    def newest(self, length_ms: int, wanted: int, bar: Bar) -> Row | None:
        """Return the newest of the last *wanted* frame bars that had closed with *bar*."""
        if length_ms not in self._by_length:
            self._by_length[length_ms] = self._closed_rows(length_ms)
        rows = self._by_length[length_ms]
        at = bisect_right(rows, bar.market_ms, key=itemgetter(2))
        place, closes_ms = self._grid(length_ms, bar.open_time_ms)
        end = place + (closes_ms <= bar.market_ms)
        return rows[at - 1] if at and rows[at - 1][0] >= end - wanted else None

    def _grid(self, length_ms: int, open_ms: int) -> tuple[int, int]:
        """Return place and close time of the frame bar that contains a bar opening at *open_ms*."""
        if (calendar := self._candles.calendar) is not None:
            if length_ms not in self._calendars:
                self._calendars[length_ms] = Calendar(calendar.sessions, length_ms)
            grid = self._calendars[length_ms]
            return grid.place(open_ms), int(grid.closes[grid.place(open_ms)])
        every = grid_of(length_ms, self._candles.interval_ms, None)
        place = every.place(open_ms)
        return place, every.span(place)[1]

    def _closed_rows(self, length_ms: int) -> list[Row]:
        first_ms = int(self._candles.open_time_ms[0])
        before = [part for part in self._before if part.interval_ms == length_ms]
        rows = [row for part in before for row in self._rows(part) if row[1] < first_ms]
        with suppress(DataInvalid):  # no frame bar is complete
            rows += self._rows(self._candles.resampled(length_ms))
        return sorted({row[0]: row for row in rows}.values())

    def _rows(self, candles: Candles) -> list[Row]:
        times = (candles.open_time_ms, candles.closes_ms)
        columns = (*times, candles.open, candles.high, candles.low, candles.close, candles.volume)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [(self._grid(candles.interval_ms, row[0])[0], *row) for row in rows]


def _row_text(row: Row | None, scale: Instrument) -> str:
    if row is None:
        return "none"
    close = unscaled(row[6], scale.price_decimals)
    volume = unscaled(row[7], scale.volume_decimals)
    return f"that of {iso(row[1])} with close {close} and volume {volume}"
