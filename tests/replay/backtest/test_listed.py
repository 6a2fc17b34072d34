"""A strategy of orders by list, replayed: recorded whole, derived again, killed and resumed."""

from pathlib import Path

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from records import rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.run import Tally, resume_replay, run_replay
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Signal,
    buy,
    sell,
)
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action

BARS = 300


class Scatter(Strategy):
    """Orders of every kind, as the close says: a function of the last bar alone."""

    warmup = 1
    twins = ("ungated",)

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal | Orders:
        turn = context.exact.close // 10 % 6
        near, far = round(context.close * 0.9995, 1), round(context.close * 1.0005, 1)
        requests: tuple[OrderRequest | Cancel, ...]
        match turn:
            case 0:
                return Signal(Action.HOLD, "waits")
            case 1:
                requests = buy(0.01, limit=near, tag="low"), sell(0.01, limit=far, tag="high")
            case 2:
                requests = (buy(0.01), sell(1, stop=near, reduce_only=True, tag="stop"))
            case 3:
                requests = sell(0.02, limit=far, reduce_only=True), buy(0.01, stop=far, tag="up")
            case 4:
                requests = Cancel("low"), sell(0.01, limit=far, post_only=True, tag="high")
            case _:
                requests = (
                    Cancel(),
                    sell(0.01, stop=near, limit=near, until=context.time + 180_000),
                )
        return Orders(requests, f"turn {turn}")


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
            "strategy": {"name": f"{__name__}:Scatter"},
            "execution": {"spread_bp": 1, "spread_slippage": "0.1", "latency_jitter_ms": 20},
            **sections,
        },
    )


def replayed(
    path: Path, data: Candles, *, stop_after: int | None = None, **more: dict[str, object]
) -> None:
    audit = SqlAuditLog.open(path)
    tally = Tally()
    if stop_after is not None:
        tally = Tally(stopped=lambda: tally.bars >= stop_after)
    run_replay(build(configured(**more), [data], started_at_ms=1, database=path), audit, tally)
    if tally.finished:
        audit.end(2)
    audit.close()


@pytest.fixture(scope="module")
def data() -> Candles:
    return made_candles(walk_rows(BARS))


@pytest.fixture(scope="module")
def whole(data: Candles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("listed") / "whole.db"
    replayed(path, data)
    return path


def test_every_kind_of_order_and_end_is_on_record(whole: Path) -> None:
    kinds = {kind for (kind,) in rows(whole, "SELECT DISTINCT kind FROM v_orders")}
    assert kinds == {"MARKET", "LIMIT", "STOP", "STOP_LIMIT"}
    ends = {end for (end,) in rows(whole, "SELECT DISTINCT status FROM v_orders")}
    assert ends >= {"FILLED", "CANCELED", "REJECTED"}
    assert {one for (one,) in rows(whole, "SELECT DISTINCT liquidity FROM v_fills")} == {
        "MAKER",
        "TAKER",
    }
    ((bars, targets, lists),) = rows(
        whole,
        "SELECT count(*), count(target_quantity), sum(action = 'ORDERS') FROM v_decisions",
    )
    assert (bars, targets) == (BARS, BARS - int(str(lists)))  # a list has no target


def test_orders_by_list_are_derived_again_from_the_record(whole: Path) -> None:
    with Reader.open(whole) as reader:
        found = verify_run(reader, whole, reader.find("last"))
        assert verify_chain(reader.connection, reader.find("last")).holds
    assert found.holds
    assert found.exact
    assert found.decisions == found.agreed == BARS


def test_lists_that_change_nothing_are_stored_as_they_are_hashed(
    data: Candles, tmp_path: Path
) -> None:
    path = tmp_path / "waits.db"
    replayed(path, data, strategy={"name": f"{__name__}:Waits"})
    with Reader.open(path) as reader:
        run = reader.find("last")
        assert verify_chain(reader.connection, run).holds
        assert verify_run(reader, path, run).exact
    assert rows(path, "SELECT count(*), count(target_quantity) FROM v_decisions") == [(BARS, 0)]


@pytest.mark.parametrize("bars", [37, 150, 251])
def test_killed_and_resumed_it_equals_the_run_that_was_not(
    whole: Path, data: Candles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bars: int
) -> None:
    monkeypatch.setattr("tracepaper.replay.backtest.run.PROGRESS_EVENTS", 1)
    cut = tmp_path / "cut.db"
    replayed(cut, data, stop_after=bars)
    audit = SqlAuditLog.open(cut)
    resume_replay("last", [data], (), audit, cut, Tally())
    audit.close()
    # A start is a step of its own, so sequences move on by one; nothing else does.
    of_fill = "side, quantity, price, fee, liquidity, model, reason, filled_ms"
    for query in (
        f"SELECT {of_fill} FROM fills ORDER BY step, ordinal",
        f"SELECT {of_fill} FROM twin_fills ORDER BY step, ordinal",
        "SELECT side, quantity, filled, status, reason, created_ms, eligible_ms, kind, price, "  # noqa: ISC004 - one query
        "trigger, reduce_only, tag, triggered FROM orders ORDER BY step, ordinal",
        "SELECT decision_sha256 FROM v_decisions ORDER BY open_time_ms",
    ):
        assert rows(cut, query) == rows(whole, query)


def test_parity_hashes_what_a_list_asks_for_and_not_what_became_of_it(
    whole: Path, data: Candles, tmp_path: Path
) -> None:
    dear = tmp_path / "dear.db"
    replayed(dear, data, execution={"spread_bp": 50})
    with Reader.open(whole) as one, Reader.open(dear) as two:
        found = compare_runs(ComparedRun(one, one.find("last")), ComparedRun(two, two.find("last")))
    assert found.identical == found.compared == BARS
    assert rows(whole, "SELECT price FROM fills") != rows(dear, "SELECT price FROM fills")
