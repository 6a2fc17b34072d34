"""``lstm``: an LSTM over one window, to compare with networks of attention.

A recurrent state that is carried from bar to bar depends on every bar since the start, so a
restarted daemon would differ from one that has run for a year. Each answer therefore runs over the
last ``window`` rows from a zero state. It has no attention, so it explains nothing. Source:
Hochreiter and Schmidhuber, 1997.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Network, Outputs, Trace, heads_of


@dataclass(frozen=True, slots=True)
class LstmConfig(keys.NetworkConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``."""

    layers: keys.Layers = 1
    window: keys.Window = 64


class LstmNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out.

    It ignores positions: only the order of the rows matters.
    """

    takes_any_length: ClassVar[bool] = True
    has_attention: ClassVar[bool] = False
    config: LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.recurrence = nn.LSTM(
            config.features,
            config.dim,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.heads = heads_of(config)

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states [batch, time, dim]; in float32 on a CPU: few support bfloat16."""
        del positions, trace
        halves = x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=halves):
            states: Tensor = self.recurrence(x)[0]
        return states

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of the last row of *state*, after dropout."""
        return self.heads(self.norm(self.dropout(state[:, -1:])))


register(
    ModelKind(
        "lstm",
        "an LSTM over one window, from zeros; it has no attention to explain",
        read=LstmConfig.read,
        make=LstmNetwork,
        backend=lambda _: "recurrence",
    )
)
