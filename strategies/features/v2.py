"""The feature schemas ``v2-5m``, ``tree-5m`` and others: windows are times, not bars.

A window of four hours is 240 bars of a minute and 16 of a quarter of an hour; what is shorter than
a bar, or longer than the interval's rows may look back, is a column of zeros at that interval. So a
column means one thing at every interval, and one network learns from several of them; a short
ladder in bars stands beside the times, since nothing is shorter than a bar. The interval is a
column too. ``tree-…`` has the columns of ``v2-…``, in every bit, and then realised variance and the
same hour of earlier days over times that no network's context has room for.

Three stages, each of finite memory:

1. ``base_rows``: what one bar (with the one before it) says by itself;
2. window sums and extremes of those (``rolling``);
3. the features, one function each, three of them as z-scores over the long window.

The close before stands for the open, which on some exchanges is no traded price; neither turnover
nor funding is used, which many archives lack. The same code serves a batch and a single bar, so
both agree in every bit.

Sources: Parkinson 1980 and Garman and Klass 1980 (range), Barndorff-Nielsen and Shephard 2004
(bipower variation), Barndorff-Nielsen, Kinnebrock and Shephard 2010 (semivariance), Corsi 2009
(variance over several times), Bollerslev, Patton and Quaedvlieg 2016 (quarticity).

The rules are docs/models.md, L3, L4 and L18 to L21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.features.rolling import Array, FeatureParts, Reach, Window, WindowPlan
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, UNITS_MS

CLIP: Final = 5.0
SIGMA_FLOOR: Final = 1e-5
"""Least volatility of one bar (0.1 basis points): a flat market has no scale of its own."""
SPREAD_FLOOR: Final = 0.01
"""Least standard deviation in a z-score: a series that hardly moves is no signal."""
TINY: Final = 1e-300

_MINUTES: Final = np.arange(1440) * (2.0 * np.pi / 1440)
_DAYS: Final = np.arange(7) * (2.0 * np.pi / 7)
# Tables, since the last bit of a vectorised sine may depend on its place in the vector.
HOUR: Final[Array] = np.array([np.sin(_MINUTES), np.cos(_MINUTES)])
WEEKDAY: Final[Array] = np.array([np.sin(_DAYS), np.cos(_DAYS)])

# Rows of ``base_rows``.
SQUARE, RANGE_SQUARE, GARMAN_KLASS, RISING_SQUARE, BIPOWER, QUARTIC = range(6)
VOLUME, SIGNED_VOLUME, ABSOLUTE, CLOSE, CLOSE_SQUARE, PRODUCT = range(6, 12)
BASE_ROWS: Final = 12
"""How many; those up to ``GARMAN_KLASS`` are estimates of one bar's variance."""

_PARKINSON: Final = 1.0 / (4.0 * float(np.log(2.0)))
_CLOSE_TO_CLOSE: Final = 2.0 * float(np.log(2.0)) - 1.0
_BIPOWER: Final = float(np.pi) / 2.0
_USUAL: Final = 1e-3
"""The volatility of a minute from which ``sigma_level`` is measured; √time takes it further."""


# --- what features are computed from


def base_rows(high: Array, low: Array, close: Array, volume: Array, before: Array) -> Array:
    """Return [12, time] of what each bar says; *before* is [2, time]: close and return before it.

    Ranges include the close before, from which the bar set out.
    """
    returned = np.log(close / before[0])
    spread = np.log(np.maximum(high, before[0]) / np.minimum(low, before[0]))
    square, spread_square = returned * returned, spread * spread
    size = np.abs(returned)
    return np.array(
        [
            square,
            spread_square * _PARKINSON,
            0.5 * spread_square - _CLOSE_TO_CLOSE * square,
            square * (returned > 0.0),
            size * np.abs(before[1]) * _BIPOWER,
            square * square,
            volume,
            volume * np.sign(returned),
            size,
            close,
            close * close,
            returned * before[1],
        ]
    )


def standardised(inputs: Array, sums: Array, size: int) -> Array:
    """Return [3, time] z-scores of the newest rows of *inputs* within their *sums* of *size*."""
    mean = sums[:3] / size
    variance = sums[3:] / size - mean * mean
    spread = np.sqrt(np.maximum(variance, SPREAD_FLOOR * SPREAD_FLOOR))
    return (inputs[:3] - mean) / spread


class FeatureBasis(NamedTuple):
    """What features are computed from: everything known at each bar's close, as [time] rows."""

    reach: Reach
    moves: Mapping[int, Array]  # lag in bars -> return over it ÷ (σ √lag)
    sums: Mapping[Window, Array]  # [12, time]: sums of ``base_rows``
    volatility: Mapping[Window, Array]  # [3, time]: log of volatility ÷ σ; the first three rows
    far: Mapping[Window, Array]  # the same of squared returns over the tree's windows
    extremes: Array  # [2, time]: highest high and negative lowest low of the long window
    z_scores: Array  # [3, time]: of range, σ and volume
    sigma: Array  # the volatility of one bar
    open_time_ms: NDArray[np.int64]

    @property
    def close(self) -> Array:
        """The close of each bar."""
        return self.sums[BAR][CLOSE]

    def distance(self, window: Window) -> Array:
        """Return the log of the close ÷ its mean over *window*."""
        mean = self.sums[window][CLOSE] / float(window.size)
        return np.log(self.close / mean)


BAR: Final = Window(1)


# --- the registry


class FeatureSpan(NamedTuple):
    """A window: *size* and *lag* in units of *unit_ms*, or in bars where that is 0."""

    size: int
    lag: int = 0
    unit_ms: int = 0

    def window(self, interval_ms: int) -> Window | None:
        """Return it in bars of an interval; None for what is no whole number of them."""
        if not self.unit_ms:
            return Window(self.size, self.lag)
        size, lag = self.size * self.unit_ms, self.lag * self.unit_ms
        if size % interval_ms or lag % interval_ms:
            return None
        return Window(size // interval_ms, lag // interval_ms)


class WindowKind(NamedTuple):
    """What windows a column is a function of, and how far they may look back."""

    reach: Callable[[Reach], int]  # in bars


NEAR: Final = WindowKind(lambda reach: reach.long)
MOVE: Final = WindowKind(lambda reach: reach.long)
FAR: Final = WindowKind(lambda reach: reach.bars(reach.far_ms))


class FeatureColumn(NamedTuple):
    """One column: its name, what it is a function of, and a gain.

    The gain is the power of two that brings its spread to about one.
    """

    name: str
    gain: float
    compute: Callable[..., Array]  # of Known and of each window
    spans: tuple[FeatureSpan, ...]
    kind: WindowKind
    least: int = 1  # bars that a window must have, or it has no room

    def windows(self, reach: Reach) -> tuple[Window, ...] | None:
        """Return its windows in bars; None where an interval has no room for one of them."""
        windows = []
        for span in self.spans:
            window = span.window(reach.interval_ms)
            if window is None or window.size < self.least:
                return None
            if window.reach > self.kind.reach(reach):
                return None
            windows.append(window)
        return tuple(windows)


COLUMNS: Final[list[FeatureColumn]] = []
"""Those of ``v2-…``, in their order."""
FURTHER: Final[list[FeatureColumn]] = []
"""Those that ``tree-…`` has after them."""


def column(
    name: str,
    *texts: str | int,
    kind: WindowKind = NEAR,
    least: int = 1,
    gain: float = 1.0,
    days: int = 0,
    to: list[FeatureColumn] = COLUMNS,
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Add the decorated function once for each of *texts*: a time such as ``4h``, or bars.

    It is given a ``FeatureBasis`` and its window, or the basis alone where there are no *texts*;
    with *days* the windows that began at this hour on each of so many days before.
    """

    def register(compute: Callable[..., Array]) -> Callable[..., Array]:
        if not texts:
            to.append(FeatureColumn(name, gain, compute, (), kind))
        for text in texts:
            span = span_of(text)
            spans: tuple[FeatureSpan, ...] = (span,)
            if days:
                day = DAY_MS // span.unit_ms
                spans = tuple(
                    span._replace(lag=nth * day - span.size) for nth in range(1, days + 1)
                )
            to.append(FeatureColumn(f"{name}_{text}", gain, compute, spans, kind, least))
        return compute

    return register


def span_of(text: str | int) -> FeatureSpan:
    """Return the window that *text* names: ``4h``, or a number of bars."""
    if isinstance(text, int):
        return FeatureSpan(text)
    return FeatureSpan(int(text[:-1]), unit_ms=UNITS_MS[text[-1]])


# --- the columns

TIMES: Final = ("30m", "1h", "4h", "1d", "5d", "20d")


@column("interval")
def interval(of: FeatureBasis) -> Array:
    """Return the log of the interval ÷ a quarter of an hour, in powers of sixteen."""
    level = np.log2(of.reach.interval_ms / (15 * MINUTE_MS)) / 4.0
    return np.full_like(of.sigma, level)


@column("sigma_level")
def sigma_level(of: FeatureBasis) -> Array:
    """Return log(σ ÷ (0.001 √minutes)): a level that no window has taken out."""
    usual = _USUAL * float(np.sqrt(of.reach.interval_ms / MINUTE_MS))
    return np.log(of.sigma / usual)


@column("return", 1, 2, 3, 6, 12, 24, *TIMES, kind=MOVE)
def moved(of: FeatureBasis, window: Window) -> Array:
    """Return the log return over the window ÷ (σ √window)."""
    return of.moves[window.size]


@column("realised", 3, 6, 12, 24, *TIMES, least=2, gain=2.0)
def realised(of: FeatureBasis, window: Window) -> Array:
    """Return the log of realised volatility ÷ σ."""
    return of.volatility[window][SQUARE]


@column("parkinson", 3, 12, "1h", "4h", "1d", gain=2.0)
def parkinson(of: FeatureBasis, window: Window) -> Array:
    """Return the log of Parkinson's volatility ÷ σ."""
    return of.volatility[window][RANGE_SQUARE]


@column("garman_klass", 6, "4h", "1d", least=2, gain=2.0)
def garman_klass(of: FeatureBasis, window: Window) -> Array:
    """Return the log of Garman and Klass's volatility ÷ σ."""
    return of.volatility[window][GARMAN_KLASS]


def _share(of: FeatureBasis, window: Window, row: int) -> Array:
    """Return the sum of *row* ÷ realised variance."""
    return of.sums[window][row] / np.maximum(of.sums[window][SQUARE], TINY)


@column("jumps", 12, "4h", "1d", least=4, gain=2.0)
def jumps(of: FeatureBasis, window: Window) -> Array:
    """Return the share of realised variance that bipower variation leaves to jumps."""
    return (of.sums[window][SQUARE] > 0.0) - _share(of, window, BIPOWER)


@column("semivariance", 12, "4h", "1d", least=4, gain=2.0)
def semivariance(of: FeatureBasis, window: Window) -> Array:
    """Return rising less falling squared returns ÷ all of them."""
    rising = _share(of, window, RISING_SQUARE)
    return 2.0 * rising - (of.sums[window][SQUARE] > 0.0)


@column("quarticity", 24)
def quarticity(of: FeatureBasis, window: Window) -> Array:
    """Return the log of n Σr⁴ ÷ (3 (Σr²)²): how far few bars make the variance; 0 is a bell."""
    square = np.maximum(of.sums[window][SQUARE], window.size * SIGMA_FLOOR * SIGMA_FLOOR)
    ratio = of.sums[window][QUARTIC] * float(window.size) / (3.0 * square * square)
    return np.log(np.maximum(ratio, 1.0 / 3.0))


@column("range_z")
def range_z(of: FeatureBasis) -> Array:
    """Return the z-score of log(1 + true range ÷ σ)."""
    return of.z_scores[0]


@column("sigma_z")
def sigma_z(of: FeatureBasis) -> Array:
    """Return the z-score of log σ."""
    return of.z_scores[1]


@column("volume_z")
def volume_z(of: FeatureBasis) -> Array:
    """Return the z-score of log(1 + volume ÷ its mean over the long window)."""
    return of.z_scores[2]


@column("volume", 3, 12, "1h", "4h", least=2, gain=2.0)
def volume(of: FeatureBasis, window: Window) -> Array:
    """Return log(1 + mean volume ÷ that of the long window) - log 2."""
    long = Window(of.reach.long)
    usual = np.maximum(of.sums[long][VOLUME] / float(long.size), TINY)
    ratio = of.sums[window][VOLUME] / float(window.size) / usual
    return np.log1p(ratio) - np.log(2.0)


@column("flow", 6, 24, "4h", least=4, gain=2.0)
def flow(of: FeatureBasis, window: Window) -> Array:
    """Return the volume of rising less of falling bars ÷ all volume."""
    volumes = of.sums[window]
    return volumes[SIGNED_VOLUME] / np.maximum(volumes[VOLUME], TINY)


@column("efficiency", 12, gain=2.0)
def efficiency(of: FeatureBasis, window: Window) -> Array:
    """Return net ÷ total absolute log return: Cutler's index of relative strength, -1 to 1."""
    net = of.moves[window.size] * of.sigma * float(np.sqrt(window.size))
    return net / np.maximum(of.sums[window][ABSOLUTE], TINY)


@column("autocorrelation", 24, "1d", least=12, gain=4.0)
def autocorrelation(of: FeatureBasis, window: Window) -> Array:
    """Return Σ r(t) r(t-1) ÷ Σ r²."""
    return _share(of, window, PRODUCT)


@column("bollinger", 24)
def bollinger(of: FeatureBasis, window: Window) -> Array:
    """Return (close - mean) ÷ (2 standard deviations of the close)."""
    close, size = of.close, float(window.size)
    mean = of.sums[window][CLOSE] / size / close
    spread = of.sums[window][CLOSE_SQUARE] / size / (close * close) - mean * mean
    deviation = np.sqrt(np.maximum(spread, of.sigma * of.sigma))
    return (1.0 - mean) / (2.0 * deviation)


@column("distance", 12, "4h", "1d", "5d", least=2, gain=2.0)
def distance(of: FeatureBasis, window: Window) -> Array:
    """Return log(close ÷ mean close) ÷ (σ √window)."""
    return of.distance(window) / (of.sigma * float(np.sqrt(window.size)))


@column("channel", gain=2.0)
def channel(of: FeatureBasis) -> Array:
    """Return the close's place between lowest low (-1) and highest high (1) of the long window."""
    height = of.extremes[0] + of.extremes[1]
    return (2.0 * (of.close + of.extremes[1]) - height) / np.maximum(height, TINY)


@column("yesterday", "1h", "4h", days=1)
def yesterday(of: FeatureBasis, window: Window) -> Array:
    """Return the log of the volatility that followed this hour yesterday ÷ σ."""
    return of.volatility[window][SQUARE]


@column("hour_sin")
def hour_sin(of: FeatureBasis) -> Array:
    """Return the sine of the minute of the UTC day."""
    return HOUR[0][of.open_time_ms % DAY_MS // MINUTE_MS]


@column("hour_cos")
def hour_cos(of: FeatureBasis) -> Array:
    """Return the cosine of the minute of the UTC day."""
    return HOUR[1][of.open_time_ms % DAY_MS // MINUTE_MS]


@column("weekday_sin")
def weekday_sin(of: FeatureBasis) -> Array:
    """Return the sine of the day of the week (UTC; the epoch was a Thursday)."""
    return WEEKDAY[0][of.open_time_ms // DAY_MS % 7]


@column("weekday_cos")
def weekday_cos(of: FeatureBasis) -> Array:
    """Return the cosine of the day of the week."""
    return WEEKDAY[1][of.open_time_ms // DAY_MS % 7]


CYCLES: Final = ("15m", "1h", "3h", "4h", "6h", "8h", "12h")
"""Parts of the day at whose turns markets move; together they follow how a day goes."""


def _turn(text: str, function: np.ufunc) -> Callable[[FeatureBasis], Array]:
    """Return the column of *function* of how far the cycle *text* has gone at a bar's start."""
    minutes = span_of(text).size * UNITS_MS[text[-1]] // MINUTE_MS
    table: Array = function(np.arange(minutes) * (2.0 * np.pi / minutes))

    def turned(of: FeatureBasis) -> Array:
        """Return sine or cosine of a part of the UTC day; zeros for less than two bars of it."""
        if minutes * MINUTE_MS < 2 * of.reach.interval_ms:
            return np.zeros_like(of.sigma)
        return table[of.open_time_ms // MINUTE_MS % minutes]

    return turned


for _text in CYCLES:
    column(f"cycle_{_text}_sin")(_turn(_text, np.sin))
    column(f"cycle_{_text}_cos")(_turn(_text, np.cos))


@column("har", "1h", "4h", "1d", "5d", "20d", "60d", kind=FAR, to=FURTHER)
def har(of: FeatureBasis, window: Window) -> Array:
    """Return the log of realised volatility ÷ σ, over longer times than ``realised``."""
    return of.far[window]


@column("seasonal_1d", "1h", "4h", days=1, to=FURTHER, kind=FAR)
@column("seasonal_5d", "1h", "4h", days=5, to=FURTHER, kind=FAR)
def same_hour(of: FeatureBasis, *windows: Window) -> Array:
    """Return the mean log of the volatility that followed this hour on earlier days ÷ σ."""
    total = of.far[windows[0]]
    for window in windows[1:]:
        total = total + of.far[window]
    return total / float(len(windows))


# --- of an interval


class FeatureRecipe:
    """*columns* over the windows that *reach* has room for; all arrays are [row, time]."""

    base = BASE_ROWS
    close = CLOSE
    far_rows = 1
    base_rows = staticmethod(base_rows)

    def __init__(self, reach: Reach, columns: tuple[FeatureColumn, ...]) -> None:
        self.reach = reach
        self.columns = columns
        self.names = tuple(column.name for column in columns)
        self._gains = np.array([[column.gain] for column in columns])
        room = [(at, column, column.windows(reach)) for at, column in enumerate(columns)]
        self._present = [(at, each, windows) for at, each, windows in room if windows is not None]
        self._places = np.array([at for at, _, _ in self._present])
        needed = {MOVE: {Window(12)}, NEAR: {BAR, *map(Window, (reach.short, reach.long))}}
        for _, each, windows in self._present:
            needed.setdefault(each.kind, set()).update(windows)
        self.close_lags = tuple(sorted(window.size for window in needed[MOVE]))
        self._roots = np.sqrt(np.array(self.close_lags, dtype=np.float64))[:, None]
        self.sums = WindowPlan(sorted(needed[NEAR]))
        self.far = WindowPlan(sorted(needed.get(FAR, ())))
        self.channel = WindowPlan([Window(reach.long)])
        self.z_scores = WindowPlan([Window(reach.long)])
        # σ looks back on a window of returns, its z-score on as many of σ.
        self.lookback = max(2 * reach.long, self.far.rows + 1)

    def sigma_of(self, sums: Mapping[Window, Array]) -> Array:
        """Return σ, the volatility of one bar: half of the short and half of the long window."""
        short, long = (
            sums[Window(size)][SQUARE] / float(size) for size in (self.reach.short, self.reach.long)
        )
        return np.sqrt(np.maximum(0.5 * short + 0.5 * long, SIGMA_FLOOR * SIGMA_FLOOR))

    def standardised_inputs(self, sums: Mapping[Window, Array], sigma: Array) -> Array:
        """Return [6, time]: the three rows that become z-scores, and their squares."""
        usual = sums[Window(self.reach.long)][VOLUME] / float(self.reach.long)
        spread = np.sqrt(sums[BAR][RANGE_SQUARE] / _PARKINSON)
        rows = np.array(
            [
                np.log1p(spread / sigma),
                np.log(sigma),
                np.log1p(sums[BAR][VOLUME] / np.maximum(usual, TINY)),
            ]
        )
        return np.concatenate([rows, rows * rows])

    def rows(self, parts: FeatureParts) -> NDArray[np.float32]:
        """Return [feature, time] rows, scaled and clipped; zeros where a window has no room."""
        of = self._basis(parts)
        computed = np.array([each.compute(of, *windows) for _, each, windows in self._present])
        rows = np.zeros((len(self.names), computed.shape[1]))
        rows[self._places] = computed
        rows *= self._gains
        return np.clip(rows, -CLIP, CLIP).astype(np.float32)

    def _basis(self, parts: FeatureParts) -> FeatureBasis:
        long = Window(self.reach.long)
        moves = np.log(parts.sums[BAR][CLOSE] / np.asarray(parts.past_closes))
        moves /= parts.sigma * self._roots
        return FeatureBasis(
            reach=self.reach,
            moves=dict(zip(self.close_lags, moves, strict=True)),
            sums=parts.sums,
            volatility=_log_volatility(parts.sums, parts.sigma, rows=GARMAN_KLASS + 1),
            far={
                window: row[SQUARE]
                for window, row in _log_volatility(parts.far, parts.sigma, rows=1).items()
            },
            extremes=parts.extremes[long],
            z_scores=standardised(parts.inputs, parts.input_sums[long], self.reach.long),
            sigma=parts.sigma,
            open_time_ms=parts.open_time_ms,
        )


def is_part(narrow: FeatureRecipe, wide: FeatureRecipe) -> bool:
    """Return whether the columns of *narrow* are the first of *wide*, in every bit."""
    return narrow.reach == wide.reach and narrow.columns == wide.columns[: len(narrow.columns)]


def _log_volatility(
    sums: Mapping[Window, Array], sigma: Array, *, rows: int
) -> dict[Window, Array]:
    """Return [row, time] logs of the volatility that the first *rows* of *sums* make, ÷ σ."""
    if not sums:
        return {}
    sizes = np.array([float(window.size) for window in sums])[:, None, None]
    means = np.array([totals[:rows] for totals in sums.values()]) / sizes
    logs = 0.5 * np.log(np.maximum(means, SIGMA_FLOOR * SIGMA_FLOOR) / (sigma * sigma))
    return dict(zip(sums, logs, strict=True))


FAMILIES: Final[dict[str, list[FeatureColumn]]] = {"v2": COLUMNS, "tree": [*COLUMNS, *FURTHER]}
"""The columns of every family of schemas, one of each interval: v2 is v2-1m, v2-5m and others."""
