"""A transformer of linear attention, with exact explanations.

The attention matrices that its layers imply are row-stochastic, so a rollout explains the decided
bar in O(window). ``feature_map`` chooses the features in place of the softmax: ``elu``, or
``random`` ones that approximate it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from msgspec import Meta
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.linear import (
    attend_linearly,
    draw_directions,
    elu_features,
    random_features,
)
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import ENCODINGS
from tracepaper.strategies.networks.flash import (
    MASKS,
    WITHOUT_SCORES,
    AttentionConfig,
    Block,
    BlockProjection,
    Transformer,
)
from tracepaper.strategies.networks.keys import one_of

_DIRECTIONS: Final = "directions_{depth}"


@dataclass(frozen=True, slots=True)
class LinearConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``seed`` draws the random features, so it is part of the learned function.
    """

    window: keys.Window = 1088
    encoding: keys.Encoding = "rope"
    norm: keys.Norm = "pre"
    mask: Annotated[str, Meta(description="Mask: causal or full.")] = "causal"
    feature_map: Annotated[
        str, Meta(description="Features of queries and keys: elu, or random ones of the softmax.")
    ] = "elu"
    random_features: Annotated[
        int, Meta(ge=1, le=8_192, description="Random features of a head.")
    ] = 64
    seed: keys.DrawSeed = 0

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        one_of("feature_map", ("elu", "random")),
        one_of("mask", MASKS),
        one_of("norm", ("pre", "post")),
        keys.EVEN_HEADS,
        one_of("encoding", ENCODINGS),
        WITHOUT_SCORES,
    )


class LinearNetwork(Transformer):
    """A window of feature rows in, the forecast of its last bar out."""

    config: LinearConfig
    in_float32: ClassVar[bool] = True

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config, MASKS[config.mask], encoding=config.encoding)
        if config.feature_map == "random":
            sizes = (config.heads, config.head_dim, config.random_features)
            for depth in range(config.layers):
                drawn = draw_directions(*sizes, seed=config.seed + depth)
                self.register_buffer(_DIRECTIONS.format(depth=depth), drawn, persistent=False)

    def attend(
        self, depth: int, block: Block, projected: BlockProjection, trace: Trace | None
    ) -> Tensor:
        """Return A·V from the features of queries and keys."""
        del block
        query, key, value = projected
        if self.config.feature_map == "elu":
            query, key = elu_features(query), elu_features(key)
        else:
            query, key = random_features(
                query, key, self.get_buffer(_DIRECTIONS.format(depth=depth))
            )
        attended, read = attend_linearly(query, key, value, self.mask)
        if trace is not None:
            trace.attend(read)
        return attended


register(
    ModelKind(
        "linear",
        "linear attention over whole windows, by features of queries and keys",
        read=LinearConfig.read,
        make=LinearNetwork,
        backend=lambda _: "sums",
    )
)
