"""A network that encodes price, volume, time, order books and covariates separately.

The names of columns assign them to modalities, and each modality has an encoder; that of an order
book mixes groups of its levels in the same way. Learnt attention over the modalities of a bar
combines them into one state, and a transformer over a causal window follows, so that every row's
answer depends on it and the rows before it alone. The rollout over bars times a bar's shares of its
modalities explains which bars, and which modality of them, had weight. A new modality needs a line
in ``MODALITIES`` and columns with its prefix.

The rule is docs/models.md, L58.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies import book_features
from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.attention.checks import ruled
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import (
    AttendedPart,
    Network,
    Outputs,
    Trace,
    heads_of,
)
from tracepaper.strategies.networks.encodings import ENCODINGS
from tracepaper.strategies.networks.flash import AttentionConfig, Transformer
from tracepaper.strategies.networks.keys import Rule, nearest, one_of

_VECTORS: Final = "vectors"
_BOOK: Final = "book"
_GIVEN: Final = {_VECTORS: "--covariates", _BOOK: "--depth"}
"""The modalities whose columns come from files, and the option for these files."""
MODALITIES: Final[dict[str, tuple[str, ...]]] = {
    "volume": ("volume", "flow"),
    "time": ("hour_", "weekday_", "cycle_", "interval"),
    _VECTORS: ("vector_",),
    _BOOK: (book_features.PREFIX,),
    "price": ("",),
}
"""The prefixes of each modality's columns; a column belongs to the first modality that fits."""
_UNUSED: Final = -1


@dataclass(frozen=True, slots=True)
class TradingConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``columns`` gives each feature's place in ``modalities``, -1 if it is not used; training finds
    it from the names of the features. Without it all features are of the first modality.
    """

    dim: keys.Dim = 32
    layers: keys.Layers = 3
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
        keys.derived(
            "Place of each feature in modalities, -1 where unused; the schema tells.",
            max_length=4_096,
        ),
    ] = ()
    levels: Annotated[
        tuple[str, ...],
        keys.derived(
            "Group of levels of each feature of an order book; the schema tells.", max_length=4_096
        ),
    ] = ()
    encoding: keys.Encoding = "rope"
    risk: Annotated[
        bool, Meta(description="Also learn the tails of the return and the drawdown.")
    ] = True
    path: Annotated[bool, Meta(description="Also learn the path to each horizon, in quarters.")] = (
        True
    )
    runup: Annotated[
        bool,
        Meta(description="Also learn the largest rise, by which a short may lose on the way."),
    ] = False
    regimes: Annotated[
        int, Meta(ge=0, le=7, description="Regimes of the coming variance, 2 to 7; 0: none.")
    ] = 3

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        one_of("encoding", ENCODINGS),
        Rule(
            lambda of: not any(map(_unknown, of.modalities)),
            lambda of: next(filter(None, map(_unknown, of.modalities)), ""),
        ),
        Rule(
            lambda of: len(set(of.modalities)) == len(of.modalities),
            "modalities names one twice; name each once",
        ),
        Rule(
            lambda of: not of.columns or len(of.columns) == of.features,
            "columns must have an entry for each of {of.features} features: its modality",
        ),
        Rule(
            lambda of: (
                not of.columns or set(of.columns) - {_UNUSED} == set(range(len(of.modalities)))
            ),
            "columns must give each of architecture.modalities a feature, by its place from 0, and "
            "-1 where a feature is not used",
        ),
        Rule(
            lambda of: (
                [name >= 0 and of.modalities[name] == _BOOK for name in of.columns]
                == [bool(group) for group in of.levels or (of.columns and [""] * len(of.columns))]
            ),
            "levels must name a group of levels for each feature of the modality book, and for no "
            "other; use the card that was written",
        ),
        Rule(
            lambda of: of.window > of.layers,
            "window is {of.window} for {of.layers} layers; give each layer two bars",
        ),
        Rule(
            lambda of: of.regimes != 1,
            "regimes is 1, which distinguishes nothing; set 2 to 7, or 0 for none",
        ),
    )

    @property
    def groups(self) -> dict[str, list[int]]:
        """The places of each modality's columns."""
        named = self.modalities or ("price",)
        numbers = self.columns or (0,) * self.features
        return {
            name: [place for place, number in enumerate(numbers) if number == at]
            for at, name in enumerate(named)
        }

    @property
    def level_groups(self) -> dict[str, list[int]]:
        """The places of each group of an order book's levels."""
        names = dict.fromkeys(filter(None, self.levels))
        return {
            name: [place for place, group in enumerate(self.levels) if group == name]
            for name in names
        }


def modality_of(column: str) -> str:
    """Return the modality of a feature of this name."""
    return next(name for name, begins in MODALITIES.items() if column.startswith(begins))


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return ``modalities``, ``columns`` and ``levels`` for the features *names*.

    The modalities are those of *section*, or all that have a feature. Raises ``ConfigInvalid`` for
    one without features, and if they leave out covariates or order books that a user gives.
    """
    by_feature = [modality_of(name) for name in names]
    chosen = list(section.get("modalities") or dict.fromkeys(by_feature))
    for name in chosen:
        if wrong := _unknown(name):
            raise ConfigInvalid(f"architecture.{wrong}.")
        if name not in by_feature:
            given = f", give {_GIVEN[name]} FILE" if name in _GIVEN else ""
            raise ConfigInvalid(
                f"No feature is of the modality {name}; leave it out{given}, or choose from "
                f"{', '.join(dict.fromkeys(by_feature))}."
            )
    for name, option in _GIVEN.items():
        if name in by_feature and name not in chosen:
            raise ConfigInvalid(
                f"{option} is given, and the modalities leave it out; name {name} as well, or "
                f"leave {option} out."
            )
    levels = [book_features.group_of(name) for name in names]
    return {
        "modalities": chosen,
        "columns": [chosen.index(name) if name in chosen else _UNUSED for name in by_feature],
        "levels": levels if any(levels) else [],
    }


def _unknown(name: object) -> str:
    """Return the fault of the modality *name*, to follow ``architecture.``; empty for none."""
    if name in MODALITIES:
        return ""
    return f"modalities names {shown(name)}{nearest(str(name), MODALITIES)}; use a known one"


class FusedState(NamedTuple):
    """One state per bar, and the share of each modality in it."""

    state: Tensor  # [batch, time, dim]
    shares: Tensor  # [batch, time, modality], the heads' mean; each bar's sum to 1
    by_head: Tensor  # [batch, time, modality, head]
    levels: Tensor | None = None
    """[batch, time, group]: each group of levels' part of the order book's share."""


class ModalityFusion(nn.Module):
    """An encoder per modality, and attention of learnt queries over the modalities of each bar.

    *groups* are the places of each modality's columns, *levels* those of each group of an order
    book's levels, whose encoder is another such fusion.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[int]],
        levels: Mapping[str, Sequence[int]],
        *,
        dim: int,
        heads: int,
    ) -> None:
        super().__init__()
        for name, places in groups.items():
            if not places:
                raise ConfigInvalid(
                    f"architecture.columns gives the modality {name} no feature; use the card that "
                    "was written."
                )
        self.names = tuple(groups)
        self.levels = tuple(levels)
        self.heads = heads
        self.encoders = nn.ModuleList(
            ModalityFusion(levels, {}, dim=dim, heads=heads)
            if levels and name == _BOOK
            else nn.Sequential(nn.Linear(len(places), dim), nn.GELU(), nn.Linear(dim, dim))
            for name, places in groups.items()
        )
        for at, places in enumerate(groups.values()):
            self.register_buffer(f"places_{at}", torch.tensor(places), persistent=False)
        # Without the norm and queries of this size, scores and shares would hardly change.
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim)
        self.query = nn.Parameter(torch.empty(self.heads, dim // self.heads))
        nn.init.normal_(self.query)

    def forward(self, x: Tensor) -> FusedState:
        """Return the states of rows *x* [batch, time, features]."""
        states: list[Tensor] = []
        inside: FusedState | None = None  # of the order book
        for at, (name, encoder) in enumerate(zip(self.names, self.encoders, strict=True)):
            if self.levels and name == _BOOK:
                book: FusedState = encoder(x)
                states.append(book.state)
                inside = book
            else:
                states.append(encoder(x.index_select(-1, self.get_buffer(f"places_{at}"))))
        encoded = torch.stack(states, dim=-2)  # [batch, time, modality, dim]
        _, given, encoded = ruled(encoded, encoded, encoded)
        key = self.key(self.norm(given)).unflatten(-1, (self.heads, -1))
        scores = (key * self.query).sum(-1) * self.query.shape[-1] ** -0.5
        wide = torch.promote_types(scores.dtype, torch.float32)
        shares = scores.to(wide).softmax(dim=-2)  # [batch, time, modality, head]
        value = encoded.unflatten(-1, (self.heads, -1))  # [batch, time, modality, head, dim]
        mixed = (shares[..., None].to(value.dtype) * value).sum(dim=-3)
        levels = None
        if inside is not None:
            # A head has the same columns in both fusions, so its shares multiply.
            book_shares = shares[..., self.names.index(_BOOK), :]
            levels = (book_shares[..., None, :] * inside.by_head).mean(dim=-1)
        return FusedState(mixed.flatten(-2), shares.mean(dim=-1), shares, levels)


class TradingNetwork(Network):
    """Rows of features in, one forecast per row out, by way of their modalities."""

    takes_any_length: ClassVar[bool] = True
    config: TradingConfig

    def __init__(self, config: TradingConfig) -> None:
        super().__init__(config)
        self.fusion = ModalityFusion(
            config.groups, config.level_groups, dim=config.dim, heads=config.heads
        )
        reach = (config.window - 1) // config.layers + 1  # of each layer
        self.trunk = Transformer(
            config, Mask.window(reach), encoding=config.encoding, columns=config.dim, length=reach
        )
        self.trunk.heads = heads_of(
            config,
            risk=config.risk,
            regimes=config.regimes,
            path=config.path,
            runup=config.runup,
        )

    @property
    def auxiliary_heads(self) -> frozenset[str]:
        """The heads that its configuration adds."""
        config = self.config
        given = {"tails": config.risk, "drawdown": config.risk, "path": config.path}
        given |= {"runup": config.runup, "regimes": config.regimes > 0}
        return frozenset(name for name, is_given in given.items() if is_given)

    @property
    def answers_every_row(self) -> bool:
        """Whether one pass answers each row: yes, by the causal window of each layer."""
        return True

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the states of the rows; the explained parts are each row's modalities."""
        fused: FusedState = self.fusion(x)
        if trace is not None:
            trace.to_bars = lambda weights: (
                weights["tokens"],
                self.shared(weights["tokens"][0], fused),
            )
        return self.trunk.run(fused.state, positions, trace)

    def read_out(self, state: Tensor) -> Outputs:
        """Return the heads' outputs of every row."""
        return self.trunk.heads(self.trunk.norm(state))

    def shared(self, weights: Tensor, fused: FusedState) -> tuple[AttendedPart, ...]:
        """Return the *weights* of the newest bars [bar] split by the shares in *fused*.

        A bar's state is exactly the sum of its modalities by these shares, so its weight splits the
        same way; that of an order book, by its groups of levels.
        """
        names = [(name, "") for name in self.fusion.names]
        shares = fused.shares[0]
        if fused.levels is not None:
            at = self.fusion.names.index(_BOOK)
            names[at : at + 1] = [(_BOOK, group) for group in self.fusion.levels]
            shares = torch.cat([shares[:, :at], fused.levels[0], shares[:, at + 1 :]], dim=-1)
        older = len(shares) - len(weights)
        by_bar = (weights[:, None] * shares[older:].to(weights.dtype)).tolist()
        return tuple(
            AttendedPart(1, older + bar, 1, share, *name)
            for bar, row in enumerate(by_bar)
            for name, share in zip(names, row, strict=True)
        )

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
        follows=("columns", "levels"),
        takes_covariates=True,
    )
)
