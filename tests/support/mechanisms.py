"""Attention mechanisms as users write them: sound ones, and one of each way to be wrong."""

from __future__ import annotations

import torch
from torch import Tensor

import tracepaper


class Softmax(tracepaper.AttentionMechanism):
    """Scaled dot products and a causal softmax: what the built-in network does."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        scores = query @ key.mT * self.head_dim**-0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(dim=-1)


class TransposedRows(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key)[..., :-1]


class NoTensor(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key).tolist()  # type: ignore[return-value]


class Infinite(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key) / 0.0


class Negative(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 2.0 * super().forward(query, key) - torch.eye(key.shape[2])


class UnscaledScores(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return 1.01 * super().forward(query, key)


class Ahead(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return (query @ key.mT).softmax(dim=-1)


class PeekingRows(Softmax):
    """Gives no weight to later bars, and looks at them all the same."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query * (1.0 + key.mean(dim=2, keepdim=True)), key)


class Crowd(Softmax):
    """Looks at the other windows of its batch."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query * key[..., :1, :].mean(dim=0), key)


class Chance(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query + torch.randn_like(query), key)


class Double(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key).double()


class Sparse(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key).to_sparse()


class LeavingProcess(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        raise SystemExit(3)


class InterruptedRows(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        raise KeyboardInterrupt


class Unmade(tracepaper.AttentionMechanism):
    """Forgets to make the module that it is."""

    def __init__(self, heads: int, head_dim: int) -> None:
        self.size = heads, head_dim


class FailingRows(Softmax):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        raise ValueError("no luck today")


class Sometimes(Softmax):
    """Sound until it is broken: NaN where the newest bar's key is the largest of both heads."""

    broken = False

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        weights = super().forward(query, key)
        if not self.broken:
            return weights
        largest = (key[:, :, :, 0].argmax(dim=-1) == key.shape[2] - 1).all(dim=-1)
        return torch.where(largest[:, None, None, None], torch.nan, weights)


class NoMechanism:
    """No tracepaper.AttentionMechanism."""
