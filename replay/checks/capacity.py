"""At what size the edge of a run is gone: its profit as a function of size, by impact.

The run is made again from its record (``changed_run``) with its money and sizes multiplied, and
with impact by the square root of each fill's participation. The rule is docs/python.md, Y23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.daemon.config.loading import Config, Sections, restore
from tracepaper.daemon.config.sections import MODES_OF, is_read
from tracepaper.daemon.config.values import CASH_MAX
from tracepaper.replay.checks.fragility import Days, Each, Left, Rerun, one_by_one
from tracepaper.replay.document.charts import (
    BandLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    LineLayer,
    RuleLayer,
    rounded,
)
from tracepaper.replay.document.values import (
    TOO_FEW_DAYS,
    Estimate,
    Paragraph,
    Part,
    Table,
    TitledParts,
    documents,
    of_field,
    plus_minus,
    table,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.participation import (
    Participation,
    fill_shares,
    participation_table,
    participations,
)
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.run_columns import Floats, RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.units import number

SIZES: Final = (1, 4, 16, 64, 256, 1_024)
"""Multiples of the run's money; the impact of each is twice that of the one before."""
SCALED: Final[Mapping[str, Sequence[str]]] = {
    "account": ("cash",),
    "sizing": ("quantity", "notional", "max_position"),
    "risk": ("max_notional", "max_daily_loss", "max_exposure"),
}
"""Keys in money or coins, by section."""
UNSCALED: Final = 0.9
"""Orders of less than this share of their multiple are held back by something."""


@dataclass(frozen=True)
class Capacity:
    """At what size the edge is gone; ``sentence`` is the answer."""

    run_id: str
    sentence: str
    impact_bp: float  # at a participation of 1
    source: str  # of the coefficient
    half: Estimate | None  # the multiple of the run's money at which half of the edge is gone
    too_few: bool  # the days are too few for an error
    sizes: tuple[Left, ...]  # without impact first
    participation: tuple[Participation, ...]

    @property
    def held_back(self) -> list[Left]:
        """The sizes whose orders are less than their multiple."""
        return [run for run in self.sizes if not run.error and _is_held_back(run, self.sizes[0])]


def _is_held_back(run: Left, free: Left) -> bool:
    """Return whether the orders of *run* are less than its multiple of those of *free*."""
    return run.first < UNSCALED * run.size * free.first


# ---------------------------------------------------------------- runs again


def sized(config: Config, size: int, impact_bp: Decimal) -> Sections:
    """Return the changes of *config* to *size* times its money; 0 leaves out the impact."""

    def multiplied(table: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
        given = {key: table.get(key) for key in keys}
        return {key: str(size * Decimal(str(of))) for key, of in given.items() if of is not None}

    rule = {"beyond_best": "square_root", "impact_bp": str(impact_bp if size else 0)}
    if size <= 1:
        return {"execution": rule}
    tables: Mapping[str, Any] = config.settings()
    mode = config.sizing.mode
    changes: dict[str, dict[str, Any]] = {
        section: multiplied(
            tables[section], [key for key in keys if is_read(MODES_OF, key, {mode})]
        )
        for section, keys in SCALED.items()
    }
    return changes | {"execution": rule}


def coefficient_of(record: RunRecord) -> tuple[Decimal, str]:
    """Return the basis points of impact at a participation of 1, and what says so.

    They are the run's own, and without any the volatility of its bars: a trade as large as a day's
    volume then moves the price by the volatility of a day, as Bouchaud's law with a factor of 1.
    """
    execution = record.config.execution
    by_quotes = any(fill["model"] == FillModel.QUOTE for fill in record.account.fills)
    if execution.beyond_best != "wait" or by_quotes:
        return execution.impact_bp, "execution.impact_bp of the run"
    moves = []
    for name in record.bars:
        closes = record.bars[name].close
        moves.append(float(np.diff(np.log(closes)).std()) if closes.size > 2 else 0.0)
    value = Decimal(f"{min(float(np.median(moves)) * 1e4, 1_000.0):.3g}")
    if not value:
        return execution.impact_bp, "execution.impact_bp"
    return value, "the standard deviation of a bar's return"


# ---------------------------------------------------------------- the answer


def capacity(
    database: Path,
    run_id: str,
    *,
    impact_bp: Decimal | None = None,
    each: Each = one_by_one,
    begins: Callable[[int], None] = lambda _count: None,
) -> Capacity:
    """Return at what size half of the edge of *run_id* is gone.

    *impact_bp* is the impact at a participation of 1, by default that of ``coefficient_of``.
    *begins* is called with the number of runs again before the first of them, which *each* makes.
    Raises ``DataInvalid`` for a run without a decision or with fills on candles without volume, and
    ``ConfigInvalid`` for an impact that no configuration may have.
    """
    with Reader.open(database) as reader:
        record = read_record(reader, database, run_id)
        shares = participations([fill_shares(RunColumns(reader, run_id), record.account.fills)])
    if shares and shares[0].median is None:
        raise DataInvalid(
            f"No candle of a fill of run {run_id} has a volume, so no size can be judged; use "
            "candles with their volume."
        )
    chosen, source = coefficient_of(record)
    if impact_bp is not None:
        chosen, source = impact_bp, "as given"
    if not 0 < chosen <= 1_000:
        raise ConfigInvalid(f"The impact is {chosen} bp; give one above 0 and at most 1000.")
    cash, reruns, sizes = record.config.account.cash, list[Rerun](), list[Left]()
    for size in (0, *SIZES) if shares else ():
        changes = sized(record.config, size, chosen)
        if size * cash > CASH_MAX:
            continue
        named = "size", f"× {size:,}" if size else "without impact"
        if restore(record.run["config"], changes).sha256() == record.config.sha256():
            account = record.account
            profit, first = account.equity[-1] - account.equity[0], account.fills[0]["notional"]
            sizes.append(
                Left(
                    *named, float(profit), Days.of_record(record), len(account.fills),
                    size=size, cash=float(cash), first=first,
                )
            )  # fmt: skip
        else:
            reruns.append(Rerun(database, run_id, *named, changes, size))
    begins(len(reruns))
    sizes = sorted((*sizes, *each(reruns)), key=lambda run: run.size)
    half = half_gone(sizes) if sizes else None
    free = sizes[0].mean_day if sizes else None
    return Capacity(
        run_id,
        judged(sizes, half, shares),
        float(chosen),
        source,
        half,
        free is None or free[1] is None,
        tuple(sizes),
        shares,
    )


def half_gone(sizes: Sequence[Left]) -> Estimate | None:
    """Return the multiple at which half of the mean day without impact is gone, with its error.

    Between two sizes the mean day is linear in the root of the size, as impact is. The error leaves
    out blocks of days (a jackknife). None if nothing is to lose, or if more than half is left.
    """
    free, *others = sizes
    days, mean = free.days, free.mean_day
    if days is None or mean is None or mean[0] <= 0.0:
        return None
    by_size = [days.returns]
    roots = [0.0]
    for run in others:
        if run.mean_day is not None and run.days is not None and not _is_held_back(run, free):
            by_size.append(run.days.returns)
            roots.append(math.sqrt(run.size))
    returns = np.array(by_size)  # [size, day]
    means = returns.mean(axis=1)
    below = np.flatnonzero(means <= means[0] / 2)
    if not below.size:
        return None
    pair = [int(below[0]) - 1, int(below[0])]
    ends, rows = [roots[place] for place in pair], returns[[0, *pair]]
    blocks = metrics.blocks_of(days.days)
    without = [
        _crossing(ends, rows[:, blocks != block].mean(axis=1))
        for block in range(int(blocks.max()) + 1 if blocks.max() else 0)
    ]
    error = metrics.jackknife_error(np.array(without)[:, None], days.days) if without else None
    return _crossing(ends, rows.mean(axis=1)), None if error is None else float(error[0])


def _crossing(roots: Sequence[float], means: Floats) -> float:
    """Return the size at which the line between the last two of *means* has half of the first."""
    whole, before, after = means.tolist()
    place = (before - whole / 2) / (before - after) if before != after else 1.0
    return max(roots[0] + place * (roots[1] - roots[0]), 0.0) ** 2


def judged(  # noqa: PLR0911 - one return an answer
    sizes: Sequence[Left], half: Estimate | None, shares: Sequence[Participation]
) -> str:
    """Return the sentence that answers the question."""
    if not sizes:
        return "The run never traded, so no size of it can be judged."
    free, *others = sizes
    if free.error:
        return f"Nothing is known: {free.error}"
    if free.mean_day is None or free.days is None:
        return "At some time nothing of its equity was left, so there is no edge."
    mean, error = free.mean_day
    of_error = "" if error is None else f" {plus_minus(error, '.1f', 1e4)}"
    a_day = f"{1e4 * mean:+.1f}{of_error} bp a day"
    few = "" if error is not None else f" ({TOO_FEW_DAYS})"
    if mean <= 0.0 or not (few or metrics.is_credible(mean, error)):
        return f"There is no edge to lose: {a_day}{few} without impact."
    if half is None:
        tried = [run for run in others if not (run.error or _is_held_back(run, free))]
        if not tried:
            return "Nothing is known: no size trades its multiple."
        size = f"{tried[-1].size:,} times the size{few}"
        return f"More than half of the edge ({a_day}) is left at {size}, the largest tried."
    times, spread = half
    volume = 100 * times * (shares[0].median or 0.0)
    of_spread = "" if spread is None else f" ± {number(spread, digits=2)}"
    return (
        f"Half of the edge ({a_day}) is gone at {number(times, digits=3)}{of_spread} times the "
        f"size{few}: an account of {times * free.cash:,.0f}, whose median fill is "
        f"{number(volume, digits=2)} % of its candle's volume."
    )


# ---------------------------------------------------------------- the document

_SIZES: Final = (
    of_field("name", "size", "text"),
    of_field("cash", "account", "money"),
    of_field("profit", "profit", "gain"),
    of_field("mean_day", "bp a day ± error", "gain bp"),
    of_field("fills", "fills", "count", "count"),
    of_field("why", "why not", "text", "error"),
)
_NOTE: Final = (
    "Each size is a run again from the record with its money and sizes multiplied. A fill moves "
    "only its own price: no later price and nobody else remembers it."
)


def tables(result: Capacity) -> tuple[Table, ...]:
    """Return the tables: profit by size, participation."""
    figures = _SIZES if any(run.error for run in result.sizes) else _SIZES[:-1]
    return (
        table("sizes", "Profit by size", figures, result.sizes, notes=(_NOTE,)),
        participation_table(result.participation),
    )


def chart(result: Capacity) -> Chart | None:
    """Draw the mean day and the profit against the size; None without two sizes."""
    drawn = [run for run in result.sizes[1:] if run.mean_day is not None]
    free = result.sizes[0].mean_day if result.sizes else None
    if len(drawn) < 2 or free is None:
        return None
    places = [math.log2(run.size) for run in drawn]
    ticks = [(place, run.name) for place, run in zip(places, drawn, strict=True)]
    means = 1e4 * np.array([run.mean_day for run in drawn], dtype=np.float64)
    half, low_high = metrics.credible_bound(means[:, 1]), list[BandLayer]()
    if not np.isnan(half).any():
        low, high = rounded(means[:, 0] - half), rounded(means[:, 0] + half)
        low_high = [BandLayer("95 %", places, low, high)]
    line = LineLayer("mean day", places, rounded(means[:, 0]), has_points=True)
    profit = LineLayer("profit", places, rounded([run.profit or 0.0 for run in drawn]),
                       has_points=True)  # fmt: skip
    edge = ChartPanel(
        [*low_high, line, RuleLayer(0.0), RuleLayer(5e3 * free[0], name="half of the edge")],
        ChartAxis(ticks=ticks), ChartAxis("bp a day", unit=" bp", digits=1, has_zero=True),
    )  # fmt: skip
    money = ChartPanel([profit, RuleLayer(0.0)], ChartAxis("times the size", ticks=ticks),
                       ChartAxis("profit", has_zero=True), 160)  # fmt: skip
    caption = f"Impact of {result.impact_bp:g} bp for as much as the candle's volume."
    return Chart("Profit against size", caption, [edge, money], is_aligned=True)


def capacity_document(result: Capacity) -> TitledParts:
    """Return the document, which begins with the answer."""
    impact = (
        f"A fill of as much as its candle's volume pays {result.impact_bp:g} bp "
        f"({result.source}), a smaller one by the square root of its share."
    )
    parts: list[Part] = [Paragraph(result.sentence, "lead"), Paragraph(impact)]
    if held := result.held_back:
        names = ", ".join(run.name for run in held)
        why = "limits, or quantities that the strategy names itself, hold them back"
        parts.append(Paragraph(f"{names}: orders are less than their multiple; {why}.", "warning"))
    if result.too_few and result.sizes:
        parts.append(Paragraph(f"Errors are absent: {TOO_FEW_DAYS}.", "warning"))
    drawn = chart(result)
    parts += [*([] if drawn is None else [drawn]), *(each for each in tables(result) if each.rows)]
    return TitledParts(f"run {result.run_id} · capacity", tuple(parts))


def as_json(result: Capacity) -> dict[str, Any]:
    """Return the document as plain values."""
    names = ("run_id", "sentence", "impact_bp", "source", "too_few")
    half = None if result.half is None else {"value": result.half[0], "error": result.half[1]}
    return {
        **{name: getattr(result, name) for name in names},
        "half_gone": half,
        **documents(tables(result)),
    }
