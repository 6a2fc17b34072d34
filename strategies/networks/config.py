"""The architecture of the flash network, checked when it is made, as a model's card holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from tracepaper.strategies.errors import ConfigInvalid, shown

_CHOICES: Final = {
    "encoding": ("rope", "alibi", "sinusoidal", "learned", "none"),
    "mlp": ("gelu", "gated"),
    "norm": ("pre", "post"),
    "mask": ("window", "full"),
}
_POSITIVE: Final = ("features", "dim", "layers", "heads", "window", "interval_minutes")
_RATES: Final = ("dropout", "stochastic_depth")
_WINDOW_MAX: Final = 65_536
_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "features": (1, 4_096),
    "dim": (2, 8_192),
    "layers": (1, 256),
    "heads": (1, 256),
    "window": (1, _WINDOW_MAX),
    "interval_minutes": (1, 100_800),
    "factor": (1, 20),
    "mlp_ratio": (0.01, 64),
    "horizons": (1, 1_000_000),
    "quantiles": (0, 1),
    "seed": (0, 2**63 - 1),
}
"""What a card may ask for: beyond it a number is a slip, and would fill the memory or hang."""
_ITEMS_MAX: Final = 64


def checked_section(made_of: type[Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a card's ``[architecture]`` for the dataclass *made_of*, as tuples.

    Raises ``ConfigInvalid`` for an unknown key, a value of another kind than the default's, and
    a number outside its limits.
    """
    kinds = {field.name: field.default for field in fields(made_of)}
    if unknown := sorted(set(section) - set(kinds)):
        raise ConfigInvalid(
            f"architecture.{unknown[0]} is unknown; remove it or use a newer version."
        )
    return {name: _checked(name, value, kinds[name]) for name, value in section.items()}


def _checked(name: str, value: object, default: object) -> object:
    """Return *value* as the kind of *default*; raise ``ConfigInvalid`` where it is another."""
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) > _ITEMS_MAX:
            raise ConfigInvalid(
                f"architecture.{name} must be a list of at most {_ITEMS_MAX} numbers."
            )
        like = 1 if name == "horizons" else 1.0
        return tuple(_number(name, item, like) for item in value)
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            kind = "true or false" if isinstance(default, bool) else "text"
            raise ConfigInvalid(f"architecture.{name} must be {kind}.")
        return value
    assert isinstance(default, int | float)
    return _number(name, value, default)


def _number(name: str, value: object, like: float) -> float:
    """Return a number of the kind of *like* within the limits of *name*."""
    low, high = _LIMITS.get(name, (0, 1))
    kinds = (int,) if isinstance(like, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise ConfigInvalid(f"architecture.{name} must be {kind} from {low:g} to {high:g}.")
    return value


@dataclass(frozen=True, slots=True)
class FlashConfig:
    """The architecture; it is stored in a model's card as ``[architecture]``."""

    features: int = 30
    dim: int = 64
    layers: int = 4
    heads: int = 4
    window: int = 1088
    horizons: tuple[int, ...] = (5, 30, 240)
    encoding: str = "rope"
    time_of_week: bool = False
    interval_minutes: int = 1
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    norm: str = "pre"
    mask: str = "window"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    checkpointing: bool = False
    allocation: bool = False
    quantiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built, with one sentence each."""
        for name, choices in _CHOICES.items():
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

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """Return the rules that join fields: whether each is broken, and what to do then."""
        return (
            (
                self.window > _WINDOW_MAX,
                f"window is {self.window}; it must be at most {_WINDOW_MAX}",
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
                self.encoding == "alibi" and self.mask == "full",
                "encoding alibi looks back only; use the window mask or rope",
            ),
            (
                any(a >= b for a, b in pairwise((0.0, *self.quantiles, 1.0))),
                "quantiles must ascend between 0 and 1",
            ),
        )

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.dim // self.heads

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on."""
        return self.layers * (self.window - 1) + 1 if self.mask == "window" else self.window

    @classmethod
    def read(cls, section: dict[str, Any]) -> FlashConfig:
        """Build from a card's section, where tuples are lists; raise ``ConfigInvalid``."""
        return cls(**checked_section(cls, section))
