"""What every kind of network tells and offers, and the check of a card's ``[architecture]``.

A kind is registered in its own module, which need not be named anywhere else: cards, forecasters,
``doctor`` and error messages find it here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tracepaper.strategies import books
from tracepaper.strategies.attention.rollout import Rollout
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken, shown
from tracepaper.strategies.networks.heads import Outputs

WINDOW_MAX: Final = 65_536
_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "features": (1, 4_096),
    "dim": (2, 8_192),
    "layers": (1, 256),
    "levels": (1, 1_000),
    "heads": (1, 256),
    "window": (1, WINDOW_MAX),
    "interval_minutes": (1, 100_800),
    "factor": (1, 20),
    "factors": (0, 32),
    "random_features": (1, 8_192),
    "mlp_ratio": (0.01, 64),
    "horizons": (1, 1_000_000),
    "frames": (1, WINDOW_MAX),
    "tokens": (1, WINDOW_MAX),
    "blocks": (0, WINDOW_MAX),
    "columns": (-1, 63),
    "volatility_column": (-1, 4_095),
    "regimes": (0, 7),
    "quantiles": (0, 1),
    "every": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}
"""What a card may ask for: beyond it a number is a slip, and would fill the memory or hang."""
_TEXTS: Final = ("clock", "modalities")
_WHOLE: Final = ("horizons", "frames", "tokens", "blocks", "columns")
_ITEMS_MAX: Final = 64
_ITEMS: Final = {"columns": 4_096}  # one for each feature


def checked_section(made_of: type[Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a card's ``[architecture]`` for the dataclass *made_of*, as tuples.

    Raises ``ConfigInvalid`` for an unknown key, a value of another kind than the default's, and
    a number outside its limits.
    """
    kinds = {field.name: field.default for field in fields(made_of)}
    if unknown := sorted(set(section) - set(kinds)):
        raise ConfigInvalid(
            f"architecture.{unknown[0]} is unknown{nearest(unknown[0], kinds)}; remove it or use a "
            "newer version."
        )
    return {name: _checked(name, value, kinds[name]) for name, value in section.items()}


def nearest(name: str, known: Collection[str]) -> str:
    """Return words that name what of *known* is like *name*; all of it where nothing is."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f", the nearest is {near[0]}" if near else f" (known are {', '.join(known)})"


def _checked(name: str, value: object, default: object) -> object:
    """Return *value* as the kind of *default*; raise ``ConfigInvalid`` where it is another."""
    if isinstance(default, tuple):
        most = _ITEMS.get(name, _ITEMS_MAX)
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ConfigInvalid(f"architecture.{name} must be a list of at most {most:,} entries.")
        if name in _TEXTS:
            return tuple(_text(name, item) for item in value)
        like = 1 if name in _WHOLE else 1.0
        return tuple(_number(name, item, like) for item in value)
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            kind = "true or false" if isinstance(default, bool) else "text"
            raise ConfigInvalid(f"architecture.{name} must be {kind}.")
        return value
    assert isinstance(default, int | float)
    return _number(name, value, default)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigInvalid(f"architecture.{name} must be a list of names.")
    return value


def _number(name: str, value: object, like: float) -> float:
    """Return a number of the kind of *like* within the limits of *name*."""
    low, high = _LIMITS.get(name, (0, 1))
    kinds = (int,) if isinstance(like, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise ConfigInvalid(f"architecture.{name} must be {kind} from {low:g} to {high:g}.")
    return value


class Architecture(Protocol):
    """What every network's configuration tells, whatever else it holds."""

    @property
    def features(self) -> int:
        """Columns of a row."""
        ...

    @property
    def dim(self) -> int:
        """The width of the network."""
        ...

    @property
    def layers(self) -> int:
        """Layers, of attention or of another kind."""
        ...

    @property
    def window(self) -> int:
        """Bars that one layer sees."""
        ...

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        ...

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead that are forecast."""
        ...


class LookedAt(NamedTuple):
    """A share of where a bar looked: some rows that the network saw as one, or a part of a row."""

    frame: int  # bars that make one of its time frame
    start: int  # its first row's place in the window
    rows: int
    share: float
    modality: str = ""  # of its columns, where a network tells them apart


class Look(NamedTuple):
    """What a network says of one window, and where the decided bar looked."""

    outputs: Outputs  # [1, 1, ...]: of the last bar
    rollout: Rollout  # weights [1, 1, window], oldest bar first
    confidence: Tensor  # [layer, head]
    parts: tuple[LookedAt, ...] = ()
    """What it saw instead of single rows, where a network sees other than these; they sum to 1."""


class LayerLook(NamedTuple):
    """What one layer of attention did in one pass over a window."""

    rows: Tensor  # [head, bar]: where each head looked from the decided bar, oldest bar first
    age: Tensor  # [position] of what the layer gave: how many bars old its newest bar is
    carry: Callable[[Tensor], Tensor]
    """Row weights [row, position] on what the layer gave → on what it took in, oldest first."""


class Network(nn.Module):
    """A network of this package: rows of features in, forecasts with their explanation out."""

    config: Architecture
    takes_any_length: ClassVar[bool] = False
    """Whether it takes fewer rows than its window: else only whole windows."""
    has_attention: ClassVar[bool] = True
    """Whether ``look`` tells where it looked; without it no gate of entropy, shift or regime is."""
    rows_a_pass: ClassVar[int | None] = None
    """Rows of single windows that one pass learns from on the CPU; None for a whole batch.

    What a pass keeps for the gradient then fits the caches, and its memory is used again.
    """

    @property
    def further_heads(self) -> frozenset[str]:
        """The heads beyond those that every network has, which are learnt from their own labels."""
        return frozenset()

    @property
    def answers_every_row(self) -> bool:
        """Whether one pass answers each of many rows as the rows before it alone would.

        Elsewhere a pass is one window, and what it says of the last row is the only answer.
        """
        return False

    def look(self, x: Tensor, positions: Tensor, *, half: bool = False) -> Look:
        """Forecast one window *x* [1, window, features] and explain its last bar.

        *positions* int64 [window] are absolute bar numbers; *half* multiplies in bfloat16. No
        attention matrix is stored. Raises ``InvariantBroken`` of a network without attention.
        """
        del x, positions, half
        raise InvariantBroken(f"{type(self).__name__} has no attention; ask it for its forecast.")

    def look_by_layer(self, x: Tensor, positions: Tensor, *, half: bool = False) -> list[LayerLook]:
        """Return what each layer of attention does with one window, the lowest first.

        Arguments and errors are those of ``look``; carried down all layers, the decided bar
        becomes its rollout.
        """
        del x, positions, half
        raise InvariantBroken(f"{type(self).__name__} has no attention; ask it for its forecast.")

    @abstractmethod
    def named_states(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each stage's name and output for *x* [batch, time, features], first to last."""

    @abstractmethod
    def content_free(self) -> float:
        """Return the confidence over a full window that mask and encoding alone give."""

    def dropping(self) -> list[nn.Module]:
        """Return the modules that drop numbers at random while training; empty where none does."""
        kinds = (nn.Dropout, nn.LSTM)
        return [one for one in self.modules() if isinstance(one, kinds) and _rate(one) > 0]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device


def _rate(module: nn.Dropout | nn.LSTM) -> float:
    """Return the share of numbers that *module* drops while training."""
    return module.p if isinstance(module, nn.Dropout) else module.dropout


@dataclass(frozen=True, slots=True)
class NetworkKind:
    """A kind of network, by the name that a card gives as ``[model] kind``."""

    name: str
    read: Callable[[dict[str, Any]], Any]
    """A card's ``[architecture]`` → its configuration; raises ``ConfigInvalid``."""
    make: Callable[[Any], Network]
    """A configuration → the network, untrained."""
    backend: Callable[[Any], str | None]
    """What attends, by name, where it is the network's own; None where a kernel does."""
    words: str = ""
    """What it is, for ``tracepaper train``: a few words."""
    by_names: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]] = lambda *_: {}
    """Its ``[architecture]`` and the names of features → what of it follows from these."""
    follows: tuple[str, ...] = ()
    """The keys of that which no recipe chooses; of a card handed in as one they are left aside."""


KINDS: Final[dict[str, NetworkKind]] = {}
"""The kinds registered so far; ask ``network_kinds`` for all."""


def register(kind: NetworkKind) -> NetworkKind:
    """Make *kind* known; raise ``ConfigInvalid`` for a name that is taken."""
    if kind.name in KINDS:
        raise ConfigInvalid(f"There is a kind of network called {kind.name} already.")
    KINDS[kind.name] = kind
    return kind


def network_kinds() -> Mapping[str, NetworkKind]:
    """Return every kind by its name, once each module of this package was imported."""
    from tracepaper.strategies import networks

    for module in iter_modules(networks.__path__):
        import_module(f"{networks.__name__}.{module.name}")
    return KINDS


def kind_of(name: object) -> NetworkKind:
    """Return the kind of that name; raise ``ConfigInvalid`` for an unknown one."""
    known = network_kinds()
    if name == books.KIND:
        raise ConfigInvalid(
            "A network of order books reads files of `tracepaper data record`, not bars; ask it by "
            "`tracepaper explain --depth FILE --checkpoint FOLDER`."
        )
    if not isinstance(name, str) or name not in known:
        raise ConfigInvalid(
            f"The model's card names the kind {shown(name)}; use {' or '.join(known)}."
        )
    return known[name]
