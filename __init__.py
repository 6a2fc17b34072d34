"""tracepaper: paper trading for Bybit whose every decision can be traced, re-run and believed.

Its names are imported when they are first asked for, so that nothing else pays for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.replay.notebook import open_run as open_run
    from tracepaper.replay.python import backtest as backtest
    from tracepaper.replay.sweep.run import sweep as sweep
    from tracepaper.strategies.errors import ConfigInvalid as ConfigInvalid
    from tracepaper.strategies.errors import DataInvalid as DataInvalid
    from tracepaper.strategies.errors import StrategyFailed as StrategyFailed
    from tracepaper.strategies.errors import TracepaperError as TracepaperError
    from tracepaper.strategies.model import Model as Model
    from tracepaper.strategies.model import feature_row as feature_row
    from tracepaper.strategies.outlook import Outlook as Outlook
    from tracepaper.strategies.portfolio import PortfolioStrategy as PortfolioStrategy
    from tracepaper.strategies.signals import Cancel as Cancel
    from tracepaper.strategies.signals import Orders as Orders
    from tracepaper.strategies.signals import Percent as Percent
    from tracepaper.strategies.signals import Signal as Signal
    from tracepaper.strategies.signals import Volatility as Volatility
    from tracepaper.strategies.signals import buy as buy
    from tracepaper.strategies.signals import sell as sell
    from tracepaper.strategies.strategy import Strategy as Strategy
    from tracepaper.strategies.types import Action as Action

    __version__: str

_HOMES = {
    "Action": "strategies.types",
    "Cancel": "strategies.signals",
    "ConfigInvalid": "strategies.errors",
    "DataInvalid": "strategies.errors",
    "Model": "strategies.model",
    "Orders": "strategies.signals",
    "Outlook": "strategies.outlook",
    "Percent": "strategies.signals",
    "PortfolioStrategy": "strategies.portfolio",
    "Signal": "strategies.signals",
    "Strategy": "strategies.strategy",
    "StrategyFailed": "strategies.errors",
    "TracepaperError": "strategies.errors",
    "Volatility": "strategies.signals",
    "backtest": "replay.python",
    "buy": "strategies.signals",
    "feature_row": "strategies.model",
    "open_run": "replay.notebook",
    "sell": "strategies.signals",
    "sweep": "replay.sweep.run",
}

__all__ = [
    "Action",
    "Cancel",
    "ConfigInvalid",
    "DataInvalid",
    "Model",
    "Orders",
    "Outlook",
    "Percent",
    "PortfolioStrategy",
    "Signal",
    "Strategy",
    "StrategyFailed",
    "TracepaperError",
    "Volatility",
    "__version__",
    "backtest",
    "buy",
    "feature_row",
    "open_run",
    "sell",
    "sweep",
]


def __getattr__(name: str) -> object:
    """Return a name of ``__all__``, imported now."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tracepaper")
    if name in _HOMES:
        from importlib import import_module

        found: object = getattr(import_module(f"tracepaper.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, those included that are not imported yet."""
    return sorted({*globals(), *__all__})
