"""Higher frames in a replay: derived again by verify, the same after a cut, warmed from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from recorded_strategies import FramedMean
from recordings import record
from records import check_record, identities, rows, run_again

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

MINUTE = 60_000
SEEN: list[tuple[int, list[int], list[int]]] = []
"""At each question: the time, and when the bars of both frames had closed."""


class Trend(FramedMean):
    """Keeps what it is asked with."""

    def decide(self, context: BarContext) -> Signal:
        fives, quarters = context.timeframe("5"), context.timeframe("15")
        SEEN.append((context.time, fives.time.tolist(), quarters.time.tolist()))
        return super().decide(context)


def walk(count: int = 400, *, seed: int = 1, symbol: str = "BTCUSDT") -> Candles:
    return made_candles(walk_rows(count, seed=seed), symbol=symbol)


def configured(*symbols: str, **sections: dict[str, Any]) -> Config:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": symbols or ["BTCUSDT"]},
        "strategy": {"name": f"{__name__}:Trend"},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "10000000"},
        **sections,
    }
    return load(None, given)


def replayed(path: Path, config: Config, data: Sequence[Candles], **options: Any) -> str:
    SEEN.clear()
    return record(path, config, data, **options)


DECIDED = "SELECT open_time_ms, action FROM v_decisions ORDER BY 1"


def test_closed_bars_of_each_frame_are_handed_on_and_verify_derives_them(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    replayed(path, configured(), [walk()])
    first_ms = SEEN[0][0]
    assert first_ms == FIRST_MS + 60 * MINUTE  # four quarters
    for now_ms, fives, quarters in SEEN:
        for length, wanted, times in ((5, 3, fives), (15, 4, quarters)):
            newest = now_ms // (length * MINUTE) * length * MINUTE
            due = [newest - place * length * MINUTE for place in reversed(range(wanted))]
            assert times == [at for at in due if at > FIRST_MS]
    [(cold,)] = rows(path, "SELECT count(*) FROM v_decisions WHERE refused_by = 'warm'")
    assert cold == 59
    assert {action for _, action in rows(path, DECIDED)} == {"LONG", "FLAT", "HOLD"}
    check_record(path)


def test_a_hole_takes_the_bar_of_the_frame_that_it_is_in(tmp_path: Path) -> None:
    data = walk()
    kept = np.delete(np.arange(400), 200)
    replayed(tmp_path / "a.db", configured(), [data[kept]])
    hole_ms = FIRST_MS + 200 * MINUTE
    after = [entry for entry in SEEN if entry[0] > hole_ms + 15 * MINUTE]
    lost = hole_ms // (15 * MINUTE) * 15 * MINUTE + 15 * MINUTE
    assert not any(lost in quarters for _, _, quarters in after)
    assert len(after[0][2]) == 3
    check_record(tmp_path / "a.db")


def test_a_period_is_warmed_by_as_many_bars_as_the_frames_want(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    from_ms = FIRST_MS + 187 * MINUTE
    replayed(path, configured(), [walk()], from_ms=from_ms)
    assert SEEN[0][0] == from_ms + MINUTE
    assert len(SEEN[0][2]) == 4
    assert rows(path, "SELECT count(*) FROM v_decisions WHERE refused_by = 'warm'") == [(0,)]
    whole = tmp_path / "b.db"
    replayed(whole, configured(), [walk()])
    later = identities(path)
    assert len(later) == 400 - 187
    assert later == identities(whole)[187:]


def hours_before(data: Candles, count: int, length: int = 15) -> tuple[Candles, Candles]:
    """Return candles of *length* minutes over *data*, and *data* from *count* minutes on."""
    return (
        replace(data.resampled(length * MINUTE), path="higher"),
        data[count : len(data)],
    )


def test_candles_of_the_frame_warm_what_the_bars_do_not_reach(tmp_path: Path) -> None:
    data = walk()
    quarters, late = hours_before(data, 187)
    fives, _ = hours_before(data, 187, 5)
    path, whole = tmp_path / "late.db", tmp_path / "whole.db"
    first = replayed(path, configured(), [late], frames=[quarters, fives])
    assert SEEN[0][0] == FIRST_MS + 190 * MINUTE  # three bars of its own
    assert len(SEEN[0][2]) == 4
    kinds = dict(rows(path, "SELECT kind, count(*) FROM v_events GROUP BY kind"))
    assert kinds["frame_bar"] == 4 + 1 + 3 + 1  # and the one that its first bar lies in
    check_record(path)
    replayed(whole, configured(), [data])
    decided = dict(rows(whole, DECIDED))
    warm = rows(path, DECIDED)[2:]
    assert [(at, decided[at]) for at, _ in warm] == warm
    again = tmp_path / "again.db"
    assert run_again(path, again, first).passes


def test_candles_that_contradict_the_bars_are_refused_in_one_sentence(tmp_path: Path) -> None:
    data = walk()
    quarters, late = hours_before(data, 100)
    wrong = replace(quarters, close=quarters.close.copy())
    wrong.close[12] += 1
    wrong.high[12] = max(int(wrong.high[12]), int(wrong.close[12]))
    with pytest.raises(DataInvalid, match=r"^higher contradicts builder in (high|close) of .*\.$"):
        replayed(tmp_path / "a.db", configured(), [late], frames=[wrong])


def test_candles_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    data = walk()
    hours, _ = hours_before(data, 0, 60)
    with pytest.raises(
        ConfigInvalid, match=r"holds candles of 60 minutes, .* declares frames 5, 15"
    ):
        replayed(tmp_path / "a.db", configured(), [data], frames=[hours])
    other, _ = hours_before(replace(data, symbol="ETHUSDT"), 0)
    with pytest.raises(ConfigInvalid, match="holds ETHUSDT, which the run does not trade"):
        replayed(tmp_path / "a.db", configured(), [data], frames=[other])


def test_frames_that_the_interval_cannot_make_are_refused(tmp_path: Path) -> None:
    config = configured(market={"symbols": ["BTCUSDT"], "interval": "15"})
    with pytest.raises(ConfigInvalid, match=r"frames name '5', which bars of market\.interval 15"):
        replayed(tmp_path / "a.db", config, [walk()])
