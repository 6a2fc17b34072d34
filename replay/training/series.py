"""The former name of ``tracepaper.replay.learning.splits``, which users' fits import."""

from tracepaper.replay.learning.splits import columns_of

__all__ = ["columns_of"]
