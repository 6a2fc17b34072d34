"""Whether a checkpoint has beaten persistence on untouched time, as its card says.

The rule is docs/models.md, L57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

COINS: Final = ("persistence", "reversed_persistence", "random")
"""Forecasts of the sign that know nothing: the last move goes on, turns, or a coin."""
STEADY: Final = "ewma"
"""Persistence of volatility: what it was goes on."""


def experimental(card: Mapping[str, Any], *, of: str = "model") -> str:
    """Return the sentence that says why a checkpoint is experimental; empty where it is not.

    *of* is the name of its figures: ``network_half`` is an ensemble's network by itself.

    A checkpoint is, unless at the gates' horizon its QLIKE and one standard error lie below that of
    the volatility that goes on, or its share of signs named right, less one, above what knows
    nothing.
    """
    figures = card.get("figures")
    every = figures.values() if isinstance(figures, Mapping) else ()
    if any(isinstance(one, Mapping) and one.get("is_better") is True for one in every):
        return ""  # of order books, held to the frequencies of the moves
    found = _figures(card)
    if found is None:
        return "its card has no figures on untouched time beside persistence"
    horizon, figures = found
    model, steady = _own(figures, "qlike", of), _pair(figures, "qlike", STEADY)
    if model is not None and steady is not None and model[0] + model[1] < steady[0]:
        return ""
    coined = [_pair(figures, "sign_accuracy", name) for name in COINS]
    signs = [_own(figures, "sign_accuracy", of), *coined]
    own, *coins = (None if one is None else one[0] for one in signs)
    known = [one for one in coins if one is not None]
    if own is not None and signs[0] is not None and known and own - signs[0][1] > max(known):
        return ""
    said = []
    if model is not None and steady is not None:
        said.append(f"QLIKE {model[0]:.4f} ± {model[1]:.4f} beside {steady[0]:.4f} of {STEADY}")
    if signs[0] is not None and known:
        share, error = signs[0]
        said.append(
            f"{share:.1%} ± {error:.1%} of signs beside {max(known):.1%} by persistence, its "
            "reverse or a coin"
        )
    if not said:
        return "its card has no figures on untouched time beside persistence"
    return f"over {horizon} bars it has not beaten persistence: {', '.join(said)}"


def _figures(card: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the gates' horizon and its figures, or those of the middle horizon; None for none."""
    figures = card.get("figures")
    calibration = card.get("calibration")
    if not isinstance(figures, Mapping) or not isinstance(calibration, Mapping):
        return None
    by_horizon = [name for name, of in figures.items() if str(name).isdigit() and of]
    if not by_horizon:
        return None
    wanted = str(calibration.get("horizon"))
    name = wanted if wanted in by_horizon else by_horizon[len(by_horizon) // 2]
    found = figures[name]
    return (name, found) if isinstance(found, Mapping) else None


def _own(figures: Mapping[str, Any], figure: str, of: str) -> tuple[float, float] | None:
    """Return a figure of the judged model, which a card of a network alone calls ``network``."""
    found = _pair(figures, figure, of)
    return _pair(figures, figure, "network") if found is None and of == "model" else found


def _pair(figures: Mapping[str, Any], figure: str, name: str) -> tuple[float, float] | None:
    """Return a figure of *name* with its standard error; None where the card has none."""
    table = figures.get(figure)
    pair = None
    if isinstance(table, Mapping):  # a network alone is called so, any other the model
        pair = table.get(name, table.get("network") if name == "model" else None)
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in pair):
        return None
    return float(pair[0]), float(pair[1])
