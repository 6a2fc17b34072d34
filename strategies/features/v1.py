"""The feature schema ``v1``: scale-free features of high, low, close and volume.

Neither turnover nor funding, which many archives lack; no open, which on some exchanges is a
price and on others the last close. Three stages, each of finite memory:

1. ``base_rows``: what one bar (with the one before it) says by itself;
2. window sums and extremes of those over 8 to 256 bars (``rolling``);
3. the features, one function each, three of them as z-scores over 256 bars (``standardised``).

A window of 256 returns needs 257 closes, and a z-score over 256 of its values 255 more:
a row depends on exactly 512 bars. The same code serves a batch and a single bar, so both agree
in every bit. Prices and volumes enter only as ratios, so integers of any decimals serve.

The rules are docs/models.md, L3 and L4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.features.rolling import Array, FeatureParts, Wanted, Window
from tracepaper.strategies.units import DAY_MS, MINUTE_MS

LOOKBACK: Final = 512
CLIP: Final = 5.0
Z_WINDOW: Final = 256
SUM_WINDOWS: Final = (8, 16, 32, 64, 256)
CHANNEL_WINDOW: Final = 128
RETURN_LAGS: Final = (1, 3, 6, 12, 24, 72, 240)
CLOSE_LAGS: Final = (*RETURN_LAGS, 16)
SIGMA_FLOOR: Final = 1e-5
"""Least volatility of one bar (0.1 basis points): a flat market has no scale of its own."""
SIGMA_USUAL: Final = 1e-3
"""The volatility of a minute from which ``sigma_level`` is measured."""
SPREAD_FLOOR: Final = 0.01
"""Least standard deviation in a z-score: a series that hardly moves is no signal."""
TINY: Final = 1e-300

# Rows of ``base_rows``.
SQUARE, RANGE_SQUARE, VOLUME, SIGNED_VOLUME, ABSOLUTE, CLOSE, CLOSE_SQUARE, PRODUCT = range(8)
BASE_ROWS: Final = 8

_MINUTES: Final = np.arange(1440) * (2.0 * np.pi / 1440)
_DAYS: Final = np.arange(7) * (2.0 * np.pi / 7)
# Tables, since the last bit of a vectorised sine may depend on its place in the vector.
HOUR: Final[Array] = np.array([np.sin(_MINUTES), np.cos(_MINUTES)])
WEEKDAY: Final[Array] = np.array([np.sin(_DAYS), np.cos(_DAYS)])
_PARKINSON: Final = 1.0 / (4.0 * float(np.log(2.0)))


def base_rows(high: Array, low: Array, close: Array, volume: Array, before: Array) -> Array:
    """Return [8, time] of what each bar says; *before* is [2, time]: close and return before it.

    Rows: squared return, Parkinson's variance, volume, signed volume, absolute return, close,
    squared close, product of this and the last return.
    """
    returned = np.log(close / before[0])
    spread = np.log(high / low)
    return np.array(
        [
            returned * returned,
            spread * spread * _PARKINSON,
            volume,
            volume * np.sign(returned),
            np.abs(returned),
            close,
            close * close,
            returned * before[1],
        ]
    )


def sigma_of(sums: Mapping[int, Array]) -> Array:
    """Return σ, the volatility of one bar: realised variance, half of 64 and half of 256 bars."""
    variance = 0.5 * (sums[64][SQUARE] / 64.0) + 0.5 * (sums[256][SQUARE] / 256.0)
    return np.sqrt(np.maximum(variance, SIGMA_FLOOR * SIGMA_FLOOR))


def standardised_inputs(high: Array, low: Array, sums: Mapping[int, Array], sigma: Array) -> Array:
    """Return [6, time]: the three rows that become z-scores, and their squares."""
    volume, mean = sums[1][VOLUME], sums[256][VOLUME] / 256.0
    rows = np.array(
        [
            np.log1p(np.log(high / low) / sigma),
            np.log(sigma),
            np.log1p(volume / np.maximum(mean, TINY)),
        ]
    )
    return np.concatenate([rows, rows * rows])


def standardised(inputs: Array, sums: Array, size: int = Z_WINDOW) -> Array:
    """Return [3, time] z-scores of the newest rows of *inputs* within their *sums* of *size*."""
    mean = sums[:3] / size
    variance = sums[3:] / size - mean * mean
    spread = np.sqrt(np.maximum(variance, SPREAD_FLOOR * SPREAD_FLOOR))
    return (inputs[:3] - mean) / spread


class FeatureInputs(NamedTuple):
    """What features are computed from: everything known at each bar's close, as [time] rows."""

    past_closes: Mapping[int, Array]  # lag in bars -> close; the lags of ``CLOSE_LAGS``
    sums: Mapping[int, Array]  # window in bars -> [8, time]: sums of ``base_rows``
    extremes: Array  # [2, time]: highest high and negative lowest low of 128 bars
    z_scores: Array  # [3, time]: of ``standardised``
    sigma: Array  # the volatility of one bar
    open_time_ms: NDArray[np.int64]

    @property
    def close(self) -> Array:
        """The close of each bar."""
        return self.sums[1][CLOSE]

    def mean_close(self, window: int) -> Array:
        """Return the mean close of *window* bars."""
        return self.sums[window][CLOSE] / float(window)


Compute = Callable[[FeatureInputs], Array]


class Feature(NamedTuple):
    """One feature: its name, the power of two that brings its spread to about one, its function."""

    name: str
    gain: float
    compute: Compute


class FeatureSet:
    """The features of one schema, in the order in which they are added."""

    def __init__(self, schema_id: str) -> None:
        self.schema_id = schema_id
        self.features: list[Feature] = []

    def add(self, name: str, *, gain: float = 1.0) -> Callable[[Compute], Compute]:
        """Add the decorated function, which returns one [time] row, under *name*.

        A schema that a checkpoint was trained on stays as it is: features of a new one are added
        to a set of their own.
        """

        def register(compute: Compute) -> Compute:
            self.features.append(Feature(name, gain, compute))
            return compute

        return register

    def recipe(self) -> V1Recipe:
        """Return them as they are computed."""
        return V1Recipe(tuple(self.features))


class V1Recipe:
    """*features* of the windows of ``v1``; a ``rolling.FeatureRecipe``."""

    lookback = LOOKBACK
    base = BASE_ROWS
    close = CLOSE
    close_lags: tuple[int, ...] = CLOSE_LAGS
    sums = Wanted(Window(size) for size in (1, *SUM_WINDOWS))
    far = Wanted(())
    far_rows = 0
    channel = Wanted([Window(CHANNEL_WINDOW)])
    z_scores = Wanted([Window(Z_WINDOW)])
    base_rows = staticmethod(base_rows)

    def __init__(self, features: tuple[Feature, ...]) -> None:
        self.features = features
        self.gains = np.array([[feature.gain] for feature in features])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    def sigma_of(self, sums: Mapping[Window, Array]) -> Array:
        """Return ``sigma_of`` the windows."""
        return sigma_of(_by_size(sums))

    def standardised_inputs(
        self, high: Array, low: Array, sums: Mapping[Window, Array], sigma: Array
    ) -> Array:
        """Return ``standardised_inputs`` of the windows."""
        return standardised_inputs(high, low, _by_size(sums), sigma)

    def rows(self, made: FeatureParts) -> NDArray[np.float32]:
        """Return [feature, time] rows, scaled and clipped."""
        of = FeatureInputs(
            past_closes=dict(zip(CLOSE_LAGS, made.past_closes, strict=True)),
            sums=_by_size(made.sums),
            extremes=made.extremes[Window(CHANNEL_WINDOW)],
            z_scores=standardised(made.inputs, made.input_sums[Window(Z_WINDOW)]),
            sigma=made.sigma,
            open_time_ms=made.open_time_ms,
        )
        rows: Array = np.array([feature.compute(of) for feature in self.features])
        rows *= self.gains
        return np.clip(rows, -CLIP, CLIP).astype(np.float32)


def _by_size(sums: Mapping[Window, Array]) -> dict[int, Array]:
    return {window.size: rows for window, rows in sums.items()}


V1: Final = FeatureSet("v1")


def _returned(lag: int) -> Compute:
    """Return the log return over *lag* bars ÷ (σ √lag)."""
    root = float(np.sqrt(lag))
    return lambda of: np.log(of.close / of.past_closes[lag]) / (of.sigma * root)


for _lag in RETURN_LAGS:
    V1.add(f"return_{_lag}")(_returned(_lag))


def _volatility(row: int, window: int) -> Compute:
    """Return the log of the volatility by *row* over *window* bars ÷ σ."""

    def compute(of: FeatureInputs) -> Array:
        variance = np.maximum(of.sums[window][row] / float(window), SIGMA_FLOOR * SIGMA_FLOOR)
        ratio: Array = np.log(variance / (of.sigma * of.sigma))
        return 0.5 * ratio

    return compute


V1.add("realised_8", gain=2.0)(_volatility(SQUARE, 8))
V1.add("realised_32", gain=4.0)(_volatility(SQUARE, 32))


@V1.add("range_z")
def _range_z(of: FeatureInputs) -> Array:
    """Return the z-score of log(1 + log(high ÷ low) ÷ σ)."""
    return of.z_scores[0]


V1.add("parkinson_16", gain=4.0)(_volatility(RANGE_SQUARE, 16))
V1.add("parkinson_64", gain=4.0)(_volatility(RANGE_SQUARE, 64))


@V1.add("sigma_z")
def _sigma_z(of: FeatureInputs) -> Array:
    """Return the z-score of log σ."""
    return of.z_scores[1]


@V1.add("volume_z")
def _volume_z(of: FeatureInputs) -> Array:
    """Return the z-score of log(1 + volume ÷ its mean over 256 bars)."""
    return of.z_scores[2]


def _relative_volume(window: int) -> Compute:
    """Return log(1 + mean volume over *window* ÷ over 256 bars) - log 2."""

    def compute(of: FeatureInputs) -> Array:
        usual = np.maximum(of.sums[256][VOLUME] / 256.0, TINY)
        return np.log1p(of.sums[window][VOLUME] / float(window) / usual) - np.log(2.0)

    return compute


V1.add("volume_16", gain=4.0)(_relative_volume(16))
V1.add("volume_64", gain=4.0)(_relative_volume(64))


def _flow(window: int) -> Compute:
    """Return the volume of rising less of falling bars ÷ all volume."""

    def compute(of: FeatureInputs) -> Array:
        return of.sums[window][SIGNED_VOLUME] / np.maximum(of.sums[window][VOLUME], TINY)

    return compute


V1.add("flow_16", gain=2.0)(_flow(16))
V1.add("flow_64", gain=4.0)(_flow(64))


@V1.add("rsi_16", gain=4.0)
def _rsi(of: FeatureInputs) -> Array:
    """Return Cutler's form of the index, from -1 to 1: net ÷ total absolute log return."""
    return np.log(of.close / of.past_closes[16]) / np.maximum(of.sums[16][ABSOLUTE], TINY)


@V1.add("sigma_level")
def _sigma_level(of: FeatureInputs) -> Array:
    """Return log(σ ÷ 0.001): a level that no window has taken out."""
    return np.log(of.sigma / SIGMA_USUAL)


@V1.add("macd_16_64", gain=2.0)
def _macd(of: FeatureInputs) -> Array:
    """Return the log of mean close over 16 ÷ over 64 bars, ÷ (σ √64)."""
    return np.log(of.mean_close(16) / of.mean_close(64)) / (of.sigma * 8.0)


@V1.add("bollinger_32")
def _bollinger(of: FeatureInputs) -> Array:
    """Return (close - mean) ÷ (2 standard deviations of the close)."""
    close, mean = of.close, of.mean_close(32)
    spread = of.sums[32][CLOSE_SQUARE] / 32.0 / (close * close) - (mean / close) ** 2
    deviation = np.sqrt(np.maximum(spread, of.sigma * of.sigma))
    return (1.0 - mean / close) / (2.0 * deviation)


def _distance(window: int) -> Compute:
    """Return log(close ÷ mean close) ÷ (σ √window)."""
    root = float(np.sqrt(window))
    return lambda of: np.log(of.close / of.mean_close(window)) / (of.sigma * root)


V1.add("distance_64", gain=2.0)(_distance(64))
V1.add("distance_256", gain=2.0)(_distance(256))


@V1.add("channel_128", gain=2.0)
def _channel(of: FeatureInputs) -> Array:
    """Return the place of the close between the lowest low (-1) and the highest high (1)."""
    height = of.extremes[0] + of.extremes[1]
    return (2.0 * (of.close + of.extremes[1]) - height) / np.maximum(height, TINY)


@V1.add("autocorrelation_64", gain=4.0)
def _autocorrelation(of: FeatureInputs) -> Array:
    """Return Σ r(t) r(t-1) ÷ Σ r²."""
    return of.sums[64][PRODUCT] / np.maximum(of.sums[64][SQUARE], TINY)


@V1.add("hour_sin")
def _hour_sin(of: FeatureInputs) -> Array:
    """Return the sine of the minute of the UTC day."""
    return HOUR[0][of.open_time_ms % DAY_MS // MINUTE_MS]


@V1.add("hour_cos")
def _hour_cos(of: FeatureInputs) -> Array:
    """Return the cosine of the minute of the UTC day."""
    return HOUR[1][of.open_time_ms % DAY_MS // MINUTE_MS]


@V1.add("weekday_sin")
def _weekday_sin(of: FeatureInputs) -> Array:
    """Return the sine of the day of the week (UTC; the epoch was a Thursday)."""
    return WEEKDAY[0][of.open_time_ms // DAY_MS % 7]


@V1.add("weekday_cos")
def _weekday_cos(of: FeatureInputs) -> Array:
    """Return the cosine of the day of the week."""
    return WEEKDAY[1][of.open_time_ms // DAY_MS % 7]
