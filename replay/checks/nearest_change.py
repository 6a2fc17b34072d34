"""The smallest change with which a decision that did not trade would have traded.

Two kinds are tried: the threshold of the only gate that refused, set to its measure, and the bar's
close. Each is derived again by an engine in the recorded state before the bar, so it is a what-if
of this bar alone, and it counts only if an order is sent. No model is asked: forecasts are the
recorded ones.

The rule is docs/identity.md, I23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from itertools import takewhile
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.config.loading import NOTHING, Config, Sections, restore
from tracepaper.daemon.session.loop import events_of, gathered, steps_of
from tracepaper.daemon.session.resume import engine_after, engine_lookback, engine_of, take_over
from tracepaper.daemon.session.run_row import strategy_sha256
from tracepaper.replay.backtest.recorded import RecordedPredictor, RecordedRun, run_in
from tracepaper.replay.checks.changed_run import recorded_model
from tracepaper.replay.explain.decision import NearestChange
from tracepaper.storage.chain.starting_point import RunLookback, StartingPoints
from tracepaper.storage.database.chunks import close_of
from tracepaper.storage.database.reader import Fed, Reader
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, TracepaperError
from tracepaper.strategies.gates.evaluator import threshold_key
from tracepaper.strategies.gates.gate import DROPPABLE, GATES, ThresholdForm, ThresholdKey
from tracepaper.strategies.types.decisions import Order, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import Bar, Close, Side, Unit
from tracepaper.strategies.units import percent, unscaled, without_zeros

DISTANCES: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Changes of the close that are tried, as shares of it; the nearest that trades is then refined."""
REFINED: Final = 5
"""Bisections between two of them."""
DIGITS: Final = 3
"""Significant digits of a threshold; it is rounded so that the measure passes."""
_VERBS: Final = {Side.BUY: "bought", Side.SELL: "sold"}


def nearest_changes(database: Path, run_id: str, sequence: int) -> tuple[NearestChange, ...]:
    """Return the smallest changes with which decision *sequence* would have sent an order.

    There is at most one of a key and one of the close. A gate whose passing would have changed
    nothing is named too. None if the decision traded, if no single change would have done, or if
    the record does not hold what deriving it again needs.
    """
    with suppress(TracepaperError), Reader.open(database) as reader:
        return tuple(DecisionAgain(reader, database, run_id, sequence).changes())
    return ()


class DecisionAgain:
    """One decision of a record that is derived again, with a changed key or a changed close."""

    def __init__(self, reader: Reader, database: Path, run_id: str, sequence: int) -> None:
        """Read what its bar depends on; raise ``DataInvalid`` where the record lacks it."""
        self._reader, self._database, self._sequence = reader, database, sequence
        stored = reader.stored_run(run_id)
        self._run, self._config = stored.run, restore(stored.run.config)
        if strategy_sha256(self._config) != self._run.strategy_sha256:
            raise DataInvalid("The class was changed since.")
        self._forecaster, _, engine = recorded_model(reader, stored, self._config, self._config)
        context = 0 if self._forecaster is None else self._forecaster.context
        lookback = engine_lookback(engine, context)
        points = StartingPoints(
            reader.connection, stored.run_key, RunLookback(lookback.bars, lookback.books)
        )
        self._beginning = points.before(sequence)
        first = 0 if self._beginning is None else self._beginning.fed_from
        last = close_of(reader.connection, stored.run_key, sequence, len(self._run.instruments))[1]
        rows = reader.events(run_id, first - 1)
        self._rows: list[Fed] = [*takewhile(lambda row: row[0] <= last, rows)]

    def step(self, changes: Sections = NOTHING, close: int | None = None) -> Step:
        """Return the decision's step with the keys of *changes*, or with another *close*.

        The bar's high and low then hold the close. Raises ``ConfigInvalid`` for a value that a key
        cannot have.
        """
        config = restore(self._run.config, changes)
        recorded = self._recorded(config)
        engine = recorded.engine
        predictor = RecordedPredictor(recorded, None)
        events = predictor.handed_on(iter(self._rows))
        for unit in gathered(run_in(self._reader, recorded, predictor, events)):
            place = self._sequence - engine.sequence  # of the decided bar within the unit
            predictions = predictor.predict(unit)
            if close is not None and place < len(predictions):
                unit = _with_close(unit, place, close)  # noqa: PLW2901 - the changed one
            steps = steps_of(engine, unit, predictions)
            if place < len(steps):
                return steps[place]
        raise DataInvalid("The record ends before the decision.")

    def _recorded(self, config: Config) -> RecordedRun:
        """Return the run of *config*, with an engine in the recorded state before the bar."""
        run, model, beginning = self._run, self._forecaster, self._beginning
        if beginning is None:
            engine = engine_of(run, config, model, run.instruments)
            take_over(engine, run)
        else:
            engine = engine_after(self._reader, run, config, model, beginning.after)
        return RecordedRun(run, config, engine, model, beginning)

    def changes(self) -> Iterator[NearestChange]:
        """Yield the smallest changes that trade: at most one of a key, and one of the close."""
        stored = self._reader.step(self._run.run_id, self._sequence)
        again = self.step()
        if _sent(stored) or again.decision != stored.decision:
            return  # it traded, or does not follow here from the record
        yield from self._of_key(again)
        yield from self._of_close(again)

    # ------------------------------------------------------------ a key

    def _of_key(self, step: Step) -> Iterator[NearestChange]:
        """Yield the threshold that the only refusing gate's measure would have passed."""
        decision = step.decision
        assert decision is not None
        judged = zip(
            decision.gate_set.gates, decision.measures, decision.gate_set.thresholds, strict=True
        )
        failed = [each for place, each in enumerate(judged) if not decision.passed >> place & 1]
        if len(failed) != 1:
            return
        ((gate, measure, threshold),) = failed
        declared = GATES[gate]
        if isinstance(declared.threshold, ThresholdKey) and measure is not None:
            name = threshold_key(declared)
            section, _, field = name.partition(".")
            value = _passing(measure, declared.threshold.form, at_least=declared.at_least)
            changes: Sections = {section: {field: value}}
            was = str(self._config.settings()[section][field])
            words = f"With `{name}` at {value} ({_configured(was, threshold)})"
        elif declared.kind in DROPPABLE:
            name, value, was = gate, "", ""
            changes = {"gate": {"drop": (*self._config.gate.drop, gate)}}
            words = f"Without the gate {gate}"
        else:
            return
        with suppress(ConfigInvalid):  # no value of the key lets the measure pass
            changed = self.step(changes)
            sent = _sent(changed)
            outcome = _without_order(changed) if sent is None else _VERBS[sent.side]
            sentence = f"{words} it would have {outcome}."
            yield NearestChange(name, value, was, sent is not None, sentence)

    # ------------------------------------------------------------ the close

    def _of_close(self, step: Step) -> Iterator[NearestChange]:
        """Yield the nearest close that trades, if the close decides something here."""
        bar, decision, prediction = step.event, step.decision, step.prediction
        assert isinstance(bar, Bar)
        assert decision is not None
        if self._config.strategy.name == TREND:
            if TREND not in (decision.note or {}):
                return  # between two hours no close decides
        elif prediction is not None:
            return  # another close would have had another forecast
        (item,) = (each for each in self._run.instruments if each.id == bar.instrument)
        close = self._nearest_close(bar.close, max(item.tick_size, 1))
        if close is None or (sent := _sent(self.step(close=close))) is None:
            return
        share = close / bar.close - 1
        price, was = (unscaled(each, item.price_decimals) for each in (close, bar.close))
        sentence = (
            f"With the close {percent(abs(share))} {'higher' if share > 0 else 'lower'}, at "
            f"{Decimal(price):,}{', and the forecast as it was,' if prediction is not None else ''}"
            f" it would have {_VERBS[sent.side]}."
        )
        yield NearestChange("close", price, was, trades=True, sentence=sentence)

    def _nearest_close(self, was: int, tick: int) -> int | None:
        """Return the nearest close, in steps of *tick*, at which an order is sent; None if none."""
        kept = {-1: was, 1: was}  # by direction: the farthest close that did not trade
        for distance in DISTANCES:
            for sign, untraded in tuple(kept.items()):
                close = round(was * (1 + sign * distance) / tick) * tick
                if close <= 0 or close == untraded:
                    continue
                if _sent(self.step(close=close)):
                    return self._refined(untraded, close, tick)
                kept[sign] = close
        return None

    def _refined(self, kept: int, traded: int, tick: int) -> int:
        """Return a close near *kept*, which did not trade, that does as *traded* did."""
        for _ in range(REFINED):
            middle = (kept + traded) // (2 * tick) * tick
            if middle in {kept, traded}:
                break
            if _sent(self.step(close=middle)):
                traded = middle
            else:
                kept = middle
        return traded


def _sent(step: Step) -> Order | None:
    """Return the first order that the decision of a step sends in the run's own account."""
    return next(
        (
            order
            for order in step.orders
            if order.role in {OrderRole.SIGNAL, OrderRole.LIST}
            and order.status is not OrderStatus.REJECTED
            and order.order_id.startswith(f"{step.sequence}-")
        ),
        None,
    )


def _without_order(step: Step) -> str:
    """Return that the decision of *step* passed the gates, and why it sent no order."""
    decision = step.decision
    assert decision is not None
    if decision.refused_by is not None:  # the changed key is also another gate's threshold
        return f"been refused by {decision.refused_by}"
    prefix = f"{step.sequence}-"
    rejected = (
        order.reason
        for order in step.orders
        if order.status is OrderStatus.REJECTED and order.order_id.startswith(prefix)
    )
    cause = decision.unfilled_reason or next(rejected, None)
    if cause is None:
        reason = f" ({decision.reason})" if decision.reason else ""
        cause = f"the strategy asked for no change{reason}"
    return f"passed and sent no order: {cause}"


def _with_close(unit: Unit, place: int, close: int) -> Unit:
    """Return *unit* with another close of its event at *place*."""
    bar = events_of(unit)[place]
    assert isinstance(bar, Bar)
    changed = replace(bar, close=close, high=max(bar.high, close), low=min(bar.low, close))
    if not isinstance(unit, Close):
        return changed
    return Close(unit.closed, [changed if each is bar else each for each in unit.bars])


def _passing(measure: float, form: ThresholdForm, *, at_least: bool) -> str:
    """Return the threshold nearest to *measure* that it passes, as text of the key's *form*."""
    rounding = ROUND_FLOOR if at_least else ROUND_CEILING
    value = Decimal(repr(measure))
    if form in {ThresholdForm.COUNT, ThresholdForm.MILLISECONDS}:
        return str(value.to_integral_value(rounding))
    return without_zeros(f"{Context(prec=DIGITS, rounding=rounding).create_decimal(value):f}")


def _configured(configured: str, threshold: float) -> str:
    """Return what the key was, with the number where it is a quantile or chosen by the card."""
    try:
        float(configured)
    except ValueError:
        return f"it was {configured}, {threshold:.4g}"
    return f"it was {configured}"
