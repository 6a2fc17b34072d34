"""The core: attention, rollout and entropy without a stored attention matrix.

The names below are its public surface, imported when they are first asked for; docs/attention.md
shows them at work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.strategies.attention.entropy import confidence as confidence
    from tracepaper.strategies.attention.entropy import row_entropy as row_entropy
    from tracepaper.strategies.attention.entropy import trained_entropy as trained_entropy
    from tracepaper.strategies.attention.kernels import Attention as Attention
    from tracepaper.strategies.attention.kernels import attend as attend
    from tracepaper.strategies.attention.masks import Mask as Mask
    from tracepaper.strategies.attention.rollout import Rollout as Rollout
    from tracepaper.strategies.attention.rollout import rollout_rows as rollout_rows
    from tracepaper.strategies.attention.streaming import Stream as Stream
    from tracepaper.strategies.attention.variants import Scores as Scores
    from tracepaper.strategies.attention.variants import StreamRead as StreamRead
    from tracepaper.strategies.attention.variants import carry_rows as carry_rows
    from tracepaper.strategies.attention.variants import closed_keys as closed_keys
    from tracepaper.strategies.attention.variants import cross_attend as cross_attend
    from tracepaper.strategies.attention.variants import cross_confidence as cross_confidence
    from tracepaper.strategies.attention.variants import score_entropy as score_entropy
    from tracepaper.strategies.attention.variants import score_logsumexp as score_logsumexp
    from tracepaper.strategies.attention.variants import score_rollout as score_rollout
    from tracepaper.strategies.attention.variants import stream_rollout as stream_rollout
    from tracepaper.strategies.attention.weighted import attention_flow as attention_flow
    from tracepaper.strategies.attention.weighted import (
        gradient_rollout_rows as gradient_rollout_rows,
    )
    from tracepaper.strategies.attention.weighted import norm_rollout_rows as norm_rollout_rows
    from tracepaper.strategies.attention.weighted import value_norms as value_norms

_HOMES = {
    "Attention": "kernels",
    "Mask": "masks",
    "Rollout": "rollout",
    "Scores": "variants",
    "Stream": "streaming",
    "StreamRead": "variants",
    "attend": "kernels",
    "attention_flow": "weighted",
    "carry_rows": "variants",
    "closed_keys": "variants",
    "confidence": "entropy",
    "cross_attend": "variants",
    "cross_confidence": "variants",
    "gradient_rollout_rows": "weighted",
    "norm_rollout_rows": "weighted",
    "rollout_rows": "rollout",
    "row_entropy": "entropy",
    "score_entropy": "variants",
    "score_logsumexp": "variants",
    "score_rollout": "variants",
    "stream_rollout": "variants",
    "trained_entropy": "entropy",
    "value_norms": "weighted",
}

__all__ = [
    "Attention",
    "Mask",
    "Rollout",
    "Scores",
    "Stream",
    "StreamRead",
    "attend",
    "attention_flow",
    "carry_rows",
    "closed_keys",
    "confidence",
    "cross_attend",
    "cross_confidence",
    "gradient_rollout_rows",
    "norm_rollout_rows",
    "rollout_rows",
    "row_entropy",
    "score_entropy",
    "score_logsumexp",
    "score_rollout",
    "stream_rollout",
    "trained_entropy",
    "value_norms",
]


def __getattr__(name: str) -> object:
    """Import the module of a public *name*; raise ``AttributeError`` for any other."""
    if name not in _HOMES:
        raise AttributeError(f"{__name__} has no {name!r}; choose one of {', '.join(__all__)}.")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
