"""Random histories that are written once by steps and once with stretches: both end alike.

The digest of the last step covers every row, so equal heads are equal records. What the engine
carries after it is compared as well, and each call of the strategy. What was written by steps is
read back, and a run in memory has the figures of its record.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from exchange_client import FIRST_MS, MINUTE, candles
from histories import drawn_delay, since_decided
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine import engine as engine_module
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.session.run_row import start_event
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, predictor_over, run_events
from tracepaper.replay.report.figures import headline
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.trades import closed_trades
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import IN_MEMORY, MemoryLog
from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.context import BarContext, Orders, Percent, Signal, buy
from tracepaper.strategies.api.model import Answer, Model, ModelInput, feature_row
from tracepaper.strategies.api.strategy import MODEL_GATES, Strategy
from tracepaper.strategies.errors import DataInvalid, TracepaperError
from tracepaper.strategies.indicators import ema
from tracepaper.strategies.types.calibration import RegimeCells
from tracepaper.strategies.types.decisions import Action, QuietStretch, Step
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Command,
    CommandKind,
    Event,
    Funding,
    InstrumentChange,
    Mark,
    ModelChange,
)
from tracepaper.strategies.units import DAY_MS

STATE_EVERY_STEPS = 48
"""In these histories, which are short."""
CALLS: list[tuple[str, str, int]] = []
"""Every call of a strategy since a history began."""
STANDING = (
    Signal(Action.LONG, "long"),
    Signal(Action.SHORT, "short", 0.5),
    Signal(Action.FLAT, "flat"),
    Signal(Action.HOLD, "hold"),
)
MEASURES = (
    *("mean_return", "stdev_return", "probabilities", "volatility", "confidence_entropy"),
    *("content_free", "recent_mass", "event_focus", "shift"),
)
OPEN_GATES = {
    "horizon": 3, "confidence": "0.2", "collapse": "0", "shift": "0.9", "direction": "0.55",
    "regimes": ["MOMENTUM", "MIXED", "MEAN_REVERSION"],
}  # fmt: skip
CELLS = RegimeCells(
    ("recent_mass", "shift"), (0.5, 0.5), (0.3, 0.3), ((-1.0, 0.0), (1.0, 0.0)), (1.0, 1.0), (0, 0)
)
"""Learned regimes, between which the answers of a drawn model change."""
PROTECTED = Signal(Action.LONG, "long with a stop", stop=Percent(0.5), reenter=True)
BANDED = Signal(Action.LONG, "long in a band", band=0.3)


class DrawnRepeats(Strategy):
    """Signals by the bars alone, which it mostly repeats; some as new objects, some with notes."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.seed, self.restless = options["seed"], options["restless"]
        self.kind, self.fails_at = options["kind"], options["fails_at"]
        self.reads_history = self.kind == "history"
        if self.kind == "columns":
            self.columns = lambda history: {"mean": ema(history.close, 3)}
        self.warmup = options["warmup"]
        self.noted = 0.3 if self.seed % 2 else 0.95
        self._count = 0
        self._signal: Signal | Orders = STANDING[-1]

    def observe(self, bar: Bar) -> None:
        CALLS.append(("observe", bar.instrument, bar.open_time_ms))
        self._count += 1
        if self._count == self.fails_at:
            raise ValueError("observe fails")

    def decide(self, context: BarContext) -> Signal | Orders:
        bar = context.exact
        CALLS.append(("decide", bar.instrument, bar.open_time_ms))
        if self._count == -self.fails_at:
            raise ValueError("decide fails")
        if self.kind == "history":
            rises = context.history.close[-1] > context.history.close[0]
            return Signal(Action.LONG if rises else Action.FLAT, "by its history")
        if self.kind == "columns":
            rises = context.close > context.columns["mean"][-1]
            return STANDING[0] if rises else STANDING[2]
        rng = random.Random(f"{self.seed} {bar.open_time_ms} {bar.close}")
        if rng.random() < self.restless:
            drawn: list[Signal | Orders] = [*STANDING]
            if self.kind == "held":
                drawn = [PROTECTED, PROTECTED, STANDING[2]]
            if self.kind == "all":
                listed = Orders((buy(0.2, round(context.close * 0.999, 1), tag="a"),), "listed")
                drawn += [PROTECTED, BANDED, listed]
            self._signal = rng.choice(drawn)
        signal = self._signal
        if signal is PROTECTED and self.kind == "held":
            self._signal = STANDING[-1]
        if isinstance(signal, Signal) and self.kind == "noted" and rng.random() < self.noted:
            return msgspec.structs.replace(signal, note={"roll": rng.random()})
        if self.kind == "equal" and rng.random() < 0.8:
            return msgspec.structs.replace(signal)
        return signal


class DrawnSignals(Strategy):
    """Answers by an array: by the time of day, and by whether prices rise."""

    warmup = 5

    def __init__(self, options: Mapping[str, Any]) -> None:
        rng = random.Random(options["seed"])
        choice: list[Signal] = [*STANDING, *STANDING, PROTECTED, BANDED]
        choice += [Signal(Action.LONG, "noted", note={"seed": options["seed"]})]
        self.answers = {code: rng.choice(choice) for code in range(4)}
        self.length_ms = MINUTE * rng.choice((1, 5, 40))

    def signals(self, history: BarArrays) -> NDArray[np.int64]:
        rises = history.close > ema(history.close, 3, window=5)
        return history.time // self.length_ms * 2_654_435_761 % 7919 % 2 * 2 + rises


class DrawnBehindGates(DrawnRepeats):
    """The same signals behind the gates of a model."""

    needs_forecast, gates, shadows = True, MODEL_GATES, ("ungated",)


def drawn_answer(text: str) -> dict[str, float] | None:
    """Return the answer of a model to a bar: mostly near the last, now and then NaN or none."""
    rng = random.Random(text)
    if rng.random() < 0.03:
        return None
    up = rng.choice((0.2, 0.6, 0.7))
    answer = {name: rng.random() for name in MEASURES if name != "probabilities"}
    answer |= {"p_up": up, "p_flat": 0.1, "p_down": 0.9 - up, "event_focus": 0.0}
    answer["mean_return"] = rng.choice((-1, 1, 1)) * rng.choice((0.0001, 0.0001, 0.004))
    if rng.random() < 0.05:
        answer[rng.choice(("mean_return", "shift"))] = float("nan")
    return answer


class DrawnModel(Model):
    """Draws its forecast of a bar from the bar."""

    context, horizons, measures = 2, (3,), MEASURES

    def predict(self, inputs: ModelInput) -> Answer:
        CALLS.append(("predict", inputs.instrument, inputs.time))
        return drawn_answer(f"{inputs.time // (5 * MINUTE)} {inputs.past.close[-1]}")


@feature_row(lookback=2)
def closes(past: BarArrays) -> list[float]:
    """Return the last two closes."""
    return [float(close) for close in past.close[-2:]]


class DrawnRows(Model):
    """Draws the forecasts of many bars at once."""

    features, context, horizons, measures = closes, 1, (3,), MEASURES

    def predict_rows(self, rows: NDArray[np.float32]) -> Mapping[str, Any]:
        answers = [drawn_answer(f"{row}") or drawn_answer("") or {} for row in rows.tolist()]
        return {name: np.array([[each[name]] for each in answers]) for name in answers[0]}


class RunEnding(NamedTuple):
    """What a run came to."""

    head: str
    steps: int
    equity: int
    counts: tuple[int, int]
    state: bytes
    error: str
    calls: list[tuple[str, str, int]]


def drawn_candles(
    rng: random.Random, symbols: list[str], category: Category, interval_ms: int
) -> list[Candles]:
    """Draw a market: calm and wild bars, jumps, prices that stand still, and holes."""
    count = rng.randint(60, 260)
    first_ms = FIRST_MS // interval_ms * interval_ms
    times = [first_ms + place * interval_ms for place in range(count)]
    if rng.random() < 0.3:
        del times[count // 2]
    market = []
    for symbol in symbols:
        price, rows = rng.choice((5_000, 300_000)), []
        swing = max(price // rng.choice((100, 1_000, 5_000)), 1)
        for _ in times:
            move = rng.choice((0, 1, 1, 1)) * rng.randint(-swing, swing)
            if rng.random() < 0.01:
                move *= 40
            close = max(price + move, price // 2, 100)
            high, low = max(price, close) + swing // 3, max(min(price, close) - swing // 4, 1)
            rows.append((price, high, low, close, rng.randint(0, 9_000)))
            price = close
        market.append(
            candles(rows, symbol=symbol, category=category, interval_ms=interval_ms, times_ms=times)
        )
    return market


def drawn_settings(rng: random.Random, symbols: list[str], category: Category) -> dict[str, Any]:
    """Draw a configuration, of which most let a bar repeat the decision before."""
    fast = rng.randint(1, 4)
    notional, bands = rng.choice(("2000", "30")), ("0", "0.002", "0.1")
    sizing: dict[str, Any] = rng.choice(
        (
            *({"mode": "fixed", "quantity": "0.5"},) * 2,
            *({"mode": "notional", "notional": notional},) * 2,
            {"mode": "notional", "notional": "2000", "rebalance": rng.choice(bands)},
            {"mode": "fixed", "quantity": "3", "max_position": "4000"},
            {"mode": "equity", "fraction": "0.5"},
            {"mode": "volatility", "notional": "2000", "volatility": "ewma", "lookback": 24},
        )
    )
    given: dict[str, Any] = {
        "market": {"symbols": symbols, "category": category.value, "interval": "1"},
        "sizing": sizing,
        "account": {"cash": rng.choice(("100000", "100000", "900"))},
    }
    if rng.random() < 0.5:
        given["strategy"] = {
            "name": "sma_cross", "fast": fast, "slow": fast + rng.randint(1, 9),
            "long_only": rng.random() < 0.5,
        }  # fmt: skip
        if rng.random() < 0.2:
            given["strategy"] = {"name": "persistence"}
    else:
        options = {
            "seed": rng.randint(0, 99),
            "restless": rng.choice((0.02, 0.1, 0.4)),
            "kind": rng.choice(("same", "held", "equal", "noted", "all", "history", "columns")),
            "warmup": rng.choice((3, 5, 12)),
            "fails_at": rng.choice((0, 0, 0, 0, 50, -50)),
        }
        given["strategy"] = {"name": f"{__name__}:DrawnRepeats", "options": options}
    if rng.random() >= 0.3 and category is Category.LINEAR and rng.random() < 0.15:
        given["account"] |= {"margin": rng.choice(("isolated", "cross")), "leverage": "10"}
    if rng.random() < 0.2:
        given["exits"] = rng.choice(({"stop_loss": "0.5%"}, {"take_profit": "0.3%"}))
    if rng.random() < 0.05:
        given["risk"] = {"max_drawdown": "0.05"}
    if rng.random() < 0.2:
        given["execution"] = {"plausible": rng.choice((2, 5))}
    drawn = random.Random(repr(given))  # no other draw depends on these
    if drawn.random() < 0.4:
        rule = drawn.choice(("impact", "square_root"))
        given.setdefault("execution", {}).update(beyond_best=rule, impact_bp="40")
    given["execution"] = {**given.get("execution", {}), **drawn_delay(random.Random(repr(given)))}
    if drawn.random() < 0.3:
        given["execution"]["spread_slippage"] = "0.5"
    return given


def _by_model(rng: random.Random, given: dict[str, Any]) -> None:
    """Let the drawn strategy, or that of the model, decide on drawn forecasts."""
    given["model"] = {"class": f"{__name__}:{rng.choice(('DrawnModel', 'DrawnRows'))}"}
    given["gate"] = {**OPEN_GATES, "edge": rng.choice(("0.01", "1", "5"))}
    given["regime"] = {"momentum": "0.6", "mean_reversion": "0.3"}
    strategy = given["strategy"]
    if strategy.get("options") and rng.random() < 0.4:
        strategy["name"] = f"{__name__}:DrawnBehindGates"
        return
    shadows = rng.choice((["ungated"], ["ungated", "no_edge"], ["held"], []))
    given["strategy"] = {"name": "attention", "shadows": shadows}


def drawn_events(rng: random.Random, replay: Replay) -> Iterator[Event]:
    """Yield the events of *replay*, and what comes between them now and then."""
    eventful = rng.choice((0.0, 0.02, 0.1))
    if replay.forecaster is not None:
        yield _start(replay, FIRST_MS)
    for event in replay.feed.events():
        if not isinstance(event, Bar):
            yield event
            continue
        late_ms = 90_000 if rng.random() < eventful / 4 else 0
        bar = msgspec.structs.replace(event, seen_ms=event.seen_ms + late_ms)
        yield bar
        if len(replay.instruments) > 1 or rng.random() >= eventful:
            continue
        yield from _between(rng, replay, bar)


def _between(rng: random.Random, replay: Replay, bar: Bar) -> Iterator[Event]:
    at_ms, key = bar.seen_ms, bar.instrument
    match rng.randint(0, 4 if replay.forecaster is None else 5):
        case 0:
            yield Funding(key, rng.randint(-9, 9) * 10**6, at_ms, at_ms)
        case 1:
            yield Mark(key, bar.close + rng.randint(-50, 50), at_ms, at_ms)
        case 2:
            kind = rng.choice((CommandKind.HALT, CommandKind.FLATTEN))
            yield Command(kind, "drawn", at_ms, at_ms)
            yield Command(CommandKind.RESUME, "drawn", at_ms, at_ms)
        case 3:
            yield bar  # a revision
        case 4:
            yield _start(replay, at_ms)
        case _:
            item = next(instrument for instrument in replay.instruments if instrument.id == key)
            step = item.quantity_step * rng.choice((1, 2, 5))
            yield InstrumentChange(msgspec.structs.replace(item, quantity_step=step), at_ms, at_ms)


def _start(replay: Replay, at_ms: int) -> ModelChange:
    return start_event(replay.forecaster, warm_from=(), market_ms=at_ms)


def figures(reader: Reader) -> str:
    """Return what a sweep reads of the run: its figures, and the arrays that they are made of."""
    try:
        record = read_record(reader, IN_MEMORY, "0")
    except DataInvalid as error:
        return str(error)
    account, trades = record.account, closed_trades(record.account)
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return repr(
            (headline(record, trades), trades, account.equity, account.held, account.fills,
             [replace(shadow, trades=()) for shadow in record.shadows], record.bars,
             record.decisions.refused_by, record.decisions.sequence, record.states, record.margins)
        )  # fmt: skip


def _learn_regimes(replay: Replay) -> None:
    """Let a drawn model have learned regimes, as a card has them."""
    if replay.forecaster is not None:
        for market in replay.engine.markets.values():
            market.regimes.cells = CELLS


def _judge_anew(engine: engine_module.Engine) -> None:
    """Let *engine* repeat no decision without judging it."""
    for decider in engine.deciders.values():
        vars(decider)["_flat"] = None


def _known(market: InstrumentState) -> list[int]:
    """Return when the bars opened by which *market* measures a usual range."""
    return [bar.open_time_ms for bar in market.day_range.last(300)]


class HistoryBothWays:
    """One history, written both ways."""

    def __init__(self, seed: int, folder: Path, *, has_model: bool = False) -> None:
        """Play the history of *seed*, if it *has_model* with a drawn one."""
        rng = random.Random(seed)
        self.counted: Counter[str] = Counter(histories=1)
        category = rng.choice((Category.LINEAR, Category.LINEAR, Category.SPOT))
        symbols = ["BTCUSDT", "ETHUSDT"][: rng.choice((1, 1, 2))]
        newer = random.Random(f"{seed}:days")  # a stream of its own: other histories stay
        is_daily = newer.random() < 0.1
        self._data = drawn_candles(rng, symbols, category, DAY_MS if is_daily else MINUTE)
        self._given = drawn_settings(rng, symbols, category)
        if is_daily:  # only these have days enough
            self._given["market"]["interval"] = "D"
        if is_daily or newer.random() < 0.1:
            self._given["risk"] = {
                "max_book_shortfall": newer.choice(("0.0001", "0.005")), "book_days": 80,
                "book_too_few": newer.choice(("refuse", "allow")) if is_daily else "allow",
            }  # fmt: skip
        signalling = random.Random(f"{seed}:slices")  # a stream of its own
        if signalling.random() < 0.3 and not has_model:
            options = {"seed": signalling.randint(0, 999)}
            self._given["strategy"] = {"name": f"{__name__}:DrawnSignals", "options": options}
        self._group, self._seed = rng.choice((7, 50, 1_000)), rng.random()
        if has_model:
            _by_model(random.Random(f"{seed}:model"), self._given)
        self._folder = folder
        by_steps, together = self._run(is_stepped=True), self._run(is_stepped=False)
        for name, stepped, other in zip(RunEnding._fields, by_steps, together, strict=True):
            assert stepped == other, (seed, name, stepped, other, self._given)
        self.counted["steps"] += by_steps.steps
        self.counted["failures"] += bool(by_steps.error)

    def _run(self, *, is_stepped: bool) -> RunEnding:
        CALLS.clear()
        path = self._folder / f"{self._seed}-{is_stepped}.db"
        replay = build(load(None, self._given), MarketData(self._data), started_at_ms=0)
        engine, error, tally = replay.engine, "", Tally()
        _learn_regimes(replay)
        stretch_of = engine.stretch
        usual = engine_module.STATE_EVERY_STEPS

        def counted(*given: Any) -> Any:
            if is_stepped:
                _judge_anew(engine)
                return None
            if (stretch := stretch_of(*given)) is not None:
                self._count(stretch)
                self.counted["stretches under a stop"] += bool(engine.broker.resting())
            return stretch

        vars(engine)["stretch"] = counted
        self._count_slices(engine)
        vars(engine_module)["STATE_EVERY_STEPS"] = STATE_EVERY_STEPS
        log, taken = SqlAuditLog.open(path, group_steps=self._group), list[Step]()
        memory, append, append_stretch = MemoryLog(), log.append_now, log.append_stretch

        def take(*steps: Step) -> None:
            taken.extend(steps)
            memory.append_now(*steps)
            append(*steps)

        def take_stretch(stretch: QuietStretch) -> None:
            memory.append_stretch(stretch)
            append_stretch(stretch)

        vars(log).update(append_now=take, append_stretch=take_stretch)
        try:
            for each in (log, memory):
                each.begin(msgspec.structs.replace(replay.run, run_id="0"), engine.gate_sets)
            events = drawn_events(random.Random(self._seed), replay)
            way = predictor_over(replay, in_blocks=not is_stepped)
            run_events(way.ahead(events), way.predictor, engine, log, tally)
        except TracepaperError as failure:
            error = str(failure)
        finally:
            vars(engine_module)["STATE_EVERY_STEPS"] = usual
            head, steps = log.head.hex(), log.next_sequence
            log.close()
            with memory, Reader.open(path) as reader:
                if is_stepped:
                    self._check_read(reader, taken)
                assert figures(memory.reader) == figures(reader), self._given
            path.unlink()
        carried = engine.state(), since_decided(engine), [*map(_known, engine.markets.values())]
        state = b"" if error else msgspec.msgpack.encode(carried)
        counts = (0, 0) if error else (tally.bars, tally.decisions)
        return RunEnding(head, steps, tally.equity, counts, state, error, [*CALLS])

    def _count_slices(self, engine: engine_module.Engine) -> None:
        take_slice = vars(engine_module.Engine)["_take_slice"]

        def counted(*given: Any) -> Any:
            count = take_slice(engine, *given)
            self.counted += Counter({"slices": count > 0, "bars in slices": count})
            return count

        vars(engine)["_take_slice"] = counted

    def _count(self, stretch: QuietStretch) -> None:
        answers, repeats, count = stretch.answers, stretch.repeats.values(), len(stretch.repeats)
        regimes = {answer.decision.regime for answer in answers}
        self.counted += Counter(
            {
                "stretches": 1,
                "bars in stretches": len(stretch.plausible),
                "stretches with a position": any(each.position.quantity for each in repeats),
                f"stretches of {count} instruments": 1,
                "stretches with notes": any(each.notes for each in repeats),
                f"stretches of {count} instruments with a model": bool(answers),
                "stretches with several regimes": len(regimes) > 1,
                "stretches without a forecast": any(each.prediction is None for each in answers),
                "stretches that confirm": any(any(each.confirmed) for each in answers),
                "stretches with fills in a shadow account": len(stretch.shadows) > 1,
                "states in stretches": len(stretch.states),
                "answers with notes": any(each.decision.note for each in answers),
                "bars with a model": len(answers),
            }
        )

    def _check_read(self, reader: Reader, steps: list[Step]) -> None:
        """Compare what is read of the record with the *steps* that were written."""
        refused = "SELECT count(*) FROM v_decisions WHERE refused_by = 'risk.book_shortfall'"
        self.counted["refused for the book"] += reader.connection.execute(refused).fetchone()[0]
        query = "SELECT sequence, shadow, equity_text FROM v_shadow_equity"
        assert [*reader.steps("0")] == steps, self._given
        shown = sorted(reader.connection.execute(query))
        due = [
            (step.sequence, shadow.shadow, f"{Decimal(shadow.account.equity).scaleb(-8):.8f}")
            for step in steps
            for shadow in step.shadows
        ]
        assert shown == sorted(due), self._given
