"""A cell's figures are those of the full log, whatever the log of its run leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from stock_files import opens, write

from tracepaper.replay.sweep.trial import WHOLE, Cell, make, read_request
from tracepaper.strategies.api.context import Orders, buy, sell
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.units import DAY_MS, HOUR_MS

FIXED = {"sizing": {"mode": "fixed"}}


class Lists(Strategy):
    """Sends lists of orders."""

    warmup = 2

    def decide(self, context: Any) -> Orders:
        side = buy if context.close < context.open else sell
        return Orders((side(0.1, tag="one"),), reason="as it went")


def figures_both_ways(
    folder: Path, strategy: str | None, data: Any, config: dict[str, Any], **named: Any
) -> tuple[Any, Any]:
    made_of, quantity = named.pop("made_of", None), named.pop("quantity", "0.1")
    axis = named.pop("axis", "sizing.quantity")
    work = read_request(
        strategy, data, {axis: [quantity]}, "return",
        config={**FIXED, **config}, made_of=made_of, **named,
    ).work  # fmt: skip
    cell = Cell(0, WHOLE, 0, {axis: quantity}, named.get("start"), None)
    lean, full = make(work, cell), make(replace(work, kept_in=folder), cell)
    assert (lean.error, full.error) == ("", "")
    assert lean.daily == full.daily
    return lean.figures, full.figures


HEDGED = {"position_mode": "hedge", "margin": "isolated", "leverage": "10"}


def test_of_both_sides_in_hedge_mode(candles: Path, tmp_path: Path) -> None:
    data = [str(candles), f"ETHUSDT={candles}"]
    crossing = {"fast": 3, "slow": 12, "long_only": False}
    config = {"account": HEDGED, "strategy": crossing, "exits": {"stop_loss": "0.5%"}}
    found, whole = figures_both_ways(tmp_path, "sma_cross", data, config)
    assert found == whole
    assert found["random_beaten"] is not None
    assert found["mean_exposure"] > abs(found["net_exposure"])  # both sides stood at one time


def test_of_several_strategies_and_when_shares_are_given_anew(
    candles: Path, tmp_path: Path
) -> None:
    own = {"name": "sma_cross", "long_only": False, "share": "0.4"}
    several = {"a": {**own, "fast": 3, "slow": 12}, "b": {**own, "fast": 9, "slow": 40}}
    config = {"strategies": several, "sizing": {"mode": "equity"}}
    found, whole = figures_both_ways(
        tmp_path, None, candles, config, axis="strategies.reset", quantity="day"
    )
    assert found == whole
    assert found["trades"] > 10


def test_of_one_symbol_and_of_two(candles: Path, tmp_path: Path) -> None:
    one, whole = figures_both_ways(tmp_path, "persistence", candles, {})
    assert one == whole
    assert one["trades"] > 100
    assert one["random_beaten"] is not None
    (tmp_path / "two").mkdir()
    both, of_both = figures_both_ways(
        tmp_path / "two", "persistence", [str(candles), f"ETHUSDT={candles}"], {}
    )
    assert both == of_both


@pytest.mark.parametrize("start", [None, 1_748_250_000_000])
def test_of_spot_with_its_dust_and_of_a_hole(
    candles: Path, tmp_path: Path, start: int | None
) -> None:
    holed = tmp_path / "BTCUSDT-1m.csv"
    frame = pl.read_csv(candles)
    pl.concat([frame.head(200), frame.tail(300)]).write_csv(holed)
    found, whole = figures_both_ways(
        tmp_path, "sma_cross", holed, {"market": {"category": "spot"}, "strategy": {"slow": 30}},
        start=start,
    )  # fmt: skip
    assert found == whole
    assert found["exposure"] > 0


def test_of_funding_that_was_paid(days: Path, tmp_path: Path) -> None:
    rates = tmp_path / "BTCUSDT-funding.csv"
    times = range(1_735_689_600_000, 1_735_689_600_000 + 39 * 86_400_000, 8 * 3_600_000)
    rows = "".join(f"{time},0.0001\n" for time in times)
    rates.write_text(f"funding_time,funding_rate\n{rows}")
    found, whole = figures_both_ways(tmp_path, "sma_cross", days, {}, funding=(rates,))
    assert found == whole
    without, _ = figures_both_ways(tmp_path / "..", "sma_cross", days, {})
    assert found["return"] < without["return"]
    assert found["held_return"] < without["held_return"]


@pytest.mark.parametrize("interval_ms", [HOUR_MS, DAY_MS])
def test_of_shares_by_sessions(tmp_path: Path, interval_ms: int) -> None:
    shares = tmp_path / "acme.csv"
    write(shares, opens("2014-10-20", "2014-12-31", interval_ms))
    found, whole = figures_both_ways(
        tmp_path, "sma_cross", f"ACME={shares}",
        {"market": {"asset": "stock", "calendar": "XNAS"}, "strategy": {"fast": 3, "slow": 7},
         "sizing": {"mode": "fixed"}}, quantity="10",
    )  # fmt: skip
    assert found == whole
    assert found["trades"] > 1


def test_of_lists_of_orders(candles: Path, tmp_path: Path) -> None:
    name = f"{Lists.__module__}:Lists"
    found, whole = figures_both_ways(tmp_path, name, candles, {}, made_of=Lists)
    assert found == whole
    assert found["turnover"] is None
    assert found["exposure"] > 0


def test_a_file_of_vectors_is_of_the_data(candles: Path, tmp_path: Path) -> None:
    file, hashes = tmp_path / "news.csv", []
    for mood in (1, 1, 2):
        file.write_text(f"time,mood\n1717243200000,{mood}\n", encoding="utf-8")
        config = {**FIXED, "model": {"covariates": str(file)}}
        space = {"sizing.quantity": ["0.1"]}
        asked = read_request("persistence", candles, space, "return", config=config)
        hashes.append(asked.data_sha256)
    assert hashes[0] == hashes[1] != hashes[2]
