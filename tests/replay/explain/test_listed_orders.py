"""Orders by list in explain and report: their requests and outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pages import said_in

from tracepaper import Action, Cancel, Orders, Signal, Strategy, buy, sell
from tracepaper.replay.api import backtest
from tracepaper.replay.run import Run

START_MS = 1_748_246_400_000
BARS = 12
FIRST, SECOND = 4, 7  # bars that answer with a list
CANDLES = {
    "open_time": [START_MS + 60_000 * at for at in range(BARS)],
    "open": [100.0] * BARS,
    "high": [101.0] * BARS,
    "low": [99.0] * BARS,
    "close": [100.5] * BARS,
    "volume": [1_000.0] * BARS,
}


class Lists(Strategy):
    """Sends two lists of orders, and waits otherwise."""

    warmup = 1

    def decide(self, context: Any) -> Signal | Orders:
        at = (context.time - START_MS) // 60_000
        if at == FIRST:
            waits = buy(3, limit=50.0, tag="far")
            return Orders((buy(2, limit=99.5), waits, sell(1, reduce_only=True)), "first")
        if at == SECOND:
            return Orders((Cancel("far"), buy(1, stop=150.0, tag="up")), "second")
        return Signal(Action.HOLD, "waits")


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    with backtest(Lists, {"AAAUSDT": CANDLES}) as run:
        yield run


def decided(run: Run[Any], reason: str) -> int:
    rows = run.decisions.to_dicts()
    (sequence,) = (row["sequence"] for row in rows if row["reason"] == reason)
    return int(sequence)


def became(document: Any) -> list[tuple[str, str, str | None, str]]:
    return [(of["side"], of["kind"], of["price"], of["became"]) for of in document["orders"]]


def test_explain_lists_what_a_list_sent_and_canceled(run: Run[Any]) -> None:
    first = run.explain(decided(run, "first"))
    assert became(first.document) == [
        ("BUY", "LIMIT", "99.5", "filled at 99.5 as maker"),
        ("BUY", "LIMIT", "50.0", "canceled by the strategy"),
        ("SELL", "MARKET", None,
         "rejected: it is reduce-only, and there is no position for it to close"),
    ]  # fmt: skip
    for words in ("filled 2 at 99.5", "canceled by the strategy", "rejected: it is reduce-only"):
        assert words in first.text
    second = run.explain(decided(run, "second"))
    assert became(second.document) == [
        ("BUY", "LIMIT", "50.0", "canceled by the strategy"),
        ("BUY", "STOP", None, "rests"),
    ]
    assert second["orders"][1]["trigger"] == "150.0"
    assert [of["quantity"] for of in second["orders"]] == ["3.000", "1.000"]


def test_the_report_lists_them_as_json_and_on_the_page(run: Run[Any], tmp_path: Any) -> None:
    page = tmp_path / "run.html"
    report = run.report(html=page)
    assert [of[3] for of in became(report)] == [
        "filled at 99.5 as maker",
        "canceled by the strategy",
        "rejected: it is reduce-only, and there is no position for it to close",
        "rests",
    ]
    assert {of["decision"] for of in report["orders"]} == {
        decided(run, "first"),
        decided(run, "second"),
    }
    said = said_in(page)
    assert "Orders by list, and what became of each" in said
    assert "filled at 99.5 as maker" in said
