"""Attention of other kinds than one flash pass, as ``bench attention`` measures them.

Each attends in every layer over the same queries, keys and values, and explains the last row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch

from tracepaper.strategies.attention.cross import (
    StreamRead,
    closed_keys,
    cross_attend,
    cross_confidence,
    stream_rollout,
)
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.linear import (
    LinearLayer,
    attend_linearly,
    distance_from_softmax,
    draw_directions,
    elu_features,
    linear_confidence,
    random_features,
    rollout_linearly,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.scores import Scores
from tracepaper.strategies.networks import workloads

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.networks.workloads import Inputs

SPARSE: Final = Mask.sparse(64, last=2, stride=16, first=1)
"""The blocks that are measured: local, strided and first ones."""
BARS_A_KEY: Final = 4
"""Bars of the first stream for one of the stream that it reads."""


class Mechanism(Protocol):
    """One way to attend, over inputs that it was made with."""

    def forward(self) -> object:
        """Attend in every layer."""
        ...

    def explain(self) -> Tensor:
        """Return the last row's exact rollout [1, 1, time]; its entropies are computed as well."""
        ...


class Linear:
    """Linear attention over the same tensors, by one of its feature maps."""

    def __init__(self, inputs: Inputs, mask: Mask, feature_map: str) -> None:
        heads, dim = inputs.queries[0].shape[1], inputs.queries[0].shape[3]
        self._inputs, self._mask = inputs, mask
        self._directions = (
            draw_directions(heads, dim, 2 * dim, seed=0).to(inputs.queries[0])
            if feature_map == "random"
            else None
        )
        self._layers = self.forward()

    def forward(self) -> list[LinearLayer]:
        """Attend in every layer; return what each attended with."""
        layers = []
        for query, key, value in zip(*self._inputs, strict=True):
            if self._directions is None:
                features = elu_features(query), elu_features(key)
            else:
                features = random_features(query, key, self._directions)
            layers.append(attend_linearly(*features, value, self._mask).layer)
        return layers

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        last = [self._inputs.queries[0].shape[2] - 1]
        for layer in self._layers:
            linear_confidence(layer, last, self._mask)
        return rollout_linearly(self._layers, last, self._mask).weights

    def distance(self) -> float:
        """Return how far the last row lies from the softmax of the same queries and keys."""
        last = [self._inputs.queries[0].shape[2] - 1]
        far = [
            distance_from_softmax(layer, query, key, last, self._mask).mean()
            for layer, query, key in zip(
                self._layers, self._inputs.queries, self._inputs.keys, strict=True
            )
        ]
        return float(torch.stack(far).mean())


class SparseBlocks:
    """The flash kernel over blocks of the past."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sums = self.forward()

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the logsumexps."""
        return workloads.forward(self._inputs, SPARSE)

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        return workloads.explain(self._inputs, self._sums, SPARSE, "tiles")


class ChunkedCausal:
    """Causal attention by plain formulas over some queries at a time."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sums = self.forward()

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the logsumexps."""
        return [
            attend(*layer, Mask.causal(), backend="chunked", checked=False).logsumexp
            for layer in zip(*self._inputs, strict=True)
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        return workloads.explain(self._inputs, self._sums, Mask.causal(), "tiles")


class CrossStreams:
    """A stream that reads another of wider bars in every layer, of these the closed ones."""

    def __init__(self, inputs: Inputs) -> None:
        bars, keys = inputs.queries[0].shape[2], inputs.keys[0].shape[2] // BARS_A_KEY
        others = [[x[:, :, :keys] for x in part] for part in (inputs.keys, inputs.values)]
        self._layers = list(zip(inputs.queries, *others, strict=True))
        self._lengths = (bars, keys)
        opened = BARS_A_KEY * torch.arange(keys, device=inputs.queries[0].device)
        closes = torch.arange(bars, device=opened.device)
        self._seen = closed_keys(closes, opened + BARS_A_KEY - 1)
        self._sums = self.forward()

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the logsumexps."""
        return [
            cross_attend(query, key, value, self._seen).logsumexp
            for query, key, value in self._layers
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        scores, last = Scores(causal=False, seen=self._seen), [self._lengths[0] - 1]
        steps = []
        for (query, key, _), logsumexp in zip(self._layers, self._sums, strict=True):
            cross_confidence(query, key, logsumexp, last, self._seen)
            steps.append([StreamRead(0, 1, query, key, logsumexp, scores)])
        return torch.cat(stream_rollout(steps, self._lengths, last), dim=-1)


class MeasuredMechanism(NamedTuple):
    """A mechanism that is measured, up to some number of bars where more would take minutes."""

    make: Callable[[Inputs], Mechanism]
    longest: int | None = None


MECHANISMS: Final = {
    "linear, elu": MeasuredMechanism(partial(Linear, mask=Mask.causal(), feature_map="elu")),
    "linear, random": MeasuredMechanism(partial(Linear, mask=Mask.causal(), feature_map="random")),
    "blocks": MeasuredMechanism(SparseBlocks),
    "cross": MeasuredMechanism(CrossStreams),
    "chunked": MeasuredMechanism(ChunkedCausal, 4_096),
}
"""What is measured beside the flash forward, causal."""
