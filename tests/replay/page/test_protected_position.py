"""What a position is protected by, in words and in the chart, of a run that is shown."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from browser import opened
from page_cases import serving_apart, shown_of
from playwright.sync_api import expect
from report_cases import BTC, cross, replayed

from tracepaper.replay.explain.decision import stored_decision
from tracepaper.replay.page import runs
from tracepaper.strategies.units import without_zeros

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

EXITS = '[exits]\nstop_loss = "1%"\ntake_profit = "2%"\n'
RESTING = """
SELECT role, coalesce("trigger", price) FROM orders o
WHERE sequence <= ? AND role IN ('STOP', 'TARGET') AND status IN ('NEW', 'ACCEPTED')
AND NOT EXISTS (
    SELECT 1 FROM orders n WHERE n.order_id = o.order_id AND n.sequence BETWEEN o.sequence + 1 AND ?
)
ORDER BY role
"""


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed(tmp_path_factory.mktemp("protected"), cross() + EXITS, "--data", BTC)


def test_card_and_sentence_name_the_orders_that_rest_in_the_record(protected: Path) -> None:
    shown = shown_of(protected)
    last = shown.rollups.newest_of([outcome.key for outcome in shown.columns.rows.outcomes])
    assert last is not None
    with closing(sqlite3.connect(protected)) as db:

        def resting(sequence: int) -> list[str]:
            return [
                f"{role.lower()} {without_zeros(f'{price / 10:,.1f}')}"
                for role, price in db.execute(RESTING, (sequence, sequence))
            ]

        places = {
            sequence: resting(sequence)
            for (sequence,) in db.execute(
                "SELECT sequence FROM v_decisions WHERE sequence % 37 = 5"
            )
        }
    assert {len(orders) for orders in places.values()} == {0, 2}
    for sequence, orders in places.items():
        text = stored_decision(shown.reader, shown.columns, sequence).position
        assert re.findall(r"(?:stop|target) [\d,.]+\d", text) == orders
        assert (text == "flat") is (not orders)
    newest = stored_decision(shown.reader, shown.columns, last).position
    assert [held.text for held in runs.holdings(shown)] == [newest]
    assert "stop" in newest


LABELS = """
    window.labels = [];
    const { fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.fillText = function (text) {
        window.labels.push(text);
        return fillText.apply(this, arguments);
    };
"""


@pytest.mark.slow
def test_the_scale_holds_the_stop_of_the_position(browser: Browser, protected: Path) -> None:
    with serving_apart(protected) as url, opened(browser, url, first=LABELS) as page:
        expect(page.locator("ul.rows")).to_be_visible()
        sentence = page.locator("h1.sentence").inner_text()
        found = re.search(r"stop ([\d,.]+\d)", sentence)
        assert found is not None, sentence
        stop = float(found[1].replace(",", ""))
        texts = page.evaluate("window.labels")
    prices = [float(text.replace(",", "")) for text in texts if re.fullmatch(r"[\d,]+\.0", text)]
    step = min(abs(one - other) for one in prices for other in prices if one != other)
    assert min(prices) - step <= stop <= max(prices) + step
