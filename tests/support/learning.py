"""Small learnable candles and networks for the tests of training."""

from __future__ import annotations

import gzip
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import close_by_close
from tracepaper.replay.learning.estimators.tabular import RowKeys
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.judge import judge_model
from tracepaper.replay.learning.recipe import Recipe, kind_of, kinds, recipe_of
from tracepaper.replay.learning.splits import Holdout, Panel, Segment, Split, segments_of
from tracepaper.storage.checkpoints import Checkpoint, dump
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import iso

Say = Callable[..., tuple[int, str, str]]
"""Calls a command: the exit code, output, and errors as one line."""
START_MS = 1_700_006_400_000  # a midnight
MINUTE_MS = 60_000
DAY_BARS = 1_440
HORIZONS = (5, 30)
WINDOW = 24
FORMS: dict[str, dict[str, Any]] = {
    "flash": {"kind": "flash", "layers": 2},
    "volatile": {"kind": "flash", "layers": 2, "volatility_gate": "sigma_level"},
    "classic": {"kind": "flash", "mask": "full", "clock": ["week"], "gated": True},
    "decoder": {"kind": "flash", "mask": "causal", "encoding": "alibi", "norm": "post"},
    "clocked": {"kind": "flash", "encoding": "context", "clock": ["sessions", "month", "halving"]},
    "informer": {"kind": "informer", "layers": 2, "factor": 2},
    "generative": {
        "kind": "informer",
        "layers": 2,
        "factor": 2,
        "decoder_layers": 1,
        "start_token": 6,
    },
    "linear": {"kind": "linear", "layers": 2},
    "performer": {"kind": "linear", "mask": "full", "feature_map": "random"},
    "custom": {
        "kind": "custom",
        "mechanism": "tracepaper.strategies.networks.custom:FadingAttention",
    },
    "multiscale": {"kind": "multiscale", "frames": [1, 3, 12], "tokens": [6, 4, 2]},
    "cross": {"kind": "cross", "bars": 9, "frame": 4, "tokens": 5},
    "trading": {"kind": "trading", "layers": 2, "modalities": ["price", "time"], "runup": True},
    "lstm": {"kind": "lstm", "quantiles": [0.1, 0.9], "allocation": True},
}
"""Small forms of the networks, by a name; every kind is among them."""


def tiny() -> FlashConfig:
    """Return a network that trains in seconds."""
    return FlashConfig(dim=16, layers=2, heads=2, window=32, horizons=HORIZONS)


def learnable(count: int, *, seed: int = 0, symbol: str = "AAAUSDT", start: int = 0) -> Candles:
    """Return minutes whose volatility breathes over an hour and whose returns lean back a little.

    Both are visible in the features, so that a network which learns beats a constant.
    """
    rng = np.random.default_rng(seed)
    scale = 5e-4 * np.exp(0.8 * np.sin(2 * np.pi * np.arange(count) / 60))
    shocks = rng.standard_t(4, count) * scale
    moves = np.empty(count)
    moves[0] = shocks[0]
    for i in range(1, count):
        moves[i] = shocks[i] - 0.35 * moves[i - 1]
    return minutes_of(moves, rng, symbol=symbol, start=start)


def minutes_of(
    moves: np.ndarray[Any, Any],
    rng: np.random.Generator,
    *,
    symbol: str = "AAAUSDT",
    start: int = 0,
    wick: int = 200,
) -> Candles:
    """Return minutes that close by *moves*, with wicks below *wick* and volumes drawn of *rng*."""
    count = len(moves)
    close = np.round(1e6 * np.exp(np.cumsum(moves))).astype(np.int64)
    before = np.concatenate([close[:1], close[:-1]])
    wicks = rng.integers(0, wick, count)
    return Candles(
        path=f"linear_{symbol}_1m.csv",
        category=Category.LINEAR,
        symbol=symbol,
        interval_ms=MINUTE_MS,
        price_decimals=2,
        volume_decimals=3,
        turnover_decimals=0,
        open_time_ms=START_MS + MINUTE_MS * (start + np.arange(count, dtype=np.int64)),
        open=before,
        high=np.maximum(before, close) + wicks,
        low=np.minimum(before, close) - wicks,
        close=close,
        volume=rng.integers(1, 10**6, count),
        turnover=None,
    )


def segment(count: int, *, seed: int = 0, symbol: str = "AAAUSDT", start: int = 0) -> Segment:
    """Return ``learnable`` candles as one segment."""
    segments = segments_of(learnable(count, seed=seed, symbol=symbol, start=start), schema("v2-1m"))
    return segments[0]


def panel(count: int) -> Panel:
    """Return ``learnable`` candles as a panel of one."""
    return Panel((segment(count),))


def split(first: float, second: float, third: float, *, embargo: int = 30) -> Split:
    """Return the split that ends its parts after so many days."""
    ends = [START_MS + round(day * DAY_BARS) * MINUTE_MS for day in (first, second, third)]
    return Split(ends[0], ends[1], ends[2], embargo)


def table(
    opened_ms: NDArray[np.int64],
    labels: dict[str, NDArray[Any]],
    values: dict[str, dict[str, NDArray[Any]]],
    *,
    horizon: int = 1,
    interval_ms: int = MINUTE_MS,
) -> Forecasts:
    """Return the rows of one asset and horizon that open at *opened_ms*."""
    rows = np.ones(len(opened_ms), dtype=np.int64)
    until_ms = opened_ms + horizon * interval_ms
    return Forecasts(7 * rows, opened_ms, until_ms, horizon * rows, interval_ms, labels, values)


def write_csv(candles: Candles, folder: Path) -> Path:
    """Write *candles* as a gzipped CSV; return its path."""
    path = folder / f"bybit_linear_{candles.symbol}_1m.csv.gz"
    rows = ["open_time,open,high,low,close,volume"]
    for row in zip(
        candles.open_time_ms.tolist(),
        candles.open.tolist(),
        candles.high.tolist(),
        candles.low.tolist(),
        candles.close.tolist(),
        candles.volume.tolist(),
        strict=True,
    ):
        prices = ",".join(f"{price / 100:.2f}" for price in row[1:5])
        rows.append(f"{row[0]},{prices},{row[5] / 1000:.3f}")
    path.write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))
    return path


def judge_checkpoint(
    checkpoint: Checkpoint, material: Any, span: Holdout, *, bars: int | None = None
) -> Judgement:
    """Return the judgement of a checkpoint on *span* of *material*."""
    kind = kind_of(checkpoint.card)
    model = kind.load(checkpoint.card, checkpoint.tensors)
    if kind.model.source is DataSource.CLOSES and not material.panel_symbols:
        material = close_by_close(material, lambda _: material.split)
    return judge_model(model, material, span, bars=bars)


def quiet(_: object) -> None:
    """Say nothing."""


def by_forecaster(rows: Iterable[Mapping[str, Any]], horizon: int) -> dict[str, Any]:
    """Return the rows of a table of forecasters at one horizon by their names."""
    return {row["forecaster"]: row for row in rows if row["horizon"] == horizon}


def choose(*settings: str) -> tuple[str, ...]:
    """Return the words of a command line that set these keys of a recipe."""
    return tuple(word for setting in settings for word in ("--set", setting))


def recipe(form: dict[str, Any], folder: Path) -> Path:
    """Write a recipe of few and small steps; return its path."""
    network = {key: value for key, value in form.items() if key != "kind"}
    days = [START_MS + day * 86_400_000 for day in (3, 4, 5)]
    section = {"dim": 8, "horizons": [5, 30], "layers": 1} | network
    if "tokens" not in form:
        section["window"] = WINDOW
    if form["kind"] != "lstm":
        section["heads"] = 2
    parsed = recipe_of(
        {
            "model": {"kind": form["kind"]},
            "architecture": section,
            "training": {
                "steps": 4, "validate_every": 2, "length": 256, "windows": 16, "threads": 1,
                "explained_bars": 150,
            },
            "split": {
                "train_until": iso(days[0]),
                "validation_until": iso(days[1]),
                "calibration_until": iso(days[2]),
            },
        }
    )  # fmt: skip
    path = folder / "recipe.toml"
    path.write_text(text := dump(parsed.document()), encoding="utf-8")
    assert recipe_of(tomllib.loads(text)) == parsed
    return path


def rows_recipe(kind: str, bars: int, options: BoostingOptions | None = None) -> Recipe:
    """Return the recipe of a model of rows that explains so many *bars*, of gates at 30."""
    keys = RowKeys(HORIZONS)
    chosen = BoostingOptions() if options is None else options
    return Recipe(kinds()[kind], keys, chosen, 30, name=kind, explained_bars=bars, threads=1)
