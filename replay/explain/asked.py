"""The method and the comparison that a user asked for, as they were typed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from tracepaper.strategies.errors import ConfigInvalid


@dataclass(frozen=True)
class TypedMethod:
    """The method as it was typed; what is not given stays as it is stored."""

    method: str | None = None
    fusion: str | None = None
    residual: float | None = None
    start_layer: int | None = None
    discard: float | None = None
    head_weights: str | None = None  # as 1,0,0,0 or, a layer each, 1,0/0,1

    def __bool__(self) -> bool:
        """Return whether anything was given."""
        return any(value is not None for value in asdict(self).values())


@dataclass(frozen=True)
class ComparedWith:
    """What a decision is compared with: another decision, or another model on its bars."""

    decision: str | None = None
    model: str | None = None

    def __bool__(self) -> bool:
        """Return whether anything was given."""
        return self.decision is not None or self.model is not None

    def check(self) -> None:
        """Raise ``ConfigInvalid`` where both were given."""
        if self.decision is not None and self.model is not None:
            raise ConfigInvalid(
                "Compare with a decision or with a model; leave --with or --beside out."
            )


ALONE: Final = ComparedWith()
"""Compared with nothing."""
