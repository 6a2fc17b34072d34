"""Small candles and scripted strategies, with which tests/cases repeats public reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tracepaper
from tracepaper import Action, Orders, Signal, Strategy
from tracepaper.replay.run import Run

FILES: Final = Path(__file__).parents[1] / "cases" / "files"
"""Files of invented numbers in the layouts that reports are about."""
START: Final = 1_704_067_200_000
"""2024-01-01T00:00Z, a Monday."""
MINUTE: Final = 60_000
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

Price = float | tuple[float, float, float, float]
Columns = dict[str, list[Any]]
Script = Callable[[Any], Signal | Orders | None]
FREE: Final = {"slippage_bp": "0", "spread_bp": "0", "taker_fee": "0", "maker_fee": "0"}
"""An execution that costs nothing, so that prices are those of the candles."""


def columns(prices: Sequence[Price], step: int = MINUTE, *, start: int = START) -> Columns:
    """Return candles of (open, high, low, close), or of a close alone."""
    rows = [price if isinstance(price, tuple) else (price,) * 4 for price in prices]
    names = ("open", "high", "low", "close")
    return {
        "open_time": [start + place * step for place in range(len(rows))],
        **{name: [float(row[at]) for row in rows] for at, name in enumerate(names)},
        "volume": [10.0] * len(rows),
    }


def scripted(script: Script, **attributes: object) -> type[Strategy]:
    """Return a strategy that decides by *script*; None holds."""

    class Scripted(Strategy):
        warmup = 1
        sees_account = False

        def decide(self, context: Any) -> Signal | Orders:
            return script(context) or Signal(Action.HOLD, "nothing")

    for name, value in attributes.items():
        setattr(Scripted, name, value)
    return Scripted


def play(
    strategy: Script | str | type[Strategy],
    data: Mapping[str, Any],
    config: Mapping[str, Mapping[str, object]] | None = None,
    **options: Any,
) -> Run[Any]:
    """Run *strategy* on *data*, candles of BTCUSDT or of each symbol, at no cost of execution."""
    settings: dict[str, dict[str, object]] = {"execution": {**FREE}}
    for section, keys in (config or {}).items():
        settings.setdefault(section, {}).update(keys)
    chosen = strategy if isinstance(strategy, str | type) else scripted(strategy)
    given = {"BTCUSDT": data} if "open_time" in data else data
    return tracepaper.backtest(
        chosen, given, config=settings, progress=False, frames="numpy", **options
    )


def at_bar(plan: Mapping[int, Signal | Orders], step: int = MINUTE) -> Script:
    """Return a script that decides by *plan*: number of the bar that closed, from 0, to answer."""
    return lambda context: plan.get((context.time - START) // step - 1)


def always(action: Action, **options: Any) -> Script:
    """Return a script that signals *action* at every bar."""
    return lambda _context: Signal(action, "always", **options)


def records(frame: Any) -> list[dict[str, Any]]:
    """Return a frame of numpy columns as rows of plain values."""
    values = {name: frame[name].tolist() for name in frame}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def fills(run: Run[Any]) -> list[tuple[str, float, float]]:
    """Return side, quantity and price of each fill."""
    return [(fill["side"], fill["quantity"], fill["price"]) for fill in records(run.fills)]
