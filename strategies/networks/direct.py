"""Networks that forecast many steps at once: the default trunk on patches of a series, and an LSTM.

Each reads a window of several series and answers the next ``horizon`` rows of all of them; every
series goes through the same weights on its own (Nie et al., 2023, PatchTST). A window is centred
and scaled by its own mean and spread first, and the answer brought back (Kim et al., 2022, RevIN,
without learned scales). No linear map leads from the window past the network to the answer; the
trunk's residual stream reaches the head as it is, for a last norm would hide how large a patch is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

_MLP_RATIO: Final = 2.0
_SPREAD_LEAST: Final = 1e-5
"""Added to a window's variance, so that one that does not move stays what it is."""


@dataclass(frozen=True, slots=True)
class DirectConfig:
    """What is common: rows read, rows answered, and the width and depth of the network.

    ``patch`` rows make one token of the flash trunk; the LSTM reads patches as well.
    """

    window: int = 336
    horizon: int = 24
    patch: int = 24
    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.4
    head_dropout: float = 0.4
    mask: str = "full"

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in ("window", "horizon", "patch", "dim", "layers", "heads"):
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"{name} is {value}; it must be at least 1.")
        if self.window % self.patch:
            raise ConfigInvalid(f"window must be a multiple of patch, not {self.window}.")

    @property
    def tokens(self) -> int:
        """Patches of a window."""
        return self.window // self.patch


class Direct(nn.Module):
    """A window of series in, the next rows of each out; what a network says of patches between."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Forecast [batch, horizon, variable] after *x* [batch, window, variable].

        *marks* of time are not looked at. Each variable is a series of its own.
        """
        del marks
        series = x.transpose(1, 2)  # [batch, variable, window]
        centre = series.mean(dim=-1, keepdim=True)
        spread = (series.var(dim=-1, keepdim=True, correction=0) + _SPREAD_LEAST).sqrt()
        patches = ((series - centre) / spread).flatten(0, 1).unflatten(-1, (-1, self.config.patch))
        # [batch * variable, horizon] -> [batch, variable, horizon]
        answer = self.answer(patches).unflatten(0, series.shape[:2])
        out: Tensor = (answer * spread + centre).transpose(1, 2)
        return out

    def answer(self, patches: Tensor) -> Tensor:
        """Map [series, token, patch] to [series, horizon]."""
        raise NotImplementedError


class DirectFlash(Direct):
    """The default network's trunk over the patches, and a linear head on all of its states."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        trunk = FlashConfig(
            features=config.patch,
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            window=config.tokens,
            encoding="learned",
            mask=config.mask,
            mlp_ratio=_MLP_RATIO,
            dropout=config.dropout,
        )
        self.trunk = FlashNetwork(trunk)
        del self.trunk.heads  # they are for returns
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.tokens * config.dim, config.horizon)

    def answer(self, patches: Tensor) -> Tensor:
        """Map [series, token, patch] to [series, horizon]."""
        out: Tensor = self.head(self.dropout(self.trunk.states(patches).flatten(1)))
        return out


class DirectLstm(Direct):
    """An LSTM over the patches, and a linear head on its last state (Hochreiter et al., 1997)."""

    def __init__(self, config: DirectConfig) -> None:
        super().__init__(config)
        between = config.dropout if config.layers > 1 else 0.0
        self.recurrence = nn.LSTM(
            config.patch, config.dim, config.layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.dim, config.horizon)

    def answer(self, patches: Tensor) -> Tensor:
        """Map [series, token, patch] to [series, horizon]."""
        states: Tensor = self.recurrence(patches)[0]  # [series, token, dim]
        out: Tensor = self.head(self.dropout(states[:, -1]))
        return out
