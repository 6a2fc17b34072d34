"""Other people's clients: traders on the exchange as on the real one, datasette on the database."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import storage_cases as cases
from exchange_callers import CALLERS, CCXT, FREQTRADE, NAUTILUS, PRO
from records import rows
from waiting import deadline_s

from tracepaper.storage.database.views import VIEWS

PROGRAMS = Path(__file__).parent / "programs"
Play = Callable[..., dict[str, Any]]
CATEGORIES = ("linear", "spot")


def calls_as_listed(document: dict[str, Any], caller: str, category: str) -> bool:
    """Whether *caller* called what the table says: all of it on linear, no more on spot."""
    listed = {name for name, callers in CALLERS.items() if caller in callers}
    calls: set[str] = document["calls"]
    return calls == listed if category == "linear" else calls <= listed


pytestmark = [pytest.mark.clients, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_ccxt_reads_markets_candles_tiers_and_histories(play: Play, category: str) -> None:
    document = play("ccxt", "with_ccxt", category, 120)
    assert calls_as_listed(document, CCXT, category)
    assert document["markets"] == ["BTC/USDT:USDT" if category == "linear" else "BTC/USDT"]
    assert document["late_ms"] < 5_000
    if category == "linear":
        assert document["tiers"] == 5
        assert document["mark"] > 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_ccxt_pro_watches_candles_trades_tickers_and_books(play: Play, category: str) -> None:
    counts = play("ccxt", "with_ccxt_pro", category, 180)
    assert calls_as_listed(counts, PRO, category)
    assert min(counts[name] for name in ("levels", "ticker", "trades", "candles")) > 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_freqtrade_enters_and_leaves_a_trade_in_a_dry_run(play: Play, category: str) -> None:
    document = play("freqtrade", "with_freqtrade", category, 300)
    assert calls_as_listed(document, FREQTRADE, category)
    assert document["closed"] >= 1
    assert document["amount"] > 0
    assert abs(document["open_rate"] / document["close_rate"] - 1) < 0.05


@pytest.mark.parametrize("category", CATEGORIES)
def test_nautilus_fills_an_order_in_its_sandbox(play: Play, category: str) -> None:
    document = play("nautilus", "with_nautilus", category, 300)
    assert calls_as_listed(document, NAUTILUS, category)
    assert document["quantity"] == 0.01
    assert min(document[name] for name in ("past", "bars", "quotes", "trades")) > 0


def test_datasette_opens_every_view(client_python: Callable[[str], Path], tmp_path: Path) -> None:
    cases.write_run(tmp_path / "a.db", cases.rich_steps())
    command = [client_python("datasette"), PROGRAMS / "with_datasette.py", tmp_path / "a.db"]
    done = subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=deadline_s(120)
    )
    document = json.loads(done.stdout.splitlines()[-1])
    counts = {
        view.name: rows(tmp_path / "a.db", f"SELECT count(*) FROM {view.name}")[0][0]
        for view in VIEWS
    }
    assert document == {name: [200, 200, count] for name, count in counts.items()}
    assert 1_000 > max(counts.values()) > 0
