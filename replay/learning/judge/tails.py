"""Value at risk and expected shortfall: calibrated, and compared with the losses that followed.

Both are figures of the forecast's Student t: the loss that a share of all exceed, and the mean of
those that do. A Student t that covers 90 % of returns may understate the worst hundredth. So the
calibration slice scales each tail's distance from the mean until the right share of losses exceeds
it, and the shortfall's until it is the mean of those.

Kupiec's test (1995) asks whether breaches are as frequent as forecast, Christoffersen's (1998)
whether one follows another more often than chance; both on bars that share no future.

The rules are docs/models.md, L56.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tracepaper.replay.document.values import of_row
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.report import metrics
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import SHARES

TAILS: Final = "tails"
"""``[calibration.tails]``: by horizon and side, a pair of factors for each of ``SHARES``."""
SIDES: Final = {"long": -1.0, "short": 1.0}
"""The sign of the returns by which each side loses."""
BREACHES_LEAST: Final = 5
"""With fewer losses that share no future a value at risk is not calibrated."""
_SYMBOL: Final = 1 << SYMBOL_BITS
"""A key is its bar's number times this, plus the number of its symbol."""


def value_at_risk(location: Array, scale: Array, dof: Array, share: float) -> tuple[Array, Array]:
    """Return the loss that a *share* exceeds, and the mean loss beyond it, of Student t losses.

    The degrees of freedom must be above 1. Source: McNeil, Frey and Embrechts, Quantitative Risk
    Management, 2005, chapter 2.
    """
    edge = stats.t.isf(share, dof)
    beyond = stats.t.pdf(edge, dof) / share * (dof + edge**2) / (dof - 1.0)
    return location + scale * edge, location + scale * beyond


def losses(rows: Forecasts) -> Array:
    """Return the realised loss of each side: [row, side]."""
    lost: Array = np.multiply.outer(rows.labels["returns"], list(SIDES.values()))
    return lost


def student_tails(rows: Forecasts) -> Array:
    """Return value at risk and shortfall of the forecast's Student t: [row, side, share, 2]."""
    mean, scale, dof = (rows.value(field) for field in ("mean", "scale", "dof"))
    sides = [
        [np.stack(value_at_risk(sign * mean, scale, dof, share), axis=-1) for share in SHARES]
        for sign in SIDES.values()
    ]
    return np.stack([np.stack(side, axis=1) for side in sides], axis=1)


def scaled_tails(rows: Forecasts, factors: Mapping[str, Any]) -> Array:
    """Return ``student_tails`` whose distances from the mean are multiplied by a card's factors."""
    mean = np.multiply.outer(rows.value("mean"), list(SIDES.values()))[:, :, None, None]
    scaled: Array = mean + np.array([factors[side] for side in SIDES]) * (
        student_tails(rows) - mean
    )
    return scaled


def tail_factors(table: Forecasts) -> dict[str, Any]:
    """Return ``[calibration.tails]`` of the calibration slice's forecasts."""
    return {str(horizon): _factors(rows, horizon) for horizon, rows in table.by_horizon()}


def _factors(rows: Forecasts, horizon: int) -> dict[str, list[list[float]]]:
    tails, lost, mean = student_tails(rows), losses(rows), rows.value("mean")
    found: dict[str, list[list[float]]] = {}
    for at, (side, sign) in enumerate(SIDES.items()):
        pairs = found[side] = [[1.0, 1.0] for _ in SHARES]
        distance = lost[:, at] - sign * mean
        for place, share in enumerate(SHARES):
            if share * len(rows) / horizon < BREACHES_LEAST:
                continue
            edge, beyond = tails[:, at, place].T - sign * mean
            # The higher of two rows leaves no more than the share beyond it.
            ratio = distance / edge
            limit = max(float(np.quantile(ratio, 1.0 - share, method="higher")), 0.0)
            if (outside := ratio > limit).any():
                shortfall = float((distance[outside] / beyond[outside]).mean())
                pairs[place] = [rounded(limit), rounded(shortfall)]
    return found


def breach_rows(rows: Forecasts, tails: Array) -> Iterator[dict[str, Any]]:
    """Yield the tests of *tails* [row, side, share, 2] of one horizon's *rows*, a row each."""
    (horizon,) = rows.horizons
    alone = without_overlap(rows.keys, horizon)
    in_turn, lost = follows(rows.keys[alone], horizon), losses(rows)
    for at, side in enumerate(SIDES):
        for place, share in enumerate(SHARES):
            limit, expected = tails[:, at, place].T
            beyond, ratio = lost[:, at] > limit, lost[:, at] / expected
            yield {
                "horizon": horizon,
                "tail": f"of a {side} position",
                "share": share,
                "came": figures.mean(beyond.astype(np.float64), rows.day),
                "bars": len(alone),
                "often": metrics.kupiec(int(beyond[alone].sum()), len(alone), share),
                "apart": christoffersen(beyond[alone], in_turn),
                "shortfall": figures.mean(ratio[beyond], rows.day[beyond])
                if beyond.any()
                else None,
            }


BREACHES: Final = (
    of_row("horizon", "bars ahead", "count"),
    of_row("tail", "value at risk", "text"),
    of_row("share", "said", "measure"),
    of_row("came", "came", "measure"),
    of_row("bars", "bars apart", "count"),
    of_row("often", "p, as often", "measure"),
    of_row("apart", "p, apart", "measure"),
    of_row("shortfall", "loss beyond ÷ said", "measure"),
)
"""``often`` is the p of Kupiec's test, ``apart`` of Christoffersen's, on ``bars`` that share no
future; ``shortfall`` the mean loss of breaches over what was expected, 1 where that is right."""


def without_overlap(keys: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return rows of which no two of a symbol share a future bar, by symbol and time."""
    order = np.lexsort((keys // _SYMBOL, keys % _SYMBOL))
    rows: NDArray[np.int64] = order[keys[order] // _SYMBOL % horizon == 0]
    return rows


def follows(keys: NDArray[np.int64], horizon: int) -> NDArray[np.bool_]:
    """Return for each row but the first whether it follows the row before without a gap."""
    is_same_symbol = keys[1:] % _SYMBOL == keys[:-1] % _SYMBOL
    is_next = keys[1:] // _SYMBOL - keys[:-1] // _SYMBOL == horizon
    adjacent: NDArray[np.bool_] = is_same_symbol & is_next
    return adjacent


def christoffersen(beyond: NDArray[np.bool_], in_turn: NDArray[np.bool_]) -> float | None:
    """Return Christoffersen's p value: of breaches that follow one another as these do by chance.

    *in_turn* says for each row but the first whether it follows the row before. None where no row
    follows a breach, or nothing was one.
    """
    before, after = beyond[:-1][in_turn], beyond[1:][in_turn]
    first, second = int((~before).sum()), int(before.sum())
    calm, again = int((after & ~before).sum()), int((after & before).sum())
    if not first or not second or not calm + again:
        return None
    together = _likelihood(calm + again, first + second, (calm + again) / (first + second))
    apart = _likelihood(calm, first, calm / first) + _likelihood(again, second, again / second)
    return float(stats.chi2.sf(max(2.0 * (apart - together), 0.0), 1))


def _likelihood(breaches: int, count: int, share: float) -> float:
    return float(special.xlogy(breaches, share) + special.xlogy(count - breaches, 1.0 - share))
