"""Funding follows the dates of the record, also inside bars longer than its interval."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import crossing, record
from records import check_record, rows

from tracepaper.replay.archive import FundingRates

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FIRST_MS = 1_735_689_600_000
DAYS = 150
UNIT = 10**8
"""Money in the units of the ledger."""


def settlements(seed: int) -> FundingRates:
    """Return rates of every eight hours; some are dated late, and some only seem to be."""
    rng = random.Random(seed)
    dues = [FIRST_MS + place * 8 * HOUR_MS for place in range(1, 3 * DAYS)]
    times = [due + rng.choice((0, 0, 7, 999, 1_000)) for due in dues]
    drawn = [rng.choice((-1, 1)) * rng.randint(1, 9) * 10**6 for _ in dues]
    return FundingRates("drawn", "BTCUSDT", np.array(times), np.array(drawn))


@pytest.mark.parametrize("seed", range(3))
def test_a_position_pays_what_is_settled_after_its_fill_until_its_closing_fill(
    seed: int, tmp_path: Path
) -> None:
    """A settlement less than a second after a bar's open counts as of that open.

    Public reports: freqtrade#6185, #6231 and #7969, itchysats#2107, mux-protocol#3.
    """
    path, rates = tmp_path / "run.db", settlements(seed)
    drawn = walk_rows(DAYS, seed=seed)
    every = made_candles(drawn, interval_ms=DAY_MS, first_ms=FIRST_MS)
    places = np.arange(DAYS)
    candles = every[(places % 9 != 6) & (places % 13 != 4)]  # with holes of a day or two
    strategy = {"name": "recorded_strategies:Scatter", "options": {}}
    record(path, crossing(interval="D", strategy=strategy), [candles], funding=[rates])
    fills = rows(path, "SELECT filled_ms, side, quantity_text, model FROM v_fills")
    closes = dict(
        zip((candles.open_time_ms + DAY_MS).tolist(), candles.close.tolist(), strict=True)
    )
    owed = dict[int, int]()
    for time, rate in zip(rates.time_ms.tolist(), rates.rate.tolist(), strict=True):
        due_ms = time - time % DAY_MS if time % DAY_MS < 1_000 else time
        held = sum(
            Fraction(quantity) * (1 if side == "BUY" else -1)
            for filled_ms, side, quantity, _ in fills
            if filled_ms < due_ms
        )
        newest = max((at for at in closes if at <= due_ms), default=0)
        mark = Fraction(closes.get(newest, 0), 10)
        owed[due_ms] = round(held * mark * Fraction(rate, 10**10) * UNIT)
    booked = rows(path, "SELECT amount_text FROM v_ledger WHERE kind = 'funding' ORDER BY sequence")
    assert [int(-Fraction(text) * UNIT) for (text,) in booked] == [
        paid for paid in owed.values() if paid
    ]
    trades = rows(path, "SELECT opened_ms, closed_ms, funding_text FROM v_trades")
    for opened_ms, closed_ms, funding in trades:
        due = [paid for at, paid in owed.items() if opened_ms < at <= closed_ms]
        assert int(Fraction(funding) * UNIT) == sum(due)
    inside = [at for at, *_ in fills if at % DAY_MS == DAY_MS - 1]
    assert min(len(inside), len(trades)) > 4
    assert check_record(path) > 100
