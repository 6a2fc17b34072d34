"""tracepaper: paper trading for Bybit whose every decision can be traced, re-run and believed.

Names are imported on first use, so that importing the package is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracepaper.replay.api import backtest as backtest
    from tracepaper.replay.document.pictures import write_matrix as write_matrix
    from tracepaper.replay.learned import evaluate as evaluate
    from tracepaper.replay.learned import train as train
    from tracepaper.replay.learning.inspection.model import open_checkpoint as open_checkpoint
    from tracepaper.replay.run import account as account
    from tracepaper.replay.run import open_run as open_run
    from tracepaper.replay.samples import samples as samples
    from tracepaper.replay.sweep.run import sweep as sweep
    from tracepaper.strategies import attention as attention
    from tracepaper.strategies.api.context import BarContext as BarContext
    from tracepaper.strategies.api.context import Cancel as Cancel
    from tracepaper.strategies.api.context import Orders as Orders
    from tracepaper.strategies.api.context import Percent as Percent
    from tracepaper.strategies.api.context import Signal as Signal
    from tracepaper.strategies.api.context import Volatility as Volatility
    from tracepaper.strategies.api.context import buy as buy
    from tracepaper.strategies.api.context import sell as sell
    from tracepaper.strategies.api.model import Model as Model
    from tracepaper.strategies.api.model import feature_row as feature_row
    from tracepaper.strategies.api.strategy import PortfolioStrategy as PortfolioStrategy
    from tracepaper.strategies.api.strategy import Strategy as Strategy
    from tracepaper.strategies.errors import ConfigInvalid as ConfigInvalid
    from tracepaper.strategies.errors import DataInvalid as DataInvalid
    from tracepaper.strategies.errors import StrategyFailed as StrategyFailed
    from tracepaper.strategies.errors import TracepaperError as TracepaperError
    from tracepaper.strategies.networks.custom import AttentionMechanism as AttentionMechanism
    from tracepaper.strategies.types.decisions import Action as Action

    __version__: str

_HOMES = {
    "Action": "strategies.types.decisions",
    "AttentionMechanism": "strategies.networks.custom",
    "BarContext": "strategies.api.context",
    "Cancel": "strategies.api.context",
    "ConfigInvalid": "strategies.errors",
    "DataInvalid": "strategies.errors",
    "Model": "strategies.api.model",
    "Orders": "strategies.api.context",
    "Percent": "strategies.api.context",
    "PortfolioStrategy": "strategies.api.strategy",
    "Signal": "strategies.api.context",
    "Strategy": "strategies.api.strategy",
    "StrategyFailed": "strategies.errors",
    "TracepaperError": "strategies.errors",
    "Volatility": "strategies.api.context",
    "account": "replay.run",
    "backtest": "replay.api",
    "buy": "strategies.api.context",
    "evaluate": "replay.learned",
    "feature_row": "strategies.api.model",
    "open_checkpoint": "replay.learning.inspection.model",
    "open_run": "replay.run",
    "samples": "replay.samples",
    "sell": "strategies.api.context",
    "sweep": "replay.sweep.run",
    "train": "replay.learned",
    "write_matrix": "replay.document.pictures",
}

__all__ = [
    "Action",
    "AttentionMechanism",
    "BarContext",
    "Cancel",
    "ConfigInvalid",
    "DataInvalid",
    "Model",
    "Orders",
    "Percent",
    "PortfolioStrategy",
    "Signal",
    "Strategy",
    "StrategyFailed",
    "TracepaperError",
    "Volatility",
    "__version__",
    "account",
    "attention",
    "backtest",
    "buy",
    "evaluate",
    "feature_row",
    "open_checkpoint",
    "open_run",
    "samples",
    "sell",
    "sweep",
    "train",
    "write_matrix",
]


def __getattr__(name: str) -> object:
    """Import and return a name of ``__all__``."""
    if name == "__version__":
        from tracepaper.daemon.version import version

        return version()
    from importlib import import_module

    if name == "attention":
        return import_module("tracepaper.attention")
    if name in _HOMES:
        exported: object = getattr(import_module(f"tracepaper.{_HOMES[name]}"), name)
        globals()[name] = exported
        return exported
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, including those not imported yet."""
    return sorted({*globals(), *__all__})
