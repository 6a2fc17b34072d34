"""A recorded run with changed keys, without a gate, or from a later start, ready to be derived.

An engine of the changed configuration gets the recorded events and forecasts; no model is loaded.
Its steps equal those of ``tracepaper replay`` with that configuration over the same candles, bit
for bit. A change that needs more than the record holds is rejected, with its key.

The rules are docs/identity.md, I19 and I20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.config.loading import DECIDES, NOTHING, Config, Sections, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import (
    build_engine,
    make_strategies,
    needs_forecaster,
    warmup_bars,
)
from tracepaper.daemon.session.resume import take_over
from tracepaper.daemon.session.run_row import reject_size, sessions_of, strategy_sha256
from tracepaper.replay.backtest.effects import (
    CHANGEABLE,
    changed_keys,
    engine_inputs,
    keys_without_effect,
)
from tracepaper.replay.backtest.recorded import RecordedForecaster, RecordedPredictor, RecordedRun
from tracepaper.replay.backtest.run import StepLog, Tally, run_events
from tracepaper.storage.database.chunks import StoredRun, find_step, run_span
from tracepaper.storage.database.reader import Fed, Reader, Wait
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.gate import DROPPABLE, gate_order
from tracepaper.strategies.types.decisions import FillModel, RunRow
from tracepaper.strategies.types.market import (
    Bar,
    CloseStart,
    CovariatesRead,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    GapCause,
    InstrumentChange,
    ModelChange,
    RunKind,
)
from tracepaper.strategies.units import count_of, iso

REPLAY: Final = "make another run by `tracepaper replay`"
FORECASTS_READ: Final = 64
"""Forecasts read to see a model's fields: the first may lack those that need an earlier one."""
_INPUT_KEYS: Final = ("execution.model", "execution.filters")
_START_INPUTS: Final[Mapping[type[Event], str]] = {
    FrameBar: "candles of higher timeframes",
    Depths: "order books",
    CovariatesRead: "covariates",
}
"""Inputs that a record holds only for the lookback of the run's own start."""


@dataclass(frozen=True)
class ChangedRun:
    """A recorded run with another configuration or start; ``derive`` runs it, once."""

    reader: Reader
    database: Path
    stored: StoredRun
    run: RunRow
    before: Config
    config: Config
    recorded: Engine  # of the unchanged run; gets no events
    engine: Engine
    forecaster: RecordedForecaster | None
    first_ms: Mapping[str, int]  # open time of each instrument's first bar; empty: all bars
    without_effect: tuple[str, ...]  # changed keys that the run does not use

    def derive(self, log: StepLog, wait: Wait | None = None) -> None:
        """Run the recorded events through the engine into *log*, except those that *wait* takes."""
        recorded = RecordedRun(self.run, self.config, self.engine, self.forecaster)
        predictor = RecordedPredictor(recorded, None)
        rows = self.reader.events(self.run.run_id, wait=wait)
        if self.first_ms:
            rows = _later(self.reader, self.run, self.first_ms, rows)
        log.begin(self.run, self.engine.gate_sets)
        events = predictor.handed_on(rows, place={})
        # A wait moves the engine when the next event is drawn, so no stretch may be open then.
        run_events(events, predictor, self.engine, log, Tally(), stretches=wait is None)

    @property
    def words(self) -> tuple[str, ...]:
        """The changes, each in a few words."""
        words = [
            f"{'.'.join(path)} {_word(was)} → {_word(value)}"
            for path, was, value in changed_keys(self.before.settings(), self.config.settings())
            if path != ("gate", "drop")
        ]
        words += [f"without {gate}" for gate in self.config.gate.drop]
        if self.run.period_start_ms != self.stored.run.period_start_ms:
            words.append(f"from {iso(self.run.period_start_ms)}")
        return tuple(words)


def changed_run(
    reader: Reader,
    database: Path,
    run_id: str,
    *,
    changes: Sections = NOTHING,
    drop_gates: Sequence[str] = (),
    from_ms: int | None = None,
    shadows: bool = False,
) -> ChangedRun:
    """Return *run_id* with the keys of *changes*, without *drop_gates*, from *from_ms* on.

    Without *shadows* there are no shadow accounts and no stored states, which halves the time and
    changes nothing in the run's own account. Raises ``ConfigInvalid`` for keys that cannot be
    changed, ``DataInvalid`` for a run whose record lacks what the change needs.
    """
    stored = reader.stored_run(run_id)
    run, before = stored.run, restore(stored.run.config)
    config = restore(run.config, changes)
    if drop_gates:
        dropped = (*config.gate.drop, *drop_gates)
        changes = {**changes, "gate": {**changes.get("gate", {}), "drop": dropped}}
        config = restore(run.config, changes)
    _reject_keys(run, before, config, changes)
    if config.sha256() == before.sha256() and from_ms is None:
        raise ConfigInvalid("The change has no effect; give --set, --drop-gate or --from.")
    _reject_run(reader, stored, before)
    judging = {gate for gate_set in reader.gate_sets(stored.run_key) for gate in gate_set.gates}
    if absent := [gate for gate in drop_gates if gate not in judging]:
        names = ", ".join(name for name in gate_order(*DROPPABLE) if name in judging)
        raise ConfigInvalid(f"Run {run_id} has no gate {absent[0]}; it has {names or 'none'}.")
    forecaster, bars_before, recorded = recorded_model(reader, stored, before, config)
    run = replace(
        run if from_ms is None else _starting(reader, stored, from_ms),
        config=config.canonical_json(),
        config_sha256=config.sha256(),
        strategy=config.strategy.name,
        strategy_sha256=strategy_sha256(config),
        gate_horizon=config.gate.horizon,
    )
    for item in run.instruments:
        reject_size(config, item)
    engine, bars = _engine(run, config, forecaster, shadows=shadows)
    take_over(engine, run)
    return ChangedRun(
        reader, database, stored, replace(run, sees_account=engine.sees_account), before, config,
        recorded, engine, forecaster, _first_bars(reader, stored, run, bars_before, bars),
        _without_effect(run, before, config, forecaster),
    )  # fmt: skip


def _without_effect(
    run: RunRow, before: Config, config: Config, forecaster: RecordedForecaster | None
) -> tuple[str, ...]:
    """Return the changed keys on which *run* does not depend."""
    strategies = make_strategies(config, forecaster)

    def inputs_of(config: Config) -> object:
        execution = FillModel(config.execution.model)
        return engine_inputs(config, run, strategies, forecaster, execution=execution)

    return keys_without_effect(before, config, config, inputs_of)


def _word(value: object) -> str:
    return "unset" if value is None else str(value)


def _reject_keys(run: RunRow, before: Config, config: Config, changes: Sections) -> None:
    for section, key in ((section, key) for section, keys in changes.items() for key in keys):
        name = f"{section}.{key}"
        if section not in CHANGEABLE and section not in {*DECIDES, "exchange"}:
            raise ConfigInvalid(f"{name} decides nothing in a run; leave it out.")
        if section not in CHANGEABLE or name in _INPUT_KEYS:
            raise ConfigInvalid(
                f"{name} decides what a run is fed or forecasts, which the record of run "
                f"{run.run_id} holds as it was; {REPLAY}."
            )
    is_new = config.strategy.name == TREND != before.strategy.name
    if is_new and "trend_windows" not in changes.get("strategy", {}):
        raise ConfigInvalid(
            "strategy.name trend needs windows that fit the candles; give strategy.trend_windows."
        )


def _reject_run(reader: Reader, stored: StoredRun, before: Config) -> None:
    """Reject a run whose record lacks inputs that another configuration would get."""
    run, run_id, why = stored.run, stored.run.run_id, ""
    span = run_span(stored.run_key)
    if find_step(reader.connection, *span, "steps", "outcome IS NOT NULL") is None:
        why = f"Run {run_id} holds no decision, so there is nothing to compare"
    elif strategy_sha256(before) != run.strategy_sha256:
        why = f"The class {run.strategy} was changed since run {run_id}; restore it, or {REPLAY}"
    if why:
        raise DataInvalid(f"{why}.")


def _engine(
    run: RunRow, config: Config, forecaster: RecordedForecaster | None, *, shadows: bool = True
) -> tuple[Engine, int]:
    """Return the engine of a run, and the number of bars that it needs before its period."""
    strategies = make_strategies(config, forecaster)
    for strategy in () if shadows else strategies.values():
        strategy.shadows = ()
    engine = build_engine(
        config,
        run.instruments,
        execution=FillModel(config.execution.model),
        period_start_ms=run.period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
        sessions=sessions_of(run),
    )
    engine.stores_state = shadows
    return engine, warmup_bars(strategies, config)


def _forecaster(reader: Reader, run: RunRow, sha256: str, context: int) -> RecordedForecaster:
    card = RunViews(reader.connection, run.run_id).card(sha256)
    forecasts = reader.forecasts(run.run_id, FORECASTS_READ)
    if not card or not forecasts:
        raise DataInvalid(
            f"The record of run {run.run_id} holds no forecast, or no card of its model; {REPLAY}."
        )
    return RecordedForecaster(run, card, forecasts, context=context)


def recorded_model(
    reader: Reader, stored: StoredRun, before: Config, config: Config
) -> tuple[RecordedForecaster | None, int, Engine]:
    """Return the stored model, the bars that the run needed before its period, and its engine.

    *config* is the changed one. The threshold of the gate ``warm`` is the model's lookback. The
    run's gates must follow from the record, which shows that version and card are the same.
    """
    run, opened = stored.run, reader.gate_sets(stored.run_key)[: stored.opened[-1]]
    contexts: list[int | None] = [None]
    if needs_forecaster(before):
        pairs = [pair for each in opened for pair in zip(each.gates, each.thresholds, strict=True)]
        warm_at = {int(threshold) for gate, threshold in pairs if gate == warm.name}
        contexts = [*sorted(warm_at, reverse=True), 1]
    elif needs_forecaster(config):
        raise ConfigInvalid(
            f"strategy.name {config.strategy.name} needs forecasts, and the record of run "
            f"{run.run_id} holds none; {REPLAY}."
        )
    fitting = []
    for context in contexts:
        stand_in = None
        if context is not None:
            stand_in = _forecaster(reader, run, run.model_sha256, context)
        engine, bars = _engine(run, before, stand_in)
        if engine.gate_sets == opened:
            fitting.append((stand_in, bars, engine))
    if not fitting:
        raise DataInvalid(
            f"The gates of run {run.run_id} do not follow here from its configuration and its "
            f"model's card; {REPLAY}."
        )
    if len({_engine(run, config, each)[0].gate_sets for each, *_ in fitting}) > 1:
        raise DataInvalid(
            f"The change looks back on fewer bars than run {run.run_id}, whose record does not say "
            f"how many its model needs; {REPLAY}."
        )
    return fitting[0]


# ---------------------------------------------------------------- another start


def _starting(reader: Reader, stored: StoredRun, from_ms: int) -> RunRow:
    """Return the run with its start at *from_ms* and a new account."""
    run, run_id = stored.run, stored.run.run_id
    _, last_ms = reader.decided_within(stored.run_key, None, None) or (0, 0)
    if not run.period_start_ms <= from_ms <= last_ms:
        raise DataInvalid(
            f"--from {iso(from_ms)} lies outside of run {run_id}, which decided the bars from "
            f"{iso(run.period_start_ms)} to {iso(last_ms)}."
        )
    held = [words for kind, words in _START_INPUTS.items() if reader.newest_of(run_id, kind)]
    if held:
        raise DataInvalid(
            f"Run {run_id} has {held[0]}, which a later start would change; {REPLAY} --from."
        )
    changes = (
        each for each in reader.of_type(run_id, InstrumentChange) if each.market_ms < from_ms
    )
    filters = {item.id: item for item in (*run.instruments, *(each.instrument for each in changes))}
    instruments = tuple(filters.values())
    return replace(
        run, period_start_ms=from_ms, parent_run_id=None, account=None, instruments=instruments
    )


def _first_bars(
    reader: Reader, stored: StoredRun, run: RunRow, bars_before: int, bars: int
) -> dict[str, int]:
    """Return the open time of each instrument's first bar; nothing where all bars are used.

    The change needs *bars* bars before the period. A run that began within its candles holds
    *bars_before* of them: raises ``DataInvalid`` where that is too few.
    """
    run_key, begun_ms = stored.run_key, stored.run.period_start_ms
    first_ms, is_cut = {}, run.period_start_ms != begun_ms
    for place, item in enumerate(run.instruments):
        opens = reader.bars_before(run_key, place, run.period_start_ms, bars)
        held = len(reader.bars_before(run_key, place, begun_ms, bars_before))
        if len(opens) < bars and 0 < held == bars_before:
            raise DataInvalid(
                f"The change looks back on {count_of(bars, 'bar')}, and the record of run "
                f"{run.run_id} holds {len(opens):,} before its period; give a later --from, or "
                f"{REPLAY}."
            )
        first_ms[item.id] = opens[0] if opens else run.period_start_ms
        is_cut = is_cut or (run.kind is RunKind.REPLAY and 0 < bars < held)
    return first_ms if is_cut else {}


def _later(
    reader: Reader, run: RunRow, first_ms: Mapping[str, int], rows: Iterator[Fed]
) -> Iterator[Fed]:
    """Yield the rows of a run from its later start on, as a feed would pass them."""
    start_ms, starts, bars_left = run.period_start_ms, list[CloseStart](), 0
    settled = {
        event.instrument
        for event in reader.of_type(run.run_id, Funding)
        if event.market_ms > start_ms
    }
    bars: list[Fed] = []
    start = reader.of_type(run.run_id, ModelChange)[0]
    yield 0, True, replace(start, warm_from=(), market_ms=start_ms, seen_ms=start_ms), None
    for row in rows:
        sequence, _, event, _ = row
        after_ms = start_ms
        match event:
            case CloseStart():
                starts, bars_left = [event], event.bars
                continue
            case Bar(instrument=key, open_time_ms=open_ms):
                if open_ms >= first_ms[key]:
                    bars.append(row)  # the lookback begins there
                bars_left -= 1
                if bars_left <= 0:
                    here = {bar.instrument for _, _, bar, _ in bars if isinstance(bar, Bar)}
                    absent = tuple(name for name in first_ms if name not in here)
                    for each in starts if bars else ():
                        yield sequence, True, replace(each, bars=len(bars), absent=absent), None
                    yield from bars
                    starts, bars = [], []
                continue
            case Gap(cause=GapCause.FUNDING, instrument=key) if key not in settled:
                continue
            case Gap(cause=cause, instrument=key) if cause is not GapCause.FUNDING:
                after_ms = first_ms[key] + run.interval_ms
        if event.market_ms > after_ms:
            yield row
