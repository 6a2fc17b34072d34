"""Where one decision looked by a method of one's choice, beside what was stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tracepaper.replay.explain.asked import TypedMethod
from tracepaper.replay.explain.recomputed import (
    FullAttribution,
    Past,
    attribute,
    rank_correlation,
)
from tracepaper.strategies.attention.rollout import RolloutOptions, check_plain_options
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.attributing import Probe
from tracepaper.strategies.networks.looked import Way, head_weights


def way_of(asked: TypedMethod, stored: Way) -> Way:
    """Return the method with its options; what was not given is as *stored* has it.

    The options of another method than that which was stored begin with their defaults. Raises
    ``DataInvalid`` for weights that are none.
    """
    method = asked.method or stored.method
    given = {
        "head_fusion": asked.fusion,
        "residual_weight": asked.residual,
        "start_layer": asked.start_layer,
        "discard_ratio": asked.discard,
        "head_weights": None if asked.head_weights is None else head_weights(asked.head_weights),
    }
    options: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    base = stored.options if method == stored.method else RolloutOptions()
    return Way(method, replace(base, **options))


def check_asked(asked: TypedMethod) -> None:
    """Raise ``ConfigInvalid`` for what is no method, no option, or no option of that method."""
    try:
        way = way_of(asked, Way())
        check_plain_options(way.options)
        if asked.method is not None:
            way.check()
    except (AttentionInvalid, DataInvalid) as error:
        raise ConfigInvalid(str(error)) from None


@dataclass(frozen=True)
class ByMethod:
    """One decision by one method; the weights of its bars, oldest first, sum to 1.

    ``rank_correlation`` is Spearman's with the stored explanation over the same past bars,
    ``common`` the share of the weight that both give to the same bars, over all bars.
    """

    method: str
    options: dict[str, Any]
    attribution: FullAttribution
    rank_correlation: float | None
    common: float


def explain_by(past: Past, asked: TypedMethod) -> ByMethod:
    """Return where the decision looked as *asked*; raise ``AttentionInvalid`` if that cannot be."""
    horizon = past.forecast.horizons[past.horizon_index]
    way = replace(way_of(asked, past.forecaster.way), horizon=horizon)
    way.check()
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
