"""What a sweep is judged by: a figure of the report by its key, or a function of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from tracepaper.replay.python import Backtest
from tracepaper.replay.report.figures import ACCOUNTS
from tracepaper.replay.report.tables import Form, written
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.words import number

Objective = str | Callable[[Backtest], float]

FIGURES: Final[dict[str, Form]] = {figure.key: figure.form for figure in ACCOUNTS[1:]}
"""The figures that may be an objective, by their keys in ``tracepaper report --json``."""
ALIASES: Final = {"drawdown": "max_drawdown"}
OF_A_YEAR: Final = frozenset(
    {"sharpe", "probabilistic_sharpe", "sortino", "cagr", "calmar", "volatility", "turnover"}
)
"""Figures that no run under thirty days has."""
LESS_IS_BETTER: Final = frozenset(
    {"max_drawdown", "drawdown_bars", "volatility", "volatility_day", "turnover"}
)


def objective_of(given: object, direction: str | None) -> tuple[Objective, bool]:
    """Return the objective and whether more of it is better; raise ``ConfigInvalid``."""
    if direction not in {None, "maximize", "minimize"}:
        raise ConfigInvalid(f"direction is {shown(direction)}; write maximize or minimize.")
    if callable(given):
        return cast("Callable[[Backtest], float]", given), direction != "minimize"
    key = ALIASES.get(str(given), str(given))
    if key not in FIGURES:
        raise ConfigInvalid(
            f"There is no figure {shown(given)}; choose of {', '.join(FIGURES)}, or give a "
            "function of the run."
        )
    return key, (key not in LESS_IS_BETTER if direction is None else direction == "maximize")


def in_words(value: float | None, objective: str) -> str:
    """Return a value of *objective* as the report writes it, or with four digits."""
    form = FIGURES.get(objective)
    if form is None or value is None:
        return number(value)
    return f"{written(value, form)} bp" if "bp" in form else written(value, form)
