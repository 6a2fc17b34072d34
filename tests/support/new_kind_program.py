"""A program that registers a kind of model and how it is fitted, and then calls the commands.

It registers before the first command looks for kinds, so it runs as a process.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import learning
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tracepaper.daemon.cli import invoke
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.tabular import VarianceModel, row_kind
from tracepaper.replay.learning.judge.forecasts import Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.recipe import Recipe
from tracepaper.replay.learning.recipe import register as register_kind
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.forecasters.build import RunOptions
from tracepaper.strategies.networks.keys import Horizons
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import DAY_MS, iso

LEAST = 1e-9


class SeasonalForecaster:
    """Expects as large a move as the closes before made, times one number; and no direction."""

    device, dtype, backend = "cpu", "float64", "seasonal"
    causal, is_outside, vectors, scanned_at_once = True, False, None, 1_024
    bucket_bars = 64
    measures = frozenset({"mean_return", "stdev_return", "volatility"})

    def __init__(
        self, card: Mapping[str, Any], tensors: Mapping[str, Any], options: RunOptions
    ) -> None:
        self.model_id, self.model_sha256 = card["model"]["id"], card["model"]["sha256"]
        self.horizons = tuple(card["architecture"]["horizons"])
        self.context: int = card["architecture"]["window"]
        self.calibration: Calibration | None = None
        self.mode, self.threads = options.mode, options.threads
        self._times = tensors["times"].double().numpy()  # [horizon]
        self._closes: dict[str, deque[int]] = {}

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars*."""
        self._closes[instrument] = deque((bar.close for bar in bars), maxlen=self.context)

    def step(self, bar: Bar) -> Forecast | None:
        """Answer by the closes of the last bars."""
        closes = self._closes.setdefault(bar.instrument, deque(maxlen=self.context))
        closes.append(bar.close)
        if len(closes) < self.context:
            return None
        spread = self._times * float(np.diff(np.log(np.array(closes))).std())
        ahead = tuple((np.maximum(spread, LEAST) * np.sqrt(self.horizons)).tolist())
        nothing = (0.0,) * len(ahead)
        return Forecast(self.horizons, nothing, ahead, (), (), (), ahead)

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Answer each by itself."""
        return [self.step(bar) for bar in bars]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Answer each in turn."""
        return [self.step(bar) for bar in bars]


SEASONAL = register(
    ModelKind("seasonal", "the spread of the last closes", build=SeasonalForecaster)
)


@dataclass(frozen=True)
class SeasonalKeys:
    """``[architecture]``."""

    horizons: Horizons = (5, 30)
    window: Annotated[int, Meta(ge=2, le=500, description="Closes whose spread is taken.")] = 60
    shrink: Annotated[float, Meta(ge=0, le=1, description="Share of the fit that is not.")] = 0.5


def spreads(segment: Segment, window: int) -> NDArray[np.float64]:
    """Return the spread of the closes up to each bar: [time], NaN before the window is full."""
    moves = np.lib.stride_tricks.sliding_window_view(np.diff(np.log(segment.close)), window - 1)
    return np.concatenate([np.full(window - 1, np.nan), moves.std(axis=-1)])


class SeasonalModel(VarianceModel):
    """What was fitted."""

    def forecaster(self, data: Dataset) -> Forecaster:
        """Return what a run asks."""
        del data
        named = {"id": "", "sha256": ""} | self.card["model"]
        card = {**self.card, "model": named}
        return SeasonalForecaster(card, self.tensors, RunOptions(mode="scan"))

    def answers(self, data: Dataset, part: Part) -> Forecasts:
        """Return its forecasts of *part*."""
        times, window = self.tensors["times"].numpy(), self.card["architecture"]["window"]
        answered = []
        for samples in data.samples(part):
            unit = spreads(samples.segment, window) / samples.segment.sigma
            rows = samples.rows[np.isfinite(unit[samples.rows])]
            scale = np.maximum(times * unit[rows, None], LEAST)
            fields = {
                "mean": np.zeros_like(scale),
                "scale": scale,
                "dof": np.full_like(scale, 1e9),
                "variance": scale**2,
            }
            answered.append(SegmentFields(samples, rows, fields))
        return forecasts_of(answered, data.baselines, data.horizons)


def fit(data: Dataset, recipe: Recipe) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Fit one number a horizon, and shrink it towards 1."""
    keys, factors = recipe.architecture, []
    for place in range(len(data.horizons)):
        ratios = []
        for samples in data.samples(Part.TRAIN):
            unit = spreads(samples.segment, keys.window) / samples.segment.sigma
            usable = (samples.weights[:, place] > 0) & (unit > LEAST)
            ratios.append(samples.labels["variance"][0, usable, place] / unit[usable] ** 2)
        factors.append(np.sqrt(np.concatenate(ratios).mean()))
    times = keys.shrink + (1.0 - keys.shrink) * np.array(factors)
    return {"times": times}, {"closes": keys.window}


register_kind(row_kind(SEASONAL, fit, SeasonalModel, SeasonalKeys))


def date(day: int) -> str:
    """Return the date so many days after the first candle."""
    return iso(learning.START_MS + day * DAY_MS)[:10]


def main(folder: Path) -> None:
    """Train, evaluate and replay a seasonal checkpoint; write what each command answers."""
    checkpoint, recipe = str(folder / "hours"), folder / "recipe.toml"
    days = learning.learnable(8 * learning.DAY_BARS, seed=1, symbol="AAAUSDT")
    parts = zip(("train", "validation", "calibration"), (4, 5, 6), strict=True)
    dates = [f"split.{part}_until={date(day)}" for part, day in parts]
    chosen = [word for setting in dates for word in ("--set", setting)]
    data = ("--data", str(learning.write_csv(days, folder)))
    few = learning.learnable(400, seed=1, symbol="BBBUSDT")
    short = ("--data", str(learning.write_csv(few, folder)))
    config = folder / "config.toml"
    config.write_text(
        '[market]\nsymbols = ["BBBUSDT"]\ninterval = "1"\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{checkpoint}"\n[gate]\nhorizon = 30\nedge = "0"\n',
        encoding="utf-8",
    )
    named = ("--db", str(folder / "run.db"))
    judged_on = ("evaluate", checkpoint, *data)
    less = ("--set", "shrink=0.25")  # another model: a repeat has the same id
    for name, words in {
        "kinds": ("train", "--init", "?"),
        "wide": ("train", "--init", "seasonal", "--set", "window=501"),
        "near": ("train", "--init", "seasonal", "--set", "shrnk=1"),
        "other": ("train", "--set", "model.kind=seasonl", *data, "--out", checkpoint),
        "recipe": ("train", "--init", "seasonal", *chosen),
        "train": ("train", str(recipe), *data, "--out", checkpoint),
        "again": ("train", str(recipe), *data, *less, "--out", str(folder / "again"), "--json"),
        "evaluate": (*judged_on, "--json"),
        "compare": (*judged_on, "--compare", str(folder / "again"), "--json"),
        "holdout": (*judged_on, "--holdout", f"last={date(6)}:{date(8)}", "--json"),
        "inspect": (*judged_on, "--inspect", "deletion=5"),
        "replay": ("replay", *short, "--config", str(config), *named),
        "verify": ("verify", "last", *named),
        "report": ("report", "last", "--json", *named),
        "explain": ("explain", "last", *named),
        "full": ("explain", "last", "--full", *named),
        "gates": ("audit", "sql", "SELECT DISTINCT gate FROM v_gates", *named),
        "check": ("models", "check", checkpoint),
    }.items():
        path = folder / f"{name}.txt"
        with path.open("w", encoding="utf-8") as out, redirect_stdout(out), redirect_stderr(out):
            code = invoke(list(words))
        if name == "recipe":
            recipe.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        with path.open("a", encoding="utf-8") as out:
            out.write(f"exit code {code}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
