"""A network's raw outputs over known bars, each computed from its whole receptive field."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracepaper.strategies.networks.heads import Outputs

_CHUNK_ROWS: Final = 8_192  # rows answered at once; bounds memory


@dataclass(frozen=True)
class Predictions:
    """Outputs over [time, horizon], in units of σ √h; ``logits`` has a last axis of three."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    dof: NDArray[np.float32]
    logits: NDArray[np.float32]
    variance: NDArray[np.float32]

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Predictions:
        """Return the predictions of the *chosen* rows."""
        return Predictions(*(getattr(self, field.name)[chosen] for field in fields(self)))


def joined(parts: list[Predictions]) -> Predictions:
    """Return the predictions one after another."""
    names = [field.name for field in fields(Predictions)]
    return Predictions(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def predict(
    network: nn.Module, values: NDArray[np.float32], *, start: int, stop: int, context: int
) -> Predictions:
    """Return the outputs of rows *start* until *stop* of [time, feature] *values*.

    Every row sees the *context* rows that end at it, or all there are; leaves the network in
    evaluation mode.
    """
    network.eval()
    parts = []
    device = next(network.parameters()).device
    with torch.inference_mode():
        for first in range(start, stop, _CHUNK_ROWS):
            last = min(first + _CHUNK_ROWS, stop)
            seen = max(first - context + 1, 0)
            rows = torch.from_numpy(values[seen:last]).to(device)[None]
            outputs: Outputs = network(rows)
            parts.append(_arrays(outputs, first - seen))
    return joined(parts)


def _arrays(outputs: Outputs, skipped: int) -> Predictions:
    def array(tensor: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = tensor[0, skipped:].float().cpu().numpy()
        return found

    return Predictions(
        mean=array(outputs.mean),
        scale=array(torch.exp(outputs.log_scale)),
        dof=array(outputs.dof),
        logits=array(outputs.direction_logits),
        variance=array(torch.exp(outputs.log_variance)),
    )
