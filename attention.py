"""Attention, rollout and entropy of any transformer: ``from tracepaper.attention import capture``.

The names are those of ``strategies/attention``; docs/attention.md shows them at work.
"""

from tracepaper.strategies.attention import *  # noqa: F403 - all its public names
