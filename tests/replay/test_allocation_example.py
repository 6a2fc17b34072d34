"""The example that holds several symbols by their weights, over the bundled month."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT

from tracepaper.daemon.cli import invoke

SAMPLES = ROOT / "replay" / "samples"
CONFIG = ROOT / "strategies" / "examples" / "allocation.toml"
CANDLES = [SAMPLES / f"binance_um_{symbol}USDT_15m_2025-05.csv.gz" for symbol in ("BTC", "SOL")]
DAY_BARS = 96


def answered(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code = invoke([str(word) for word in (*words, "--json")])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


@pytest.mark.parametrize("rule", ["inverse", "mean_variance"])
def test_weights_are_found_once_a_day_and_follow_from_the_record(
    rule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"rule": rule, "window": DAY_BARS, "every": DAY_BARS, "bound": 0.6}
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", json.dumps(options))
    database = tmp_path / "run.db"
    span = ("--to", "2025-05-12")
    answered(capsys, "replay", *CANDLES, "-c", CONFIG, "--db", database, *span)
    question = (
        "SELECT open_time_ms, group_concat(number) AS weights FROM v_notes WHERE name = 'weight' "
        "GROUP BY open_time_ms ORDER BY open_time_ms"
    )
    found = answered(capsys, "audit", "sql", question, "--db", database)
    weights = [[float(each) for each in row["weights"].split(",")] for row in found]
    assert len(weights) >= 7
    assert all(len(each) == 2 and sum(each) <= 1 and max(each) <= 0.6 for each in weights)
    assert all(min(each) >= 0 for each in weights)
    if rule == "inverse":  # bitcoin moves less, so that more of it is held
        assert all(first > second for first, second in weights)
    checked = answered(capsys, "verify", "last", "--db", database)
    assert checked["holds"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "best"}, "'best' is not a valid Rule"),
        ({"windw": 9}, "windw is no option of the rule inverse; use bound, every, half_life, rule"),
        ({"rule": "equal", "half_life": 9}, "half_life is no option of the rule equal"),
        ({"rule": "minimum", "aversion": 2.0}, "aversion is no option of the rule minimum"),
        ({"rule": "inverse", "lean": 0.2}, "lean is no option of the rule inverse"),
        ({"window": 2}, "window is 2; it must be a whole number of at least 3"),
        ({"window": 9.5}, "window is 9.5; it must be a whole number"),
        ({"every": 0}, "every is 0; it must be a whole number of at least 1"),
        ({"bound": 0}, "A largest weight of 0 is none"),
        ({"rule": "mean_variance", "aversion": -1}, "aversion is -1"),
    ],
)
def test_an_option_that_is_none_is_named(
    options: dict[str, object],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", json.dumps(options))
    words = ["replay", *CANDLES, "-c", CONFIG, "--db", tmp_path / "run.db"]
    assert invoke([str(word) for word in words]) != 0
    assert sentence in capsys.readouterr().err
