"""Limits and account-based sizes in whole runs: enforced, verified and restarted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from builders import MINUTE, START_MS, bar, instrument, present
from engines import engine_of
from records import rows

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.values import SizeBy
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Command, CommandKind, InstrumentChange

CANDLES = Path(__file__).parents[3] / "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
CROSS = '[strategy]\nname = "sma_cross"\nfast = 3\nslow = 7\nlong_only = false\n'


def ran(folder: Path, settings: str, *, until: str = "2025-05-26T12:00") -> Path:
    """Replay half a day of the bundled minutes and check the record; return the database."""
    config, database = folder / "run.toml", folder / "run.db"
    config.write_text(CROSS + settings)
    given = ["--config", str(config), "--db", str(database), "--to", until]
    assert invoke(["replay", "--data", str(CANDLES), *given]) == 0
    assert invoke(["verify", "last", "--db", str(database)]) == 0
    return database


def rows_of(database: Path, sql: str) -> list[tuple[Any, ...]]:
    return rows(database, sql)


@pytest.mark.parametrize(
    ("limit", "gate"),
    [
        ('max_leverage = "0.05"', "risk.leverage"),
        ("max_exposure = 5000", "risk.exposure"),
        ("max_losing_streak = 2", "risk.losing_streak"),
        ("max_hourly_orders = 3", "risk.hourly_orders"),
        ('max_range_bp = "1.5"', "risk.volatility"),
    ],
)
def test_a_limit_refuses_and_the_run_follows_from_its_record(
    tmp_path: Path, limit: str, gate: str
) -> None:
    database = ran(tmp_path, f"[risk]\n{limit}\n", until="2025-05-26T10:00")
    counted: dict[str | None, int] = dict(
        rows_of(database, "SELECT refused_by, count(*) FROM v_decisions GROUP BY 1")
    )
    assert counted[gate] > 0


@pytest.mark.parametrize(("on_breach", "held"), [("halt", 1), ("flatten", 0)])
def test_a_breach_ends_new_exposure_for_the_rest_of_the_run(
    tmp_path: Path, on_breach: str, held: int
) -> None:
    limit = f'[risk]\nmax_drawdown = "0.0005"\non_breach = "{on_breach}"\n'
    database = ran(tmp_path, limit)
    ((first,),) = rows_of(database, "SELECT min(sequence) FROM v_gates WHERE passed = 0 AND gate = "
                        "'risk.drawdown'")  # fmt: skip
    later = rows_of(database, f"SELECT count(*) FROM v_orders WHERE sequence > {first}")
    assert later == [(0,)], "what closes is sent by the bar that breaches"
    (end,) = rows_of(database, "SELECT quantity FROM v_positions ORDER BY sequence DESC LIMIT 1")
    assert bool(end[0]) == bool(held)


def test_the_operators_word_lifts_a_breach() -> None:
    engine, key = _engine('[risk]\nmax_daily_loss = 5\n[sizing]\nmode = "equity"\nfraction = "1"\n')
    assert engine.risk.breach == ""
    for index, close in enumerate((10_000, 10_000, 10_100, 10_200, 9_000, 9_000)):
        engine.step(bar(close, index=index, instrument_id=key), None)
    assert engine.risk.breach == "risk.daily_loss"
    at_ms = START_MS + 7 * MINUTE
    restored, _ = _engine('[risk]\nmax_daily_loss = 5\n[sizing]\nmode = "equity"\nfraction = "1"\n')
    Restart(restored).restore(engine.state(), next_sequence=engine.sequence)
    assert restored.risk.breach == "risk.daily_loss", "it outlasts a restart"
    step = engine.step(Command(CommandKind.RESUME, "", at_ms, at_ms), None)
    assert engine.risk.breach == ""
    assert step.state is not None


def test_a_limit_that_only_refuses_halts_nothing() -> None:
    engine, key = _engine('[risk]\nmax_daily_loss = 5\non_breach = "refuse"\n')
    for index, close in enumerate((10_000, 10_000, 10_100, 10_200, 9_000, 9_000)):
        engine.step(bar(close, index=index, instrument_id=key), None)
    assert present(engine.risk.state.breach).limit == "risk.daily_loss"
    assert engine.risk.breach == "", "status and metrics call the run halted by what this says"


def test_two_symbols_that_enter_at_one_close_count_each_other() -> None:
    settings = '[risk]\nmax_exposure = 15000\n[market]\nsymbols = ["AUSDT", "BUSDT"]\n'
    engine, _ = _engine(settings)
    refused = []
    for index, close in enumerate((10_000, 10_000, 10_100, 10_200)):
        for symbol in ("AUSDT", "BUSDT"):
            candle = bar(close, index=index, instrument_id=f"linear:{symbol}")
            decision = present(engine.step(candle, None).decision)
            refused.append(decision.refused_by)
    assert refused[-4:-2] == [None, "risk.exposure"], "before either is filled"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('[sizing]\nmode = "allocation"\nweights = {ETHUSDT = "0.5"}\n', "names ETHUSDT"),
        ("[risk]\ncooldown = 0\n", r"\[risk\] cooldown = 0 cannot be used"),
        ('[sizing]\nfraction = "0"\n', r'\[sizing\] fraction = "0" cannot be used'),
        ("[sizing]\nlookback = 5\n", "22"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, settings: str, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(CROSS + settings)
    with pytest.raises(ConfigInvalid, match=message):
        engine_of(load(file), period_start_ms=START_MS)


def test_a_symbol_that_is_not_trading_is_refused_by_name() -> None:
    engine, key = _engine("", execution=FillModel.QUOTE)
    closed = instrument()

    engine.step(
        InstrumentChange(msgspec.structs.replace(closed, status="Closed"), START_MS, START_MS), None
    )
    decision = present(engine.step(bar(index=0, instrument_id=key), None).decision)
    gates = decision.gate_set.gates
    assert not decision.passed >> gates.index("tradable") & 1


def _engine(settings: str, execution: FillModel = FillModel.NEXT_OPEN) -> tuple[Engine, str]:
    """Return an engine of sma_cross 1/2 with *settings*, and its first instrument."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.toml"
        file.write_text('[strategy]\nname = "sma_cross"\nfast = 1\nslow = 2\n' + settings)
        config = load(file)
    items = [instrument(symbol) for symbol in config.market.symbols]
    engine = engine_of(config, items, execution=execution, period_start_ms=START_MS)
    return engine, items[0].id


NEEDS_A_MODEL = {"tanh", "kelly", "volatility", "expected_shortfall", "network_allocation"}


@pytest.mark.parametrize("mode", get_args(SizeBy))
def test_a_size_that_no_forecast_gives_is_refused_and_every_other_is_held(mode: str) -> None:
    sizing = f'[sizing]\nmode = "{mode}"\n'
    if mode in NEEDS_A_MODEL:
        with pytest.raises(ConfigInvalid, match=r"sizing\.\w+ .* of the model, which sma_cross is"):
            _engine(sizing)
        if mode != "volatility":
            return
        sizing += 'volatility = "ewma"\nlookback = 22\n'
    engine, key = _engine(sizing + '[exits]\nstop_loss = "2%"\n')
    for index in range(40):
        step = engine.step(bar(10_000 + 10 * index, index=index, instrument_id=key), None)
    assert present(step.position).quantity > 0
