"""What the auxiliary heads of a run's network said of risk, beside what came in the run.

All of it is at the gates' horizon, from the close of a decided bar: the return, the largest fall of
the closes on the way, and the volatility of the one-bar returns. Bars whose horizon the run does
not reach, or that have a hole within it, are left out.

The rules are docs/models.md, L59 to L61.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import Estimate, Figure, Table, table
from tracepaper.replay.report.metrics import kupiec, mean_error
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, SHARES, TAILS, Forecast

HEADS: Final = ("tails", "drawdown", "runup", "regimes", "quantiles")


@dataclass(frozen=True)
class SaidAndCame:
    """Rows [row] in the order of the run: what each head said, by name, and what came."""

    horizon: int
    days: Ints  # spans of whole days, at least as long as the horizon
    apart: Ints  # rows of which no two of an instrument share a future bar
    said: Mapping[str, Floats]  # [row, number of the head], log returns
    levels: Sequence[float]  # of the quantiles; empty where the model's card is not at hand
    returned: Floats  # log return
    fallen: Floats  # largest fall of the logarithm of the close
    risen: Floats  # largest rise of it
    volatility: Floats  # to the horizon


def read_said(reader: Reader, record: RunRecord, card: Mapping[str, Any]) -> SaidAndCame | None:
    """Return the heads' forecasts in a run beside the outcomes; None of a run without heads.

    *card* is the model's, or empty.
    """
    run_id = str(record.run["run_id"])
    columns = ("expected_shortfall_long", "learned_regime")
    views = RunViews(reader.connection, run_id)
    is_said = any(views.last("v_decisions", known=(name,)) is not None for name in columns)
    levels = tuple(card.get("architecture", {}).get("quantiles", ()))
    if not (is_said or levels):
        return None
    horizon, kept = record.config.gate.horizon, dict[int, Forecast]()
    for one in reader.steps(run_id):
        said = one.prediction
        if isinstance(said, Forecast) and said.heads is not None and horizon in said.horizons:
            kept[one.sequence] = said
    came = _came(record, horizon)
    known = zip(record.decisions.sequence.tolist(), np.isfinite(came[0]).tolist(), strict=True)
    rows = [row for row, (sequence, reached) in enumerate(known) if reached and sequence in kept]
    if not rows:
        return None
    every = [kept[int(sequence)] for sequence in record.decisions.sequence[rows]]
    at = every[0].horizons.index(horizon)
    found = {name: [one.head(name, at) for one in every] for name in HEADS}
    returned, fallen, risen, volatility, place = came[:, rows]
    return SaidAndCame(
        horizon=horizon,
        days=record.spans_of(record.decisions.open_time_ms[rows], horizon),
        apart=np.flatnonzero(place % horizon == 0),
        # A model that a retraining put in the place of another may have other heads.
        said={
            name: np.array(numbers)
            for name, numbers in found.items()
            if numbers[0] and len({len(each) for each in numbers}) == 1
        },
        levels=levels,
        returned=returned,
        fallen=fallen,
        risen=risen,
        volatility=volatility,
    )


def _came(record: RunRecord, horizon: int) -> Floats:
    """Return [5, decision]: return, fall, rise and volatility to the horizon, and the bar's number.

    The first four are NaN where the horizon is not within the run, or has a hole.
    """
    found = np.full((5, record.decisions.sequence.size), np.nan)
    for name, places in record.decisions.places.items():
        bars = record.adjusted(name)
        logs = np.log(bars.close)
        whole = max(logs.size - horizon, 0)
        first = logs[:whole]
        peak, trough = first.copy(), first.copy()
        fall, rise, variance = np.zeros((3, whole))
        for step in range(1, horizon + 1):
            here, before = logs[step : step + whole], logs[step - 1 : step - 1 + whole]
            peak = np.maximum(peak, here)
            fall = np.maximum(fall, peak - here)
            trough = np.minimum(trough, here)
            rise = np.maximum(rise, here - trough)
            variance += (here - before) ** 2
        opens = bars.open_time_ms
        unbroken = record.bar_times.bars_between(opens[:whole], opens[horizon:]) == horizon
        made = np.stack((logs[horizon:] - first, fall, rise, np.sqrt(variance)))
        found[:4, places[:whole]] = np.where(unbroken, made, np.nan)
        found[4, places] = record.bar_times.bars_between(np.full_like(opens, opens[0]), opens)
    return found


def _mean(values: Floats, days: Ints) -> Estimate | None:
    """Return the mean of *values* with its error by day, None of one block of days."""
    if not values.size:
        return None
    return float(values.mean()), mean_error(values, days)


class _Tail(NamedTuple):
    """One value at risk and its expected shortfall, and what came; losses as log returns."""

    position: str
    share: float
    came: Estimate | None
    bars: int
    p: float | None
    lost: Estimate | None  # where the value at risk was passed
    expected: float | None  # there


class _Covered(NamedTuple):
    """A quantile, and how often what came lay below it."""

    of: str
    level: float
    came: Estimate | None


class _RunRegime(NamedTuple):
    """The bars of one regime of the network's own."""

    regime: int
    bars: int
    share: float
    volatility: Estimate | None


def _tails(one: SaidAndCame) -> Iterator[_Tail]:
    said = one.said["tails"].reshape(-1, len(TAILS), len(SHARES), 2)
    for at, (position, sign) in enumerate(zip(TAILS, (-1.0, 1.0), strict=True)):
        for place, share in enumerate(SHARES):
            limit, expected = said[:, at, place].T
            lost = sign * one.returned
            beyond = lost > limit
            apart = beyond[one.apart]
            yield _Tail(
                position,
                share,
                _mean(beyond.astype(np.float64), one.days),
                apart.size,
                kupiec(int(apart.sum()), apart.size, share),
                _mean(lost[beyond], one.days[beyond]),
                float(expected[beyond].mean()) if beyond.any() else None,
            )


def _covered(one: SaidAndCame) -> Iterator[_Covered]:
    every = {
        "drawdown": (DRAWDOWN_LEVELS, one.fallen),
        "runup": (DRAWDOWN_LEVELS, one.risen),
        "quantiles": (one.levels, one.returned),
    }
    for head, (levels, came) in every.items():
        said = one.said.get(head)
        if said is not None and said.shape[1] == len(levels):
            for at, level in enumerate(levels):
                below = (came <= said[:, at]).astype(np.float64)
                of = "return" if head == "quantiles" else head
                yield _Covered(of, level, _mean(below, one.days))


def _regimes(one: SaidAndCame) -> Iterator[_RunRegime]:
    odds = one.said["regimes"][:, ::2]
    probable = odds.argmax(axis=1)
    for number in range(odds.shape[1]):
        inside = probable == number
        volatility = _mean(one.volatility[inside], one.days[inside])
        yield _RunRegime(number + 1, int(inside.sum()), float(inside.mean()), volatility)


_TAIL_FIGURES: Final = (
    Figure[_Tail]("position", "side", "text", lambda of: of.position),
    Figure[_Tail]("said", "beyond, said", "share", lambda of: of.share),
    Figure[_Tail]("came", "came ± error", "share", lambda of: of.came),
    Figure[_Tail]("bars", "bars apart", "count", lambda of: of.bars),
    Figure[_Tail]("p", "p", "measure", lambda of: of.p),
    Figure[_Tail]("lost", "lost there, bp", "bp", lambda of: of.lost),
    Figure[_Tail]("expected", "said, bp", "bp", lambda of: of.expected),
)
_COVERED_FIGURES: Final = (
    Figure[_Covered]("of", "of", "text", lambda of: of.of),
    Figure[_Covered]("said", "below, said", "share", lambda of: of.level),
    Figure[_Covered]("came", "came ± error", "share", lambda of: of.came),
)
_REGIME_FIGURES: Final = (
    Figure[_RunRegime]("regime", "regime", "count", lambda of: of.regime),
    Figure[_RunRegime]("bars", "bars", "count", lambda of: of.bars),
    Figure[_RunRegime]("share", "share", "share", lambda of: of.share),
    Figure[_RunRegime]("volatility", "bp that came ± error", "bp", lambda of: of.volatility),
)
_TAILS_NOTE: Final = (
    "Log losses from close to close, errors by day. p is Kupiec's, on bars that share no future; "
    "symbols that fall together make it too small."
)
_REGIMES_NOTE: Final = (
    "1 is the calmest; a bar counts to its most probable regime. The volatility of the one-bar "
    "returns to the horizon; errors by day."
)


def tables_of(one: SaidAndCame | None) -> Iterator[Table]:
    """Yield the tables of what heads said and what came; none of a run without heads."""
    if one is None:
        return
    ahead = f"in {one.horizon} bars"
    if "tails" in one.said:
        title = f"Tails that the network forecast, and losses {ahead}"
        yield table("head_tails", title, _TAIL_FIGURES, list(_tails(one)), notes=(_TAILS_NOTE,))
    if rows := list(_covered(one)):
        title = f"Quantiles that the network forecast, and what came {ahead}"
        yield table("head_quantiles", title, _COVERED_FIGURES, rows)
    if "regimes" in one.said:
        title = f"Regimes of the network's own, and the volatility {ahead}"
        notes = (_REGIMES_NOTE,)
        yield table("learned_regimes", title, _REGIME_FIGURES, list(_regimes(one)), notes=notes)
