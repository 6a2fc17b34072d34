"""A transformer whose attention is a user's own class, explained by the weights that it gives.

The class gives the whole matrix of each head, so the rollout and the entropy are those of what was
computed, at the cost of a stored matrix a layer. Its weights are checked in every pass.

The rule is docs/own_models.md, N14.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import OWN_CLASSES, FoundClass, ModelKind, register
from tracepaper.strategies.attention.reads import MatrixRead
from tracepaper.strategies.errors import (
    AttentionInvalid,
    CheckpointMismatch,
    ConfigInvalid,
    StrategyFailed,
)
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

WINDOW_MAX: Final = 2_048
"""Bars of a window at most: each head stores as many weights as its square."""
SUM_WITHIN: Final = 1e-4
"""What the weights of a row may miss of 1."""
_OWN: Final = ("mechanism", "source_sha256")
_DRAWN: Final = (2, 12)  # windows and bars of the draw that a class is tried on
_SEED: Final = 0

Attention = Callable[[Tensor, Tensor], Tensor]
"""Queries and keys [batch, head, time, head_dim] → weights [batch, head, row, bar]."""


class AttentionMechanism(nn.Module):
    """Derive from it to give a network an attention of your own; made once for each layer.

    ``forward(query, key)`` takes [batch, head, time, head_dim] each and returns the weights
    [batch, head, time, time]: how much each row takes of each bar, at least 0, 1 in sum, and
    nothing of a later bar. It may have parameters, which are learnt with the network's. Each
    window, and each row, must depend on nothing but itself and the rows before.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        """Keep the number of heads and the width of one."""
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the weights [batch, head, time, time]."""


class Fading(AttentionMechanism):
    """An example: sigmoids of scaled dot products that fade with age, at a rate a head learns."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, head_dim)
        self.rate = nn.Parameter(torch.linspace(-4.0, -2.0, heads))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return each row's sigmoids times exp(-rate · age), divided by their sum."""
        at = torch.arange(key.shape[2], device=key.device)
        age = (at[:, None] - at).clamp_min(0)
        fading = torch.exp(-self.rate.exp()[:, None, None] * age)
        weights = (torch.sigmoid(query @ key.mT * self.head_dim**-0.5) * fading).tril()
        return weights / weights.sum(dim=-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class OwnConfig(keys.WindowKeys):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``source_sha256`` is that of the class's source files: another class is another function.
    """

    features: keys.Features = 78
    dim: keys.Dim = 64
    layers: keys.Layers = 2
    heads: keys.Heads = 4
    window: Annotated[
        int, Meta(ge=1, le=WINDOW_MAX, description="Bars of the window, which each layer sees.")
    ] = 128
    horizons: keys.Horizons = (5, 30, 240)
    encoding: keys.Encoding = "rope"
    clock: keys.Clock = ()
    interval_minutes: keys.IntervalMinutes = 1
    mlp_ratio: keys.MlpRatio = 4.0
    norm: keys.Norm = "pre"
    mechanism: Annotated[str, Meta(description="Class of your own attention, module:Class.")] = ""
    source_sha256: Annotated[
        str,
        Meta(
            description="SHA-256 of that class's source files; training tells.",
            extra_json_schema=keys.DERIVED,
        ),
    ] = ""
    dropout: keys.Dropout = 0.0
    allocation: keys.Allocation = False
    quantiles: keys.Quantiles = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        if self.encoding == "alibi":
            raise ConfigInvalid(
                "architecture.encoding alibi adds to scores, and a mechanism of your own is not "
                "asked for scores; use rope."
            )
        self.trunk()

    def trunk(self) -> FlashConfig:
        """Return all of it but the attention; raise ``ConfigInvalid`` where it cannot be."""
        kept = {name: value for name, value in asdict(self).items() if name not in _OWN}
        return FlashConfig(**kept, mask="causal")

    def found(self) -> FoundClass:
        """Find the class; raise ``ConfigInvalid``, or ``CheckpointMismatch`` where it changed."""
        if not self.mechanism:
            raise ConfigInvalid(
                "architecture.mechanism names no class; give it as module:Class, one that derives "
                "from tracepaper.AttentionMechanism."
            )
        own = OWN_CLASSES.find(self.mechanism)
        if not issubclass(own.made_of, AttentionMechanism):
            raise ConfigInvalid(
                f"architecture.mechanism '{self.mechanism}' is no tracepaper.AttentionMechanism; "
                "derive from it."
            )
        if self.source_sha256 not in {"", own.sha256}:
            raise CheckpointMismatch(
                f"The sources of {self.mechanism} have changed since the model was trained; "
                "restore them, or train again."
            )
        return own


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the hash of the class that *section* names, as it is now."""
    del names
    return {"source_sha256": OwnConfig.read({**section, "source_sha256": ""}).found().sha256}


class OwnNetwork(Network):
    """A window of feature rows in, the forecast of its last bar out."""

    config: OwnConfig
    in_float32 = True

    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        # Set here alone, so that a narrower type than the base's is safe.
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]
        self._own = config.found()
        self._tried = False
        self._say: Callable[[str], object] | None = None
        self.trunk = FlashNetwork(config.trunk())
        with self._own.guard():
            made = [
                self._own.made_of(config.heads, config.dim // config.heads)
                for _ in range(config.layers)
            ]
            self.mechanisms = nn.ModuleList(made)
            self.mechanisms.train(self.training)

    def hold_by(self, say: Callable[[str], object]) -> None:
        """Answer NaN, which no gate lets pass, where the class fails; tell *say* why."""
        self._say = say

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        """Forecast the last bar of each window *x* [batch, window, features]: [batch, 1, ...].

        *positions* [.., window] are absolute bar numbers. Raises ``AttentionInvalid`` where the
        class gives no weights, and ``StrategyFailed`` where it fails.
        """
        return self._passed(x, positions)[0]

    def trace(self, x: Tensor, positions: Tensor | None = None) -> Trace:
        """Forecast as ``forward`` does, and return what explains it.

        Of a window that the class failed on the weights are even, and the forecast is NaN.
        """
        outputs, weights = self._passed(x, positions)
        time = x.shape[1]
        shown = torch.ones(time, time, dtype=torch.bool, device=x.device).tril()
        reads = [
            MatrixRead(matrices, shown, layer=depth, step=depth)
            for depth, matrices in enumerate(weights)
        ]
        start = last_bar(weights[0][:, 0, 0], time)
        return Trace(
            outputs, [*reads], start, [], plain_bars, [(read, (time - 1,)) for read in reads]
        )

    def _passed(self, x: Tensor, positions: Tensor | None) -> tuple[Outputs, list[Tensor]]:
        """Return the forecast and each layer's weights [batch, head, row, key]."""
        if not self._tried:
            self._try()
        try:
            state, weights = self._run(x, positions, self.mechanisms)
        except (AttentionInvalid, StrategyFailed) as error:
            if self._say is None:
                raise
            self._say(str(error))
            state, weights = self._run(x, positions, [_even] * self.config.layers)
            state = state * torch.nan
        return self._read_out(state), weights

    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""
        state, phases = self.trunk.enter(x, torch.arange(x.shape[1], device=x.device))
        yield "embed", state
        for depth, block in enumerate(self.trunk.layers()):
            state, _ = self._layer(self.mechanisms[depth], block, state, phases)
            yield f"blocks.{depth}", state
        for name, output in self._read_out(state)._asdict().items():
            if output is not None:
                yield f"heads.{name}", output

    def _run(
        self, x: Tensor, positions: Tensor | None, mechanisms: Iterable[Attention]
    ) -> tuple[Tensor, list[Tensor]]:
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        state, phases = self.trunk.enter(x, positions)
        every = []
        for mechanism, block in zip(mechanisms, self.trunk.layers(), strict=True):
            state, weights = self._layer(mechanism, block, state, phases)
            every.append(weights)
        return state, every

    def _layer(
        self,
        mechanism: Attention,
        block: Block,
        state: Tensor,
        phases: Phases,
    ) -> tuple[Tensor, Tensor]:
        """Return the state after *block*, and the weights that it attended with."""
        query, key, value = block.project(state, phases)
        weights = self._weights(mechanism, query, key)
        return block.finish(state, weights @ value), weights

    def _weights(self, mechanism: Attention, query: Tensor, key: Tensor) -> Tensor:
        """Return the weights that the class gives, checked."""
        with self._own.guard():
            given = mechanism(query, key)
        name, wanted = self.config.mechanism, [*query.shape[:3], key.shape[2]]
        if not isinstance(given, Tensor) or list(given.shape) != wanted:
            found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise AttentionInvalid(
                f"{name} returned {found} for weights of {wanted}; return [batch, head, row, bar]."
            )
        if (given.dtype, given.layout, given.device) != (query.dtype, query.layout, query.device):
            raise AttentionInvalid(
                f"{name} returned weights of {given.dtype}, {given.layout} on {given.device}, and "
                f"queries are of {query.dtype}, {query.layout} on {query.device}; return the same."
            )
        if torch.compiler.is_compiling():
            return given
        seen = given.detach()
        if not bool(torch.isfinite(seen).all()):
            raise AttentionInvalid(f"{name} returned weights that are not finite; mend it.")
        if bool((seen < 0).any()):
            raise AttentionInvalid(f"{name} returned weights below 0; return shares.")
        if bool(seen.triu(1).any()):
            raise AttentionInvalid(
                f"{name} gave weight to bars that are later than their row; give them 0."
            )
        missed = float((seen.sum(dim=-1) - 1).abs().max())
        if missed > SUM_WITHIN:
            raise AttentionInvalid(
                f"{name} returned a row of weights whose sum misses 1 by {missed:.2g}; divide each "
                "row by its sum."
            )
        return given

    @torch.no_grad()
    def _try(self) -> None:
        """Raise ``AttentionInvalid`` where a row depends on later ones, other windows or chance."""
        name, was = self.config.mechanism, self.mechanisms.training
        windows, time = _DRAWN
        shape = (windows, self.config.heads, time, self.config.dim // self.config.heads)
        draw = torch.Generator().manual_seed(_SEED)
        query, key, other = (torch.randn(shape, generator=draw).to(self.device) for _ in range(3))
        at = time // 2
        later = [torch.cat((one[..., :at, :], other[..., at:, :]), dim=2) for one in (query, key)]
        beside = [torch.cat((one[:1], other[1:])) for one in (query, key)]
        with torch.random.fork_rng(devices=[]):
            self.mechanisms.eval()
            try:
                for mechanism in self.mechanisms:
                    plain = self._weights(mechanism, query, key)
                    if not torch.equal(plain, self._weights(mechanism, query, key)):
                        raise AttentionInvalid(
                            f"{name} gives other weights when it is asked again; make it depend on "
                            "queries and keys alone."
                        )
                    moved = self._weights(mechanism, *later)[..., :at, :] - plain[..., :at, :]
                    if float(moved.abs().max()) > SUM_WITHIN:
                        raise AttentionInvalid(
                            f"{name} gives a row other weights where later rows differ; let it "
                            "depend on the rows up to its own."
                        )
                    moved = self._weights(mechanism, *beside)[0] - plain[0]
                    if float(moved.abs().max()) > SUM_WITHIN:
                        raise AttentionInvalid(
                            f"{name} gives a window other weights where another one of the batch "
                            "differs; let it depend on its own window."
                        )
            finally:
                self.mechanisms.train(was)
        self._tried = True

    def _read_out(self, state: Tensor) -> Outputs:
        return self.trunk.read_out(state[:, -1:])


def _even(query: Tensor, key: Tensor) -> Tensor:
    """Return equal weights of each row's own bar and all before it."""
    time = key.shape[2]
    shares = torch.ones(time, time, dtype=query.dtype, device=query.device).tril()
    return (shares / shares.sum(dim=-1, keepdim=True)).expand(*query.shape[:2], time, time)


register(
    ModelKind(
        "own",
        "an attention of your own, module:Class, over whole windows",
        read=OwnConfig.read,
        make=OwnNetwork,
        backend=lambda _: "own",
        by_names=by_names,
        follows=("source_sha256",),
    )
)
