"""The core: attention, rollout and entropy without a stored attention matrix.

These names are its public surface; docs/attention.md shows them at work.
"""

from tracepaper.strategies.attention.capturing import capture
from tracepaper.strategies.attention.kernels import Attention, attend, cross_attend
from tracepaper.strategies.attention.layer import Layer, value_norms
from tracepaper.strategies.attention.linear import LinearRead
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.attention.methods import (
    AttendedTokens,
    Rollout,
    confidence,
    entropy,
    flow,
    rollout,
    rollout_buckets,
    trained_entropy,
)
from tracepaper.strategies.attention.passage_shares import Passages, passages
from tracepaper.strategies.attention.probsparse import MapRead, SparseRead
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.attention.reads import GridRead, MatrixRead, Read
from tracepaper.strategies.attention.showing import Shown
from tracepaper.strategies.attention.streaming import Stream

__all__ = [
    "AttendedTokens",
    "Attention",
    "GridRead",
    "Layer",
    "LinearRead",
    "MapRead",
    "Mask",
    "MatrixRead",
    "Passages",
    "Read",
    "Rollout",
    "Shown",
    "SparseRead",
    "Stream",
    "attend",
    "capture",
    "closed_keys",
    "confidence",
    "cross_attend",
    "entropy",
    "flow",
    "passages",
    "relevance",
    "relevance_rules",
    "rollout",
    "rollout_buckets",
    "trained_entropy",
    "value_norms",
]
