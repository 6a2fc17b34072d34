"""A transformer with a user's attention class, explained by the weights that the class returns.

The class returns the whole matrix of each head, so rollout and entropy are exact, at the cost of
one stored matrix per layer. Its weights are checked in every pass.

The rule is docs/own_models.md, N14.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Final

import torch
from msgspec import Meta
from torch import Tensor, nn

from tracepaper.strategies.api.model import ImportedClass, ModelKind, find_class, register
from tracepaper.strategies.attention.checks import ruled
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.reads import MatrixRead
from tracepaper.strategies.errors import (
    AttentionInvalid,
    CheckpointMismatch,
    ConfigInvalid,
    StrategyFailed,
)
from tracepaper.strategies.networks import keys
from tracepaper.strategies.networks.architecture import Trace
from tracepaper.strategies.networks.encodings import ENCODINGS
from tracepaper.strategies.networks.flash import (
    WITHOUT_SCORES,
    AttentionConfig,
    Block,
    BlockProjection,
    Transformer,
)
from tracepaper.strategies.networks.keys import one_of

WINDOW_MAX: Final = 2_048
"""The longest window in bars: each head stores the square of it."""
SUM_WITHIN: Final = 1e-4
"""The largest difference between the sum of a row's weights and 1."""
_TRIAL_SIZE: Final = (2, 12)  # windows and bars of the random trial of a class
_SEED: Final = 0


class AttentionMechanism(nn.Module):
    """Base class of your own attention; one object is made for each layer.

    ``forward(query, key)`` takes two tensors [batch, head, time, head_dim] and returns the weights
    [batch, head, time, time]: at least 0, 0 on later bars, and each row sums to 1. Its parameters
    are trained with the network's. A row may depend only on itself and the rows before it in its
    window.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        """Store the number of heads and the width of each."""
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the weights [batch, head, time, time]."""


class FadingAttention(AttentionMechanism):
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
class CustomConfig(AttentionConfig):
    """The architecture; it is stored in a model's card as ``[architecture]``.

    ``source_sha256`` is that of the class's source files: a changed class is another function.
    """

    layers: keys.Layers = 2
    window: Annotated[
        int, Meta(ge=1, le=WINDOW_MAX, description="Bars of the window, which each layer sees.")
    ] = 128
    encoding: keys.Encoding = "rope"
    norm: keys.Norm = "pre"
    mechanism: Annotated[str, Meta(description="Class of your own attention, module:Class.")] = ""
    source_sha256: Annotated[
        str, keys.derived("SHA-256 of that class's source files; training tells.")
    ] = ""

    RULES: ClassVar[tuple[keys.Rule, ...]] = (
        keys.EVEN_HEADS,
        one_of("encoding", ENCODINGS),
        one_of("norm", ("pre", "post")),
        WITHOUT_SCORES,
    )

    def imported_class(self) -> ImportedClass:
        """Find the class; raise ``ConfigInvalid``, or ``CheckpointMismatch`` if it changed."""
        if not self.mechanism:
            raise ConfigInvalid(
                "architecture.mechanism names no class; give it as module:Class, one that derives "
                "from tracepaper.AttentionMechanism."
            )
        user_class = find_class(self.mechanism)
        if not issubclass(user_class.made_of, AttentionMechanism):
            raise ConfigInvalid(
                f"architecture.mechanism '{self.mechanism}' is no tracepaper.AttentionMechanism; "
                "derive from it."
            )
        if self.source_sha256 not in {"", user_class.sha256}:
            raise CheckpointMismatch(
                f"The sources of {self.mechanism} have changed since the model was trained; "
                "restore them, or train again."
            )
        return user_class


def by_names(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the current hash of the class that *section* names."""
    del names
    return {
        "source_sha256": CustomConfig.read({**section, "source_sha256": ""}).imported_class().sha256
    }


class CustomNetwork(Transformer):
    """A window of feature rows in, the forecast of its last bar out."""

    config: CustomConfig
    in_float32: ClassVar[bool] = True

    def __init__(self, config: CustomConfig) -> None:
        super().__init__(config, Mask(), encoding=config.encoding)
        self._class = config.imported_class()
        self._is_tried = self._is_even = False
        self._say: Callable[[str], object] | None = None
        with self._class.guard():
            mechanisms = [
                self._class.made_of(config.heads, config.head_dim) for _ in range(config.layers)
            ]
            self.mechanisms = nn.ModuleList(mechanisms)
            self.mechanisms.train(self.training)

    def hold_by(self, say: Callable[[str], object]) -> None:
        """Answer NaN, which no gate passes, where the class fails; call *say* with the reason."""
        self._say = say

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        """Return the last layer's states; raise ``AttentionInvalid`` and ``StrategyFailed``.

        After ``hold_by`` a window on which the class fails has NaN states and even weights.
        """
        if not self._is_tried:
            self._try()
        try:
            return super().run(x, positions, trace)
        except (AttentionInvalid, StrategyFailed) as error:
            if self._say is None:
                raise
            self._say(str(error))
        if trace is not None:
            trace.reads.clear()
            trace.decided.clear()
        self._is_even = True
        try:
            return super().run(x, positions, trace) * torch.nan
        finally:
            self._is_even = False

    def attend(
        self, depth: int, block: Block, projected: BlockProjection, trace: Trace | None
    ) -> Tensor:
        """Return A·V with the weights of the class."""
        del block
        query, key, value = ruled(*projected)
        time = key.shape[2]
        if self._is_even:
            shares = torch.ones(time, time, dtype=query.dtype, device=query.device).tril()
            weights = (shares / shares.sum(dim=-1, keepdim=True)).expand(*query.shape[:2], -1, -1)
        else:
            weights = self._weights(self.mechanisms[depth], query, key)
        if trace is not None:
            shown = torch.ones(time, time, dtype=torch.bool, device=query.device).tril()
            trace.attend(MatrixRead(weights, shown))
        return weights @ value

    def _weights(self, mechanism: nn.Module, query: Tensor, key: Tensor) -> Tensor:
        """Return the weights of the class, checked."""
        with self._class.guard():
            given = mechanism(query, key)
        name, wanted = self.config.mechanism, [*query.shape[:3], key.shape[2]]
        if not isinstance(given, Tensor) or list(given.shape) != wanted:
            returned = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise AttentionInvalid(
                f"{name} returned {returned} for weights of {wanted}; return [batch, head, row, "
                "bar]."
            )
        if (given.dtype, given.layout, given.device) != (query.dtype, query.layout, query.device):
            raise AttentionInvalid(
                f"{name} returned weights of {given.dtype}, {given.layout} on {given.device}, and "
                f"queries are of {query.dtype}, {query.layout} on {query.device}; return the same."
            )
        if torch.compiler.is_compiling():
            return given
        weights = given.detach()
        faults = {
            "not finite": ~torch.isfinite(weights).all(),
            "below 0": (weights < 0).any(),
            "above 0 on bars later than their row": weights.triu(1).any(),
            "in rows that do not sum to 1": ((weights.sum(-1) - 1).abs() > SUM_WITHIN).any(),
        }
        for fault, is_faulty in faults.items():
            if bool(is_faulty):
                raise AttentionInvalid(
                    f"{name} returned weights that are {fault}; return each row's shares of itself "
                    "and the rows before it."
                )
        return given

    @torch.no_grad()
    def _try(self) -> None:
        """Raise ``AttentionInvalid`` if a row depends on later ones, other windows or chance."""
        was_training, (windows, time) = self.mechanisms.training, _TRIAL_SIZE
        shape = (windows, self.config.heads, time, self.config.dim // self.config.heads)
        draw = torch.Generator().manual_seed(_SEED)
        query, key, other = (torch.randn(shape, generator=draw).to(self.device) for _ in range(3))
        later = torch.arange(time, device=self.device)[:, None] >= time // 2
        another = torch.arange(windows, device=self.device)[:, None, None, None] > 0
        trials = {
            "when it is called again": (torch.zeros_like(later), 0.0),
            "where later rows differ": (later, SUM_WITHIN),
            "where another window of the batch differs": (another, SUM_WITHIN),
        }
        with torch.random.fork_rng(devices=[]):
            self.mechanisms.eval()
            try:
                for mechanism, (change, (changed, limit)) in product(
                    self.mechanisms, trials.items()
                ):
                    plain = self._weights(mechanism, query, key)
                    inputs = (torch.where(changed, other, x) for x in (query, key))
                    moved = (self._weights(mechanism, *inputs) - plain).abs()
                    if float(moved.masked_fill(changed, 0.0).max()) > limit:
                        raise AttentionInvalid(
                            f"{self.config.mechanism} gives a row other weights {change}; let it "
                            "depend on the queries and keys of its window up to its own row."
                        )
            finally:
                self.mechanisms.train(was_training)
        self._is_tried = True


register(
    ModelKind(
        "custom",
        "an attention of your own, module:Class, over whole windows",
        read=CustomConfig.read,
        make=CustomNetwork,
        backend=lambda _: "custom",
        by_names=by_names,
        follows=("source_sha256",),
    )
)
