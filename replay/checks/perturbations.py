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
"""Later numbers are multiplied by it, and stand so much lower."""

Change = Callable[[CovariateRows], CovariateRows]


@contextmanager
def replaced_covariates(config: Config, change: Change) -> Iterator[Config]:
    """Yield *config* with what *change* makes of its covariates; itself where it names none.

    Raises ``DataInvalid`` for a file that cannot be believed.
    """
    if config.model.covariates is None:
        yield config
        return
    file = read_covariates(covariates_path(config, config.model.covariates))
    with tempfile.TemporaryDirectory(prefix="tracepaper-vectors-") as folder:
        path = Path(folder) / "vectors.csv"
        everyones = ALL_SYMBOLS in file.rows
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow([TIME, *([] if everyones else [SYMBOL]), *file.columns])
            for symbol, rows in file.rows.items():
                whose, other = [] if everyones else [symbol], change(rows)
                for at, values in zip(other.time_ms.tolist(), other.values.tolist(), strict=True):
                    writer.writerow([at, *whose, *values])
        model = config.model.model_copy(update={"covariates": str(path)})
        yield config.model_copy(update={"model": model})


def without_later(at_ms: int, *, cut: bool) -> Change:
    """Return a change that corrupts the rows after *at_ms*, or cuts them off if some are left."""

    def change(rows: CovariateRows) -> CovariateRows:
        later = rows.time_ms > at_ms
        if cut and not later.all():
            return rows_of(rows.time_ms[~later], rows.values[~later])
        nonsense = (rows.values + 1.0) * _NONSENSE
        return rows_of(rows.time_ms, np.where(later[:, None], nonsense, rows.values))

    return change


def moved_by(milliseconds: int) -> Change:
    """Return a change that moves all rows in time."""
    return lambda rows: rows_of(rows.time_ms + milliseconds, rows.values)


HASH_SEEDS: Final = (1, 2)
"""Of the hashes of texts. A question with two answers falls alike under both in half of all cases:
then these two servers and the first one, whose seed is drawn, agree by chance in a quarter."""

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that say how work is shared out: by another count of threads sums are rounded anew."""

_unset: Final[set[str]] = set()


def unset() -> tuple[str, ...]:
    """Return the variables that were asked for in an emptied environment, and are missing."""
    return tuple(sorted(_unset))


@dataclass(frozen=True)
class Surroundings:
    """What a process finds around it: an environment, emptied but for *kept*, and a folder."""

    kept: frozenset[str] | None = None  # None: the environment as it is
    folder: str | None = None  # None: the working folder as it is

    def enter(self) -> None:
        """Empty the environment, and work in the folder."""
        if self.folder is not None:
            # The class is looked for where it was; an empty entry means the working folder.
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
    """The variables of an environment; it keeps the names that are asked for and missing."""

    def __missing__(self, name: bytes) -> bytes:
        _unset.add(os.fsdecode(name))
        raise KeyError(name)


def link(names: Sequence[str], folder: Path) -> None:
    """Let what *names* name in the working folder be found in *folder* by the same names."""
    for name in names:
        path = Path(name)
        if name and not path.is_absolute() and ".." not in path.parts and path.exists():
            linked = folder / path
            linked.parent.mkdir(parents=True, exist_ok=True)
            if not linked.exists():
                linked.symlink_to(path.resolve())


VALUES: Final = 64
"""So many in one table, or one text or number as long, are named; fewer are not looked for."""
_BYTES_OF_A_VALUE: Final = 8
_DISPLAYS: Final = (ast.Dict, ast.List, ast.Set, ast.Tuple)


def source_of(module: str) -> Path | None:
    """Return the loaded file *module* if it is a source that is there."""
    path = Path(module)
    return path if path.suffix == ".py" and path.is_file() else None


def largest_table(source: Path) -> int:
    """Return how many values the largest table of *source* holds; 0 of fewer than ``VALUES``."""
    try:
        tree = parsed(source)
    except (SyntaxError, ValueError):
        return 0  # Python ran something else, which is another file
    spoken = frozenset[int]()
    names = (getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree))
    if "__doc__" not in names and all(node.value != "__doc__" for node in _constants(tree)):
        # Texts that stand for themselves: nothing reads them but ``__doc__``.
        spoken = frozenset(id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr))
    most = max((_size(node, spoken) for node in ast.walk(tree)), default=0)
    return most if most >= VALUES else 0


def _size(node: ast.AST, spoken: frozenset[int]) -> int:
    """Return how many values a display or a constant holds."""
    if isinstance(node, _DISPLAYS):
        return sum(_size(part, spoken) for part in _constants(node))
    if not isinstance(node, ast.Constant) or id(node) in spoken:
        return 0
    value = node.value
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // _BYTES_OF_A_VALUE
    if isinstance(value, int):
        return 1 + value.bit_length() // (8 * _BYTES_OF_A_VALUE)  # 8 bits a byte
    return 1


def _constants(node: ast.AST) -> Iterator[ast.Constant]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Constant))


BEYOND_BARS: Final = 512
"""Corrupted bars that follow a probe: a batched pass sees them together with the bars before."""


@dataclass(frozen=True)
class FutureProbe:
    """Everything after ``at_ms`` is cut off or corrupted; bars from ``from_ms`` on are derived."""

    from_ms: int
    at_ms: int
    cut: bool

    def window(self, data: MarketData) -> MarketData:
        """Return the bars of *data* that are derived."""
        beyond_ms = BEYOND_BARS * data.candles[0].interval_ms
        return data.opening(self.from_ms, self.at_ms + beyond_ms)

    @contextmanager
    def changed(self, config: Config, data: MarketData) -> Iterator[tuple[Config, MarketData]]:
        """Yield *config* and the window of *data* with another future."""
        later = without_later(data.close_of(self.at_ms), cut=self.cut)
        with replaced_covariates(config, later) as other:
            yield other, self.window(data.until(self.at_ms, cut=self.cut))


WEEKS_LATER: Final = 64
"""A week is no whole number of 64-bar blocks; 64 weeks are, and a date is another one."""
MONTHS_LATER: Final = 1_461
"""Weeks of 28 years, after which every month begins on its date and lasts as long again."""

PRICE_FACTOR: Final = 10


def weeks_later(interval_ms: int) -> int:
    """Return by how many weeks candles of *interval_ms* can be moved and stay what they are."""
    return MONTHS_LATER if interval_ms == MONTH_MS else WEEKS_LATER


def first_false_frame(
    data: MarketData,
    instruments: Sequence[Instrument],
    framed: Iterable[tuple[Bar, tuple[tuple[int, int, Row | None], ...]]],
) -> tuple[int, Difference | None]:
    """Compare the bars of higher timeframes with the closed ones of the whole file.

    *framed* has of each timeframe its length, how many bars are wanted, and the newest one that was
    handed on at a bar. Return how many bars were compared, and the first of them at which that had
    not closed, or is not what its bars add up to.
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
                texts = [_frame_shown(row, scales[event.instrument]) for row in (newest, due)]
                return compared, Difference(*at, name, *texts)
    return compared, None


class _ClosedFrames:
    """The closed bars of higher timeframes that a file's candles make, and those before it."""

    def __init__(self, candles: Candles, instrument: Instrument, before: Sequence[Candles]) -> None:
        self._candles, *self._before = [part.aligned(instrument) for part in (candles, *before)]
        self._by_length: dict[int, list[Row]] = {}
        self._calendars: dict[int, Calendar] = {}

    def newest(self, length_ms: int, wanted: int, bar: Bar) -> Row | None:
        """Return the newest bar of the last *wanted* intervals that had closed with *bar*."""
        if length_ms not in self._by_length:
            self._by_length[length_ms] = self._whole(length_ms)
        rows = self._by_length[length_ms]
        at = bisect_right(rows, bar.market_ms, key=itemgetter(2))
        place, closes_ms = self._grid(length_ms, bar.open_time_ms)
        end = place + (closes_ms <= bar.market_ms)
        return rows[at - 1] if at and rows[at - 1][0] >= end - wanted else None

    def _grid(self, length_ms: int, open_ms: int) -> tuple[int, int]:
        """Return place and close of the frame's bar in which a bar that opens then lies."""
        if (calendar := self._candles.calendar) is not None:
            if length_ms not in self._calendars:
                self._calendars[length_ms] = Calendar(calendar.sessions, length_ms)
            grid = self._calendars[length_ms]
            return grid.place(open_ms), int(grid.closes[grid.place(open_ms)])
        every = grid_of(length_ms, self._candles.interval_ms, None)
        place = every.place(open_ms)
        return place, every.span(place)[1]

    def _whole(self, length_ms: int) -> list[Row]:
        first_ms = int(self._candles.open_time_ms[0])
        before = [part for part in self._before if part.interval_ms == length_ms]
        rows = [row for part in before for row in self._rows(part) if row[1] < first_ms]
        with suppress(DataInvalid):  # not one is whole
            rows += self._rows(self._candles.resampled(length_ms))
        return sorted({row[0]: row for row in rows}.values())

    def _rows(self, candles: Candles) -> list[Row]:
        times = (candles.open_time_ms, candles.closes_ms)
        columns = (*times, candles.open, candles.high, candles.low, candles.close, candles.volume)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [(self._grid(candles.interval_ms, row[0])[0], *row) for row in rows]


def _frame_shown(row: Row | None, scale: Instrument) -> str:
    if row is None:
        return "none"
    close = unscaled(row[6], scale.price_decimals)
    volume = unscaled(row[7], scale.volume_decimals)
    return f"that of {iso(row[1])} with close {close} and volume {volume}"
