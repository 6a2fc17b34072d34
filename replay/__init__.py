"""The same engine over the past; ``open_run`` gives a notebook its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.replay.notebook import open_run

__all__ = ["open_run"]


def __getattr__(name: str) -> object:
    """Import ``open_run`` when it is first asked for, so that nothing else pays for it."""
    if name != "open_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracepaper.replay.notebook import open_run

    return open_run
