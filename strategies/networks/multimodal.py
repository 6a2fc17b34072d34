"""A network that encodes price, volume, time and covariates separately.

The columns of a row are parted by their names into modalities, and each has an encoder of its own.
A learnt attention over the modalities of one bar makes a single state of them, and a transformer
over a causal window follows, so that every row is answered as the rows before it alone would. The
rollout over bars times a bar's shares of its modalities says which bar was looked at, and what of
it. A further modality is a line of ``MODALITIES`` and columns that begin so.

The rule is docs/models.md, L58.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    ExplainedOutputs,
    Heads,
    Inner,
    LayerAttribution,
    Network,
    Outputs,
    WatchedBlocks,
)
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.keys import nearest

_VECTORS: Final = "vectors"
MODALITIES: Final[dict[str, tuple[str, ...]]] = {
    "volume": ("volume", "flow"),
    "time": ("hour_", "weekday_", "cycle_", "interval"),
    _VECTORS: ("vector_",),
    "price": ("",),
}
"""What the names of a modality's columns begin with; a column is of the first that fits."""
_UNUSED: Final = -1


@dataclass(frozen=True, slots=True)
class TradingConfig(keys.ReadKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``columns`` gives each feature's place in ``modalities``, -1 where it is not used; the names of
    the features tell it when a network is trained. Without it all are of the first modality.
    """

    features: keys.Features = 30
    dim: keys.Dim = 32
    layers: keys.Layers = 3
    heads: keys.Heads = 4
    window: Annotated[
        int,
        Meta(
            ge=1,
            le=keys.WINDOW_MAX,
            description="Bars that an answer sees; each layer sees an equal share.",
        ),
    ] = 193
    modalities: Annotated[
        tuple[str, ...],
        Meta(description="Modalities such as price, volume, time; empty: all that have a feature."),
    ] = ()
    columns: Annotated[
        tuple[Annotated[int, Meta(ge=-1, le=63)], ...],
        Meta(
            description="Place of each feature in modalities, -1 where unused; the schema tells.",
            max_length=4_096,
            extra_json_schema=keys.DERIVED,
        ),
    ] = ()
    horizons: keys.Horizons = (5, 30, 240)
    encoding: keys.Encoding = "rope"
    clock: keys.Clock = ()
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()
    risk: Annotated[
        bool, Meta(description="Also learn the tails of the return and the drawdown.")
    ] = True
    path: Annotated[bool, Meta(description="Also learn the path to each horizon, in quarters.")] = (
        True
    )
    runup: Annotated[
        bool,
        Meta(
            description="Also learn the largest rise, by which a short may lose on the way.",
            extra_json_schema=keys.NEWER,
        ),
    ] = False
    regimes: Annotated[
        int, Meta(ge=0, le=7, description="Regimes of the coming variance, 2 to 7; 0: none.")
    ] = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name in self.modalities:
            _require_known(name)
        if len(set(self.modalities)) < len(self.modalities):
            raise ConfigInvalid("architecture.modalities names one twice; name each once.")
        if self.columns and len(self.columns) != self.features:
            raise ConfigInvalid(
                f"architecture.columns has {len(self.columns)} entries for {self.features} "
                "features; give each feature its modality."
            )
        if self.columns and set(self.columns) - {_UNUSED} != set(range(len(self.modalities))):
            raise ConfigInvalid(
                "architecture.columns must give each of architecture.modalities a feature, by its "
                "place from 0, and -1 where a feature is not used."
            )
        if self.window <= self.layers:
            raise ConfigInvalid(
                f"architecture.window is {self.window} for {self.layers} layers; give each layer "
                "two bars."
            )
        if self.regimes == 1:
            raise ConfigInvalid(
                "architecture.regimes is 1, which tells nothing apart; take 2 to 7, or 0 for none."
            )
        self.trunk()

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on, at most."""
        return self.window

    @property
    def groups(self) -> dict[str, list[int]]:
        """The places of each modality's columns."""
        named = self.modalities or ("price",)
        of = self.columns or (0,) * self.features
        return {
            name: [place for place, number in enumerate(of) if number == at]
            for at, name in enumerate(named)
        }

    def trunk(self) -> FlashConfig:
        """Return the transformer over the bars' states."""
        return FlashConfig(
            features=self.dim,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            window=(self.window - 1) // self.layers + 1,
            horizons=self.horizons,
            encoding=self.encoding,
            clock=self.clock,
            interval_minutes=self.interval_minutes,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            allocation=self.allocation,
            quantiles=self.quantiles,
        )


def modality_of(column: str) -> str:
    """Return the modality that a feature of this name belongs to."""
    return next(name for name, begins in MODALITIES.items() if column.startswith(begins))


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return ``modalities`` and ``columns`` of features called *names*.

    Those that *section* names, or all that have a feature; raises ``ConfigInvalid`` for one that
    has none, and where vectors that a user gives are left out.
    """
    of = [modality_of(name) for name in names]
    chosen = list(section.get("modalities") or dict.fromkeys(of))
    for name in chosen:
        _require_known(name)
        if name not in of:
            given = ", give --covariates FILE" if name == _VECTORS else ""
            raise ConfigInvalid(
                f"No feature is of the modality {name}; leave it out{given}, or choose of "
                f"{', '.join(dict.fromkeys(of))}."
            )
    if _VECTORS in of and _VECTORS not in chosen:
        raise ConfigInvalid(
            "Covariates are given, and the modalities leave them out; name vectors as well, or "
            "give no file of them."
        )
    return {
        "modalities": chosen,
        "columns": [chosen.index(name) if name in chosen else _UNUSED for name in of],
    }


def _require_known(name: object) -> None:
    if name not in MODALITIES:
        raise ConfigInvalid(
            f"architecture.modalities names {shown(name)}{nearest(str(name), MODALITIES)}; name "
            "what there is."
        )


class Fused(NamedTuple):
    """One state a bar, and how much each modality has in it."""

    state: Tensor  # [batch, time, dim]
    shares: Tensor  # [batch, time, modality], the heads' mean; each bar's sum to 1


class ModalityFusion(nn.Module):
    """An encoder a modality, and attention of learnt queries over the modalities of each bar."""

    def __init__(self, config: TradingConfig) -> None:
        super().__init__()
        dim, groups = config.dim, config.groups
        for name, places in groups.items():
            if not places:
                raise ConfigInvalid(
                    f"architecture.columns gives the modality {name} no feature; use the card that "
                    "was written."
                )
        self.names = tuple(groups)
        self.heads = config.heads
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(len(places), dim), nn.GELU(), nn.Linear(dim, dim))
            for places in groups.values()
        )
        for at, places in enumerate(groups.values()):
            self.register_buffer(f"places_{at}", torch.tensor(places), persistent=False)
        # Without the norm and a query of length the scores hardly move, and with them the shares.
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim)
        self.query = nn.Parameter(torch.empty(self.heads, dim // self.heads))
        nn.init.normal_(self.query)

    def forward(self, x: Tensor) -> Fused:
        """Return the states of rows *x* [batch, time, features]."""
        encoded = torch.stack(
            [
                encoder(x.index_select(-1, self.get_buffer(f"places_{at}")))
                for at, encoder in enumerate(self.encoders)
            ],
            dim=-2,
        )  # [batch, time, modality, dim]
        key = self.key(self.norm(encoded)).unflatten(-1, (self.heads, -1))
        scores = (key * self.query).sum(-1) * self.query.shape[-1] ** -0.5
        wide = torch.promote_types(scores.dtype, torch.float32)
        shares = scores.to(wide).softmax(dim=-2)  # [batch, time, modality, head]
        value = encoded.unflatten(-1, (self.heads, -1))  # [batch, time, modality, head, dim]
        mixed = (shares[..., None].to(value.dtype) * value).sum(dim=-3)
        return Fused(mixed.flatten(-2), shares.mean(dim=-1))


class TradingNetwork(Network):
    """Rows of features in, one forecast a row out, by way of their modalities."""

    takes_any_length = True
    config: TradingConfig

    def __init__(self, config: TradingConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self.fusion = ModalityFusion(config)
        self.trunk = FlashNetwork(config.trunk())
        self.trunk.heads = Heads(
            config.dim,
            len(config.horizons),
            len(config.quantiles),
            allocation=config.allocation,
            risk=config.risk,
            regimes=config.regimes,
            path=config.path,
            runup=config.runup,
        )

    @property
    def further_heads(self) -> frozenset[str]:
        """The heads that its configuration adds."""
        config = self.config
        given = {"tails": config.risk, "drawdown": config.risk, "path": config.path}
        given["runup"] = config.runup
        given["regimes"] = config.regimes > 0
        return frozenset(name for name, is_given in given.items() if is_given)

    @property
    def answers_every_row(self) -> bool:
        """Whether one pass answers each row: it does, by the window of each layer."""
        return True

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast every row of *x* [batch, time, features] at int64 *positions* [.., time]."""
        return self.trunk(self.fusion(x).state, positions)

    def look(self, x: Tensor, positions: Tensor, *, half: bool = False) -> ExplainedOutputs:
        """Forecast one window *x* [1, time, features] and explain its last bar.

        ``parts`` are the modalities of each bar, the oldest bar first.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            fused: Fused = self.fusion(x)
        seen = self.trunk.look(fused.state, positions, half=half)
        return seen._replace(parts=self.shared(seen.rollout.weights[0, 0], fused.shares[0]))

    def shared(self, weights: Tensor, shares: Tensor) -> tuple[AttendedPart, ...]:
        """Return the *weights* of the newest bars [bar] parted by their *shares* [time, modality].

        A bar's state is the sum of its modalities' by these shares and of nothing else, so that a
        weight on the state is this much on each.
        """
        older = len(shares) - len(weights)
        by_bar = (weights[:, None] * shares[older:].to(weights.dtype)).tolist()
        return tuple(
            AttendedPart(1, older + bar, 1, share, name)
            for bar, own in enumerate(by_bar)
            for name, share in zip(self.fusion.names, own, strict=True)
        )

    def attribution_by_layer(
        self, x: Tensor, positions: Tensor, *, half: bool = False
    ) -> list[LayerAttribution]:
        """Attribute one window *x* [1, time, features] by each layer over the bars."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            fused: Fused = self.fusion(x)
        return self.trunk.attribution_by_layer(fused.state, positions, half=half)

    def inner(self, x: Tensor, positions: Tensor) -> Inner:
        """Return the transformer over the fused rows of one window."""
        with torch.no_grad():
            fused = self.fusion(x)
        return Inner(
            self.trunk,
            fused.state,
            positions,
            lambda weights: (weights, self.shared(weights, fused.shares[0])),
        )

    def watched_blocks(self) -> WatchedBlocks:
        """Return those of the transformer inside."""
        return self.trunk.watched_blocks()

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state = self.fusion(x).state
        yield "fusion", state
        yield from self.trunk.named_states(state)

    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give."""
        return self.trunk.content_free()


register(
    ModelKind(
        "trading",
        "an encoder for each modality of a bar, and a transformer over a causal window",
        read=TradingConfig.read,
        make=TradingNetwork,
        backend=lambda _: None,
        by_names=by_names,
        follows=("columns",),
        takes_covariates=True,
    )
)
