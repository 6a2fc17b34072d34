"""The feature schemas ``v2-5m``, ``tree-5m`` and others: windows are times, not bars.

A window of four hours is 240 one-minute bars or 16 quarter-hour bars, so a column means the same at
every interval, and one network can learn from several intervals. A window shorter than a bar, or
longer than the interval's lookback, gives a column of zeros. Some short windows are counted in
bars. The interval is a column too. ``tree-…`` has the columns of ``v2-…``, bit-identical, and then
realised variance and the same hour of earlier days over times too long for a network's context.
``macd-…`` has them and Appel's MACD (12, 26, 9) of the log close.

There are three stages, each with finite memory:

1. ``base_rows``: quantities of one bar and the previous one;
2. sums and extremes of these over windows (``rolling``);
3. the features, one function each, three of them as z-scores over the long window.

The previous close replaces the open, which on some exchanges is not a traded price. Turnover and
funding are not used, since many archives lack them. The same code computes a batch and a single
bar, so both are bit-identical.

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
from tracepaper.strategies.indicators import macd
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, UNITS_MS

CLIP: Final = 5.0
SIGMA_FLOOR: Final = 1e-5
"""Minimum volatility of one bar (0.1 basis points), for flat markets."""
SPREAD_FLOOR: Final = 0.01
"""Minimum standard deviation in a z-score: a nearly constant series is no signal."""
TINY: Final = 1e-300

_MINUTES: Final = np.arange(1440) * (2.0 * np.pi / 1440)
_DAYS: Final = np.arange(7) * (2.0 * np.pi / 7)
# Tables, since the last bit of a vectorised sine may depend on its position in the vector.
HOUR: Final[Array] = np.array([np.sin(_MINUTES), np.cos(_MINUTES)])
WEEKDAY: Final[Array] = np.array([np.sin(_DAYS), np.cos(_DAYS)])

# Rows of ``base_rows``.
SQUARE, RANGE_SQUARE, GARMAN_KLASS, RISING_SQUARE, BIPOWER, QUARTIC = range(6)
VOLUME, SIGNED_VOLUME, ABSOLUTE, CLOSE, CLOSE_SQUARE, PRODUCT = range(6, 12)
BASE_ROWS: Final = 12
"""Number of base rows; those up to ``GARMAN_KLASS`` estimate one bar's variance."""

_PARKINSON: Final = 1.0 / (4.0 * float(np.log(2.0)))
_CLOSE_TO_CLOSE: Final = 2.0 * float(np.log(2.0)) - 1.0
_BIPOWER: Final = float(np.pi) / 2.0
_REFERENCE: Final = 1e-3
"""Reference volatility of one minute for ``sigma_level``; it scales with √time."""


# --- what features are computed from


def base_rows(high: Array, low: Array, close: Array, volume: Array, before: Array) -> Array:
    """Return the base rows [12, time]; *before* [2, time] is the previous close and return.

    Ranges include the previous close.
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
    """The inputs of the feature functions at each bar's close, as [time] rows."""

    reach: Reach
    moves: Mapping[int, Array]  # lag in bars -> return over it ÷ (σ √lag)
    sums: Mapping[Window, Array]  # [12, time]: sums of ``base_rows``
    volatility: Mapping[Window, Array]  # [3, time]: log(volatility ÷ σ) of the first three rows
    far: Mapping[Window, Array]  # log(realised volatility ÷ σ) over the windows of ``tree``
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
        """Return the window in bars; None if it is not a whole number of bars."""
        if not self.unit_ms:
            return Window(self.size, self.lag)
        size, lag = self.size * self.unit_ms, self.lag * self.unit_ms
        if size % interval_ms or lag % interval_ms:
            return None
        return Window(size // interval_ms, lag // interval_ms)


class WindowKind(NamedTuple):
    """A kind of windows, with the maximum lookback at an interval."""

    reach: Callable[[Reach], int]  # in bars


NEAR: Final = WindowKind(lambda reach: reach.long)
MOVE: Final = WindowKind(lambda reach: reach.long)
FAR: Final = WindowKind(lambda reach: reach.bars(reach.far_ms))


class FeatureColumn(NamedTuple):
    """One feature column: its name, function, windows and gain.

    The gain is the power of two that scales its standard deviation to about one.
    """

    name: str
    gain: float
    compute: Callable[..., Array]  # of ``FeatureBasis`` and each window
    spans: tuple[FeatureSpan, ...]
    kind: WindowKind
    min_bars: int = 1  # minimum size of a window

    def windows(self, reach: Reach) -> tuple[Window, ...] | None:
        """Return its windows in bars; None if one of them does not fit the interval."""
        windows = []
        for span in self.spans:
            window = span.window(reach.interval_ms)
            if window is None or window.size < self.min_bars:
                return None
            if window.reach > self.kind.reach(reach):
                return None
            windows.append(window)
        return tuple(windows)


COLUMNS: Final[list[FeatureColumn]] = []
"""The columns of ``v2-…``, in order."""
TREE_COLUMNS: Final[list[FeatureColumn]] = []
"""The additional columns of ``tree-…``."""
MACD_COLUMNS: Final[list[FeatureColumn]] = []
"""The additional columns of ``macd-…``."""


def column(
    name: str,
    *texts: str | int,
    kind: WindowKind = NEAR,
    min_bars: int = 1,
    gain: float = 1.0,
    days: int = 0,
    to: list[FeatureColumn] = COLUMNS,
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Add a column for each of *texts*, a time such as ``4h`` or a number of bars.

    The function gets a ``FeatureBasis`` and its window; without *texts* the basis alone. With
    *days* it gets the windows that began at this hour on each of so many previous days.
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
            to.append(FeatureColumn(f"{name}_{text}", gain, compute, spans, kind, min_bars))
        return compute

    return register


def span_of(text: str | int) -> FeatureSpan:
    """Return the window for *text*: a time such as ``4h``, or a number of bars."""
    if isinstance(text, int):
        return FeatureSpan(text)
    return FeatureSpan(int(text[:-1]), unit_ms=UNITS_MS[text[-1]])


# --- the columns

TIMES: Final = ("30m", "1h", "4h", "1d", "5d", "20d")


@column("interval")
def interval(of: FeatureBasis) -> Array:
    """Return log₁₆(interval ÷ 15 minutes)."""
    level = np.log2(of.reach.interval_ms / (15 * MINUTE_MS)) / 4.0
    return np.full_like(of.sigma, level)


@column("sigma_level")
def sigma_level(of: FeatureBasis) -> Array:
    """Return log(σ ÷ (0.001 √minutes)): the absolute level of volatility."""
    reference = _REFERENCE * float(np.sqrt(of.reach.interval_ms / MINUTE_MS))
    return np.log(of.sigma / reference)


@column("return", 1, 2, 3, 6, 12, 24, *TIMES, kind=MOVE)
def moved(of: FeatureBasis, window: Window) -> Array:
    """Return the log return over the window ÷ (σ √window)."""
    return of.moves[window.size]


@column("realised", 3, 6, 12, 24, *TIMES, min_bars=2, gain=2.0)
def realised(of: FeatureBasis, window: Window) -> Array:
    """Return the log of realised volatility ÷ σ."""
    return of.volatility[window][SQUARE]


@column("parkinson", 3, 12, "1h", "4h", "1d", gain=2.0)
def parkinson(of: FeatureBasis, window: Window) -> Array:
    """Return the log of Parkinson's volatility ÷ σ."""
    return of.volatility[window][RANGE_SQUARE]


@column("garman_klass", 6, "4h", "1d", min_bars=2, gain=2.0)
def garman_klass(of: FeatureBasis, window: Window) -> Array:
    """Return the log of Garman and Klass's volatility ÷ σ."""
    return of.volatility[window][GARMAN_KLASS]


def _share(of: FeatureBasis, window: Window, row: int) -> Array:
    """Return the sum of *row* ÷ realised variance."""
    return of.sums[window][row] / np.maximum(of.sums[window][SQUARE], TINY)


@column("jumps", 12, "4h", "1d", min_bars=4, gain=2.0)
def jumps(of: FeatureBasis, window: Window) -> Array:
    """Return the share of realised variance that bipower variation leaves to jumps."""
    return (of.sums[window][SQUARE] > 0.0) - _share(of, window, BIPOWER)


@column("semivariance", 12, "4h", "1d", min_bars=4, gain=2.0)
def semivariance(of: FeatureBasis, window: Window) -> Array:
    """Return (rising - falling squared returns) ÷ all squared returns."""
    rising = _share(of, window, RISING_SQUARE)
    return 2.0 * rising - (of.sums[window][SQUARE] > 0.0)


@column("quarticity", 24)
def quarticity(of: FeatureBasis, window: Window) -> Array:
    """Return log(n Σr⁴ ÷ (3 (Σr²)²)): how concentrated the variance is; 0 for a normal."""
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


@column("volume", 3, 12, "1h", "4h", min_bars=2, gain=2.0)
def volume(of: FeatureBasis, window: Window) -> Array:
    """Return log(1 + mean volume ÷ mean volume of the long window) - log 2."""
    long = Window(of.reach.long)
    long_mean = np.maximum(of.sums[long][VOLUME] / float(long.size), TINY)
    ratio = of.sums[window][VOLUME] / float(window.size) / long_mean
    return np.log1p(ratio) - np.log(2.0)


@column("flow", 6, 24, "4h", min_bars=4, gain=2.0)
def flow(of: FeatureBasis, window: Window) -> Array:
    """Return (volume of rising - of falling bars) ÷ all volume."""
    volumes = of.sums[window]
    return volumes[SIGNED_VOLUME] / np.maximum(volumes[VOLUME], TINY)


@column("efficiency", 12, gain=2.0)
def efficiency(of: FeatureBasis, window: Window) -> Array:
    """Return net ÷ total absolute log return: Cutler's RSI, from -1 to 1."""
    net = of.moves[window.size] * of.sigma * float(np.sqrt(window.size))
    return net / np.maximum(of.sums[window][ABSOLUTE], TINY)


@column("autocorrelation", 24, "1d", min_bars=12, gain=4.0)
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


@column("distance", 12, "4h", "1d", "5d", min_bars=2, gain=2.0)
def distance(of: FeatureBasis, window: Window) -> Array:
    """Return log(close ÷ mean close) ÷ (σ √window)."""
    return of.distance(window) / (of.sigma * float(np.sqrt(window.size)))


@column("channel", gain=2.0)
def channel(of: FeatureBasis) -> Array:
    """Return the close's position from lowest low (-1) to highest high (1) of the long window."""
    height = of.extremes[0] + of.extremes[1]
    return (2.0 * (of.close + of.extremes[1]) - height) / np.maximum(height, TINY)


@column("yesterday", "1h", "4h", days=1)
def yesterday(of: FeatureBasis, window: Window) -> Array:
    """Return log(volatility that followed this time yesterday ÷ σ)."""
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
"""Cycles of the day at whose boundaries markets move."""


def _cycle(text: str, function: np.ufunc) -> Callable[[FeatureBasis], Array]:
    """Return the column of *function* of the phase of the cycle *text* at a bar's open."""
    minutes = span_of(text).size * UNITS_MS[text[-1]] // MINUTE_MS
    table: Array = function(np.arange(minutes) * (2.0 * np.pi / minutes))

    def phase(of: FeatureBasis) -> Array:
        """Return the function of the phase; zeros if the cycle is shorter than two bars."""
        if minutes * MINUTE_MS < 2 * of.reach.interval_ms:
            return np.zeros_like(of.sigma)
        return table[of.open_time_ms // MINUTE_MS % minutes]

    return phase


for _text in CYCLES:
    column(f"cycle_{_text}_sin")(_cycle(_text, np.sin))
    column(f"cycle_{_text}_cos")(_cycle(_text, np.cos))


@column("har", "1h", "4h", "1d", "5d", "20d", "60d", kind=FAR, to=TREE_COLUMNS)
def har(of: FeatureBasis, window: Window) -> Array:
    """Return the log of realised volatility ÷ σ, over longer times than ``realised``."""
    return of.far[window]


@column("seasonal_1d", "1h", "4h", days=1, to=TREE_COLUMNS, kind=FAR)
@column("seasonal_5d", "1h", "4h", days=5, to=TREE_COLUMNS, kind=FAR)
def same_hour(of: FeatureBasis, *windows: Window) -> Array:
    """Return the mean log(volatility that followed this time on earlier days ÷ σ)."""
    total = of.far[windows[0]]
    for window in windows[1:]:
        total = total + of.far[window]
    return total / float(len(windows))


MACD_BARS: Final = 60
"""Bars of MACD's memory, the shortest long window of an interval; older ones weigh about 1 %."""


def _macd_column(weights: Array) -> Callable[..., Array]:
    """Return the column of Σ weight × log close ÷ (σ √26) over the last ``MACD_BARS`` + 1 bars.

    *weights* begin with the newest bar; that bar's own makes their sum 0.
    """
    roots = np.sqrt(np.arange(1, MACD_BARS + 1) / 26.0)  # moves are divided by σ √lag
    scaled = list(enumerate((-weights[1:] * roots).tolist(), start=1))

    def weighted(of: FeatureBasis, *_: Window) -> Array:
        """Return the weighted sum of the returns since each bar."""
        total = np.zeros_like(of.sigma)
        for lag, weight in scaled:
            total += weight * of.moves[lag]
        return total

    return weighted


_IMPULSE: Final = np.eye(1, MACD_BARS + 41, 40)[0]
"""A single 1 after the rows from which the averages start: MACD's answer is its weights."""
_LAGS: Final = tuple(map(FeatureSpan, range(1, MACD_BARS + 1)))
for _name, _gain, _answer in zip(
    ("macd", "macd_signal", "macd_histogram"), (4.0, 4.0, 16.0), macd(_IMPULSE), strict=True
):
    MACD_COLUMNS.append(FeatureColumn(_name, _gain, _macd_column(_answer[40:]), _LAGS, MOVE))


# --- the columns of one interval


class FeatureRecipe:
    """Computes *columns* for one interval, given by *reach*; arrays are [row, time]."""

    base = BASE_ROWS
    close = CLOSE
    far_rows = 1
    base_rows = staticmethod(base_rows)

    def __init__(self, reach: Reach, columns: tuple[FeatureColumn, ...]) -> None:
        self.reach = reach
        self.columns = columns
        self.names = tuple(column.name for column in columns)
        self._gains = np.array([[column.gain] for column in columns])
        fits = [(at, column, column.windows(reach)) for at, column in enumerate(columns)]
        self._present = [(at, each, windows) for at, each, windows in fits if windows is not None]
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
        # σ needs a long window of returns, and its z-score a long window of σ.
        self.lookback = max(2 * reach.long, self.far.rows + 1)

    def sigma_of(self, sums: Mapping[Window, Array]) -> Array:
        """Return σ, the volatility of one bar: σ² is the mean of the short and long estimates."""
        short, long = (
            sums[Window(size)][SQUARE] / float(size) for size in (self.reach.short, self.reach.long)
        )
        return np.sqrt(np.maximum(0.5 * short + 0.5 * long, SIGMA_FLOOR * SIGMA_FLOOR))

    def standardised_inputs(self, sums: Mapping[Window, Array], sigma: Array) -> Array:
        """Return [6, time]: the three inputs of the z-scores, and their squares."""
        mean_volume = sums[Window(self.reach.long)][VOLUME] / float(self.reach.long)
        spread = np.sqrt(sums[BAR][RANGE_SQUARE] / _PARKINSON)
        rows = np.array(
            [
                np.log1p(spread / sigma),
                np.log(sigma),
                np.log1p(sums[BAR][VOLUME] / np.maximum(mean_volume, TINY)),
            ]
        )
        return np.concatenate([rows, rows * rows])

    def rows(self, parts: FeatureParts) -> NDArray[np.float32]:
        """Return scaled and clipped [feature, time] rows; zeros if a window does not fit."""
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
    """Return whether the columns of *narrow* are the first columns of *wide*."""
    return narrow.reach == wide.reach and narrow.columns == wide.columns[: len(narrow.columns)]


def _log_volatility(
    sums: Mapping[Window, Array], sigma: Array, *, rows: int
) -> dict[Window, Array]:
    """Return log(volatility ÷ σ) [row, time] by the first *rows* of *sums*, per window."""
    if not sums:
        return {}
    sizes = np.array([float(window.size) for window in sums])[:, None, None]
    means = np.array([totals[:rows] for totals in sums.values()]) / sizes
    logs = 0.5 * np.log(np.maximum(means, SIGMA_FLOOR * SIGMA_FLOOR) / (sigma * sigma))
    return dict(zip(sums, logs, strict=True))


FAMILIES: Final[dict[str, list[FeatureColumn]]] = {
    "v2": COLUMNS,
    "tree": [*COLUMNS, *TREE_COLUMNS],
    "macd": [*COLUMNS, *MACD_COLUMNS],
}
"""The columns of each family of schemas; v2 is v2-1m, v2-5m and so on."""
