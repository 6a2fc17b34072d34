"""A program that registers a kind of model and nothing else, and then calls the product's commands.

It registers before the first command looks for kinds, so it runs as a process.
"""

# ruff: noqa: E402 - the imports below are the point

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.forecasters.build import RunOptions
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar


class SeasonalForecaster:
    """Expects as large a move as the closes before made, times one number; and no direction."""

    device, dtype, backend = "cpu", "float64", "seasonal"
    causal, is_outside, scanned_at_once = True, False, 1_024
    measures = frozenset({"mean_return", "stdev_return", "volatility"})

    def __init__(
        self, card: Mapping[str, Any], tensors: Mapping[str, Any], options: RunOptions
    ) -> None:
        self.model_id, self.model_sha256 = card["model"]["id"], card["model"]["sha256"]
        self.horizons = tuple(card["architecture"]["horizons"])
        self.context: int = card["architecture"]["window"]
        self.calibration: Calibration | None = None
        self.mode, self.threads = options.mode, options.threads
        self._times = float(tensors["times"][0])
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
        ahead = tuple((spread * np.sqrt(self.horizons)).tolist())
        nothing = (0.0,) * len(ahead)
        return Forecast(self.horizons, nothing, ahead, (), (), (), ahead, self.model_id)

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Answer each by itself."""
        return [self.step(bar) for bar in bars]

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Answer each in turn."""
        return [self.step(bar) for bar in bars]


register(ModelKind("seasonal", "the spread of the last closes", build=SeasonalForecaster))

import learning
import torch

from tracepaper.daemon.cli import invoke
from tracepaper.storage import checkpoints

CARD = {
    "model": {"kind": "seasonal", "name": "hours"},
    "architecture": {"window": 60, "horizons": [5, 30]},
    "features": {},
    "market": {"interval": "1"},
    "calibration": {},
}


def main(folder: Path) -> None:
    """Replay with a seasonal checkpoint; write what each command answers into *folder*."""
    checkpoints.save(folder / "hours", {"times": torch.tensor([1.5])}, CARD)
    data = str(learning.write_csv(learning.learnable(400, seed=1, symbol="AAAUSDT"), folder))
    config = folder / "config.toml"
    config.write_text(
        '[market]\nsymbols = ["AAAUSDT"]\ninterval = "1"\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / "hours"}"\n[gate]\nhorizon = 30\nedge = "0"\n',
        encoding="utf-8",
    )
    named = ("--db", str(folder / "run.db"))
    for name, words in {
        "replay": ("replay", "--data", data, "--config", str(config), *named, "--log", "full"),
        "verify": ("verify", "last", *named),
        "report": ("report", "last", "--json", *named),
        "explain": ("explain", "last", *named),
        "full": ("explain", "last", "--full", *named),
        "gates": ("audit", "sql", "SELECT DISTINCT gate FROM v_gates", *named),
        "models": ("models", "list", str(folder / "hours")),
        "kinds": ("models", "list", "--json"),
        "check": ("models", "check", str(folder / "hours")),
    }.items():
        path = folder / f"{name}.txt"
        with path.open("w", encoding="utf-8") as out, redirect_stdout(out), redirect_stderr(out):
            out.write(f"exit code {invoke(list(words))}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
