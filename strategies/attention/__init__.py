"""The core: attention, rollout and entropy without a stored attention matrix.

These names are its public surface; docs/attention.md shows them at work.
"""

from tracepaper.strategies.attention.capturing import capture as capture
from tracepaper.strategies.attention.kernels import Attention as Attention
from tracepaper.strategies.attention.kernels import attend as attend
from tracepaper.strategies.attention.kernels import cross_attend as cross_attend
from tracepaper.strategies.attention.layer import Layer as Layer
from tracepaper.strategies.attention.layer import value_norms as value_norms
from tracepaper.strategies.attention.linear import LinearRead as LinearRead
from tracepaper.strategies.attention.masks import Mask as Mask
from tracepaper.strategies.attention.masks import closed_keys as closed_keys
from tracepaper.strategies.attention.methods import AttendedTokens as AttendedTokens
from tracepaper.strategies.attention.methods import Rollout as Rollout
from tracepaper.strategies.attention.methods import confidence as confidence
from tracepaper.strategies.attention.methods import entropy as entropy
from tracepaper.strategies.attention.methods import flow as flow
from tracepaper.strategies.attention.methods import rollout as rollout
from tracepaper.strategies.attention.methods import rollout_buckets as rollout_buckets
from tracepaper.strategies.attention.methods import trained_entropy as trained_entropy
from tracepaper.strategies.attention.passage_shares import Passages as Passages
from tracepaper.strategies.attention.passage_shares import passages as passages
from tracepaper.strategies.attention.probsparse import MapRead as MapRead
from tracepaper.strategies.attention.probsparse import SparseRead as SparseRead
from tracepaper.strategies.attention.propagation import relevance as relevance
from tracepaper.strategies.attention.propagation import relevance_rules as relevance_rules
from tracepaper.strategies.attention.reads import GridRead as GridRead
from tracepaper.strategies.attention.reads import MatrixRead as MatrixRead
from tracepaper.strategies.attention.reads import Read as Read
from tracepaper.strategies.attention.streaming import Stream as Stream
