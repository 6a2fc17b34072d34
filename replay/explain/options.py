"""What a user asks of ``explain`` besides the stored decision; needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from tracepaper.strategies.errors import ConfigInvalid


@dataclass(frozen=True)
class TypedMethod:
    """An attribution method as typed by the user; None keeps the stored option."""

    method: str | None = None
    fusion: str | None = None
    residual: float | None = None
    start_layer: int | None = None
    discard: float | None = None
    head_weights: str | None = None  # as 1,0,0,0, or per layer as 1,0/0,1

    def __bool__(self) -> bool:
        """Return whether anything was given."""
        return any(value is not None for value in asdict(self).values())


@dataclass(frozen=True)
class ComparedWith:
    """The comparison of a decision: with another decision, or with another model on its bars."""

    decision: str | None = None
    model: str | None = None

    def __bool__(self) -> bool:
        """Return whether anything was given."""
        return self.decision is not None or self.model is not None

    def check(self) -> None:
        """Raise ``ConfigInvalid`` if both were given."""
        if self.decision is not None and self.model is not None:
            raise ConfigInvalid(
                "Compare with a decision or with a model; leave --with or --compare out."
            )


ALONE: Final = ComparedWith()
"""No comparison."""


@dataclass(frozen=True)
class ModelRequest:
    """What the model is asked again: everything, another method, a comparison."""

    full: bool = False
    method: TypedMethod = TypedMethod()
    other: ComparedWith = ALONE

    def __bool__(self) -> bool:
        """Return whether the model is asked at all."""
        return bool(self.full or self.method or self.other)
