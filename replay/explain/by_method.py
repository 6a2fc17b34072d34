"""Where one decision looked by a method of one's choice, beside the rollout that was stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tracepaper.replay.explain.asked import TypedMethod
from tracepaper.replay.explain.recomputed import (
    FullAttribution,
    Past,
    attribute,
    rank_correlation,
)
from tracepaper.strategies.attention.rollout import RolloutOptions
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attributing import Probe
from tracepaper.strategies.networks.looked import Way


def way_of(asked: TypedMethod) -> Way:
    """Return the method with its options; raise ``DataInvalid`` for weights that are none."""
    given = {
        "head_fusion": asked.fusion,
        "residual_weight": asked.residual,
        "start_layer": asked.start_layer,
        "discard_ratio": asked.discard,
        "head_weights": None if asked.head_weights is None else _weights(asked.head_weights),
    }
    options: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    return Way(asked.method or "rollout", RolloutOptions(**options))


def _weights(text: str) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    try:
        layers = tuple(tuple(float(one) for one in layer.split(",")) for layer in text.split("/"))
    except ValueError:
        raise DataInvalid(
            f"--head-weights is {text[:40]!r}; give one number a head, as 1,0,0,0, or such a list "
            "for each layer with / between them."
        ) from None
    if len({len(layer) for layer in layers}) > 1:
        raise DataInvalid("--head-weights must give each layer as many numbers; it has heads.")
    return layers[0] if len(layers) == 1 else layers


@dataclass(frozen=True)
class ByMethod:
    """One decision by one method; the weights of its bars, oldest first, sum to 1.

    ``rank_correlation`` is Spearman's with the stored rollout's weights over the same past bars,
    ``common`` the share of the weight that both give to the same bars, over all bars.
    """

    method: str
    options: dict[str, Any]
    attribution: FullAttribution
    rank_correlation: float | None
    common: float


def explain_by(past: Past, way: Way) -> ByMethod:
    """Return where the decision looked by *way*; raise ``AttentionInvalid`` where it cannot be."""
    way.check()
    horizon = past.forecast.horizons[past.horizon_index]
    found = Probe(past.forecaster, past.bars, horizon=horizon).looked(way)
    usual = attribute(past)
    weights = found.weights[0, 0].double().numpy()
    same = np.array(usual.weights[-len(weights) :])
    bars = past.bars[-len(weights) :]
    return ByMethod(
        way.method,
        {name: value for name, value in asdict(way.options).items() if name != "scale"},
        FullAttribution(
            tuple(bar.open_time_ms for bar in bars),
            tuple(bar.close / 10**past.price_decimals for bar in bars),
            tuple(weights.tolist()),
            float(found.l1_error[0, 0]),
            None,
        ),
        rank_correlation(weights[:-1], same[:-1]),
        float(np.minimum(weights, same).sum()),
    )
