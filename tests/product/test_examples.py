"""The strategies that ship: replayed, verified, and live on the embedded exchange, alike."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from programs import ROOT, exchange_on, pointing_at, run
from records import rows

CANDLES: Final = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
LIVE_BARS: Final = 150
LIVE_UNTIL: Final = "2025-06-01T02:00"  # the exchange begins with its bar 7,250, on 31 May


class Example(NamedTuple):
    """One example: its file, and how it is changed so that the bundled minutes suffice.

    Without a file it is built in.
    """

    file: str
    settings: dict[str, str]


EXAMPLES: Final = [
    Example(
        "rsi_reversion",
        {"TRACEPAPER_STRATEGY__OPTIONS": '{"bars": 4, "low": 40, "high": 55, "stop": 1.0}'},
    ),
    Example(
        "grid",
        {
            "TRACEPAPER_STRATEGY__OPTIONS": json.dumps(
                {"bars": 20, "levels": 3, "spacing": 0.02, "quantity": 0.01}
            )
        },
    ),
    Example(
        "trend",
        {
            "TRACEPAPER_MARKET__CATEGORY": "linear",
            "TRACEPAPER_MARKET__INTERVAL": "1",
            "TRACEPAPER_SIZING__BASIS": "notional",
            "TRACEPAPER_SIZING__REBALANCE": "0",  # or a late bar moves the targets after it
            "TRACEPAPER_STRATEGY__OPTIONS": '{"bars": 60}',
            "TRACEPAPER_SIZING__LOOKBACK": "66",
            "TRACEPAPER_SIZING__TARGET_VOLATILITY": "0.002",
        },
    ),
    Example(
        "",
        {
            "TRACEPAPER_STRATEGY__NAME": "trend",
            "TRACEPAPER_STRATEGY__TREND_WINDOWS": "2h,4h",
            "TRACEPAPER_STRATEGY__LONG_ONLY": "false",
            "TRACEPAPER_MODEL__CHECKPOINT": "none",
            "TRACEPAPER_SIZING__REBALANCE": "0",
            "TRACEPAPER_GATE__LATE_MS": "3600000",  # each of its few closed hours counts
        },
    ),
]


def document_of(command: list[str], folder: Path, settings: dict[str, str]) -> Any:
    ended = run([*command, "--json"], folder, settings)
    assert ended.code == 0, ended.err[-2000:]
    return json.loads(ended.out)


def config_of(example: Example) -> list[str]:
    if not example.file:
        return []
    return ["-c", str(ROOT / "strategies" / "examples" / f"{example.file}.toml")]


def named(example: Example) -> str:
    return example.file or "built_in_trend"


@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_an_example_trades_in_replay_and_follows_from_its_record(
    example: Example, tmp_path: Path
) -> None:
    given = [*config_of(example), "--data", str(CANDLES)]
    done = document_of(
        ["replay", *given, "--db", "past.db", "--to", "2025-05-27"], tmp_path, example.settings
    )
    ((fills,),) = rows(tmp_path / "past.db", "SELECT count(*) FROM v_fills")
    assert fills > 2
    verified = document_of(["verify", "last", "--db", "past.db"], tmp_path, {})
    assert verified["agreed"] == done["decisions"]
    probed = run(
        ["lookahead", *given, "--probes", "2", "--bars", "600"], tmp_path, example.settings
    )
    assert probed.code == 0, probed.out + probed.err


@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_an_example_decides_live_as_it_does_on_the_candles(
    example: Example, tmp_path: Path
) -> None:
    given = config_of(example)
    live = ["run", *given, "--bars", str(LIVE_BARS), "--db", "live.db"]
    with exchange_on(tmp_path, "--data", str(CANDLES), "--hold", "--speed", "1200") as exchange:
        ended = run(live, tmp_path, example.settings | pointing_at(exchange.out))
    assert ended.code == 0, ended.err[-2000:]
    assert document_of(["verify", "last", "--db", "live.db"], tmp_path, {})["passes"]
    replay = ["replay", *given, "--data", str(CANDLES), "--db", "past.db", "--to", LIVE_UNTIL]
    document_of(replay, tmp_path, example.settings)
    compared = run(["parity", "live.db#last", "past.db#last", "--json"], tmp_path)
    assert compared.out, compared.err
    document = json.loads(compared.out)
    assert compared.code == 0, compared.out
    assert document["compared"] + sum(document["timing"].values()) >= LIVE_BARS
    with sqlite3.connect(tmp_path / "live.db") as database:
        counted = dict(database.execute("SELECT role, count(*) FROM v_orders GROUP BY 1"))
    assert sum(counted.values()) >= (2 if example.file else 1)
    assert (counted.get("STOP", 0) >= 2) is (example.file == "rsi_reversion")
