"""How a network's explanation is asked for: a method with its options.

``rollout`` with any of its options, rollout weighted by value norms or by gradients, and attention
flow: of every network that attends, over whole windows or by ProbSparse.

The rules are docs/attention.md, A17 and A21 to A23.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, cast

from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.attention.reads import NORMALISED, Fusion
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, DataInvalid

METHODS: Final[dict[str, tuple[str, ...]]] = {
    "rollout": ("residual_weight", "fusion", "head_weights", "discard_ratio", "start_layer"),
    "norm": ("residual_weight", "start_layer"),
    "gradient": ("residual_weight", "start_layer"),
    "flow": ("residual_weight", "head_weights"),
}
"""Each method with the options that it takes."""


@dataclass(frozen=True, slots=True)
class AttributionMethod:
    """A method with its options; by default the rollout that is stored with a decision."""

    method: str = "rollout"
    options: Rollout = PLAIN
    horizon: int | None = None
    """Bars ahead whose mean return a gradient is of; the first of a network that has no such."""

    def check(self) -> None:
        """Raise ``AttentionInvalid`` for no method, and for an option that it does not take."""
        if self.method not in METHODS:
            raise AttentionInvalid(
                f"There is no method {self.method!r}; choose one of {', '.join(METHODS)}."
            )
        if self.options.fusion in NORMALISED:
            raise AttentionInvalid(
                f"{self.options.fusion} is a method of its own; name it as the method."
            )
        for name in (one.name for one in fields(Rollout) if one.name != "horizon"):
            if name in METHODS[self.method]:
                continue
            if getattr(self.options, name) != getattr(PLAIN, name):
                able = ", ".join(one for one, takes in METHODS.items() if name in takes)
                raise AttentionInvalid(
                    f"The method {self.method} takes no {name.replace('_', ' ')}; leave it out, or "
                    f"choose {able}."
                )

    @property
    def rollout(self) -> Rollout:
        """The rollout that the method is; of flow, its options."""
        fusion = self.options.fusion
        if self.method in NORMALISED:
            fusion = cast("Fusion", self.method)
        return replace(self.options, fusion=fusion, horizon=self.horizon)


STORED: Final = AttributionMethod()
"""The explanation that is stored unless another is asked for."""


def refuse_way(way: AttributionMethod, kind: str) -> None:
    """Raise ``ConfigInvalid`` where a *way* is asked for of a model without attention."""
    if way != STORED:
        raise ConfigInvalid(
            f"A model of the kind {kind} has no attention to explain; take [model] explanation out."
        )


def head_weights(text: str) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Return the weights that *text* gives: a number a head, or such a list for each layer.

    Numbers stand between commas, lists between slashes. Raises ``DataInvalid`` where it is none.
    """
    try:
        layers = tuple(tuple(float(one) for one in layer.split(",")) for layer in text.split("/"))
    except ValueError:
        raise DataInvalid(
            f"The head weights are {text[:40]!r}; give one number a head, as 1,0,0,0, or such a "
            "list for each layer with / between them."
        ) from None
    if len({len(layer) for layer in layers}) > 1:
        raise DataInvalid("Head weights must give each layer as many numbers as it has heads.")
    return layers[0] if len(layers) == 1 else layers
