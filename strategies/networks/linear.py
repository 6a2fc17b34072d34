"""A transformer of linear attention, with exact explanations.

The matrices that its layers imply are row-stochastic, so the rollout says where the decided bar
looked in O(window). Which features stand for the softmax is ``feature_map``: ``elu``, or ``random``
ones that approximate it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import torch
from msgspec import Meta
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.linear import (
    LinearLayer,
    LinearRead,
    attend_linearly,
    draw_directions,
    elu_features,
    random_features,
)
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    Network,
    Outputs,
    Trace,
    last_bar,
    plain_bars,
)
from tracepaper.strategies.networks.encodings import Phases
from tracepaper.strategies.networks.flash import Block, FlashConfig, FlashNetwork

_FEATURE_MAPS: Final = ("elu", "random")
_MASKS: Final = {"full": Mask.full(), "causal": Mask()}
_OWN: Final = ("feature_map", "random_features", "seed")
_DIRECTIONS: Final = "directions_{depth}"


@dataclass(frozen=True, slots=True)
class LinearConfig(keys.WindowKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``seed`` draws the random features: it belongs to the function that was learned.
    """

    features: keys.Features = 78
    dim: keys.Dim = 64
    layers: keys.Layers = 4
    heads: keys.Heads = 4
    window: keys.Window = 1088
    horizons: keys.Horizons = (5, 30, 240)
    encoding: keys.Encoding = "rope"
    clock: keys.Clock = ()
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    norm: keys.Norm = "pre"
    mask: Annotated[str, Meta(description="Mask: causal or full.")] = "causal"
    feature_map: Annotated[
        str, Meta(description="Features of queries and keys: elu, or random ones of the softmax.")
    ] = "elu"
    random_features: Annotated[
        int, Meta(ge=1, le=8_192, description="Random features of a head.")
    ] = 64
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()
    seed: keys.DrawSeed = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        if self.feature_map not in _FEATURE_MAPS:
            raise ConfigInvalid(
                f"architecture.feature_map is {shown(self.feature_map)}; choose one of "
                f"{', '.join(_FEATURE_MAPS)}."
            )
        if self.mask not in _MASKS:
            raise ConfigInvalid(
                f"architecture.mask is {shown(self.mask)}; linear attention takes full or causal."
            )
        if self.encoding == "alibi":
            raise ConfigInvalid(
                "architecture.encoding alibi adds to scores, and linear attention has none; use "
                "rope."
            )
        self.trunk()

    def trunk(self) -> FlashConfig:
        """Return all of it but the attention; raise ``ConfigInvalid`` where it cannot be."""
        return FlashConfig(**{name: v for name, v in asdict(self).items() if name not in _OWN})


class LinearNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: LinearConfig
    in_float32 = True

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.mask = _MASKS[config.mask]
        self.trunk = FlashNetwork(config.trunk())
        if config.feature_map == "random":
            head_dim = config.dim // config.heads
            for depth in range(config.layers):
                drawn = draw_directions(
                    config.heads, head_dim, config.random_features, seed=config.seed + depth
                )
                self.register_buffer(_DIRECTIONS.format(depth=depth), drawn, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* [.., window] are absolute bar numbers.
        """
        return self._read_out(self._run(x, positions, None))

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it."""
        layers: list[LinearLayer] = []
        outputs = self._read_out(self._run(x, positions, layers))
        reads = [
            LinearRead(layer, self.mask, layer=depth, step=depth)
            for depth, layer in enumerate(layers)
        ]
        start = last_bar(layers[0].normaliser, x.shape[1])
        last = (x.shape[1] - 1,)
        return Trace(outputs, [*reads], start, [], plain_bars, [(read, last) for read in reads])

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state, phases = self.trunk.enter(x, torch.arange(x.shape[1], device=x.device))
        yield "embed", state
        for depth, block in enumerate(self.trunk.layers()):
            state, _ = self._layer(depth, block, state, phases)
            yield f"blocks.{depth}", state
        for name, output in self._read_out(state)._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def _run(self, x: Tensor, positions: Tensor | None, kept: list[LinearLayer] | None) -> Tensor:
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        state, phases = self.trunk.enter(x, positions)
        for depth, block in enumerate(self.trunk.layers()):
            state, layer = self._layer(depth, block, state, phases)
            if kept is not None:
                kept.append(layer)
        return state

    def _layer(
        self, depth: int, block: Block, state: Tensor, phases: Phases
    ) -> tuple[Tensor, LinearLayer]:
        """Return the state after block *depth*, and what it attended with."""
        query, key, value = block.project(state, phases)
        if self.config.feature_map == "elu":
            query, key = elu_features(query), elu_features(key)
        else:
            drawn = self.get_buffer(_DIRECTIONS.format(depth=depth))
            query, key = random_features(query, key, drawn)
        read, layer = attend_linearly(query, key, value, self.mask)
        return block.finish(state, read), layer

    def _read_out(self, state: Tensor) -> Outputs:
        return self.trunk.read_out(state[:, -1:])


register(
    ModelKind(
        "linear",
        "linear attention over whole windows, by features of queries and keys",
        read=LinearConfig.read,
        make=LinearNetwork,
        backend=lambda _: "sums",
    )
)
