"""Learning's figures on a public set: Informer's published setting on ETTh1, beside simple models.

    python tests/benchmarks/etth1.py ETTh1.csv [--horizons 24 48] [--dim 512] [--epochs 6]

ETTh1.csv is that of Zhou et al. 2021 (arXiv:2012.07436; CC BY-ND 4.0, so that it is not kept here):
a date and seven columns an hour. As there, twelve months train, four choose and four test; a column
is scaled by the mean and deviation of its training months; all columns are forecast from all, and
errors are means over windows, hours and columns. Every epoch is scored on the four months that
choose, and the best is tested; a fit ends after three epochs that are no better. The Informer is of
the product's own blocks; ``--dim`` 512 is the published width, an hour a horizon on one thread.

The set has been in training corpora for years: it tells whether the blocks still learn, and says
nothing about candles.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PatchTSTConfig, PatchTSTForPrediction

from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

MONTH: Final = 30 * 24
TRAIN, CHOOSE, TEST = 12 * MONTH, 16 * MONTH, 20 * MONTH
"""Where each part ends, in hours."""
BATCH, PATIENCE, SIMPLE_EPOCHS = 32, 3, 20
HOUR_S: Final = 3_600


class Published(NamedTuple):
    """The setting of a horizon in the paper's scripts, and its figures."""

    window: int
    start: int
    factor: int
    mse: float
    mae: float


PUBLISHED: Final = {24: Published(48, 48, 3, 0.577, 0.549), 48: Published(96, 48, 5, 0.685, 0.625)}


@dataclass(frozen=True)
class Series:
    """The scaled columns, and the windows of each part."""

    values: Tensor  # [hour, column]
    hours: Tensor  # absolute number of each, int64 [hour]
    window: int
    horizon: int

    @classmethod
    def read(cls, path: Path, window: int, horizon: int) -> Series:
        """Read the file at *path*; scale by the training months alone."""
        with path.open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        values = np.array([row[1:] for row in rows[:TEST]], dtype=np.float64)
        if len(values) < TEST:
            raise SystemExit(f"{path} has {len(values):,} hours; give all {TEST:,} of 20 months.")
        values = (values - values[:TRAIN].mean(axis=0)) / values[:TRAIN].std(axis=0)
        first = datetime.fromisoformat(rows[0][0]).replace(tzinfo=UTC).timestamp() // HOUR_S
        hours = int(first) + torch.arange(TEST)
        return cls(torch.from_numpy(values).float(), hours, window, horizon)

    def ends(self, part: str) -> NDArray[np.int64]:
        """Return the ends of the windows of *part*, whose forecasts lie in it."""
        begin = {"train": self.window, "choose": TRAIN, "test": CHOOSE}[part]
        end = {"train": TRAIN, "choose": CHOOSE, "test": TEST}[part]
        return np.arange(begin, end - self.horizon + 1)

    def batches(
        self, part: str, rng: np.random.Generator | None = None, size: int = BATCH
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield windows [batch, hour, column], their hours, and what follows, shuffled by *rng*."""
        ends = self.ends(part) if rng is None else rng.permutation(self.ends(part))
        for begin in range(0, len(ends), size):
            at = torch.from_numpy(ends[begin : begin + size])[:, None]
            given = at + torch.arange(-self.window, 0)
            asked = at + torch.arange(self.horizon)
            yield self.values[given], self.hours[given], self.values[asked]


class Informer(nn.Module):
    """The product's Informer with a line for each column, for all hours ahead at once."""

    def __init__(self, series: Series, setting: Published, dim: int, *, subtracts: bool) -> None:
        super().__init__()
        columns = series.values.shape[1]
        config = InformerConfig(
            features=columns, dim=dim, layers=2, horizons=tuple(range(1, series.horizon + 1)),
            dropout=0.05, heads=8, clock=("week", "month", "season"), interval_minutes=60,
            window=series.window, factor=setting.factor, decoder_layers=1,
            start_token=setting.start,
        )  # fmt: skip
        self.network = InformerNetwork(config)
        self.read_out = nn.Linear(dim, columns)
        self.subtracts = subtracts

    def forward(self, x: Tensor, hours: Tensor) -> Tensor:
        """Map windows [batch, hour, column] to what follows: [batch, horizon, column]."""
        last = x[:, -1:] if self.subtracts else torch.zeros_like(x[:, -1:])
        return last + self.read_out(self.network.run(x - last, hours, None))


class DLinear(nn.Module):
    """A line over the trend and one over the rest (Zeng et al. 2023, arXiv:2205.13504)."""

    def __init__(self, series: Series) -> None:
        super().__init__()
        self.trend = nn.Linear(series.window, series.horizon)
        self.rest = nn.Linear(series.window, series.horizon)

    def forward(self, x: Tensor, _hours: Tensor) -> Tensor:
        """Map windows [batch, hour, column] to what follows."""
        x = x.transpose(1, 2)
        padded = nn.functional.pad(x, (12, 12), mode="replicate")
        trend = nn.functional.avg_pool1d(padded, 25, stride=1)
        return (self.trend(trend) + self.rest(x - trend)).transpose(1, 2)


class PatchTST(nn.Module):
    """PatchTST of ``transformers`` at its paper's size for ETTh1 (Nie et al. 2023)."""

    def __init__(self, series: Series) -> None:
        super().__init__()
        config = PatchTSTConfig(
            num_input_channels=series.values.shape[1], context_length=series.window,
            prediction_length=series.horizon, patch_length=16, patch_stride=8, d_model=16,
            num_attention_heads=4, num_hidden_layers=3, ffn_dim=128, ff_dropout=0.3,
            head_dropout=0.3, attention_dropout=0.0, scaling="std", loss="mse",
        )  # fmt: skip
        self.model = PatchTSTForPrediction(config)

    def forward(self, x: Tensor, _hours: Tensor) -> Tensor:
        """Map windows [batch, hour, column] to what follows."""
        forecast: Tensor = self.model(past_values=x).prediction_outputs
        return forecast


class Ridge(nn.Module):
    """Least squares with a penalty from the whole window to all that follows."""

    weights: Tensor

    def forward(self, x: Tensor, _hours: Tensor) -> Tensor:
        """Map windows [batch, hour, column] to what follows."""
        last = x[:, -1:]
        flat = (x - last).flatten(1) @ self.weights
        return last + flat.unflatten(1, (-1, x.shape[2]))


class Errors(NamedTuple):
    """Mean errors over windows, hours and columns."""

    mse: float
    mae: float


@torch.no_grad()
def errors(model: nn.Module, series: Series, part: str) -> Errors:
    """Return the errors of *model* on *part*."""
    model.eval()
    squares = sizes = count = 0.0
    for x, hours, wanted in series.batches(part, size=8 * BATCH):
        error = (model(x, hours) - wanted).double()
        squares += float(error.square().sum())
        sizes += float(error.abs().sum())
        count += error.numel()
    return Errors(squares / count, sizes / count)


def ridge(series: Series) -> tuple[Ridge, str]:
    """Return the ridge whose penalty is best where it is chosen, and that penalty."""
    model, best = Ridge(), np.inf
    x, _, wanted = next(series.batches("train", size=TRAIN))
    flat = (x - x[:, -1:]).flatten(1).double()
    target = (wanted - x[:, -1:]).flatten(1).double()
    gram, product = flat.mT @ flat, flat.mT @ target
    chosen, choice = torch.zeros(0), ""
    for penalty in (1.0, 10.0, 100.0, 1e3, 1e4):
        unit = penalty * torch.eye(len(gram), dtype=gram.dtype)
        model.weights = torch.linalg.solve(gram + unit, product).float()
        if (score := errors(model, series, "choose").mse) < best:
            best, chosen, choice = score, model.weights, f"penalty {penalty:g}"
    model.weights = chosen
    return model, choice


def fitted(model: nn.Module, series: Series, epochs: int, rate: float, *, halves: bool) -> str:
    """Fit *model*, leave it with the weights of its best epoch, and return which that was."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    best, kept, chosen = np.inf, model.state_dict(), 0
    for epoch in range(1, epochs + 1):
        model.train()
        for x, hours, wanted in series.batches("train", rng):
            loss = nn.functional.mse_loss(model(x, hours), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (score := errors(model, series, "choose").mse) < best:
            best, chosen = score, epoch
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if epoch - chosen >= PATIENCE:
            break
        for group in optimizer.param_groups:
            group["lr"] *= 0.5 if halves else 1.0
    model.load_state_dict(kept)
    return f"epoch {chosen} of {epoch}"


def compare(path: Path, horizon: int, dim: int, epochs: int) -> None:
    """Fit every model at *horizon* and print its errors on the four months that test."""
    setting = PUBLISHED[horizon]
    series = Series.read(path, setting.window, horizon)
    rate = 1e-4 * (512 / dim) ** 0.5
    models: dict[str, Callable[[], tuple[nn.Module, str]]] = {
        "ridge on the window": lambda: ridge(series),
        "DLinear": lambda: trained(DLinear(series), SIMPLE_EPOCHS, 1e-3),
        "PatchTST": lambda: trained(PatchTST(series), SIMPLE_EPOCHS, 1e-3),
        f"Informer, dim {dim}": lambda: trained(
            Informer(series, setting, dim, subtracts=False), epochs, rate, halves=True
        ),
        "the same, last value subtracted": lambda: trained(
            Informer(series, setting, dim, subtracts=True), epochs, rate, halves=True
        ),
    }

    def trained(
        model: nn.Module, epochs: int, rate: float, *, halves: bool = False
    ) -> tuple[nn.Module, str]:
        return model, fitted(model, series, epochs, rate, halves=halves)

    tell(f"\n{horizon} hours from {setting.window}{'':17} MSE    MAE  CPU s")
    for name, make in models.items():
        torch.manual_seed(0)
        began = time.process_time()
        model, choice = make()
        tested = errors(model, series, "test")
        spent = time.process_time() - began
        tell(f"{name:34} {tested.mse:6.3f} {tested.mae:6.3f} {spent:6.0f}  {choice}")
    tell(f"{'Informer, as published':34} {setting.mse:6.3f} {setting.mae:6.3f}")


def tell(line: str) -> None:
    """Print *line* at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table of each horizon."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="ETTh1.csv")
    parser.add_argument("--horizons", type=int, nargs="+", default=[24, 48], choices=PUBLISHED)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tell(machine_line())
    for horizon in given.horizons:
        compare(given.path, horizon, given.dim, given.epochs)


if __name__ == "__main__":
    main()
