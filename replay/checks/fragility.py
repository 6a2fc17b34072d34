"""How fragile a result is: what is left without the best trades, a bar late, at twice the costs.

What the trades and days give is arithmetic over the record. The rest are runs again from the record
(``changed_run``). The rule is docs/python.md, Y22.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np

from tracepaper.daemon.config.loading import Config, Sections
from tracepaper.daemon.config.sections import STRATEGIES_OF, is_read
from tracepaper.daemon.session.build import costs_for
from tracepaper.replay.checks.changed_run import ChangedRun, changed_run
from tracepaper.replay.checks.decision_log import DecisionLog, Verdict
from tracepaper.replay.checks.waiting import waiting_of
from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    MarkLayer,
    RuleLayer,
    category_axis,
    rounded,
)
from tracepaper.replay.document.values import (
    TOO_FEW_DAYS,
    Estimate,
    Figure,
    Paragraph,
    Table,
    TitledParts,
    documents,
    of_field,
    signed_estimate,
    table,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.report.judgement import TRADES_TO_JUDGE
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.report.trades import ClosedTrade, closed_trades
from tracepaper.replay.run_columns import Floats, Ints, RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid, TracepaperError
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE, count_of, time_of

BEST: Final = (1, 5, 10)
"""Numbers of the best trades that are removed."""
FEW: Final = 5
"""A result that so many trades make rests on few."""
STEP: Final = 0.1
"""The share by which a parameter's neighbours differ from it."""
Word = Literal["stands", "rests on few trades", "gone"]
_COSTS: Final = ("slippage_bp", "spread_bp", "spread_slippage", "fee_per_share", "fee_minimum")
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)(.*)", re.DOTALL)
LATE, DEAR = "one bar late", "costs × 2"


class Days(NamedTuple):
    """The simple returns of days, and the days, counted from 1970-01-01."""

    returns: Floats
    days: Ints

    @classmethod
    def of(cls, times_ms: Ints, equity: Floats, calendar: Calendar | None) -> Self:
        """Return the days of an *equity* that begins before the first of *times_ms*."""
        returns = metrics.daily_returns(times_ms, equity, calendar)
        return cls(returns, metrics.return_days(times_ms, calendar)[: returns.size])

    @classmethod
    def of_record(cls, record: RunRecord) -> Self:
        """Return the days of the run's account."""
        return cls.of(record.times_ms, record.account.equity, record.bar_times.calendar)


@dataclass(frozen=True)
class Left:
    """What is left of the result, and where; ``error`` is why nothing is known."""

    group: str
    name: str
    profit: float | None = None
    days: Days | None = None
    count: int | None = None  # trades or days without removed ones, or fills
    error: str = ""
    size: int = 1  # times the recorded money; 0: the same without impact
    cash: float = 0.0
    first: float = 0.0  # quote currency of the first fill
    parameter: str = ""  # of a neighbour

    @property
    def mean_day(self) -> Estimate | None:
        """The mean day with its error by blocks of days; None if it is not known."""
        return None if self.days is None else metrics.mean_by_day(*self.days)

    @property
    def value(self) -> float:
        """The mean day; minus infinity if at some time nothing of the equity was left."""
        return -inf if self.mean_day is None else self.mean_day[0]


class Rerun(NamedTuple):
    """A run again from its record: *changes* of its configuration, under a name in a group."""

    database: Path
    run_id: str
    group: str
    name: str
    changes: Sections
    size: int = 1
    parameter: str = ""


Each = Callable[[Sequence[Rerun]], list[Left]]
"""Makes runs again: ``run_again`` for each, in this process or in others."""


@dataclass(frozen=True)
class Fragility:
    """What a result rests on; ``word`` and ``sentence`` answer the question."""

    run_id: str
    word: Word
    sentence: str
    too_few: bool  # the days are too few for an error
    whole: Left
    removed: tuple[Left, ...]
    reruns: tuple[Left, ...]
    parts: tuple[Left, ...]  # months, and days by volatility


# ---------------------------------------------------------------- arithmetic over the record


def removals(record: RunRecord, closed: Sequence[ClosedTrade]) -> tuple[Left, list[Left]]:
    """Return the whole result, and what is left without the best trades and the best day.

    A trade's profit is taken from the day on which it was closed. Raises ``DataInvalid`` for a run
    whose equity is not meaningful.
    """
    equity, times = record.account.equity, record.times_ms
    earned, days = float(equity[-1] - equity[0]), Days.of_record(record)
    whole = Left("", "as recorded", earned, days, len(closed))
    if not days.returns.size:
        return whole, []
    ends = metrics.day_ends(times, record.bar_times.calendar)
    before = np.concatenate((equity[:1], equity[1:][ends[:-1]]))
    best = sorted(closed, key=lambda trade: -trade.profit)
    left = []
    for count in (count for count in BEST if count < len(best)):
        gone = best[:count]
        places = np.searchsorted(times[ends], [trade.closed_ms for trade in gone])
        places, profits = np.minimum(places, ends.size - 1), np.array([t.profit for t in gone])
        values = days.returns.copy()
        np.subtract.at(values, places, profits / before[places])
        name = f"without the best {f'{count} trades' if count > 1 else 'trade'}"
        rest = Days(values, days.days)
        left.append(Left("trades", name, earned - float(profits.sum()), rest, len(best) - count))
    at = int(days.returns.argmax())
    values, gain = days.returns.copy(), float(days.returns[at] * before[at])
    values[at] = 0.0
    rest = Days(values, days.days)
    left.append(Left("days", "without the best day", earned - gain, rest, values.size - 1))
    return whole, left


def parts_of(record: RunRecord) -> list[Left]:
    """Return the result by month, and by tercile of the days' volatility."""
    (returns, days), equity = Days.of_record(record), record.account.equity
    if not returns.size:
        return []
    ends = metrics.day_ends(record.times_ms, record.bar_times.calendar)
    money = np.diff(np.concatenate((equity[:1], equity[1:][ends])))
    months = days.astype("datetime64[D]").astype("datetime64[M]")
    groups = [("month", str(month), months == month) for month in np.unique(months)]
    volatility = _volatility(record, record.times_ms[ends])
    if returns.size >= len(_TERCILES):
        tercile = np.searchsorted(np.quantile(volatility, (1 / 3, 2 / 3)), volatility, side="left")
        groups += [("volatility", name, tercile == at) for at, name in enumerate(_TERCILES)]
    return [
        Left(
            group,
            name,
            float(money[chosen].sum()),
            Days(returns[chosen], days[chosen]),
            int(chosen.sum()),
        )
        for group, name, chosen in groups
    ]


_TERCILES: Final = ("calm days", "days between", "wild days")


def _volatility(record: RunRecord, ends_ms: Ints) -> Floats:
    """Return the realised volatility of each day that ends at *ends_ms*, by all instruments."""
    total = np.zeros(ends_ms.size)
    for name in record.bars:
        bars = record.bars[name]
        closes = np.concatenate((bars.open[:1], bars.close))
        places = np.searchsorted(ends_ms, record.bar_times.closes_of(bars.open_time_ms))
        squares = np.diff(np.log(closes)) ** 2
        total += np.bincount(np.minimum(places, ends_ms.size - 1), squares, ends_ms.size)
    volatility: Floats = np.sqrt(total / len(record.bars))
    return volatility


# ---------------------------------------------------------------- runs again


class Change(NamedTuple):
    """What is tried: *changes* of the configuration, under a name in a group."""

    group: str
    name: str
    changes: Sections
    parameter: str = ""


def changes_of(config: Config) -> Iterator[Change]:
    """Yield each change that is tried on a run of *config*."""
    execution, costs = config.execution, costs_for(config)
    yield Change("execution", LATE, {"execution": {"delay_bars": execution.delay_bars + 1}})
    doubled: dict[str, Any] = {
        key: str(2 * value) for key in _COSTS if (value := getattr(execution, key))
    }
    for key, rate in (("taker_fee", costs.taker_fee), ("maker_fee", costs.maker_fee)):
        if rate > 0:
            doubled[key] = str(2 * Decimal(rate) / RATE_SCALE)
    if execution.fees:
        doubled["fees"] = {
            symbol: {key: str(2 * fee) for key, fee in fees.model_dump().items() if fee is not None}
            for symbol, fees in execution.fees.items()
        }
    if doubled:
        yield Change("execution", DEAR, {"execution": doubled})
    tables, interval_ms = config.settings(), config.market.interval_ms
    name, gate = config.strategy.name, type(config.gate)()
    numbers: list[tuple[str, str, Mapping[str, Any]]] = [
        ("strategy", "", {
            key: value for key, value in tables["strategy"].items()
            if key in STRATEGIES_OF and is_read(STRATEGIES_OF, key, (name,))
            and key not in ("options", "warmup", "frames_warmup")  # the last two are no parameters
        }),
        ("strategy", "options", config.strategy.options),
        ("exits", "", tables["exits"]),
        ("gate", "", {
            key: value for key, value in tables["gate"].items()
            if getattr(config.gate, key) != getattr(gate, key)
        }),
    ]  # fmt: skip
    for section, inner, values in numbers:
        for key, near in _neighbours(values, interval_ms):
            changes = {inner: {**values, key: near}} if inner else {key: near}
            parameter = f"{section}.{key}"
            name = f"{parameter} = {_shown(near)}"
            yield Change("neighbours", name, {section: changes}, parameter)


def _neighbours(values: Mapping[str, Any], interval_ms: int) -> Iterator[tuple[str, object]]:
    """Yield the neighbours of each of *values* with its key; a seed has none, as a name has."""
    for key, value in values.items():
        if key != "seed":
            for factor in (1 - STEP, 1 + STEP):
                if (near := neighbour(value, factor, interval_ms)) not in (None, value):
                    yield key, near


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def neighbour(  # noqa: PLR0911 - one return a type
    value: object, factor: float, interval_ms: int
) -> Any:  # noqa: ANN401 - like value
    """Return *value* times *factor*; whole numbers and times move by at least one; else None.

    Times are rounded to whole bars. The values of a list are multiplied together.
    """
    match value:
        case bool() | None:
            return None
        case int():
            step = max(1, round(abs(value) * abs(factor - 1)))
            return value + step if factor > 1 else value - step
        case float() | Decimal():
            return type(value)(f"{float(value) * factor:.6g}")
        case list() | tuple() if value:
            near = [neighbour(each, factor, interval_ms) for each in value]
            return None if None in near else near
        case str():
            if (length_ms := time_of(value)) is not None:
                bars = neighbour(max(1, length_ms // interval_ms), factor, interval_ms)
                return f"{bars * interval_ms // 60_000}m"
            if (parts := _NUMBER.fullmatch(value.strip())) is not None:
                return f"{float(parts[1]) * factor:.6g}{parts[2]}"
    return None


def reruns_of(reader: Reader, database: Path, run_id: str, config: Config) -> list[Rerun]:
    """Return the runs again that tell something: those whose change has an effect."""
    reruns = []
    for change in changes_of(config):
        try:
            changed = changed_run(reader, database, run_id, changes=change.changes)
        except DataInvalid:
            pass  # its row says why
        except TracepaperError:
            continue  # the configuration cannot have that value
        else:
            if changed.without_effect:
                continue
        reruns.append(
            Rerun(
                database,
                run_id,
                change.group,
                change.name,
                change.changes,
                parameter=change.parameter,
            )
        )
    return reruns


def run_again(rerun: Rerun, _say: Callable[[str], None] = lambda _text: None) -> Left:
    """Return the result of *rerun*, or why there is none."""
    left = Left(rerun.group, rerun.name, size=rerun.size, parameter=rerun.parameter)
    try:
        with Reader.open(rerun.database) as reader:
            changed = changed_run(reader, rerun.database, rerun.run_id, changes=rerun.changes)
            left = replace(left, cash=float(changed.config.account.cash))
            return _derived(changed, left)
    except TracepaperError as error:
        return replace(left, error=str(error))


def _derived(changed: ChangedRun, left: Left) -> Left:
    """Return *left* with the result of *changed*; raise ``DataInvalid`` if it decides no bar."""
    codes: dict[Verdict, int] = {}
    log, columns = DecisionLog(left.cash, codes), RunColumns(changed.reader, changed.run.run_id)
    wait = None
    if changed.engine.may_wait:  # only then are the record's decisions of use
        wait = waiting_of(changed, columns, columns.rows.decided(), log)
    changed.derive(log, wait)
    decided = log.decided()
    closes = columns.times.closes_of(decided.rows["open_time_ms"])
    if not closes.size:
        raise DataInvalid("The changed run decides no bar of the record.")
    if left.parameter and _is_recorded(decided.rows, columns):
        raise DataInvalid("No fill differs: on these bars the parameter decides nothing.")
    equity = np.concatenate(([left.cash], decided.rows["equity"] / MONEY_SCALE))
    return replace(
        left,
        profit=float(equity[-1] - equity[0]),
        days=Days.of(closes, equity, columns.times.calendar),
        count=decided.account(0, -1)[2],
        first=log.first_notional / MONEY_SCALE,
    )


def _is_recorded(rows: Mapping[str, Ints], columns: RunColumns) -> bool:
    """Return whether the equity of *rows* is that of the record at each close that both decide."""
    recorded = columns.rows.decided()
    _, here, there = np.intersect1d(
        rows["open_time_ms"], recorded["open_time_ms"], return_indices=True
    )
    return bool(here.size) and np.array_equal(rows["equity"][here], recorded["equity"][there])


def one_by_one(reruns: Sequence[Rerun]) -> list[Left]:
    """Make each of *reruns* in this process."""
    return [run_again(rerun) for rerun in reruns]


# ---------------------------------------------------------------- the answer


def fragility(
    database: Path,
    run_id: str,
    *,
    each: Each = one_by_one,
    begins: Callable[[int], None] = lambda _count: None,
) -> Fragility:
    """Return what the result of *run_id* rests on.

    *begins* is called with the number of runs again before the first of them, which *each* makes.
    Raises ``DataInvalid`` for a run without a decision, or whose equity is not meaningful.
    """
    with Reader.open(database) as reader:
        record = read_record(reader, database, run_id)
        closed = closed_trades(record.account)
        whole, removed = removals(record, closed)
        reruns = reruns_of(reader, database, run_id, record.config) if record.account.fills else []
    begins(len(reruns))
    again = each(reruns)
    word, sentence = judged(record, closed, whole, removed, again)
    return Fragility(
        run_id,
        word,
        sentence,
        whole.mean_day is None or whole.mean_day[1] is None,
        whole,
        tuple(removed),
        tuple(again),
        tuple(parts_of(record)),
    )


def judged(  # noqa: PLR0911 - one return an answer
    record: RunRecord,
    closed: Sequence[ClosedTrade],
    whole: Left,
    removed: Sequence[Left],
    again: Sequence[Left],
) -> tuple[Word, str]:
    """Return the word on a result, and the sentence that says what it rests on."""
    if not record.account.fills:
        return "gone", "it never traded, so there is nothing."
    if whole.mean_day is None:
        return "gone", "at some time nothing of its equity was left."
    mean, error = whole.mean_day
    bars = record.bar_times
    days = metrics.days_of(record.times_ms, bars.interval_ms, bars.calendar)
    if error is None:
        return "gone", f"{days:,.1f} days are too few to show that anything is there."
    a_day = f"{signed_estimate(mean, error, '.1f', 1e4)} bp a day"
    if mean <= 0.0 or not metrics.is_credible(mean, error):
        return "gone", f"{a_day} over {days:,.1f} days is what chance makes of nothing."
    changed, few = _of_changes(again), _without_few(len(closed), removed)
    if changed and min(changed).value <= 0.0:
        return "gone", f"of {a_day} nothing is left {min(changed).name}."
    if len(closed) < TRADES_TO_JUDGE:
        return "rests on few trades", f"{a_day} come of {count_of(len(closed), 'closed trade')}."
    if min(few).value <= 0.0:
        return "rests on few trades", f"of {a_day} nothing is left {min(few).name}."
    worst = min(changed + few)
    left = f"at worst {1e4 * worst.value:+.1f} bp are left, {worst.name}"
    return "stands", f"of {a_day} over {days:,.1f} days {left}."


class _Case(NamedTuple):
    """What the word is judged by: the mean day that is left in a case."""

    value: float
    name: str


def _of_changes(again: Sequence[Left]) -> list[_Case]:
    """Return the cases of the runs again: the mean of each parameter's pair is one."""
    known = [left for left in again if left.profit is not None]
    cases = [_Case(left.value, left.name) for left in known if not left.parameter]
    for parameter in dict.fromkeys(left.parameter for left in known if left.parameter):
        pair = [left.value for left in known if left.parameter == parameter]
        cases.append(_Case(sum(pair) / len(pair), f"beside {parameter}"))
    return cases


def _without_few(trades: int, removed: Sequence[Left]) -> list[_Case]:
    """Return the cases without a day, and without few of the *trades*."""
    return [
        _Case(left.value, left.name)
        for left in removed
        if left.group == "days" or trades - (left.count or 0) <= FEW
    ]


# ---------------------------------------------------------------- the document

_LEFT: Final = (
    of_field("group", "what", "text"),
    of_field("name", "", "text"),
    of_field("profit", "profit", "gain"),
    of_field("mean_day", "bp a day ± error", "gain bp"),
)
_REMOVED: Final = (*_LEFT[1:], of_field("count", "trades or days", "count"))
_AGAIN: Final = (
    *_LEFT,
    of_field("count", "fills", "count"),
    of_field("why", "why not", "text", "error"),
)
_PARTS: Final = (*_LEFT, of_field("count", "days", "count"))
_NOTE: Final = (
    "A trade's profit is taken from the day that closed it. ± is an error, by blocks of at least "
    "five days; chance exceeds two in one of twenty runs."
)


def tables(result: Fragility) -> tuple[Table, ...]:
    """Return the tables: removals, runs again, parts of the time."""
    removed = (result.whole, *result.removed)
    return (
        table("removed", "Without the best", _REMOVED, removed, notes=(_NOTE,)),
        table("reruns", "Run again", _again(result), result.reruns),
        table("parts", "By month and by volatility", _PARTS, result.parts),
    )


def _again(result: Fragility) -> tuple[Figure[Left], ...]:
    has_errors = any(left.error for left in result.reruns)
    return _AGAIN if has_errors else _AGAIN[:-1]


def chart(result: Fragility) -> Chart | None:
    """Draw the mean day of everything that was tried; None without an error of any."""
    drawn = [
        (left.name, *left.mean_day)
        for left in (result.whole, *result.removed, *result.reruns, *result.parts)
        if left.mean_day is not None and left.mean_day[1] is not None
    ]
    if not drawn:
        return None
    names, means, errors = zip(*drawn, strict=True)
    values, half = 1e4 * np.array(means), 1e4 * metrics.credible_bound(np.array(errors))
    marks = MarkLayer(
        "mean day, 95 %",
        rounded(values),
        list(range(len(drawn))),
        roles=["gain" if value > 0 else "loss" for value in values.tolist()],
        errors=rounded(half),
    )
    panel = ChartPanel(
        [marks, RuleLayer(0.0, "x")],
        ChartAxis("bp a day", unit=" bp", digits=1, has_zero=True),
        category_axis(names, is_reversed=True),
        50 + 24 * len(drawn),
    )
    caption = "A result that stands keeps its marks right of zero."
    return Chart("What is left", caption, [panel])


def fragility_document(result: Fragility) -> TitledParts:
    """Return the document, which begins with the word and its sentence."""
    parts = [
        Paragraph(f"{result.word.capitalize()}: {result.sentence}", "lead"),
        *([Paragraph(f"Errors are absent: {TOO_FEW_DAYS}.", "warning")] * result.too_few),
        *(each for each in (chart(result), *tables(result)) if each is not None),
    ]
    shown = [part for part in parts if not isinstance(part, Table) or part.rows]
    return TitledParts(f"run {result.run_id} · stress", tuple(shown))


def as_json(result: Fragility) -> dict[str, Any]:
    """Return the document as plain values."""
    names = ("run_id", "word", "sentence", "too_few")
    return {name: getattr(result, name) for name in names} | documents(tables(result))
