"""The default network: a pre-norm transformer over a causal window, streaming by construction.

Read top to bottom: configuration, a block, the network. Each bar sees itself and the ``window - 1``
bars before it in every layer, so a new bar can be computed from cached keys and values, and the
answer depends on ``layers * (window - 1) + 1`` bars: the receptive field. The same code with
``mask = "full"`` is the classic form over a window that ends now, and with ``mask = "causal"`` that
of a decoder, in which no bar of that window sees a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    Heads,
    Network,
    Outputs,
    Trace,
    last_bar,
    plain_bars,
)
from tracepaper.strategies.networks.encodings import (
    ENCODINGS,
    Phases,
    Sizes,
    check_clocks,
    clock_code,
    rotate,
)
from tracepaper.strategies.networks.keys import WINDOW_MAX, nearest

_CHOICES: Final = {
    "mlp": ("gelu", "gated"),
    "norm": ("pre", "post"),
    "mask": ("window", "causal", "full"),
}
_POSITIVE: Final = ("features", "dim", "layers", "heads", "window", "interval_minutes")
_MASKS: Final[dict[str, Callable[[FlashConfig], Mask]]] = {
    "window": lambda config: Mask.window(config.window),
    "causal": lambda _: Mask(),
    "full": lambda _: Mask.full(),
}
_FEW_ROWS: Final = 16
_RATES: Final = ("dropout", "stochastic_depth")


@dataclass(frozen=True, slots=True)
class FlashConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``volatility_gate`` names a feature, in ``volatility_column`` of a row: each head learns how
    much that of a bar scales the scores of the bar as a key.
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
    gated: Annotated[
        bool,
        Meta(description="Let each bar's state sharpen or soften its attention, a head at a time."),
    ] = False
    volatility_gate: Annotated[
        str,
        Meta(description="Feature of recent volatility that scales the attention to a bar."),
    ] = ""
    volatility_column: Annotated[
        int,
        Meta(
            ge=-1,
            le=4_095,
            description="Column of volatility_gate in a row; the schema tells.",
            extra_json_schema=keys.DERIVED,
        ),
    ] = -1
    mlp: Annotated[str, Meta(description="Activation of the MLP: gelu or gated.")] = "gelu"
    mlp_ratio: keys.MlpRatio = 4.0
    norm: keys.Norm = "pre"
    mask: Annotated[
        str,
        Meta(description="Mask: window, which streams; over whole windows causal or full."),
    ] = "window"
    dropout: keys.Dropout = 0.0
    stochastic_depth: Annotated[
        float, Meta(ge=0, lt=1, description="Share of layers to skip while training.")
    ] = 0.0
    checkpointing: Annotated[bool, Meta(description="Recompute activations, to save memory.")] = (
        False
    )
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name, choices in ({"encoding": tuple(ENCODINGS)} | _CHOICES).items():
            if (value := getattr(self, name)) not in choices:
                raise ConfigInvalid(
                    f"architecture.{name} is {shown(value)}; choose one of {', '.join(choices)}."
                )
        for name in _POSITIVE:
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"architecture.{name} is {value}; it must be at least 1.")
        for name in _RATES:
            if not 0.0 <= (value := getattr(self, name)) < 1.0:
                raise ConfigInvalid(
                    f"architecture.{name} is {value}; it must be at least 0 and below 1."
                )
        for broken, sentence in self._rules():
            if broken:
                raise ConfigInvalid(f"architecture.{sentence}.")
        check_clocks(self.clock)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """Return the rules that join fields: whether each is broken, and what to do then."""
        return (
            (
                self.window > WINDOW_MAX,
                f"window is {self.window}; it must be at most {WINDOW_MAX}",
            ),
            (
                self.dim % self.heads != 0 or self.dim // self.heads % 2 != 0,
                f"dim is {self.dim} for {self.heads} heads; give each an equal, even share",
            ),
            (
                not self.horizons or min(self.horizons) < 1,
                "horizons must list at least one number of bars",
            ),
            (
                ENCODINGS[self.encoding].looks_back_only and self.mask == "full",
                f"encoding {self.encoding} looks back only; use the window mask or rope",
            ),
            (
                self.volatility_column >= self.features
                or (self.volatility_column >= 0 and not self.volatility_gate),
                f"volatility_column is {self.volatility_column}; name the feature: volatility_gate",
            ),
            (
                any(a >= b for a, b in pairwise((0.0, *self.quantiles, 1.0))),
                "quantiles must ascend between 0 and 1",
            ),
        )

    @property
    def sees(self) -> Mask:
        """What a bar sees in each layer."""
        return _MASKS[self.mask](self)

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.dim // self.heads

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        return self.layers * (self.window - 1) + 1 if self.mask == "window" else self.window


class Projected(NamedTuple):
    """Queries, keys and values of one block, ready for attention."""

    query: Tensor  # [batch, head, time, dim]
    key: Tensor
    value: Tensor


class FeedForward(nn.Module):
    """Two linear layers with a GELU, or three with a gate (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        hidden = max(1, round(config.dim * config.mlp_ratio))
        self.gated = config.mlp == "gated"
        self.rise = nn.Linear(config.dim, 2 * hidden if self.gated else hidden)
        self.fall = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to the same."""
        x = self.rise(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = functional.silu(gate) * x
        else:
            x = _gelu(x)
        return self.fall(x)


def _gelu(x: Tensor) -> Tensor:
    """Return the GELU of *x*.

    PyTorch hands a contiguous tensor to oneDNN, whose set-up costs several times what a few rows
    do, so these are shown twice by a stride of 0. The error of its own is half of oneDNN's.
    """
    rows = x.shape[:-1].numel()
    if x.requires_grad or len(x) > 1 or rows > _FEW_ROWS or x.device.type != "cpu":
        return functional.gelu(x)
    return functional.gelu(x.expand(2, *x.shape[1:]))[:1]


class Block(nn.Module):
    """One layer, cut where attention stands: ``project``, attend elsewhere, ``finish``."""

    def __init__(self, config: FlashConfig, depth: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.pre = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, 3 * config.dim)
        self.gate = nn.Linear(config.dim, config.heads) if config.gated else None
        self.key_gate = nn.Linear(1, config.heads) if config.volatility_gate else None
        self.project_out = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        # Deeper layers are dropped more often (Huang et al., 2016).
        self.drop_rate = config.stochastic_depth * (depth + 1) / config.layers
        # Keep the residual stream's variance independent of depth (Radford et al., 2019).
        for layer in (self.project_out, self.mlp.fall):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5 / (2 * config.layers) ** 0.5)
        for gate in (self.gate, self.key_gate):
            if gate is not None:  # every temperature begins at 1
                nn.init.zeros_(gate.weight)
                nn.init.zeros_(gate.bias)

    def project(self, x: Tensor, phases: Phases) -> Projected:
        """Return this layer's queries, keys and values of *x* [batch, time, dim]."""
        given = self.attention_norm(x) if self.pre else x
        mixed: Tensor = self.project_in(given)
        mixed = mixed.unflatten(-1, (3, self.heads, -1))  # [batch, time, 3, head, dim]
        if phases.cosine is None or phases.sine is None:
            query, key, value = mixed.unbind(2)
        else:
            query, key = rotate(mixed[:, :, :2], phases.cosine, phases.sine).unbind(2)
            value = mixed[:, :, 2]
        if self.gate is not None:
            query = query * _factors(self.gate(given))
        if self.key_gate is not None and phases.volatility is not None:
            key = key * _factors(self.key_gate(phases.volatility[..., None]))
        # [batch, time, head, dim] -> [batch, head, time, dim]
        return Projected(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for input *x* and *attended* [batch, head, time, dim]."""
        joined = attended.transpose(1, 2).flatten(2)  # [batch, time, head * dim]
        branch = self._drop(self.project_out(joined))
        x = x + branch if self.pre else self.attention_norm(x + branch)
        branch = self._drop(self.mlp(self.mlp_norm(x) if self.pre else x))
        return x + branch if self.pre else self.mlp_norm(x + branch)

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.dropout.training:  # passes with dropout leave the block itself in evaluation
            return branch
        branch = self.dropout(branch)
        if self.drop_rate == 0.0 or not self.training:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_rate
        return branch * keep / (1.0 - self.drop_rate)


def _factors(gates: Tensor) -> Tensor:
    """Return the factors of *gates* [batch, time, head]: [batch, time, head, 1], 1 at 0."""
    return (2.0 * gates.sigmoid())[..., None]


class FlashNetwork(Network):
    """Rows of features in, one forecast a row out."""

    takes_any_length = True
    config: FlashConfig

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        if config.volatility_gate and config.volatility_column < 0:
            raise ConfigInvalid(
                f"architecture.volatility_column is missing for {shown(config.volatility_gate)}; "
                "train by a recipe, which finds it, or give it."
            )
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.backend = "auto"  # of ``attend``
        self.mask = config.sees
        self.embed = nn.Linear(config.features, config.dim)
        self.encoding = ENCODINGS[config.encoding](Sizes(config.dim, config.heads, config.window))
        self.clock = clock_code(config.dim, config.interval_minutes, config.clock)
        self.blocks = nn.ModuleList(Block(config, depth) for depth in range(config.layers))
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.heads = Heads(
            config.dim,
            len(config.horizons),
            len(config.quantiles),
            allocation=config.allocation,
        )

    def attend_by(self, backend: str) -> bool:
        """Attend by the kernel *backend*."""
        self.backend = backend
        return True

    @property
    def answers_every_row(self) -> bool:
        """Whether its mask is a causal window of each row."""
        return self.config.mask == "window"

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast every row of *x* [batch, time, features] at int64 *positions*.

        These are [time], or [batch, time] of consecutive bars.
        """
        return self.read_out(self._run(x, positions, None))

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it."""
        traced: list[tuple[Layer, Tensor]] = []
        outputs = self.read_out(self._run(x, positions, traced))
        reads, attended = [layer for layer, _ in traced], [read for _, read in traced]
        last = (x.shape[1] - 1,)
        return Trace(
            outputs,
            [*reads],
            last_bar(reads[0].logsumexp, x.shape[1]),
            attended,
            plain_bars,
            [(layer, last) for layer in reads],
        )

    def states(self, x: Tensor) -> Tensor:
        """Return the last layer's states of *x* [batch, time, features]: [batch, time, dim].

        They are those before the last norm, so how large a row is still shows in them.
        """
        return self._run(x, None, None)

    def _run(
        self, x: Tensor, positions: Tensor | None, traced: list[tuple[Layer, Tensor]] | None
    ) -> Tensor:
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        state, phases = self.enter(x, positions)
        for block in self.layers():
            if self.config.checkpointing and self.training and traced is None:
                state = checkpoint(self._layer, block, state, phases, None, use_reentrant=False)
            else:
                state = self._layer(block, state, phases, traced)
        return state

    def layers(self) -> Iterator[Block]:
        """Yield the layers, the first one first."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _layer(
        self, block: Block, state: Tensor, phases: Phases, traced: list[tuple[Layer, Tensor]] | None
    ) -> Tensor:
        query, key, value = self.widen(block.project(state, phases), phases.age)
        attended, logsumexp = attend(
            query, key, value, self.mask, backend=self.backend, checked=False
        )
        read = attended[..., : self.config.head_dim]
        if traced is not None:
            # What a bias by age adds to the values is nothing, and no gradient reaches it.
            own = value[..., : self.config.head_dim]
            layer = Layer(
                query, key, own, logsumexp, self.mask,
                output_weight=block.project_out.weight, content_dims=self.config.head_dim,
                layer=len(traced), step=len(traced),
            )  # fmt: skip
            traced.append((layer, read))
        return block.finish(state, read)

    def enter(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Phases]:
        """Return the first state [batch, time, dim] and the phases of *positions* [.., time]."""
        state = self.encoding.enter(self.embed(x), positions)
        if self.clock is not None:
            state = state + self.clock(positions)
        # Differences alone matter to phases, and those of consecutive bars are alike in every row.
        phases = self.encoding.phases(positions if positions.ndim == 1 else positions[0])
        if self.config.volatility_gate:
            phases = phases._replace(volatility=x[..., self.config.volatility_column])
        return state, phases

    def widen(self, projected: Projected, age: Tensor | None) -> Projected:
        """Return the tensors with the dimensions that carry a bias by *age* [time], if there is."""
        if age is None:
            return projected
        return Projected(
            self.encoding.widen_query(projected.query, age),
            self.encoding.widen_key(projected.key, age),
            self.encoding.widen_value(projected.value),
        )

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of the last layer's *state* [batch, time, dim]."""
        return self.heads(self.norm(state))

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state, phases = self.enter(x, torch.arange(x.shape[1], device=x.device))
        yield "embed", state
        for depth, block in enumerate(self.layers()):
            state = self._layer(block, state, phases, None)
            yield f"blocks.{depth}", state
        for name, output in self.read_out(state)._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give."""
        return self.encoding.content_free()


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the column of the volatility that *section* gates by, of features called *names*.

    Raises ``ConfigInvalid`` where none is called so.
    """
    name = section.get("volatility_gate", "")
    if not name:
        return {}
    if name not in names:
        raise ConfigInvalid(
            f"No feature is called {shown(name)}{nearest(str(name), names)}; name one by "
            "volatility_gate."
        )
    return {"volatility_column": list(names).index(name)}


TILES: Final = "tiles"
"""What attends in a stream: each tile's scores are there, and give its explanation as well."""

register(
    ModelKind(
        "flash",
        "a transformer over a causal window, streaming; or over whole windows",
        read=FlashConfig.read,
        make=FlashNetwork,
        backend=lambda config: TILES if config.mask == "window" else None,
        by_names=by_names,
    )
)
