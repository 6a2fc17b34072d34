"""Edges of attention, a decided bar at a time: the page draws where each head looked from it.

A view after BertViz (Vig, 2019, arXiv:1906.05714): the decided bars above, what they looked at
below, one colour a head, the stronger the line the larger the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tracepaper.replay.report.html import Markup, element, json_in_script
from tracepaper.replay.report.record import Floats

CELLS: Final = 64
"""Cells of the bars that are looked at, the further back the wider."""
WIDTH: Final = 960
HEIGHT: Final = 330
SCALE: Final = 10_000
"""Shares are sent as whole parts of so many."""


@dataclass(frozen=True)
class Edges:
    """What each decided bar's heads looked at; cells count back from the newest bar."""

    firsts: tuple[int, ...]  # [cell] bars back of its newest bar
    bars: int  # bars back of the oldest one, and one
    shares: Floats  # [layer, head, decision, cell], the oldest decision first; a row sums to 1


def edges_of(by_age: Floats) -> Edges:
    """Return the edges of *by_age* [layer, head, decision, age], the oldest decision first."""
    layers, heads, decisions, ages = by_age.shape
    back = np.zeros((layers, heads, decisions, ages + decisions - 1))
    for decision in range(decisions):
        later = decisions - 1 - decision  # bars that came after it
        back[:, :, decision, later : later + ages] = by_age[:, :, decision]
    bars = back.shape[-1]
    firsts = np.unique(np.geomspace(1, bars + 1, CELLS + 1).astype(np.int64))[:-1] - 1
    return Edges(tuple(firsts.tolist()), bars, np.add.reduceat(back, firsts, axis=-1))


def edges_view(edges: Edges, open_time_ms: Sequence[int]) -> Markup:
    """Return the view; *open_time_ms* are those of the decided bars, oldest first.

    The page's script draws it, and draws it anew on hovering over a bar.
    """
    document = {
        "firsts": edges.firsts,
        "bars": edges.bars,
        "scale": SCALE,
        "times": [int(time) for time in open_time_ms],
        "shares": np.round(edges.shares * SCALE).astype(int).tolist(),
    }
    drawing = Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="edges of attention"></svg>'
    )
    return element(
        "div",
        element("p", class_="edges-layers"),
        drawing,
        element("p", class_="note edges-said"),
        element("script", json_in_script(document), type="application/json"),
        class_="edges",
    )
