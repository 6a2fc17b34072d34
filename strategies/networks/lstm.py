"""``lstm``: an LSTM over one window, to compare with networks of attention.

A recurrent state that is carried from bar to bar remembers every bar since the start, and a daemon
that was restarted would differ from one that has run for a year. So each answer runs over the last
``window`` rows, from zeros: its memory is those rows and nothing else. It has no attention, so it
explains nothing. Source: Hochreiter and Schmidhuber, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Heads, Network, Outputs

_POSITIVE: Final = ("features", "dim", "layers", "window")


@dataclass(frozen=True, slots=True)
class LstmConfig(keys.WindowKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``."""

    features: keys.Features = 78
    dim: keys.Dim = 64
    layers: keys.Layers = 1
    window: keys.Window = 64
    horizons: keys.Horizons = (5, 30, 240)
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in _POSITIVE:
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"architecture.{name} is {value}; it must be at least 1.")
        if any(a >= b for a, b in pairwise((0.0, *self.quantiles, 1.0))):
            raise ConfigInvalid("architecture.quantiles must ascend between 0 and 1.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigInvalid(
                f"architecture.dropout is {self.dropout}; it must be at least 0 and below 1."
            )
        if not self.horizons or min(self.horizons) < 1:
            raise ConfigInvalid("architecture.horizons must list at least one number of bars.")


class LstmNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    takes_any_length = True
    has_attention = False
    config: LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.recurrence = nn.LSTM(
            config.features,
            config.dim,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.heads = Heads(
            config.dim, len(config.horizons), len(config.quantiles), allocation=config.allocation
        )

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* mean nothing to it: the order of the rows is all it knows of time.
        """
        del positions
        return self._read_out(self._states(x)[:, -1:])

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state = self._states(x)
        yield "recurrence", state
        for name, output in self._read_out(state[:, -1:])._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def _states(self, x: Tensor) -> Tensor:
        """Return the states [batch, time, dim]; in float32 on a CPU: few do it in bfloat16."""
        halves = x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=halves):
            states: Tensor = self.recurrence(x)[0]
        return states

    def _read_out(self, state: Tensor) -> Outputs:
        return self.heads(self.norm(self.dropout(state)))


register(
    ModelKind(
        "lstm",
        "an LSTM over one window, from zeros; it has no attention to explain",
        read=LstmConfig.read,
        make=LstmNetwork,
        backend=lambda _: "recurrence",
    )
)
