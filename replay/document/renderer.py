"""The one match over the kinds of layers: each surface declares a function for every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, assert_never

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    ChartPanel,
    EdgeLayer,
    FlowLayer,
    HeatLayer,
    Layer,
    LineLayer,
    MarkLayer,
    RuleLayer,
)

Surface = TypeVar("Surface")
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, kw_only=True)
class Renderer(Generic[Surface, Drawn]):
    """How one surface draws each kind of layer in its panel.

    A new kind of layer is a type error here, and then in each renderer, until all can draw it.
    """

    line: Callable[[Surface, ChartPanel, LineLayer], Drawn]
    band: Callable[[Surface, ChartPanel, BandLayer], Drawn]
    bars: Callable[[Surface, ChartPanel, BarLayer], Drawn]
    marks: Callable[[Surface, ChartPanel, MarkLayer], Drawn]
    rule: Callable[[Surface, ChartPanel, RuleLayer], Drawn]
    heat: Callable[[Surface, ChartPanel, HeatLayer], Drawn]
    edges: Callable[[Surface, ChartPanel, EdgeLayer], Drawn]
    flow: Callable[[Surface, ChartPanel, FlowLayer], Drawn]

    def draw(  # noqa: PLR0911 - one for each kind
        self, surface: Surface, panel: ChartPanel, layer: Layer
    ) -> Drawn:
        """Draw *layer* of *panel* on *surface*."""
        match layer:
            case LineLayer():
                return self.line(surface, panel, layer)
            case BandLayer():
                return self.band(surface, panel, layer)
            case BarLayer():
                return self.bars(surface, panel, layer)
            case MarkLayer():
                return self.marks(surface, panel, layer)
            case RuleLayer():
                return self.rule(surface, panel, layer)
            case HeatLayer():
                return self.heat(surface, panel, layer)
            case EdgeLayer():
                return self.edges(surface, panel, layer)
            case FlowLayer():
                return self.flow(surface, panel, layer)
            case _:
                assert_never(layer)
