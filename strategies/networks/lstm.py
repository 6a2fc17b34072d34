"""An LSTM over the window that ends at the decided bar: the recurrent network to compare with.

A recurrent state that is carried from bar to bar remembers every bar since the start, and a daemon
that was restarted would differ from one that has run for a year. So each answer runs over the last
``window`` rows, from zeros: its memory is those rows and nothing else. It has no attention, so it
says nothing of where it looked. Source: Hochreiter and Schmidhuber, 1997.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from torch import Tensor, nn

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.architecture import (
    Network,
    NetworkKind,
    checked_section,
    register,
)
from tracepaper.strategies.networks.heads import Heads, Outputs

_POSITIVE: Final = ("features", "dim", "layers", "window")


@dataclass(frozen=True, slots=True)
class LstmConfig:
    """The architecture; it is stored in a model's card as ``[architecture]``."""

    features: int = 30
    dim: int = 64
    layers: int = 1
    window: int = 64
    horizons: tuple[int, ...] = (5, 30, 240)
    dropout: float = 0.0
    allocation: bool = False
    quantiles: tuple[float, ...] = ()

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

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on: the whole window."""
        return self.window

    @classmethod
    def read(cls, section: dict[str, Any]) -> LstmConfig:
        """Build from a card's section, where tuples are lists; raise ``ConfigInvalid``."""
        return cls(**checked_section(cls, section))


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
        return self._read_out(self.recurrence(x)[0][:, -1:])

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state: Tensor = self.recurrence(x)[0]  # [batch, time, dim]
        yield "recurrence", state
        for name, output in self._read_out(state[:, -1:])._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def content_free(self) -> float:
        """Return 0: there is no attention whose confidence could be compared."""
        return 0.0

    def _read_out(self, state: Tensor) -> Outputs:
        outputs: Outputs = self.heads(self.norm(self.dropout(state)))
        return outputs


register(
    NetworkKind(
        "lstm",
        LstmConfig.read,
        LstmNetwork,
        backend=lambda _: "recurrence",
        words="an LSTM over one window, from zeros; it has no attention to explain",
    )
)
