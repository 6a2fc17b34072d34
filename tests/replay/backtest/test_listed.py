"""A strategy of orders by list, replayed: what its record shows."""

from pathlib import Path

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record, recorded
from records import parity_of, rows, tamper

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import BarContext, Orders, buy
from tracepaper.strategies.api.strategy import Strategy

BARS = 300


class Waits(Strategy):
    """Sends one limit far away, and then lists without a request: nothing changes at its bars."""

    warmup = 1

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Orders:
        far = round(context.close / 2, 1)
        return Orders(
            (buy(0.01, limit=far, tag="far"),) if context.exact.close % 50 == 0 else (), "so"
        )


def configured(**sections: dict[str, object]) -> Config:
    return load(
        None,
        {
            "market": {"symbols": ["BTCUSDT"], "interval": "1"},
            "strategy": {"name": "recorded_strategies:Scatter"},
            "execution": {"spread_bp": 1, "spread_slippage": "0.1", "latency_jitter_ms": 20},
            **sections,
        },
    )


def replayed(path: Path, data: Candles, **more: dict[str, object]) -> None:
    record(path, configured(**more), [data])


@pytest.fixture(scope="module")
def data() -> Candles:
    return made_candles(walk_rows(BARS))


@pytest.fixture(scope="module")
def whole(data: Candles) -> Path:
    return recorded(configured(), [data])


def test_lists_that_change_nothing_are_stored_as_they_are_hashed(
    data: Candles, tmp_path: Path
) -> None:
    path = tmp_path / "waits.db"
    replayed(path, data, strategy={"name": f"{__name__}:Waits"})
    with Reader.open(path) as reader:
        run = reader.find("last")
        assert verify_chain(reader.connection, run).passes
        assert verify_run(reader, path, run).exact
    assert rows(path, "SELECT count(*), count(target_quantity) FROM v_decisions") == [(BARS, 0)]


def test_parity_hashes_what_a_list_asks_for_and_not_what_became_of_it(
    whole: Path, data: Candles, tmp_path: Path
) -> None:
    dear = tmp_path / "dear.db"
    replayed(dear, data, execution={"spread_bp": 50})
    parity = parity_of(whole, dear)
    assert parity.identical == parity.compared == BARS
    assert rows(whole, "SELECT price FROM fills") != rows(dear, "SELECT price FROM fills")
    other = tmp_path / "other.db"
    replayed(other, data, strategy={"name": f"{__name__}:Waits"})
    tamper(other, "UPDATE runs SET mode = 'another'")  # forecasts may differ, and lists may not
    parity = parity_of(whole, other)
    assert (parity.within_tolerance, parity.passes) == (0, False)
