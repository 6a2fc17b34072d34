"""``report``: performance and attention of a run."""

from typing import Final

BARS_DRAWN: Final = 1_000
"""Bars of a chart, the newest, where nobody says how many."""
