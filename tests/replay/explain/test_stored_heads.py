"""Forecasts of auxiliary heads are stored, gated, used for sizing, explained and verified."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from long_replays import tiled
from msgspec import structs
from records import rows

from tracepaper import backtest
from tracepaper.daemon.cli import invoke
from tracepaper.replay.backtest.predictors import heads_agree
from tracepaper.storage.checkpoints import locate, read_card
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.columns import HEAD_COLUMNS
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.evaluator import is_finite_forecast
from tracepaper.strategies.networks.trading import TradingConfig
from tracepaper.strategies.types.decisions import Forecast, HeadForecasts

LATER = ("correlations", "dropout_spread", "runup")
"""Measures that a network of one symbol without dropout passes and runup does not give."""
HEADS = tuple(name for name in HeadForecasts.__struct_fields__ if name not in LATER)

NETWORK = TradingConfig(
    features=explained_runs.SMALL.features,
    dim=16,
    layers=2,
    heads=2,
    window=33,
    horizons=explained_runs.SMALL.horizons,
    allocation=True,
    quantiles=(0.05, 0.5, 0.95),
    dropout=0.1,
)
MODES = ("notional", "expected_shortfall", "network_allocation")


def replayed(folder: Path, mode: str, *, network: TradingConfig = NETWORK, **sections: str) -> Path:
    tables = "".join(f"\n[{name}]\n{keys}\n" for name, keys in sections.items())
    return explained_runs.replayed(
        folder,
        network=network,
        model="dropout_passes = 3",
        extra=f'\n[sizing]\nmode = "{mode}"\n{tables}',
        edge="0",
    )


@pytest.fixture(scope="module", params=MODES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a network with all heads, sized by one of them or by none."""
    return replayed(tmp_path_factory.mktemp(request.param), request.param)


def forecasts(path: Path) -> list[Forecast]:
    with Reader.open(path) as reader:
        steps = list(reader.steps(reader.find("last")))
    return [step.prediction for step in steps if isinstance(step.prediction, Forecast)]


def test_every_head_is_in_the_record_at_every_horizon(run: Path) -> None:
    answers = forecasts(run)
    assert len(answers) > 100
    for forecast in answers:
        for at in range(len(forecast.horizons)):
            quantiles = forecast.head("quantiles", at)
            assert len(quantiles) == 3
            assert list(quantiles) == sorted(quantiles)
            assert len(forecast.head("path", at)) == 12
            odds = forecast.head("regimes", at)[::2]
            assert math.isclose(sum(odds), 1.0, rel_tol=1e-5)
            tails = np.array(forecast.head("tails", at)).reshape(2, 2, 2)
            assert (tails[..., 1] >= tails[..., 0]).all(), "a shortfall is beyond its value at risk"
            assert (tails[:, 0] >= tails[:, 1]).all(), "the rarer loss is the larger"
            median, most = forecast.head("drawdown", at)
            assert 0 < median < most
            assert forecast.head("runup", at) == ()


def test_columns_hold_the_figures_at_the_gates_horizon(run: Path) -> None:
    names = ", ".join(HEAD_COLUMNS[1:])
    stored = rows(run, f"SELECT {names} FROM v_decisions WHERE mean_return IS NOT NULL")
    horizon = NETWORK.horizons.index(30)
    for row, forecast in zip(stored, forecasts(run), strict=True):
        tails = forecast.head("tails", horizon)
        share = math.log(2) / math.log(5)  # from 5 % to 2.5 %, of the way to 1 %
        long, short = (tails[at + 3] + share * (tails[at + 1] - tails[at + 3]) for at in (0, 4))
        regime = int(np.argmax(forecast.head("regimes", horizon)[::2])) + 1
        assert row == pytest.approx(
            (
                1 - math.exp(-long),
                math.exp(short) - 1,
                1 - math.exp(-forecast.head("drawdown", horizon)[0]),
                regime,
                forecast.head("allocation", horizon)[0],
                forecast.head("dropout_spread", horizon)[0],
            ),
            rel=1e-9,
        )


def test_a_run_with_heads_is_verified_and_a_forged_one_is_not(run: Path, tmp_path: Path) -> None:
    assert invoke(["verify", "last", "--db", str(run)]) == 0
    other = tmp_path / "forged.db"
    with closing(sqlite3.connect(run)) as source, closing(sqlite3.connect(other)) as target:
        source.backup(target)
        packed = target.execute("SELECT heads FROM answers WHERE heads IS NOT NULL").fetchone()[0]
        changed = bytes(packed[:-1]) + bytes([packed[-1] ^ 64])
        target.execute(
            "UPDATE answers SET heads = ? WHERE sequence = (SELECT min(sequence) FROM answers "
            "WHERE heads IS NOT NULL)",
            (changed,),
        )
        target.commit()
    assert invoke(["audit", "verify", "--db", str(other)]) != 0


def test_sizes_follow_the_head(run: Path) -> None:
    mode = rows(run, "SELECT json_extract(config, '$.sizing.mode') FROM v_runs")[0][0]
    targets = rows(
        run,
        "SELECT target_quantity, close, expected_shortfall_long, expected_shortfall_short, "
        "learned_allocation, action FROM v_decisions d JOIN v_bars b USING (run_id, sequence) "
        "WHERE d.action IN ('LONG', 'SHORT') AND target_quantity != 0",
    )
    assert len(targets) > 5
    for quantity, close, long, short, allocation, action in targets:
        notional = abs(quantity) * close
        side = 1 if action == "LONG" else -1
        if mode == "expected_shortfall":
            loss = long if side > 0 else short
            # A standing target stays within a quarter.
            assert notional * loss <= 1.3 * 0.01 * 100_000
        if mode == "network_allocation":
            assert side * allocation > 0


def test_each_number_of_a_head_has_its_tolerance(run: Path) -> None:
    forecast = forecasts(run)[0]
    horizons = [1] * len(forecast.horizons)
    for name in HEADS:
        assert forecast.heads is not None
        packed = np.frombuffer(getattr(forecast.heads, name), "<f4")
        for share, holds in ((0.5, True), (3.0, False)):
            moved = packed.reshape(len(horizons), -1).copy()
            of_regime = moved[0, ::2] if name == "regimes" else moved[0]
            moved[0, 0] += share * 1e-4 * np.abs(of_regime).max()
            other = structs.replace(forecast.heads, **{name: moved.astype("<f4").tobytes()})
            assert heads_agree(forecast.heads, other, len(horizons)) is holds, name
        assert not heads_agree(forecast.heads, structs.replace(forecast.heads, **{name: b""}), 2), (
            name
        )
    assert not heads_agree(forecast.heads, None, 1)
    assert heads_agree(None, None, 1)


def test_a_number_that_no_head_could_give_agrees_with_none_alone(run: Path) -> None:
    """A sampled bar without a book or volatility is not reported as depending on later bars."""
    forecast = forecasts(run)[0]
    count = len(forecast.horizons)
    for name in HEADS:
        assert forecast.heads is not None
        packed = np.frombuffer(getattr(forecast.heads, name), "<f4").reshape(count, -1).copy()
        packed[:, -1] = np.nan
        unknown = structs.replace(forecast.heads, **{name: packed.tobytes()})
        assert heads_agree(unknown, structs.replace(unknown), count), name
        assert not heads_agree(unknown, forecast.heads, count), name
        assert not heads_agree(forecast.heads, unknown, count), name
        packed[0, 0] += 1.0
        other = structs.replace(forecast.heads, **{name: packed.tobytes()})
        # What is left of a head of one number is NaN alone.
        assert heads_agree(unknown, other, count) is (packed.shape[1] == 1), name


def test_what_was_added_to_heads_is_left_out_where_it_is_empty() -> None:
    first = len(HEADS)
    assert len(HeadForecasts(correlations=b"1234").stored()) == first + 1
    assert len(HeadForecasts(dropout_spread=b"1234").stored()) == first + 2
    assert len(HeadForecasts(runup=b"1234").stored()) == first + 3
    assert HeadForecasts().stored() == (b"",) * first


def test_a_forecast_whose_head_is_not_finite_is_refused(run: Path) -> None:
    forecast = forecasts(run)[0]
    assert is_finite_forecast(forecast)
    assert forecast.heads is not None
    for name in HEADS:
        broken = struct.pack("<f", math.nan) + getattr(forecast.heads, name)[4:]
        heads = structs.replace(forecast.heads, **{name: broken})
        assert not is_finite_forecast(structs.replace(forecast, heads=heads)), name


def test_gates_judge_what_heads_said(tmp_path: Path) -> None:
    path = replayed(
        tmp_path,
        "notional",
        risk='max_tail = "115"\nmax_tail_share = "0.5"\nmax_expected_drawdown = "0.5"',
    )
    judged = rows(
        path,
        "SELECT g.measure, g.passed, d.action, d.refused_by, d.expected_shortfall_long, "
        "d.expected_shortfall_short FROM v_gates g JOIN v_decisions d USING (run_id, sequence) "
        "WHERE g.gate = 'risk.tail' AND d.mean_return IS NOT NULL AND g.measure > 0",
    )
    assert {bool(row[1]) for row in judged} == {True, False}
    for measure, passed, *_ in judged:
        assert (measure <= 115) is bool(passed)
    assert any(row[3] == "risk.tail" for row in judged)
    # Each side has its own loss; the target is worth 10,000 but for whole steps.
    sided = rows(
        path,
        "SELECT g.measure, d.mean_return > 0, d.expected_shortfall_long, "
        "d.expected_shortfall_short FROM v_gates g JOIN v_decisions d USING (run_id, sequence) "
        "WHERE g.gate = 'risk.tail' "
        "AND (d.action IN ('LONG', 'SHORT') OR d.refused_by = 'risk.tail') AND g.measure > 0",
    )
    assert {bool(rises) for _, rises, *_ in sided} == {True, False}
    for measure, rises, long, short in sided:
        assert measure == pytest.approx(10_000 * (long if rises else short), rel=0.05)
    assert invoke(["verify", "last", "--db", str(path)]) == 0


def test_the_tails_of_a_card_stand_in_for_the_head(tmp_path: Path) -> None:
    """The bundled ensemble has no head of tails; its card measured them at each horizon."""
    path = tmp_path / "run.db"
    config: dict[str, dict[str, Any]] = {
        "model": {"checkpoint": "flash-1m"},
        "gate": {"drop": ["edge", "direction"]},
        "risk": {"max_tail": "60"},
        "sizing": {"mode": "expected_shortfall", "shortfall": "0.0005"},
    }
    backtest("attention", tiled(7_600), db=path, config=config)
    judged = rows(
        path,
        "SELECT g.measure, d.mean_return, d.stdev_return, d.action, "
        "abs(d.target_quantity) * b.close FROM v_gates g "
        "JOIN v_decisions d USING (run_id, sequence) JOIN v_bars b USING (run_id, sequence) "
        "WHERE g.gate = 'risk.tail' AND g.measure > 0 AND d.action IN ('LONG', 'SHORT')",
    )
    assert len(judged) > 20
    tails = read_card(locate("flash-1m"))["calibration"]["tails"]["30"]
    weight = math.log(0.05 / 0.025) / math.log(0.05 / 0.01)
    for measure, mean, stdev, action, notional in judged:
        (_, far), (_, near) = tails["losses"]
        sign = 1 if action == "SHORT" else -1
        loss = sign * mean + stdev * (near + weight * (far - near))
        share = math.expm1(loss) if action == "SHORT" else -math.expm1(-loss)
        assert measure == pytest.approx(notional * share, rel=1e-5)
        assert 45 < measure <= 50.5, "the size loses .05 % of 100,000"
    assert invoke(["verify", "last", "--db", str(path)]) == 0


@pytest.mark.parametrize("has_runup", [True, False])
def test_what_a_short_may_lose_on_the_way_is_the_rise_that_the_network_says(
    tmp_path: Path, *, has_runup: bool
) -> None:
    network = replace(NETWORK, dim=8, runup=has_runup)  # so drawn it forecasts falls
    path = replayed(tmp_path, "notional", network=network, risk='max_expected_drawdown = "0.5"')
    query = "SELECT DISTINCT action, refused_by FROM v_decisions"
    acted = set(rows(path, query)) - {("HOLD", None), ("HOLD", "warm"), ("HOLD", "shifted")}
    assert acted == {("SHORT", None) if has_runup else ("HOLD", "risk.expected_drawdown")}
    assert invoke(["verify", "last", "--db", str(path)]) == 0
    if not has_runup:
        return
    horizon = NETWORK.horizons.index(30)
    with Reader.open(path) as reader:
        steps = {step.sequence: step for step in reader.steps(reader.find("last"))}
    judged = rows(
        path,
        "SELECT d.sequence, g.measure, d.action FROM v_gates g JOIN v_decisions d "
        "USING (run_id, sequence) WHERE g.gate = 'risk.expected_drawdown' AND g.measure > 0 "
        "AND d.action IN ('LONG', 'SHORT')",
    )
    assert {action for *_, action in judged} == {"SHORT"}
    for sequence, measure, _ in judged:
        prediction = steps[sequence].prediction
        assert isinstance(prediction, Forecast)
        lost = math.exp(prediction.head("runup", horizon)[0]) - 1
        assert measure == pytest.approx(10_000 * lost / 100_000, rel=0.01)


@pytest.mark.parametrize(
    ("section", "key", "sentence"),
    [
        ("risk", 'max_tail = "100"', "risk.max_tail needs tails of the model"),
        ("risk", 'max_tail_share = "0.1"', "risk.max_tail_share needs tails of the model"),
        ("risk", 'max_expected_drawdown = "0.1"', "risk.max_expected_drawdown needs drawdown"),
        ("sizing", 'mode = "expected_shortfall"', "needs tails of the model"),
        ("sizing", 'mode = "network_allocation"', "needs allocation of the model"),
    ],
)
def test_a_head_that_the_model_lacks_is_named(
    section: str, key: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        explained_runs.replayed(tmp_path, extra=f"\n[{section}]\n{key}\n")


def test_a_gate_lets_through_the_regimes_that_the_network_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPAPER_GATE__LEARNED_REGIMES", "2,3")
    path = replayed(tmp_path, "notional")
    judged = rows(
        path,
        "SELECT g.passed, d.learned_regime FROM v_gates g JOIN v_decisions d "
        "USING (run_id, sequence) WHERE g.gate = 'learned_regime' AND d.mean_return IS NOT NULL",
    )
    assert judged
    assert all(bool(passed) is (regime in (2, 3)) for passed, regime in judged)


def test_each_head_that_decides_has_a_shadow_without_it_from_record_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shadows = ("full_size", "no_expected_drawdown", "no_learned_regime", "no_tail", "no_tail_share")
    monkeypatch.setenv("TRACEPAPER_GATE__LEARNED_REGIMES", "2,3")
    monkeypatch.setenv("TRACEPAPER_STRATEGY__SHADOWS", ",".join(shadows))
    limits = 'max_tail = "5000"\nmax_tail_share = "0.9"\nmax_expected_drawdown = "0.5"'
    path = replayed(tmp_path, "expected_shortfall", risk=limits)
    by_shadow = dict(rows(path, "SELECT shadow, count(*) FROM v_shadow_equity GROUP BY 1"))
    assert by_shadow.keys() == {"ungated", *shadows}
    assert len(set(by_shadow.values())) == 1
    filled = {name for (name,) in rows(path, "SELECT DISTINCT shadow FROM v_shadow_fills")}
    assert filled == by_shadow.keys()
    assert invoke(["verify", "last", "--db", str(path)]) == 0
    capsys.readouterr()
    assert invoke(["report", "last", "--db", str(path), "--json"]) == 0
    accounts = {account["account"] for account in json.loads(capsys.readouterr().out)["accounts"]}
    assert set(shadows) <= accounts


def spread_run(folder: Path, mode: str, threshold: str) -> Path:
    folder.mkdir(exist_ok=True)
    return explained_runs.replayed(
        folder,
        network=replace(explained_runs.SMALL, dropout=0.3),
        mode=mode,
        edge="0",
        model="dropout_passes = 4",
        gates=f'max_dropout_spread = "{threshold}"',
    )


def test_the_spread_of_dropout_is_stored_judged_shown_and_verified(
    tmp_path: Path, cli: Cli
) -> None:
    path = spread_run(tmp_path / "scan", "scan", "0.5")
    answers = forecasts(path)
    spreads = [forecast.dropout_spread(forecast.horizons.index(30)) for forecast in answers]
    measured = [
        spread / forecast.stdev_return[forecast.horizons.index(30)]
        for forecast, spread in zip(answers, spreads, strict=True)
        if spread is not None
    ]
    assert len(measured) == len(spreads) > 50
    stored = rows(path, "SELECT dropout_spread FROM v_decisions WHERE mean_return IS NOT NULL")
    assert [spread for (spread,) in stored] == spreads
    gates = rows(
        path, "SELECT measure, passed FROM v_gates WHERE gate = 'dropout_spread' ORDER BY sequence"
    )
    assert [gate for gate, _ in gates if gate is not None] == pytest.approx(measured)
    assert cli("verify", "last", "--db", path).code == 0
    stepped = spread_run(tmp_path / "step", "step", "0.5")
    assert [forecast.heads for forecast in forecasts(stepped)] == [
        forecast.heads for forecast in answers
    ]
    assert "dropout_spread" in cli.out("explain", f"last:{explained_runs.LAST}", "--db", path)
    # At the median of what was measured, half of the decisions are refused.
    middle = sorted(measured)[len(measured) // 2]
    strict = spread_run(tmp_path / "strict", "scan", f"{middle:.10f}")
    passed = rows(strict, "SELECT passed FROM v_gates WHERE gate = 'dropout_spread'")
    share = sum(is_passed for (is_passed,) in passed) / len(measured)
    assert 0.4 < share < 0.6
    refused = rows(strict, "SELECT count(*) FROM v_decisions WHERE refused_by = 'dropout_spread'")
    assert refused[0][0] > 0
