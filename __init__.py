"""tracepaper: paper trading for Bybit whose every decision can be traced, re-run and believed.

Its names are imported when they are first asked for, so that nothing else pays for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.replay.notebook import open_run as open_run

    __version__: str

__all__ = ["__version__", "open_run"]


def __getattr__(name: str) -> object:
    """Return a name of ``__all__``, imported now."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tracepaper")
    if name == "open_run":
        from tracepaper.replay.notebook import open_run

        return open_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, those included that are not imported yet."""
    return sorted({*globals(), *__all__})
