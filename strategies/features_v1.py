"""The feature schema ``v1``: thirty scale-free rows from high, low, close and volume.

Neither turnover nor funding, which many archives lack; no open, which on some exchanges is a
price and on others the last close. Three stages, each of finite memory:

1. ``base_rows``: what one bar (with the one before it) says by itself;
2. window sums and extremes of those over 8 to 256 bars (``features_rolling``);
3. ``raw_rows``: the features, three of them as z-scores over 256 bars (``standardised``).

A window of 256 returns needs 257 closes, and a z-score over 256 of its values 255 more:
a row depends on exactly 512 bars. The same code serves a batch and a single bar, so both agree
in every bit. Prices and volumes enter only as ratios, so integers of any decimals serve.

The rules are docs/models.md, L3 and L4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.market import DAY_MS

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

NAMES: Final = (
    *(f"return_{lag}" for lag in RETURN_LAGS),  # log return ÷ (σ √lag)
    "realised_8",  # log of realised volatility over 8 bars ÷ σ
    "realised_32",
    "range_z",  # z-score of log(1 + log(high ÷ low) ÷ σ)
    "parkinson_16",  # log of Parkinson's volatility over 16 bars ÷ σ
    "parkinson_64",
    "sigma_z",  # z-score of log σ
    "volume_z",  # z-score of log(1 + volume ÷ its mean over 256 bars)
    "volume_16",  # log(1 + mean volume over 16 bars ÷ over 256) - log 2
    "volume_64",
    "flow_16",  # volume of rising less of falling bars ÷ all volume
    "flow_64",
    "rsi_16",  # Cutler's form, from -1 to 1: net ÷ total absolute log return
    "sigma_level",  # log(σ ÷ 0.001): a level that no window has taken out
    "macd_16_64",  # log of mean close over 16 ÷ over 64 bars, ÷ (σ √64)
    "bollinger_32",  # (close - mean) ÷ (2 standard deviations of the close)
    "distance_64",  # log(close ÷ mean close) ÷ (σ √window)
    "distance_256",
    "channel_128",  # place of the close between the lowest low (-1) and the highest high (1)
    "autocorrelation_64",  # Σ r(t) r(t-1) ÷ Σ r²
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
)

# Powers of two, thus exact, that bring each feature to a spread of about one before the clip.
_GAIN: Final = {
    2.0: ("realised_8", "flow_16", "macd_16_64", "distance_64", "distance_256", "channel_128"),
    4.0: (
        *("realised_32", "parkinson_16", "parkinson_64", "volume_16", "volume_64"),
        *("flow_64", "rsi_16", "autocorrelation_64"),
    ),
}
GAINS: Final[Array] = np.array(
    [next((gain for gain, names in _GAIN.items() if name in names), 1.0) for name in NAMES]
)

# Rows of ``base_rows``.
SQUARE, RANGE_SQUARE, VOLUME, SIGNED_VOLUME, ABSOLUTE, CLOSE, CLOSE_SQUARE, PRODUCT = range(8)
BASE_ROWS: Final = 8

_MINUTES: Final = np.arange(1440) * (2.0 * np.pi / 1440)
_DAYS: Final = np.arange(7) * (2.0 * np.pi / 7)
# Tables, since the last bit of a vectorised sine may depend on its place in the vector.
_HOUR: Final = np.stack([np.sin(_MINUTES), np.cos(_MINUTES)])
_WEEKDAY: Final = np.stack([np.sin(_DAYS), np.cos(_DAYS)])
_PARKINSON: Final = 1.0 / (4.0 * float(np.log(2.0)))


def base_rows(high: Array, low: Array, close: Array, volume: Array, before: Array) -> Array:
    """Return [8, time] of what each bar says; *before* is [2, time]: close and return before it.

    Rows: squared return, Parkinson's variance, volume, signed volume, absolute return, close,
    squared close, product of this and the last return.
    """
    returned = np.log(close / before[0])
    spread = np.log(high / low)
    return np.stack(
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
    sigma: Array = np.sqrt(np.maximum(variance, SIGMA_FLOOR * SIGMA_FLOOR))
    return sigma


def standardised_inputs(high: Array, low: Array, sums: Mapping[int, Array], sigma: Array) -> Array:
    """Return [6, time]: the three rows that become z-scores, and their squares."""
    volume, mean = sums[1][VOLUME], sums[256][VOLUME] / 256.0
    rows = np.stack(
        [
            np.log1p(np.log(high / low) / sigma),
            np.log(sigma),
            np.log1p(volume / np.maximum(mean, TINY)),
        ]
    )
    return np.concatenate([rows, rows * rows])


def standardised(inputs: Array, sums: Array) -> Array:
    """Return [3, time] z-scores of the newest rows of *inputs* within their 256-bar *sums*."""
    mean = sums[:3] / Z_WINDOW
    variance = sums[3:] / Z_WINDOW - mean * mean
    spread = np.sqrt(np.maximum(variance, SPREAD_FLOOR * SPREAD_FLOOR))
    z_scores: Array = (inputs[:3] - mean) / spread
    return z_scores


def raw_rows(
    *,
    past_closes: Array,
    sums: Mapping[int, Array],
    extremes: Array,
    z_scores: Array,
    sigma: Array,
    open_time_ms: NDArray[np.int64],
) -> Array:
    """Return [30, time] features before clipping, in the order of ``NAMES``.

    *past_closes* is [8, time], the close each of ``CLOSE_LAGS`` bars before; *extremes* is
    [2, time]: highest high and negative lowest low of 128 bars.
    """
    close = sums[1][CLOSE]
    floor = SIGMA_FLOOR * SIGMA_FLOOR
    variance = sigma * sigma

    def volatility(row: int, window: int) -> Array:
        ratio: Array = np.log(np.maximum(sums[window][row] / float(window), floor) / variance)
        return 0.5 * ratio

    def mean_close(window: int) -> Array:
        mean: Array = sums[window][CLOSE] / float(window)
        return mean

    def relative_volume(window: int) -> Array:
        usual = np.maximum(sums[256][VOLUME] / 256.0, TINY)
        ratio: Array = np.log1p(sums[window][VOLUME] / float(window) / usual) - np.log(2.0)
        return ratio

    def flow(window: int) -> Array:
        share: Array = sums[window][SIGNED_VOLUME] / np.maximum(sums[window][VOLUME], TINY)
        return share

    returns = [
        np.log(close / past_closes[i]) / (sigma * float(np.sqrt(lag)))
        for i, lag in enumerate(RETURN_LAGS)
    ]
    spread_32 = sums[32][CLOSE_SQUARE] / 32.0 / (close * close) - (mean_close(32) / close) ** 2
    deviation = np.sqrt(np.maximum(spread_32, variance))
    height = extremes[0] + extremes[1]
    rows: Array = np.stack(
        [
            *returns,
            volatility(SQUARE, 8),
            volatility(SQUARE, 32),
            z_scores[0],
            volatility(RANGE_SQUARE, 16),
            volatility(RANGE_SQUARE, 64),
            z_scores[1],
            z_scores[2],
            relative_volume(16),
            relative_volume(64),
            flow(16),
            flow(64),
            np.log(close / past_closes[-1]) / np.maximum(sums[16][ABSOLUTE], TINY),
            np.log(sigma / SIGMA_USUAL),
            np.log(mean_close(16) / mean_close(64)) / (sigma * 8.0),
            (1.0 - mean_close(32) / close) / (2.0 * deviation),
            np.log(close / mean_close(64)) / (sigma * 8.0),
            np.log(close / mean_close(256)) / (sigma * 16.0),
            (2.0 * (close + extremes[1]) - height) / np.maximum(height, TINY),
            sums[64][PRODUCT] / np.maximum(sums[64][SQUARE], TINY),
            *_calendar(open_time_ms),
        ]
    )
    rows *= GAINS[:, None]
    return rows


def _calendar(open_time_ms: NDArray[np.int64]) -> tuple[Array, ...]:
    """Return sine and cosine of the hour and of the weekday (UTC; the epoch was a Thursday)."""
    minute = (open_time_ms % DAY_MS) // 60_000
    weekday = (open_time_ms // DAY_MS) % 7
    return (_HOUR[0][minute], _HOUR[1][minute], _WEEKDAY[0][weekday], _WEEKDAY[1][weekday])
