"""The default network: a pre-norm transformer over a causal window, streaming by construction.

Read top to bottom: a block, blocks over one stream of tokens, the network. Each bar sees itself and
the ``window - 1`` bars before it in every layer, so a new bar can be computed from cached keys and
values, and the answer depends on ``layers * (window - 1) + 1`` bars: the receptive field. The same
code with ``mask = "full"`` attends over a whole window that ends now, and with ``mask = "causal"``
no bar of that window sees a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, NamedTuple

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
from tracepaper.strategies.networks.architecture import Network, Outputs, Trace, heads_of
from tracepaper.strategies.networks.encodings import (
    ENCODINGS,
    Phases,
    Sizes,
    clock_code,
    rotate,
    wrong_clock,
)
from tracepaper.strategies.networks.keys import Rule, nearest, one_of

_FEW_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class AttentionConfig(keys.NetworkConfig):
    """The keys that all attention networks over one symbol's bars share."""

    heads: keys.Heads = 4
    clock: keys.Clock = ()
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        Rule(lambda of: not wrong_clock(of.clock), lambda of: wrong_clock(of.clock)),
    )

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class FlashConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``volatility_gate`` names a feature, in ``volatility_column`` of a row: each head learns how
    much that of a bar scales the scores of the bar as a key.
    """

    window: keys.Window = 1088
    encoding: keys.Encoding = "rope"
    gated: Annotated[
        bool,
        Meta(description="Let each bar's state sharpen or soften its attention, a head at a time."),
    ] = False
    volatility_gate: Annotated[
        str,
        Meta(description="Feature of recent volatility that scales the attention to a bar."),
    ] = ""
    volatility_column: Annotated[
        int, keys.derived("Column of volatility_gate in a row; the schema tells.", ge=-1, le=4_095)
    ] = -1
    mlp: Annotated[str, Meta(description="Activation of the MLP: gelu or gated.")] = "gelu"
    norm: keys.Norm = "pre"
    mask: Annotated[
        str,
        Meta(description="Mask: window, which streams; over whole windows causal or full."),
    ] = "window"
    stochastic_depth: Annotated[
        float, Meta(ge=0, lt=1, description="Share of layers to skip while training.")
    ] = 0.0
    checkpointing: Annotated[bool, Meta(description="Recompute activations, to save memory.")] = (
        False
    )

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        one_of("encoding", ENCODINGS),
        one_of("mlp", ("gelu", "gated")),
        one_of("norm", ("pre", "post")),
        one_of("mask", ("window", "causal", "full")),
        Rule(
            lambda of: of.mask != "full" or not ENCODINGS[of.encoding].looks_back_only,
            "encoding {of.encoding} looks back only; use the window mask or rope",
        ),
        Rule(
            lambda of: of.volatility_column < (of.features if of.volatility_gate else 0),
            "volatility_column is {of.volatility_column}; name the feature: volatility_gate",
        ),
    )

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        return self.layers * (self.window - 1) + 1 if self.mask == "window" else self.window


class BlockOptions(NamedTuple):
    """The options of a block; a key that a configuration lacks has its default."""

    dim: int
    heads: int
    layers: int
    mlp_ratio: float
    dropout: float = 0.0
    norm: str = "pre"
    mlp: str = "gelu"  # empty: a block that attends alone
    gated: bool = False
    volatility_gate: str = ""
    stochastic_depth: float = 0.0

    @classmethod
    def of(cls, config: object) -> BlockOptions:
        """Read the options from any configuration."""
        return cls(**{key: getattr(config, key) for key in cls._fields if hasattr(config, key)})


class BlockProjection(NamedTuple):
    """Queries, keys and values of one block, ready for attention."""

    query: Tensor  # [batch, head, time, dim]
    key: Tensor
    value: Tensor


class FeedForward(nn.Module):
    """Two linear layers with a GELU, or three with a gate (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: BlockOptions) -> None:
        super().__init__()
        hidden = max(1, round(config.dim * config.mlp_ratio))
        self.gated = config.mlp == "gated"
        self.rise = nn.Linear(config.dim, 2 * hidden if self.gated else hidden)
        self.activation = nn.SiLU() if self.gated else FewRowsGelu()
        self.fall = nn.Linear(hidden, config.dim)

    @property
    def gated_rise(self) -> nn.Module | None:
        """The projection that gives both factors of a gated product."""
        return self.rise if self.gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, time, dim] to the same."""
        x = self.rise(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = self.activation(gate) * x
        else:
            x = self.activation(x)
        return self.fall(x)


class FewRowsGelu(nn.GELU):
    """The GELU, faster for a few rows.

    PyTorch passes contiguous tensors to oneDNN, whose set-up costs several times the work on a few
    rows. A batch of two with stride 0 avoids it, and PyTorch's own error is half of oneDNN's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the GELU of *x*."""
        rows = x.shape[:-1].numel()
        if x.requires_grad or len(x) > 1 or rows > _FEW_ROWS or x.device.type != "cpu":
            return functional.gelu(x)
        return functional.gelu(x.expand(2, *x.shape[1:]))[:1]


class Block(nn.Module):
    """One layer without its attention: ``project``, attend elsewhere, ``finish``."""

    def __init__(self, config: BlockOptions, depth: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.pre = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, 3 * config.dim)
        self.gate = nn.Linear(config.dim, config.heads) if config.gated else None
        self.key_gate = nn.Linear(1, config.heads) if config.volatility_gate else None
        self.project_out = nn.Linear(config.dim, config.dim)
        self.mlp_norm = nn.LayerNorm(config.dim) if config.mlp else None
        self.mlp = FeedForward(config) if config.mlp else None
        self.dropout = nn.Dropout(config.dropout)
        # Deeper layers are dropped more often (Huang et al., 2016).
        self.drop_rate = config.stochastic_depth * (depth + 1) / config.layers
        # Keep the residual stream's variance independent of depth (Radford et al., 2019).
        for layer in (self.project_out, *([] if self.mlp is None else [self.mlp.fall])):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5 / (2 * config.layers) ** 0.5)
        for gate in (self.gate, self.key_gate):
            if gate is not None:  # every factor begins at 1
                nn.init.zeros_(gate.weight)
                nn.init.zeros_(gate.bias)

    def project(self, x: Tensor, phases: Phases) -> BlockProjection:
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
        return BlockProjection(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for input *x* and *attended* [batch, head, time, dim]."""
        joined = attended.transpose(1, 2).flatten(2)  # [batch, time, head * dim]
        branch = self._drop(self.project_out(joined))
        x = x + branch if self.pre else self.attention_norm(x + branch)
        if self.mlp is None or self.mlp_norm is None:
            return x
        branch = self._drop(self.mlp(self.mlp_norm(x) if self.pre else x))
        return x + branch if self.pre else self.mlp_norm(x + branch)

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.dropout.training:  # passes with dropout set only the dropout to training
            return branch
        branch = self.dropout(branch)
        if self.drop_rate == 0.0 or not self.training:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_rate
        return branch * keep / (1.0 - self.drop_rate)


def _factors(gates: Tensor) -> Tensor:
    """Return the factors of *gates* [batch, time, head]: [batch, time, head, 1], 1 at 0."""
    return (2.0 * gates.sigmoid())[..., None]


def each_block(blocks: nn.ModuleList) -> Iterator[Block]:
    """Yield *blocks* in their order."""
    for block in blocks:
        assert isinstance(block, Block)
        yield block


def attend_by_block(
    block: Block,
    projected: BlockProjection,
    mask: Mask,
    trace: Trace | None,
    *,
    backend: str = "auto",
    content_dims: int | None = None,
    stream: str = "tokens",
    **place: bool,
) -> Tensor:
    """Return A·V [batch, head, time, dim] of softmax attention within one stream.

    Only *content_dims* leading dimensions hold content: the others carry a bias by age, and their
    values are zeros. *place* are options of ``Trace.attend``.
    """
    query, key, value = projected
    attended, logsumexp = attend(query, key, value, mask, backend=backend, checked=False)
    content = attended[..., :content_dims]
    if trace is not None:
        layer = Layer(
            query, key, value[..., :content_dims], logsumexp, mask, target=stream, source=stream,
            output_weight=block.project_out.weight, content_dims=content_dims,
        )  # fmt: skip
        trace.attend(layer, content, **place)
    return content


class Transformer(Network):
    """Blocks over one stream of tokens; a subclass defines the tokens and how they attend."""

    backend = "auto"  # of ``attend``

    def __init__(
        self,
        config: AttentionConfig,
        mask: Mask,
        *,
        encoding: str = "rope",
        columns: int | None = None,
        length: int | None = None,
        has_clock: bool = True,
    ) -> None:
        """Take *length* tokens of *columns* numbers; by default the rows of the window."""
        super().__init__(config)
        options = BlockOptions.of(config)
        self.mask = mask
        self.embed = nn.Linear(columns or config.features, config.dim)
        sizes = Sizes(config.dim, config.heads, length or config.window)
        self.encoding = ENCODINGS[encoding](sizes)
        self.clock = clock_code(
            config.dim, config.interval_minutes, config.clock if has_clock else ()
        )
        self.blocks = nn.ModuleList(Block(options, depth) for depth in range(config.layers))
        self.norm = nn.LayerNorm(config.dim) if options.norm == "pre" else nn.Identity()
        self.heads = heads_of(config)

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the last layer's states [batch, time, dim]."""
        state, phases = self.enter(x, positions)
        recompute = getattr(self.config, "checkpointing", False) and self.training
        for depth, block in enumerate(self.layers()):
            given = (depth, block, state, phases, trace)
            if recompute and trace is None:
                state = checkpoint(self.layer, *given, use_reentrant=False)
            else:
                state = self.layer(*given)
        return state

    def layers(self) -> Iterator[Block]:
        """Yield the layers, the first one first."""
        return each_block(self.blocks)

    def layer(
        self, depth: int, block: Block, state: Tensor, phases: Phases, trace: Trace | None
    ) -> Tensor:
        """Return the *state* above *block*."""
        projected = block.project(state, phases)
        wide = BlockProjection(*self.encoding.widen(*projected, phases.age))
        attended = self.attend(depth, block, wide, trace)
        return block.finish(state, attended.to(projected.value.dtype))

    def attend(
        self, depth: int, block: Block, projected: BlockProjection, trace: Trace | None
    ) -> Tensor:
        """Return A·V [batch, head, time, dim], and *trace* the read."""
        del depth
        dims = self.embed.out_features // block.heads
        return attend_by_block(
            block, projected, self.mask, trace, backend=self.backend, content_dims=dims
        )

    def enter(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Phases]:
        """Return the first state [batch, time, dim] and the phases of *positions* [.., time]."""
        state = self.encoding.enter(self.embed(x), positions)
        if self.clock is not None:
            state = state + self.clock(positions)
        # Phases depend on differences alone, which are equal in all windows of consecutive bars.
        return state, self.encoding.phases(positions if positions.ndim == 1 else positions[0])

    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give."""
        return self.encoding.content_free()


WITHOUT_SCORES: Final = Rule(
    lambda of: not ENCODINGS[of.encoding].has_bias,
    "encoding {of.encoding} adds to scores, which this attention lacks; use rope",
)
MASKS: Final = {"causal": Mask(), "full": Mask.full()}


class FlashNetwork(Transformer):
    """Rows of features in, one forecast per row out."""

    takes_any_length: ClassVar[bool] = True
    config: FlashConfig

    def __init__(self, config: FlashConfig) -> None:
        if config.volatility_gate and config.volatility_column < 0:
            raise ConfigInvalid(
                f"architecture.volatility_column is missing for {shown(config.volatility_gate)}; "
                "train with a recipe, which finds it, or set it."
            )
        super().__init__(
            config, MASKS.get(config.mask, Mask.window(config.window)), encoding=config.encoding
        )

    def attend_by(self, backend: str) -> bool:
        """Attend by the kernel *backend*."""
        self.backend = backend
        return True

    @property
    def answers_every_row(self) -> bool:
        """Whether its mask is a causal window of each row."""
        return self.config.mask == "window"

    def enter(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Phases]:
        """Return the first state, and the phases with the volatility that scales the scores."""
        state, phases = super().enter(x, positions)
        if self.config.volatility_gate:
            phases = phases._replace(volatility=x[..., self.config.volatility_column])
        return state, phases

    def states(self, x: Tensor) -> Tensor:
        """Return the last layer's states of *x* [batch, time, features]: [batch, time, dim].

        They are not normalised, so they keep the size of a row.
        """
        return self.run(x, self._placed(x, None), None)

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of the last layer's *state* [batch, time, dim]."""
        return self.heads(self.norm(state))


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the column of the ``volatility_gate`` of *section* among the features *names*.

    Raises ``ConfigInvalid`` if there is no such feature.
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
"""The backend of a stream: tiles of scores, which also give the explanation."""

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
