"""Fifty bars through the whole program: events in, SQLite rows out, each step as it always was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from builders import MINUTE, START_MS, bars, explanation, forecast, instrument, quote
from fakes import FixedForecaster, ScriptedFeed

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.loop import InlinePredictor, drive
from tracepaper.daemon.session.resume import OpenedRun, Opening, open_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import (
    FillModel,
    Forecast,
    Prediction,
    PredictionTimeout,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Command,
    CommandKind,
    Event,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    Mark,
    RunKind,
    Unit,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden_line.jsonl"
BARS: Final = 50
WARM: Final = 8
LATE_AT, HALT_AT, REVISED_AT, HOLE_AT = 20, 26, 33, 40
BTC = "linear:BTCUSDT"


def configuration() -> Config:
    """Return an attention run whose thresholds let some bars through and refuse others."""
    return resolved(
        load(
            None,
            {
                "strategy": {"name": "attention"},
                "gate": {"confidence": "q0.5", "collapse": "0", "shift": "1", "edge": "1"},
                "regime": {"momentum": "0.6", "mean_reversion": "0.3"},
                "sizing": {"mode": "notional", "notional": "5000"},
                "risk": {"max_daily_trades": 14},
            },
        ),
        FillModel.QUOTE,
    )


def model() -> FixedForecaster:
    """Return a forecaster that is sure of rises and falls by the last four closes alone."""
    quantiles = {"confidence_entropy": tuple(index / 200 for index in range(1, 100))}
    quantiles["direction"] = tuple(0.5 + index / 1000 for index in range(1, 100))

    def says(history: Sequence[Bar]) -> Forecast:
        change = (history[-1].close - history[0].close) / history[0].close
        return forecast(
            change / 3,
            p_up=0.55 if change > 0 else 0.15,
            p_down=0.15 if change > 0 else 0.55,
            explained=explanation(
                confidence_entropy=0.24 + 5 * abs(change),
                recent_mass=min(max(0.6 + 40 * change, 0.0), 1.0),
                shift=abs(change),
            ),
        )

    return FixedForecaster(says, context=4, calibration=Calibration(quantiles, {30: 0.9}, 0.0))


def events(opened: OpenedRun) -> Iterator[Event]:
    """Yield what a daemon's feed hands on: each bar with its quote, and everything rare once."""
    yield InstrumentChange(instrument(), START_MS, START_MS)
    for number, bar in enumerate(bars(BARS, seed=11)):
        close_ms = bar.close_time_ms
        if number == WARM:
            yield opened.started(bar.open_time_ms)
        if number == HOLE_AT:
            yield Gap(
                BTC, bar.open_time_ms, close_ms, GapCause.DISCONNECTED, "", close_ms, close_ms
            )
            continue
        if number >= WARM:
            yield quote(bar.close - 5, bar.close + 5, at_ms=close_ms - 500)
        yield bar
        if number == HALT_AT:
            yield Command(CommandKind.HALT, "a look at the market", close_ms + 10, close_ms + 10)
        if number == HALT_AT + 3:
            yield Command(CommandKind.RESUME, "seen enough", close_ms + 10, close_ms + 10)
            yield Mark(BTC, bar.close + 20, close_ms + 20, close_ms + 20)
            yield Funding(BTC, 10_000, close_ms + 30, close_ms + 30)
        if number == REVISED_AT:
            yield msgspec.structs.replace(bar, close=bar.close + 1, seen_ms=close_ms + 900)
        if number >= WARM:
            yield quote(bar.close - 4, bar.close + 6, at_ms=close_ms + 250)


@dataclass
class LateOnce:
    """A thinker whose model misses its deadline at one bar."""

    predictor: InlinePredictor

    async def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Predict as the model does, but for one bar."""
        late = isinstance(unit, Bar) and unit.open_time_ms == START_MS + LATE_AT * MINUTE
        return self.predictor.predict(unit, (PredictionTimeout(1_000),) if late else ())


async def stored_steps(path: Path) -> list[Step]:
    """Drive the events through a run on a new database; return its steps as read back."""
    audit = SqlAuditLog.open(path)
    forecaster = model()
    opened = open_run(
        Opening(
            config=configuration(),
            kind=RunKind.LIVE,
            database=path,
            instruments=(instrument(),),
            forecaster=forecaster,
            period_start_ms=START_MS + WARM * MINUTE,
            wall_ms=1,
        ),
        audit,
    )
    predictor = InlinePredictor(
        forecaster, opened.history, period_start_ms=opened.run.period_start_ms
    )
    late = LateOnce(predictor).predict
    await drive(ScriptedFeed(events(opened)), late, opened.engine, audit.append)
    audit.end(2)
    audit.close()
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, opened.run.run_id).passes
        return list(reader.steps(opened.run.run_id))


def compact(step: Step) -> dict[str, Any]:
    """Return what *step* says, without what is absent and without what made it."""
    document: dict[str, Any] = msgspec.to_builtins(step, builtin_types=(bytes,))
    del document["state"]  # an encoding, held by the tests of recovery
    document["event"] = {"type": type(step.event).__name__, **document["event"]}
    for name in ("code_version", "torch_version", "instruction_set", "libraries"):
        document["event"].pop(name, None)
    if (decision := document["decision"]) is not None:
        decision.update(decision.pop("outcome"))
        del decision["gate_set"]  # one for the whole run, held by the hash
    return {name: value for name, value in _plain(document).items() if value not in (None, [])}


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value


async def test_fifty_bars_cause_the_steps_that_they_always_caused(
    tmp_path: Path, rewrite_golden: bool
) -> None:
    steps = [compact(step) for step in await stored_steps(tmp_path / "line.db")]
    if rewrite_golden:
        lines = [json.dumps(step, separators=(",", ":"), sort_keys=True) for step in steps]
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
    golden = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    for step, row in zip(steps, golden, strict=True):
        assert step == row, f"step {row['sequence']} changed; `make golden` shows how"


def golden_steps() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def test_the_golden_steps_show_what_the_house_can_do() -> None:
    golden = golden_steps()
    decisions = [step["decision"] for step in golden if "decision" in step]
    refused = {decision["refused_by"] for decision in decisions}
    assert {"operator", "gap", "deadline", "confidence_entropy", "edge"} <= refused
    assert {"LONG", "SHORT", "HOLD"} <= {decision["action"] for decision in decisions}
    assert sum(len(step.get("fills", [])) for step in golden) >= 2
    assert any(not step["accepted"] for step in golden)
    kinds = {step["event"]["type"] for step in golden}
    assert {"Bar", "Quote", "Mark", "Funding", "Gap", "Command"} <= kinds
