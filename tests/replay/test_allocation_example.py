"""The example that holds several symbols by their weights, over the bundled month."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli
from programs import ROOT

from tracepaper.strategies.allocation import Array, WeightRule, allocate
from tracepaper.strategies.examples import allocation as example

SAMPLES = ROOT / "replay" / "samples"
CONFIG = ROOT / "strategies" / "examples" / "allocation.toml"
CANDLES = [SAMPLES / f"binance_um_{symbol}USDT_15m_2025-05.csv.gz" for symbol in ("BTC", "SOL")]
DAY_BARS = 96


@pytest.mark.parametrize("rule", ["inverse", "mean_variance"])
def test_weights_are_found_once_a_day_and_follow_from_the_record(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    options = {"rule": rule, "window": DAY_BARS, "every": DAY_BARS, "bound": 0.6}
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", json.dumps(options))
    database = tmp_path / "run.db"
    span = ("--to", "2025-05-12")
    cli.json("replay", *CANDLES, "-c", CONFIG, "--db", database, *span)
    question = (
        "SELECT open_time_ms, group_concat(number) AS weights FROM v_notes WHERE name = 'weight' "
        "GROUP BY open_time_ms ORDER BY open_time_ms"
    )
    document = cli.json("audit", "sql", question, "--db", database)
    weights = [[float(each) for each in row["weights"].split(",")] for row in document]
    assert len(weights) >= 7
    assert all(len(each) == 2 and sum(each) <= 1 and max(each) <= 0.6 for each in weights)
    assert all(min(each) >= 0 for each in weights)
    if rule == "inverse":  # bitcoin moves less, so that more of it is held
        assert all(first > second for first, second in weights)
    checked = cli.json("verify", "last", "--db", database)
    assert checked["passes"]


def test_turnover_is_priced_from_what_the_account_holds_and_not_from_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    weights_held: list[list[float]] = []

    def recorded(rule: WeightRule, risk: Array, *, held: Array, **prices: Any) -> Array:
        weights_held.append(held.tolist())
        return allocate(rule, risk, held=held, **prices)

    monkeypatch.setattr(example, "allocate", recorded)
    options = {"rule": "mean_variance", "window": DAY_BARS, "every": DAY_BARS, "cost": 0.001}
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", json.dumps(options))
    # Changes of less than a half are not traded, and nothing above 30,000 is held.
    monkeypatch.setenv("TRACEPAPER_SIZING__REBALANCE", "0.5")
    monkeypatch.setenv("TRACEPAPER_SIZING__MAX_POSITION", "30000")
    database = tmp_path / "run.db"
    cli.json("replay", *CANDLES, "-c", CONFIG, "--db", database, "--to", "2025-05-12")
    question = (
        "SELECT n.open_time_ms, n.number AS weight, p.quantity * d.close / p.equity AS share FROM "
        "v_notes n JOIN v_positions p USING (run_id, sequence) JOIN v_bars d USING (run_id, "
        "sequence) WHERE n.name = 'weight' ORDER BY n.sequence"
    )
    rows = cli.json("audit", "sql", question, "--db", database)
    shares = [[float(row["share"]) for row in rows[at : at + 2]] for at in range(0, len(rows), 2)]
    weights = [[float(row["weight"]) for row in rows[at : at + 2]] for at in range(0, len(rows), 2)]
    assert len(shares) == len(weights_held) > 5
    assert np.allclose(weights_held, shares, atol=1e-9)
    assert np.abs(np.array(shares[1:]) - weights[:-1]).max() > 0.2
    assert cli.json("verify", "last", "--db", database)["passes"]


def test_a_share_of_volume_bounds_the_thinner_symbol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    share = 2e-5
    options = {"rule": "equal", "window": DAY_BARS, "every": DAY_BARS, "volume_share": share}
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", json.dumps(options))
    database = tmp_path / "run.db"
    cli.json("replay", *CANDLES, "-c", CONFIG, "--db", database, "--to", "2025-05-12")
    question = (
        "SELECT n.instrument, n.number AS weight, p.equity, (SELECT avg(b.close * b.volume) FROM "
        "v_bars b WHERE b.instrument = n.instrument AND b.open_time_ms BETWEEN n.open_time_ms - "
        f"{DAY_BARS} * 900000 AND n.open_time_ms) AS traded FROM v_notes n JOIN v_positions p "
        "USING (run_id, sequence) WHERE n.name = 'weight'"
    )
    rows = cli.json("audit", "sql", question, "--db", database)
    assert len(rows) >= 14
    for row in rows:
        bound = share * DAY_BARS * float(row["traded"]) / float(row["equity"])
        assert float(row["weight"]) == pytest.approx(min(0.5, bound), abs=2e-6)
    assert {row["instrument"] for row in rows if float(row["weight"]) < 0.5} == {"linear:SOLUSDT"}
