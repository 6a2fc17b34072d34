"""Every route answers with the documented fields, and is called by somebody."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from exchange_callers import CALLERS
from exchange_client import FIRST_MS, MINUTE, candles, serving, walk_rows

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange.market import SimulatedMarket, Venue
from tracepaper.replay.exchange.surface import ROUTES, TOPICS, answer
from tracepaper.strategies.types.market import Category

HOUR = 60 * MINUTE
ROWS = walk_rows(3_000, seed=8)
NOW = FIRST_MS + 2_900 * MINUTE
LINEAR = candles(ROWS)
SPOT = candles(ROWS, category=Category.SPOT)
VENUE = Venue([SimulatedMarket(LINEAR, seed=1), SimulatedMarket(SPOT, seed=1)])
BTC = {"category": "linear", "symbol": "BTCUSDT"}

LINEAR_TICKER = (
    "symbol lastPrice indexPrice markPrice prevPrice24h price24hPcnt highPrice24h lowPrice24h "
    "prevPrice1h openInterest openInterestValue turnover24h volume24h fundingRate nextFundingTime "
    "predictedDeliveryPrice basisRate deliveryFeeRate deliveryTime ask1Size bid1Price ask1Price "
    "bid1Size basis preOpenPrice preQty curPreListingPhase fundingIntervalHour basisRateYear "
    "fundingCap singleOpenInterest singleOpenInterestValue"
)
LINEAR_INSTRUMENT = (
    "symbol symbolId contractType status baseCoin quoteCoin launchTime deliveryTime "
    "deliveryFeeRate priceScale leverageFilter priceFilter lotSizeFilter unifiedMarginTrade "
    "fundingInterval settleCoin copyTrading upperFundingRate lowerFundingRate isPreListing "
    "preListingInfo riskParameters symbolType displayName forbidUplWithdrawal"
)
SPOT_INSTRUMENT = (
    "symbolId symbol baseCoin quoteCoin innovation status marginTrading stTag lotSizeFilter "
    "priceFilter riskParameters symbolType"
)
SPOT_TICKER = (
    "symbol bid1Price bid1Size ask1Price ask1Size lastPrice prevPrice24h price24hPcnt "
    "highPrice24h lowPrice24h turnover24h volume24h usdIndexPrice"
)
TRADE = "execId symbol price size side time isBlockTrade isRPITrade seq"
TIER = (
    "id symbol riskLimitValue maintenanceMargin initialMargin isLowestRisk maxLeverage mmDeduction"
)
KLINE = "symbol category list"
BOOK = "s a b ts u seq cts"

# path, a query, the result's fields, the fields (or the width) of an item
DOCUMENTED: list[tuple[str, dict[str, str], str, str | int | None]] = [
    ("time", {}, "timeSecond timeNano", None),
    ("kline", BTC | {"interval": "1"}, KLINE, 7),
    ("mark-price-kline", BTC | {"interval": "5"}, KLINE, 5),
    ("instruments-info", BTC, "category list nextPageCursor", LINEAR_INSTRUMENT),
    ("instruments-info", {"category": "spot"}, "category list", SPOT_INSTRUMENT),
    ("orderbook", BTC, BOOK, 2),
    ("tickers", BTC, "category list", LINEAR_TICKER),
    ("tickers", {"category": "spot"}, "category list", SPOT_TICKER),
    ("funding/history", BTC, "category list", "symbol fundingRate fundingRateTimestamp"),
    ("recent-trade", BTC, "category list", TRADE),
    ("risk-limit", BTC, "category list nextPageCursor", TIER),
]
IDS = [f"{path}-{query.get('category', '')}" for path, query, *_ in DOCUMENTED]


def result_of(path: str, query: dict[str, str], now_ms: int = NOW) -> Any:
    """Return what *path* answers; a refusal fails."""
    result = answer(VENUE, f"/v5/market/{path}", query, now_ms)
    assert not isinstance(result, ExchangeError), result
    return result


@pytest.mark.parametrize(("path", "query", "fields", "item"), DOCUMENTED, ids=IDS)
def test_every_route_has_the_documented_fields(
    path: str, query: dict[str, str], fields: str, item: str | int | None
) -> None:
    result = result_of(path, query)
    if fields:
        assert set(result) == set(fields.split())
    items = result
    if isinstance(result, dict):
        items = result.get("list", result.get("a", []))
    assert bool(items) is (item is not None)
    for each in items:
        if isinstance(item, int):
            assert (len(each), {type(text) for text in each}) == (item, {str})
        elif item is not None:
            assert set(each) == set(item.split())


def test_every_route_and_topic_is_called_by_somebody() -> None:
    assert set(CALLERS) == {*ROUTES, *TOPICS}
    assert all(CALLERS.values())
    market = {path.removeprefix("/v5/market/") for path in ROUTES if path.startswith("/v5/market/")}
    assert {path for path, *_ in DOCUMENTED} == market


@pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: route.path)
def test_a_category_that_nobody_serves_is_an_empty_list_or_a_refusal(route: Any) -> None:
    linear = Venue([SimulatedMarket(LINEAR, seed=1)])
    for category in ("inverse", "option", "nonsense", "spot"):
        query = {"category": category, "baseCoin": "ETH"}
        result = answer(linear, route.path, query, NOW)
        if isinstance(result, ExchangeError):
            assert result.code == 10001
        else:
            assert result.get("list", []) == []


# ---------------------------------------------------------------- values


def ticker(now_ms: int = NOW) -> dict[str, Any]:
    return dict(result_of("tickers", BTC, now_ms)["list"][0])


def test_mark_and_index_differ_from_the_last_price_and_agree_with_their_candles() -> None:
    now = ticker(NOW + 30_000)
    last, mark, index = (float(now[name]) for name in ("lastPrice", "markPrice", "indexPrice"))
    assert last != mark != index != last
    assert min(last, index) < mark < max(last, index)
    assert abs(last / index - 1) < 0.001
    for interval in ("1", "5", "60", "D"):
        query = BTC | {"interval": interval}
        row = result_of("mark-price-kline", query, NOW + 30_000)["list"][0]
        assert float(row[4]) == mark


def test_candles_of_the_mark_open_at_the_close_before_and_aggregate_exactly() -> None:
    def rows(interval: str) -> list[list[float]]:
        document = result_of("mark-price-kline", BTC | {"interval": interval, "limit": "1000"})
        return [[float(text) for text in row] for row in document["list"]][1:][::-1]

    minutes, hours = rows("1"), rows("60")
    for before, after in pairwise(minutes):
        assert after[1] == before[4]
        assert after[3] <= min(after[1], after[4]) <= max(after[1], after[4]) <= after[2]
    held = [row for row in minutes if row[0] // HOUR == hours[-1][0] // HOUR]
    columns = np.array(held)
    whole = [columns[0, 1], columns[:, 2].max(), columns[:, 3].min(), columns[-1, 4]]
    assert hours[-1][1:] == whole


def test_marks_do_not_know_later_bars() -> None:
    other = SimulatedMarket(candles([*ROWS[:100], *walk_rows(400, seed=77)]), seed=1)
    mine = VENUE.markets["linear", "BTCUSDT"]
    assert mine.marks.premiums[:100].tolist() == other.marks.premiums[:100].tolist()
    assert mine.marked.base.candle(99) == other.marked.base.candle(99)


def test_risk_tiers_lose_leverage_and_their_margins_join_without_a_step() -> None:
    tiers = result_of("risk-limit", BTC)["list"]
    assert [tier["id"] for tier in tiers] == [1, 2, 3, 4, 5]
    assert (
        tiers[0]["maxLeverage"]
        == recorded_instruments()["BTCUSDT"]["leverageFilter"]["maxLeverage"]
    )
    for tier in tiers:
        assert float(tier["initialMargin"]) == pytest.approx(
            1 / float(tier["maxLeverage"]), rel=1e-3
        )
        assert float(tier["maintenanceMargin"]) < float(tier["initialMargin"])
    for lower, upper in pairwise(tiers):
        assert float(lower["maxLeverage"]) > float(upper["maxLeverage"])
        at = float(lower["riskLimitValue"])
        below = at * float(lower["maintenanceMargin"]) - float(lower["mmDeduction"] or 0)
        above = at * float(upper["maintenanceMargin"]) - float(upper["mmDeduction"])
        assert below == pytest.approx(above)


async def test_a_busy_bar_has_more_trades_and_more_quotes() -> None:
    flat = (651_142, 651_500, 650_900, 651_200)
    rows = [(*flat, 1_000)] * 100
    for place, volume in ((97, 10), (98, 100_000)):
        rows[place] = (*flat, volume)
    market = SimulatedMarket(candles(rows), seed=4)
    assert len(market.path(97).trades) < len(market.path(96).trades) < len(market.path(98).trades)
    async with serving(candles(rows), start=96) as (exchange, client), client.stream() as stream:
        await stream.subscribe("orderbook.50.BTCUSDT")
        counts = []
        for place in (96, 97, 98):
            await exchange.advance_to(FIRST_MS + (place + 1) * MINUTE)
            counts.append(len(await stream.drain()))
    assert counts[1] < counts[0] < counts[2]


def test_clients_that_load_instruments_find_fees_and_coins() -> None:
    def rows(path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        document = answer(VENUE, path, query, NOW)
        assert isinstance(document, dict)
        return list(document["rows"] if "rows" in document else document["list"])

    (fee,) = rows("/v5/account/fee-rate", {"category": "linear"})
    assert fee == {
        "symbol": "BTCUSDT",
        "baseCoin": "BTC",
        "takerFeeRate": "0.00055",
        "makerFeeRate": "0.0002",
    }
    assert rows("/v5/account/fee-rate", {"category": "option"}) == []
    coins = rows("/v5/asset/coin/query-info", {})
    assert [coin["coin"] for coin in coins] == ["BTC", "USDT"]
    assert all(coin["chains"][0]["minAccuracy"] == "8" for coin in coins)
    assert rows("/v5/asset/coin/query-info", {"coin": "ETH"}) == []
