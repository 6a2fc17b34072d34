"""``report``: performance and attention of a run."""

from typing import Final

BARS_DRAWN: Final = 1_000
"""Newest bars in a chart, by default."""
