"""Attention flow by maximum flow on small graphs: the reference that rollout is compared with.

Abnar and Zuidema (2020), section 3: every bar of every layer is a node, ``Ã_l`` gives the
capacities of the edges to the layer below, and a row's attribution of a bar is the greatest flow
that can pass between the two. Cost grows with N³ a bar, so N is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_flow

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.checks import (
    check_head_weights,
    check_layers,
    check_rows,
    check_share,
)
from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.attention.masks import Mask

TIME_MAX: Final = 256
CAPACITY: Final = 1 << 22
"""Whole units of flow that a capacity of 1 stands for; the library's flows are 32-bit integers."""


def attention_flow(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    logsumexps: Sequence[Tensor],
    rows: Sequence[int] | Tensor,
    mask: Mask,
    *,
    head_weights: Sequence[float] | None = None,
    residual_weight: float = 0.5,
) -> Tensor:
    """Return each row's flow from every bar, normalised to sum to 1: float64 [batch, row, time].

    Shapes are those of ``rollout_rows``. A reference method: raises ``AttentionInvalid`` beyond
    ``TIME_MAX`` bars. Capacities are rounded to 1 / ``CAPACITY``.
    """
    layers = check_layers(queries, keys, logsumexps)
    batch, _, time, _ = layers[0].query.shape
    wanted = check_rows(rows, time)
    check_share(residual_weight, "residual_weight")
    if time > TIME_MAX:
        raise AttentionInvalid(
            f"Attention flow of {time} bars would take too long; use at most {TIME_MAX} or rollout."
        )
    shares = check_head_weights(head_weights, layers).double()
    identity = torch.eye(time, dtype=torch.float64)
    mixed = []
    for layer, share in zip(layers, shares, strict=True):
        matrix = reference.attention_matrix(
            layer.query.double(), layer.key.double(), mask, scale=layer.scale
        )
        fused = reference.fuse(matrix, "mean", share).cpu()
        mixed.append(residual_weight * identity + (1.0 - residual_weight) * fused)
    stacked = torch.stack(mixed, dim=1).numpy()  # [batch, layer, time, time]
    flows = np.array([[_row_flow(graph, row) for row in wanted] for graph in stacked])
    return torch.from_numpy(flows / flows.sum(axis=-1, keepdims=True)).view(batch, -1, time)


def _row_flow(matrices: np.ndarray[tuple[int, ...], np.dtype[np.float64]], row: int) -> list[int]:
    """Return the maximum flow from *row* above the last layer to each bar below the first."""
    layers, time, _ = matrices.shape
    graph = _graph(matrices)
    source = layers * time + row
    return [int(maximum_flow(graph, source, bar).flow_value) for bar in range(time)]


def _graph(matrices: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> csr_array:
    """Return the layered graph: node ``layer · time + bar``, edges from each layer to the next."""
    layers, time, _ = matrices.shape
    capacities = np.rint(matrices * CAPACITY).astype(np.int32)
    layer, query, key = np.nonzero(capacities)
    nodes = (layers + 1) * time
    edges = ((layer + 1) * time + query, layer * time + key)
    return csr_array(coo_array((capacities[layer, query, key], edges), shape=(nodes, nodes)))
