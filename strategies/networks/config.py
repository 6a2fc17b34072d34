"""The architecture of the flash network, checked when it is made, as a model's card holds it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from tracepaper.strategies.errors import ConfigInvalid

_CHOICES: Final = {
    "encoding": ("rope", "alibi", "sinusoidal", "learned", "none"),
    "mlp": ("gelu", "gated"),
    "norm": ("pre", "post"),
    "mask": ("window", "full"),
}
_POSITIVE: Final = ("features", "dim", "layers", "heads", "window", "interval_minutes")
_RATES: Final = ("dropout", "stochastic_depth")
_WINDOW_MAX: Final = 65_536


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
                    f"architecture.{name} is {value!r}; choose one of {', '.join(choices)}."
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
        """How many rows one answer depends on (SEMANTICS 10)."""
        return self.layers * (self.window - 1) + 1 if self.mask == "window" else self.window

    @classmethod
    def read(cls, section: dict[str, Any]) -> FlashConfig:
        """Build from a card's section, where tuples are lists; raise ``ConfigInvalid``."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(section) - known):
            raise ConfigInvalid(
                f"architecture.{unknown[0]} is unknown; remove it or use a newer version."
            )
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in section.items()
        }
        return cls(**values)
