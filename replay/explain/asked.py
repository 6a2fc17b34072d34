"""The method that a user asked for, as it was typed."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
