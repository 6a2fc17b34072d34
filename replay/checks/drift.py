"""Whether a run is still what its backtest promised: sums of days against those of a reference.

Each measure is a ratio of sums over whole days. It is compared at a few looks, by blocks of days
and Student's t, and a look spends the level's share of the days since the look before. The rules
are docs/drift.md, Q1 to Q6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.drift import DriftState
from tracepaper.replay.backtest.effects import CHANGEABLE, changed_keys
from tracepaper.replay.document.charts import (
    BandLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    LineLayer,
    RuleLayer,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import (
    Estimate,
    Paragraph,
    Part,
    Table,
    TitledParts,
    of_field,
    table,
)
from tracepaper.replay.learning.statistics import BlockEstimate, qlike_of
from tracepaper.replay.report.metrics import (
    BLOCK_DAYS,
    BLOCKS_LEAST,
    YEAR_DAYS,
    blocks_of,
    standard_error,
    widened,
)
from tracepaper.replay.run_columns import Floats, Ints, RunColumns, Texts
from tracepaper.storage.database.run_rows import Span
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import DAY_MS, MONEY_SCALE, count_of, interval_text, minute_text

LEVEL: Final = 0.05
"""Largest probability that a run like its reference is called outside within a year."""
DAYS_LEAST: Final = BLOCK_DAYS * BLOCKS_LEAST
GROWTH: Final = 1.5
"""The days of a look over those of the look before: few looks, since each takes of the level."""
REFUSED: Final = "refused by "
MATERIAL: Final = 0.05
"""A smaller share of the backtest's value is no drift: ticks round constant costs by as much."""
ROUNDING: Final = 1e-9
"""An error below this share of its value is one of floats."""
OTHERS: Final = "refused by other gates"
"""Gates that refused nothing in the reference, together."""


class Measure(NamedTuple):
    """What is compared: its unit, and the factor from the ratio of its sums to that unit."""

    title: str
    unit: str
    factor: float

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


MEASURES: Final[Mapping[str, Measure]] = {
    "return": Measure("return", "bp a day", 1e4),
    "hit_rate": Measure("hit rate", "% of trades", 100.0),
    "turnover": Measure("turnover", "× equity a day", 1.0),
    "cost": Measure("cost of a fill", "bp", 1e4),
    "slippage": Measure("slippage of a fill", "bp", 1e4),
    "qlike": Measure("QLIKE of the forecasts", "", 1.0),
}


# ---------------------------------------------------------------- days of a run


@dataclass(frozen=True)
class DaySums:
    """Sums over each whole day [day] of a run: numerator and denominator [2, day] by measure.

    ``judged`` are the decisions of each day but warm-ups, ``sequence`` is the last step of the
    newest day, and ``equity`` the run's equity there.
    """

    days: Ints
    judged: Floats
    sums: Mapping[str, Floats]
    sequence: int = -1
    equity: float = math.nan

    def of(self, name: str) -> Floats:
        """Return the sums of a measure [2, day]; of an absent one, and of an unused gate, zeros."""
        nothing = np.zeros(self.days.size)
        absent = np.array([nothing, self.judged if name.startswith(REFUSED) else nothing])
        return self.sums.get(name, absent)

    def joined(self, later: DaySums) -> DaySums:
        """Return these days and the *later* ones."""
        names = dict.fromkeys([*self.sums, *later.sums])
        return replace(
            later,
            days=np.concatenate((self.days, later.days)),
            judged=np.concatenate((self.judged, later.judged)),
            sums={name: np.hstack((self.of(name), later.of(name))) for name in names},
        )


NO_DAYS: Final = DaySums(np.empty(0, dtype=np.int64), np.empty(0), {})


def read_days(columns: RunColumns, before: DaySums = NO_DAYS) -> DaySums:
    """Return *before* and the whole days of a run since; only their steps are read.

    A day is whole if the run decided on the day before it and on one after it. Raises
    ``DataInvalid`` for a run that decided nothing.
    """
    columns.refresh()
    span = (max(columns.span[0], before.sequence + 1), columns.span[1])
    rows = columns.rows.decided(span)
    if not rows["sequence"].size:
        if before.days.size:
            return before
        raise DataInvalid(
            f"Run {columns.run.run_id} has decided no bar yet; let it run on, or choose another."
        )
    day = _days_at(columns, rows["open_time_ms"])
    refused = np.array([each.refused_by or "" for each in columns.rows.outcomes])[rows["outcome"]]
    judged = np.flatnonzero(refused != warm.name)
    begun = before.days[-1] if before.days.size else day[judged[0]] if judged.size else day[-1]
    whole = (day > begun) & (day < day[-1])
    if not whole.any():
        return before
    days, place = np.unique(day[whole], return_inverse=True)
    decided = {name: column[whole] for name, column in rows.items()}
    ends = np.append(np.flatnonzero(np.diff(place)), place.size - 1)
    equity = decided["equity"][ends] / MONEY_SCALE
    first, equity_before = before.sequence + 1, before.equity
    if not before.days.size:
        previous = int(np.flatnonzero(whole)[0]) - 1
        first = int(rows["sequence"][previous]) + 1
        equity_before = rows["equity"][previous] / MONEY_SCALE
    held = np.append(equity_before, equity[:-1])
    counter = _Counter(decided["sequence"], place, days.size)
    span = (first, int(decided["sequence"][-1]))
    judged = counter.add(counter.sequence, (refused[whole] != warm.name).astype(np.float64))[0]
    funded = (held > 0).astype(np.float64)
    held = np.where(held > 0, held, np.inf)
    sums = {"return": np.array([funded * (equity / held - 1.0), funded])}
    sums |= _refusals(refused[whole], judged, counter)
    sums |= _fills(columns, span, counter, np.array([held, funded]))
    sums |= _trades(columns, span, counter)
    sums |= _forecasts(columns, span, counter, int(decided["open_time_ms"][0]))
    return before.joined(DaySums(days, judged, sums, span[1], float(equity[-1])))


def _days_at(columns: RunColumns, opens_ms: Ints) -> Ints:
    """Return the day or session of the closes of bars; it never falls."""
    closes, calendar = columns.times.closes_of(opens_ms), columns.times.calendar
    days: Ints = (closes - 1) // DAY_MS if calendar is None else calendar.days_at(closes)
    return np.maximum.accumulate(days)


class _Counter(NamedTuple):
    """Adds values of steps to the days of the decided steps that they precede."""

    sequence: Ints  # [decision]
    place: Ints  # [decision] of its day
    days: int

    def add(self, sequences: Ints, *values: Floats) -> Floats:
        """Return the sums [value, day] of *values* [row] at *sequences* [row]."""
        at = np.minimum(np.searchsorted(self.sequence, sequences), self.sequence.size - 1)
        return np.array([np.bincount(self.place[at], value, self.days) for value in values])


def _refusals(refused: Texts, judged: Floats, counter: _Counter) -> dict[str, Floats]:
    """Return the decisions that each gate refused, over those that were *judged* [day]."""
    counts = {
        str(gate): counter.add(counter.sequence, (refused == gate).astype(np.float64))[0]
        for gate in np.unique(refused)
        if gate not in {"", warm.name}
    }
    return {REFUSED + gate: np.array([count, judged]) for gate, count in counts.items()}


_FILL: Final = ("sequence", "side", "quantity", "price", "reference_price", "notional", "fee")


def _fills(columns: RunColumns, span: Span, counter: _Counter, equity: Floats) -> dict[str, Floats]:
    """Return turnover, and costs over the notional; liquidations are left out.

    *equity* [2, day] is that before each day, and whether it was above 0.
    """
    names = (*_FILL, "model")
    rows = [
        row
        for batch in columns.views.batches("v_fills", names, first=span[0], last=span[1])
        for row in zip(*batch, strict=True)
        if row[-1] != FillModel.LIQUIDATION
    ]
    given = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    sign = np.where(np.array(given.get("side", ()), dtype=np.str_) == Side.BUY, 1.0, -1.0)
    quantity, price, reference, notional, fee = (
        np.array(given.get(name, ()), dtype=np.float64) for name in _FILL[2:]
    )
    slipped = sign * (price - reference) * quantity
    at = np.array(given.get("sequence", ()), dtype=np.int64)
    traded, slippage, cost = counter.add(at, notional, slipped, slipped + fee)
    return {
        "turnover": np.array([traded / equity[0], equity[1]]),
        "slippage": np.array([slippage, traded]),
        "cost": np.array([cost, traded]),
    }


def _trades(columns: RunColumns, span: Span, counter: _Counter) -> dict[str, Floats]:
    """Return the trades that closed with a profit after costs, and all."""
    batches = columns.views.batches("v_trades", ("sequence", "profit"), first=span[0], last=span[1])
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    at, profit = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    won = (profit > 0).astype(np.float64)
    return {"hit_rate": counter.add(at.astype(np.int64), won, np.ones(profit.size))}


def _forecasts(
    columns: RunColumns, span: Span, counter: _Counter, open_ms: int
) -> dict[str, Floats]:
    """Return QLIKE of the forecast volatility, at the bars from *open_ms* on that end a horizon."""
    horizon = columns.run.gate_horizon
    if horizon is None or not columns.run.model_id:
        return {}
    total = np.zeros((2, counter.days))
    back = int(columns.times.opens_later(np.array([open_ms]), -horizon - 1)[0])
    first = max(columns.span[0], columns.sequences(back, np.inf)[0])
    for name in columns.instruments:
        bars = columns.bars(name, (first, span[1]))
        opens = bars["open_time_ms"]
        if opens.size <= horizon:
            continue
        forecast = columns.forecasts(name, ("stdev_return",), bars["sequence"])["stdev_return"]
        moves = np.concatenate(([0.0], np.cumsum(np.diff(np.log(bars["close"])) ** 2)))
        realised = moves[horizon:] - moves[:-horizon]
        variance, ends = forecast[:-horizon] ** 2, bars["sequence"][horizon:]
        is_whole = opens[horizon:] == columns.times.opens_later(opens[:-horizon], horizon)
        is_forecast = is_whole & (variance > 0) & (ends >= span[0])
        loss = qlike_of(
            np.ones(int(is_forecast.sum())), realised[is_forecast] / variance[is_forecast]
        )
        total += counter.add(ends[is_forecast], loss, np.ones(loss.size))
    return {"qlike": total}


# ---------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class DriftLook:
    """A look at a measure after so many days: what the reference allows, in the unit's scale."""

    days: int
    at_ms: int
    value: float
    low: float
    high: float

    @property
    def is_outside(self) -> bool:
        """Whether the value is not what the reference allows."""
        return not self.low <= self.value <= self.high


@dataclass(frozen=True)
class MeasureDrift:
    """A measure of the reference and of the run, and the looks at it; in the unit's scale."""

    name: str
    measure: Measure
    reference: Estimate | None
    value: Estimate | None
    looks: tuple[DriftLook, ...] = ()
    line: tuple[tuple[int, float], ...] = ()  # the time and the value after each block of days

    @property
    def allowed(self) -> str:
        """What the newest look allows; empty before the first."""
        return f"{self.looks[-1].low:,.2f} to {self.looks[-1].high:,.2f}" if self.looks else ""

    @property
    def since_ms(self) -> int | None:
        """When a look first was outside; None if none was."""
        return next((look.at_ms for look in self.looks if look.is_outside), None)

    @property
    def verdict(self) -> str:
        """Inside, or since when not; empty without a look."""
        if self.since_ms is not None:
            return f"outside since {minute_text(self.since_ms)[:10]}"
        return "inside" if self.looks else ""


@dataclass(frozen=True)
class Drift:
    """A run against its reference."""

    run_id: str
    reference_id: str
    level: float
    days: int  # whole days of the run, from its first to its last
    until_ms: int  # the end of the last
    reference_days: int
    measures: tuple[MeasureDrift, ...]

    @property
    def outside(self) -> dict[str, int]:
        """The measures that are not what the reference allows, by name, and since when."""
        return {each.name: each.since_ms for each in self.measures if each.since_ms is not None}

    @property
    def too_few(self) -> bool:
        """Whether no look was possible yet."""
        return not any(each.looks for each in self.measures)

    @property
    def sentence(self) -> str:
        """Whether the run is inside what the backtest allows, or what is not, and since when."""
        if self.too_few:
            return (
                f"Too few days: {count_of(self.days, 'whole day')} of the run and "
                f"{self.reference_days:,} of the reference, and {DAYS_LEAST} of each are wanted."
            )
        days = max(look.days for each in self.measures for look in each.looks)
        if not self.outside:
            count = count_of(sum(bool(each.looks) for each in self.measures), "measure")
            return f"Inside what the backtest allows: {count} over {count_of(days, 'day')}."
        parts = [
            f"{each.measure.title} since {minute_text(since_ms)[:10]}"
            for each in self.measures
            if (since_ms := each.since_ms) is not None
        ]
        return f"Outside what the backtest allows: {', '.join(parts)}."

    @property
    def state(self) -> DriftState:
        """What the daemon keeps of it."""
        return DriftState(self.sentence, self.outside, self.until_ms)


class _Ratio(NamedTuple):
    """A ratio of sums with its standard error by blocks of days."""

    value: float
    error: float | None  # None with a single block
    weight: float  # the sum of the denominators
    sizes: Ints  # days of each block

    @property
    def estimate(self) -> Estimate:
        return self.value, widened(self.error, self.sizes)


def _ratio(sums: Floats, days: Ints) -> _Ratio | None:
    """Return the ratio of *sums* [2, day]; None if the denominators are 0."""
    total, weight = sums.sum(axis=1).tolist()
    if not weight > 0:
        return None
    value = total / weight
    error = standard_error(sums[0] - value * sums[1], days)
    scaled = None if error is None else error * days.size / weight
    return _Ratio(value, scaled, weight, np.bincount(blocks_of(days)))


def looks_until(blocks: int) -> list[int]:
    """Return the numbers of blocks at which a run of so many is compared: 6, 9, 14, 21, 32."""
    looks, size = [], BLOCKS_LEAST
    while size <= blocks:
        looks.append(size)
        size = math.ceil(GROWTH * size)
    return looks


def shares_of(reference: DaySums) -> dict[str, float]:
    """Return the share of the level that each measure of *reference* has.

    Each measure has the same, and the gates share that of one. What never varies there, such as a
    constant cost, takes nothing from the others: a run like its reference has it too.
    """
    plain = [name for name in MEASURES if reference.of(name)[1].any()]
    gates = [name for name in reference.sums if name.startswith(REFUSED)] + [OTHERS]
    ratios = [_ratio(reference.of(name), reference.days) for name in plain]
    errors = [(each.error or 0.0, abs(each.value)) for each in ratios if each is not None]
    varying = sum(bool(error > ROUNDING * value) for error, value in errors)
    each = 1.0 / max(1, varying + (len(gates) > 1))
    return dict.fromkeys(plain, each) | dict.fromkeys(gates, each / len(gates))


def measure_of(name: str) -> Measure:
    """Return the measure *name*; that of a gate has the gate's name."""
    return MEASURES.get(name) or Measure(name, "% of decisions", 100.0)


def compared(reference: DaySums, run: DaySums, level: float = LEVEL) -> Iterator[MeasureDrift]:
    """Yield each measure of *run* against *reference*, at all its looks.

    The probability that a run like its reference is outside at any look of any measure within a
    year is at most *level*.
    """
    shares = shares_of(reference)
    others = [name for name in run.sums if name.startswith(REFUSED) and name not in shares]
    refused = sum((run.of(name)[0] for name in others), np.zeros(run.days.size))
    run = replace(run, sums={**run.sums, OTHERS: np.array([refused, run.judged])})
    for name, share in shares.items():
        if name != OTHERS or refused.any():
            yield _compared(reference, run, name, share * level)


def _compared(reference: DaySums, run: DaySums, name: str, level: float) -> MeasureDrift:
    """Return both values of a measure in its unit, the looks at it, and its line."""
    measure = measure_of(name)
    in_unit = np.array([[measure.factor], [1.0]])
    expected, sums = _ratio(in_unit * reference.of(name), reference.days), in_unit * run.of(name)
    looks, line = [], []
    first = int(run.days[0]) if run.days.size else 0
    blocks = int(run.days[-1] + 1 - first) // BLOCK_DAYS if run.days.size else 0
    sizes = looks_until(blocks)
    # By days: a halved edge shows late, and an early look would spend what finds it.
    spent = {
        size: level * (size - before) * BLOCK_DAYS / YEAR_DAYS
        for before, size in pairwise([0, *sizes])
    }
    added = np.cumsum(sums, axis=1)
    for size in range(1, blocks + 1):
        at_ms = (first + size * BLOCK_DAYS) * DAY_MS
        until = int(np.searchsorted(run.days, first + size * BLOCK_DAYS))
        if not added[1, until - 1] > 0:
            continue
        line.append((at_ms, float(added[0, until - 1] / added[1, until - 1])))
        if size in spent and expected is not None and expected.sizes.size >= BLOCKS_LEAST:
            ratio = _ratio(sums[:, :until], run.days[:until])
            assert ratio is not None, "its weight is above 0"
            allowed = _allowed(expected, ratio, spent[size])
            looks.append(DriftLook(size * BLOCK_DAYS, at_ms, ratio.value, *allowed))
    whole = _ratio(sums, run.days)
    return MeasureDrift(
        name,
        measure,
        None if expected is None else expected.estimate,
        None if whole is None else whole.estimate,
        tuple(looks),
        tuple(line),
    )


def _allowed(reference: _Ratio, run: _Ratio, level: float) -> tuple[float, float]:
    """Return the values between which a run like *reference* lies, but for *level*.

    Blocks of the run spread as those of the reference do, or as they themselves do if that is more:
    a backtest's constant costs say nothing of how a live run's spread.
    """
    assert reference.error is not None
    spread = reference.error * reference.weight / math.sqrt(reference.sizes.size)
    expected = spread * math.sqrt(run.sizes.size) / run.weight
    error, sizes = expected, reference.sizes
    if run.error is not None and run.error > expected:
        error, sizes = run.error, min(run.sizes, reference.sizes, key=len)
    both = BlockEstimate(reference.value, math.hypot(reference.error, error), sizes)
    low, high = both.interval(1.0 - level) or (-math.inf, math.inf)
    immaterial = MATERIAL * abs(reference.value)
    return min(low, reference.value - immaterial), max(high, reference.value + immaterial)


# ---------------------------------------------------------------- a run and its reference


def reject_differences(reference: RunColumns, run: RunColumns) -> None:
    """Raise ``DataInvalid`` that names in what two runs differ by which they cannot be compared."""
    pairs = [
        ("symbols", *(", ".join(sorted(each.instruments)) for each in (reference, run))),
        ("interval", *(interval_text(each.interval_ms) for each in (reference, run))),
        ("model", reference.run.model_sha256[:16], run.run.model_sha256[:16]),
        ("strategy", reference.run.strategy_sha256[:16], run.run.strategy_sha256[:16]),
    ]
    before, after = (
        {
            name: {key: value for key, value in table.items() if (name, key) != _FILL_MODEL}
            for name, table in restore(each.run.config).settings().items()
            if name in CHANGEABLE
        }
        for each in (reference, run)
    )
    pairs += [
        (".".join(path), str(was), str(now)) for path, was, now in changed_keys(before, after)
    ]
    named = [
        f"{name} ({was or 'none'}, not {now or 'none'})" for name, was, now in pairs if was != now
    ]
    if named:
        raise DataInvalid(
            f"Run {run.run.run_id} is not compared, because run {reference.run.run_id} differs in "
            f"{', '.join(named)}; replay a reference with the run's configuration."
        )


_FILL_MODEL: Final = ("execution", "model")
"""A daemon fills at quotes what a backtest fills at candles."""


def drift_of(
    reference: tuple[str, DaySums], run: tuple[str, DaySums], level: float = LEVEL
) -> Drift:
    """Return the run of an id and its days against a *reference*.

    Raises ``ConfigInvalid`` for a level outside (0, .5].
    """
    if not 0 < level <= 0.5:
        raise ConfigInvalid(f"The level is {level:g}; give a probability above 0, at most 0.5.")
    spans = [int(np.ptp(sums.days)) + 1 if sums.days.size else 0 for _, sums in (run, reference)]
    return Drift(
        run[0],
        reference[0],
        level,
        spans[0],
        int(run[1].days[-1] + 1) * DAY_MS if spans[0] else 0,
        spans[1],
        tuple(compared(reference[1], run[1], level)),
    )


def read_drift(reference: RunColumns, run: RunColumns, level: float = LEVEL) -> Drift:
    """Return *run* against *reference*; raise ``DataInvalid`` if they cannot be compared."""
    reject_differences(reference, run)
    return drift_of(
        (reference.run.run_id, read_days(reference)), (run.run.run_id, read_days(run)), level
    )


# ---------------------------------------------------------------- the document

_COLUMNS: Final = (
    of_field("heading", "what", "text", "measure.heading"),
    of_field("reference", "backtest ± error", "ratio"),
    of_field("value", "run ± error", "ratio"),
    of_field("allowed", "allowed", "text"),
    of_field("verdict", "verdict", "text"),
)


def measures_table(drift: Drift) -> Table:
    """Return a row for each measure."""
    note = (
        f"A run like its backtest is called outside within a year with a probability of at most "
        f"{100 * drift.level:g} %. It is compared after {DAYS_LEAST} whole days, then whenever "
        "they have grown by half."
    )
    return table("measures", "Against the backtest", _COLUMNS, drift.measures, notes=(note,))


def chart(drift: Drift) -> Chart | None:
    """Draw each measure over time in the band of what is allowed; None without a look."""
    panels = [_panel(each) for each in drift.measures if each.looks]
    if not panels:
        return None
    caption = "The line is the run so far; the band is what the backtest allows at each look."
    return Chart("The run in its band", caption, panels, columns=2)


def _panel(drift: MeasureDrift) -> ChartPanel:
    times, values = zip(*drift.line, strict=True)
    assert drift.reference is not None, "it has a look"
    looks = drift.looks
    at = [*(look.at_ms for look in looks), max(times[-1], looks[-1].at_ms + 1)]
    low, high = ([*edge, edge[-1]] for edge in zip(*((k.low, k.high) for k in looks), strict=True))
    return ChartPanel(
        [
            BandLayer("allowed", at, rounded(low), rounded(high)),
            RuleLayer(drift.reference[0], name="backtest"),
            LineLayer("this run", list(times), rounded(values)),
        ],
        time_axis(),
        ChartAxis(drift.measure.heading, digits=2),
        180,
    )


def drift_document(drift: Drift) -> TitledParts:
    """Return *drift* as a document, which begins with its sentence."""
    parts: list[Part] = [Paragraph(drift.sentence, "warning" if drift.outside else "strong")]
    if (drawn := chart(drift)) is not None:
        parts.append(drawn)
    if drift.measures:
        parts.append(measures_table(drift))
    return TitledParts(f"Run {drift.run_id} against run {drift.reference_id}", tuple(parts))


def drift_json(drift: Drift) -> dict[str, Any]:
    """Return *drift* as JSON values."""
    names = ("run_id", "reference_id", "level", "days", "reference_days", "until_ms", "too_few",
             "sentence", "outside")  # fmt: skip
    rows = measures_table(drift).documents()
    measures = [
        {
            "name": each.name,
            **row,
            "since_ms": each.since_ms,
            "looks": list(map(asdict, each.looks)),
        }
        for each, row in zip(drift.measures, rows, strict=True)
    ]
    return {name: getattr(drift, name) for name in names} | {"measures": measures}
