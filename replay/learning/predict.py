"""What a network answers at rows of a segment, as arrays by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tracepaper.replay.learning.samples import Samples, first_position, windowed_rows
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.architecture import Network, Outputs

_CHUNK_ROWS: Final = 8_192  # rows answered at once; bounds memory
WINDOWS_JUDGED: Final = 20_000
"""Bars of a part that a network of whole windows is judged on: each costs a pass."""
HEADS: Final = ("quantiles", "tails", "drawdown", "runup", "regimes", "path")
"""Fields that not every network has."""

Ids = NDArray[np.int64]
Fields = Mapping[str, NDArray[np.float32]]
"""Each field's name → [row, horizon, ..], in units of σ √h: mean, scale, dof and variance of the
return, logits of the direction, and ``HEADS``."""


def predict(network: Network, segment: Segment, rows: Ids, *, dropout: bool = False) -> Fields:
    """Return the fields at *rows* (ascending) of *segment*, which has features there.

    Each row sees the receptive field that ends at it, or all there is of it; before that a network
    of whole windows is given zeros, which are neutral. It takes the first columns of the features,
    as many as it has. With *dropout* it drops as in training, by
    PyTorch's seed. Leaves it in evaluation mode.
    """
    network.eval()
    try:
        for module in network.dropping() if dropout else ():
            module.train()
        return joined([fields_of(each) for each in outputs_at(network, segment, rows)])
    finally:
        network.eval()


def joined(parts: Sequence[Fields]) -> Fields:
    """Return the fields one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fields_of(outputs: Outputs) -> Fields:
    """Return *outputs* [row, horizon, ..] as fields."""
    every = {
        "mean": outputs.mean,
        "scale": torch.exp(outputs.log_scale),
        "dof": outputs.dof,
        "logits": outputs.direction_logits,
        "variance": torch.exp(outputs.log_variance),
        **{name: getattr(outputs, name) for name in HEADS},
    }
    return {name: part.float().cpu().numpy() for name, part in every.items() if part is not None}


def outputs_at(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of *network* at *rows* of *segment*, [row, horizon, ..], as ``predict``."""
    if not len(rows):
        raise DataInvalid("There is no bar to forecast; give longer candles.")
    answer = _by_row if network.answers_every_row else _by_window
    with torch.inference_mode():
        yield from answer(network, segment, rows)


def _by_row(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of chunks of *rows*, each of one pass over all bars between."""
    device = network.device
    for first in range(int(rows[0]), int(rows[-1]) + 1, _CHUNK_ROWS):
        chosen = rows[(rows >= first) & (rows < first + _CHUNK_ROWS)]
        if not len(chosen):
            continue
        start = max(first - network.config.receptive_field + 1, segment.first)
        values = segment.values[start : int(chosen[-1]) + 1, : network.config.features]
        x = torch.from_numpy(values).to(device)[None]
        positions = first_position(segment, start) + torch.arange(x.shape[1], device=device)
        outputs: Outputs = network(x, positions)
        at = torch.from_numpy(chosen - start).to(device)
        yield Outputs._make(None if part is None else part[0, at] for part in outputs)


def _by_window(network: Network, segment: Segment, rows: Ids) -> Iterator[Outputs]:
    """Yield the outputs of batches of *rows*, each of its window alone."""
    window, device = network.config.window, network.device
    batch, columns = max(_CHUNK_ROWS // window, 1), network.config.features
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch].tolist()
        x = np.zeros((len(chosen), window, columns), dtype=np.float32)
        for target, row in zip(x, chosen, strict=True):
            values = segment.values[max(row - window + 1, segment.first) : row + 1, :columns]
            target[window - len(values) :] = values
        firsts = torch.tensor([first_position(segment, row) - window + 1 for row in chosen])
        positions = firsts[:, None] + torch.arange(window)
        outputs: Outputs = network(torch.from_numpy(x).to(device), positions.to(device))
        yield outputs.map(lambda part: part[:, -1])


def thinned(rows: Ids, total: int, network: Network) -> Ids:
    """Return *rows*, of *total* in a part; evenly fewer where each costs a whole window."""
    if network.answers_every_row:
        return rows
    return rows[:: -(-total // WINDOWS_JUDGED)]


def judged_rows(network: Network, part: Sequence[Samples]) -> list[tuple[Samples, Ids]]:
    """Return the labelled rows with a full context of each segment that has some, ``thinned``."""
    rows = [windowed_rows(samples, network.config.receptive_field) for samples in part]
    total = sum(map(len, rows))
    every = ((s, thinned(of, total, network)) for s, of in zip(part, rows, strict=True))
    return [(samples, chosen) for samples, chosen in every if len(chosen)]


def no_context(part: Part, rows: int) -> ConfigInvalid:
    """Return the error of a *part* without a bar that has the *rows* an answer depends on."""
    return ConfigInvalid(
        f"The {part.value} part has no bar with {rows:,} bars before it, on which an answer "
        "depends; narrow the window, move the split's dates or give more candles."
    )
