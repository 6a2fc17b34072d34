"""The core: attention, rollout and entropy without a stored attention matrix.

These names are its public surface; docs/attention.md shows them at work.
"""

from .capturing import capture
from .errors import AttentionInvalid
from .kernels import Attention, attend, cross_attend
from .layer import Layer, value_norms
from .linear import LinearRead
from .masks import Mask, closed_keys
from .methods import (
    AttendedTokens,
    Rollout,
    confidence,
    entropy,
    flow,
    rollout,
    rollout_buckets,
    trained_entropy,
)
from .passage_shares import Passages, passages
from .probsparse import MapRead, SparseRead
from .propagation import relevance, relevance_rules
from .reads import GridRead, MatrixRead, Read
from .showing import Shown
from .streaming import Stream

__all__ = [
    "AttendedTokens",
    "Attention",
    "AttentionInvalid",
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
