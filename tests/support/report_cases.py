"""Runs for the tests of the report: real replays of the licensed candles, typed as a user would."""

from __future__ import annotations

import json
from pathlib import Path

from tracepaper.daemon.cli import invoke
from tracepaper.replay.report.report import Report, build_report

CANDLES = Path(__file__).parents[1] / "data" / "candles"
SAMPLE = (
    Path(__file__).parents[2] / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
)
BTC = CANDLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz"
SOL = CANDLES / "binance_um_SOLUSDT_1m_2025-05.csv.gz"
STRICT = """
[strategy]
name = "attention"

[gate]
confidence = "q0.5"
confidence_by = "entropy"
direction = "q0.5"
regimes = ["MOMENTUM", "MIXED"]
"""
"""Gates that refuse, so that there are refusals to report on."""
CROSS = """
[market]
category = "{category}"
symbols = {symbols}
interval = "{interval}"
[strategy]
name = "sma_cross"
fast = 5
slow = 20
long_only = {long_only}
[sizing]
mode = "fixed"
quantity = "{quantity}"
[execution]
model = "next_open"
taker_fee = "{fee}"
slippage_bp = "{slippage_bp}"
spread_bp = "{spread_bp}"
[account]
cash = "1000000"
"""


def cross(
    *,
    long_only: bool = False,
    quantity: str = "1",
    fee: str = "0.00055",
    slippage_bp: str = "0",
    spread_bp: str = "0",
    category: str = "linear",
    symbols: tuple[str, ...] = ("BTCUSDT",),
    interval: str = "1",
) -> str:
    """Return the configuration of a moving-average strategy as TOML."""
    return CROSS.format(
        long_only=str(long_only).lower(),
        quantity=quantity,
        fee=fee,
        slippage_bp=slippage_bp,
        spread_bp=spread_bp,
        category=category,
        symbols=json.dumps(symbols),
        interval=interval,
    )


def funding_file(folder: Path) -> Path:
    """Write a settlement every eight hours over the days of ``SAMPLE``; return the file."""
    first, rates = 1_748_246_400_000, ("0.0003", "-0.0001", "0.0002")
    rows = [f"{first + 28_800_000 * place},{rates[place % 3]}" for place in range(24)]
    path = folder / "BTCUSDT.csv"
    path.write_text("\n".join(("open_time,funding_rate", *rows)) + "\n")
    return path


def replayed(folder: Path, config: str, *words: object) -> Path:
    """Replay with *config* into a new database of *folder*; return it."""
    path = folder / "tracepaper.toml"
    path.write_text(config)
    database = folder / "run.db"
    typed = ["replay", "-c", path, "--db", database, *words]
    assert invoke([str(word) for word in typed]) == 0
    return database


def report_of(folder: Path, config: str, *words: object) -> Report:
    """Return the report of such a replay."""
    return build_report_of(replayed(folder, config, *words))


def build_report_of(database: Path, run: str = "last") -> Report:
    """Return the report of a run of *database*."""
    from tracepaper.storage.database.reader import resolve

    return build_report(database, resolve(database, run).run_id)
