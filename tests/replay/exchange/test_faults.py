"""Every fault does what it says, counts only what it hit, and leaves REST true."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pytest
from aiohttp import ClientTimeout, WSServerHandshakeError
from builders import instrument
from exchange_client import (
    MINUTE,
    Client,
    Message,
    StreamClient,
    candles,
    parsed,
    serving,
    walk_rows,
)
from generated import surface_page

from tracepaper.daemon.bybit.client import decode_result
from tracepaper.daemon.bybit.messages import ServerTime
from tracepaper.daemon.bybit.wire import ClosedCandles, Wire
from tracepaper.replay.commands.replay import exchange as exchange_command
from tracepaper.replay.exchange.fault_kinds import (
    FAULTS,
    KLINE_PATH,
    RETCODES,
    STATUSES,
    TIME_ERRORS_MS,
    Fault,
    FaultEffect,
    FaultKind,
    Form,
)
from tracepaper.replay.exchange.faults import FaultPlan, ListedFault, fault_from, read_plan
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.strategies.errors import ConfigInvalid, MessageMalformed
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Bar, Category

# ------------------------------------------------------------ schedule


def test_each_round_deals_every_kind_once_in_another_order() -> None:
    rounds = list(islice(FaultPlan(seed=3, every_s=2.0).scheduled(), 3 * len(FAULTS)))
    orders = [
        [timed.fault.kind for timed in rounds[at : at + len(FAULTS)]]
        for at in range(0, len(rounds), len(FAULTS))
    ]
    assert all(sorted(order) == sorted(FAULTS) for order in orders)
    assert orders[0] != orders[1]
    assert all(1.0 <= timed.wait_s <= 3.0 for timed in rounds)


def test_one_seed_gives_one_schedule() -> None:
    first, again, other = (
        list(islice(FaultPlan(seed=seed, every_s=1.0).scheduled(), 20)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_schedule_draws_from_every_form_status_code_and_error_of_time() -> None:
    scheduled = [
        timed.fault for timed in islice(FaultPlan(every_s=1).scheduled(), 400 * len(FAULTS))
    ]
    drawn = {
        "status": {fault.status for fault in scheduled if fault.kind == "http_status"},
        "code": {fault.code for fault in scheduled if fault.kind == "retcode"},
        "error": {(fault.ms, fault.topic) for fault in scheduled if fault.kind == "wrong_time"},
        "form": {(fault.kind, fault.form) for fault in scheduled},
    }
    errors = {(error_ms, path) for error_ms in TIME_ERRORS_MS for path in ("", KLINE_PATH)}
    forms = {(name, form) for name, kind in FAULTS.items() for form in kind.forms}
    assert drawn == {"status": set(STATUSES), "code": set(RETCODES), "error": errors, "form": forms}
    assert {fault.topic for fault in scheduled if fault.form == "drop"} == {"", "kline."}
    assert len({fault.topic for fault in scheduled if fault.kind == "ahead"}) == 4


def test_a_file_lists_faults_by_time(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(
        "seed = 4\nevery_s = 2.5\nkinds = ['stall']\n"
        "[[faults]]\nafter_s = 5\nkind = 'stall'\nseconds = 3\n"
        "[[faults]]\nafter_s = 1.5\nkind = 'delivery'\ntopic = 'kline.'\n"
    )
    plan = read_plan(path)
    assert (plan.seed, plan.every_s, plan.kinds) == (4, 2.5, ("stall",))
    assert [(timed.wait_s, timed.fault.kind) for timed in plan.listed()] == [
        (1.5, "delivery"),
        (3.5, "stall"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "sed = 1",
        "every_s = -1",
        "kinds = ['boom']",
        "[[faults]]\nafter_s = 1",
        "[[faults]]\nkind = 'delivery'\nafter_s = 'soon'",
    ],
)
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=r"give .*\.$"):
        read_plan(path)


ROWS = walk_rows(60, seed=8)
START = 10
KLINE = "kline.1.BTCUSDT"


def confirmed(frames: list[Message]) -> list[Message]:
    return [each for frame in frames for each in frame["data"] if each["confirm"]]


async def plain_frames(topic: str = KLINE, minutes: int = 3) -> list[str]:
    """Return the texts of an undisturbed stream."""
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(topic)
        await stream.drain()
        await exchange.advance(minutes * MINUTE)
        await stream.ask("ping")
        return stream.texts


async def disturbed_frames(
    kind: str, minutes: int = 3, *, count: int = 1, **parameters: str | int
) -> list[str]:
    """Return the texts of the same stream with one fault armed before it."""
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(KLINE)
        await stream.drain()
        exchange.arm(kind, topic="kline.", count=count, **parameters)
        await exchange.advance(minutes * MINUTE)
        await stream.ask("ping")
        tally = exchange.faults.tally(kind)
        assert (tally.scheduled, tally.fired, len(tally.times)) == (count, count, count)
        return stream.texts


async def test_a_dropped_frame_is_missing_and_no_other() -> None:
    assert await disturbed_frames("delivery", form="drop") == (await plain_frames())[1:]


async def test_a_duplicate_comes_twice() -> None:
    plain = await plain_frames()
    assert await disturbed_frames("delivery", form="duplicate") == [plain[0], *plain]


async def test_a_reordered_frame_comes_after_the_next() -> None:
    plain = await plain_frames()
    assert await disturbed_frames("delivery", form="reorder") == [plain[1], plain[0], *plain[2:]]


async def test_a_delayed_frame_comes_behind_later_ones() -> None:
    plain = await plain_frames()
    texts = await disturbed_frames("delivery", form="delay", ms=20_000)
    assert sorted(texts) == sorted(plain)
    due_ms = json.loads(plain[0])["ts"] + 20_000
    place = texts.index(plain[0])
    assert place > 0
    assert json.loads(texts[place - 1])["ts"] <= due_ms <= json.loads(texts[place + 1])["ts"]


async def test_malformed_frames_are_broken_in_four_ways() -> None:
    plain = await plain_frames()
    texts = await disturbed_frames("malformed", count=4)
    assert texts[4:] == plain[4:]
    broken = [parsed(text) for text in texts[:4]]
    whole = [json.loads(text) for text in plain[:4]]
    no_data, words, no_object, cut_short = broken
    assert no_data == {"topic": KLINE, "data": None}
    assert words is not None
    assert words["data"][0]["open"] == "x" + whole[1]["data"][0]["open"]
    assert (no_object, cut_short) == (None, None)


async def test_a_missing_close_is_never_sent_but_rest_has_it() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(KLINE)
        exchange.arm("wrong_close", form="missing")
        await exchange.advance(3 * MINUTE)
        frames = await stream.drain()
        got = [each["start"] for each in confirmed(frames)]
        result = await client.result("kline", symbol="BTCUSDT", interval="1", limit=4)
        rows = [int(row[0]) for row in result["list"]][:0:-1]
        assert got == rows[1:]
        opened = [each["start"] for frame in frames for each in frame["data"]]
        assert rows[1] in opened  # the new candle still opens


async def test_a_revised_close_comes_again_with_other_values_and_rest_keeps_the_first() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(KLINE)
        exchange.arm("wrong_close", form="revised")
        await exchange.advance(2 * MINUTE)
        first, second = confirmed(await stream.drain())[:2]
        assert first["start"] == second["start"]
        assert second["timestamp"] > first["timestamp"]
        assert (first["close"], first["volume"]) != (second["close"], second["volume"])
        result = await client.result(
            "kline", symbol="BTCUSDT", interval="1", start=first["start"], limit=1
        )
        assert result["list"][0][4:6] == [first["close"], first["volume"]]


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
async def test_a_late_close_is_late_and_true(category: Category) -> None:
    data = candles(ROWS, category=category)
    async with serving(data, start=START) as (exchange, client):
        async with client.stream(category.value) as stream:
            await stream.subscribe(KLINE)
            exchange.arm("wrong_close", form="late", ms=12_000)
            await exchange.advance(3 * MINUTE)
            done = confirmed(await stream.drain())
        lateness = [each["timestamp"] - each["end"] - 1 for each in done]
        assert [late > 12_000 for late in lateness] == [True, False, False]
        result = await client.result(
            "kline", category=category.value, symbol="BTCUSDT", interval="1", limit=4
        )
        assert [row[4] for row in result["list"][:0:-1]] == [each["close"] for each in done]


async def test_a_stall_stops_data_while_pongs_go_on_and_spares_new_connections() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stalled:
            await stalled.subscribe(KLINE)
            await stalled.drain()
            exchange.arm("stall", seconds=600)
            await exchange.advance(2 * MINUTE)
            assert (await stalled.ask("ping"))["ret_msg"] == "pong"
            assert await stalled.drain() == []
            async with client.stream() as fresh:
                await fresh.subscribe(KLINE)
                await exchange.advance(2 * MINUTE)
                assert len(confirmed(await fresh.drain())) == 2
                assert await stalled.drain() == []
        assert exchange.faults.tally("stall").fired == 1


async def subscribed(stream: StreamClient) -> None:
    await stream.subscribe(KLINE)
    await stream.drain()


async def test_a_disconnect_cuts_every_stream_at_once() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream_client, client.stream() as other:
            await subscribed(stream_client)
            await subscribed(other)
            exchange.arm("disconnect")
            await stream_client.until_cut()
            await other.until_cut()
        assert exchange.faults.tally("disconnect").fired == 1
        async with client.stream() as again:
            await subscribed(again)


async def refused(client: Client) -> bool:
    try:
        async with client.stream():
            return False
    except WSServerHandshakeError:
        return True


async def test_refuse_cuts_the_stream_and_turns_the_next_connections_away() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream:
            await subscribed(stream)
            exchange.arm("refuse", count=2)
            await stream.until_cut()
        assert [await refused(client) for _ in range(3)] == [True, True, False]
        assert exchange.faults.tally("refuse").fired == 2


async def test_rest_faults_answer_10006_and_an_html_403() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("retcode", code=10006)
        assert (await client.get("time"))["retCode"] == 10006
        exchange.arm("http_status", status=403)
        async with client.session.get(exchange.rest_url + "/v5/market/time") as response:
            assert response.status == 403
            assert response.content_type == "text/html"
            assert "access too frequent" in await response.text()
        assert (await client.get("time"))["retCode"] == 0


# ---------------------------------------------------------------- what cannot be true


def reader(*, ahead_ms: int = 2_000) -> tuple[Wire, list[int]]:
    """Return the daemon's own reader, which believes dates up to a market time set by the test."""
    now = [0]
    wire = Wire(
        category=Category.LINEAR,
        instruments=[instrument(price_decimals=1, quantity_decimals=3)],
        interval_ms=MINUTE,
        observe=lambda server_ms: server_ms <= now[0] + ahead_ms,
    )
    return wire, now


def read(wire: Wire, texts: list[str]) -> list[Bar]:
    """Return the bars that *wire* believes of *texts*."""
    bars: list[Bar] = []
    for text in texts:
        try:
            received = wire.receive(text.encode())
        except MessageMalformed:
            continue
        bars += received.bars if isinstance(received, ClosedCandles) else []
    return bars


TOPICS = (KLINE, "orderbook.1.BTCUSDT", "tickers.BTCUSDT", "publicTrade.BTCUSDT")
FALSIFIED = {
    "early.kline": {"kind": "early_confirm"},
    "off_grid.kline": {"kind": "wrong_close", "form": "off_grid"},
    "double.kline": {"kind": "wrong_close", "form": "double"},
    "ahead.kline": {"kind": "ahead"},
    "ahead.orderbook": {"kind": "ahead", "topic": "orderbook."},
    "ahead.tickers": {"kind": "ahead", "topic": "tickers."},
    "ahead.publicTrade": {"kind": "ahead", "topic": "publicTrade."},
    "crossed.orderbook": {"kind": "wrong_frame", "form": "crossed"},
    "untraded.kline": {"kind": "wrong_close", "form": "hollow"},
    "untraded.kline by turnover": {"kind": "wrong_close", "form": "turnover"},
}


@pytest.mark.parametrize("refusal", FALSIFIED)
async def test_what_it_falsifies_is_what_the_reader_of_the_daemon_refuses(refusal: str) -> None:
    fault = FALSIFIED[refusal]
    wire, now = reader()
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(*TOPICS)
        now[0] = exchange.clock.now_ms()
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        assert not wire.counters
        exchange.arm(**fault)
        bars = []
        for _ in range(36):
            await exchange.advance(5_000)
            now[0] = exchange.clock.now_ms()
            bars += read(wire, [json.dumps(frame) for frame in await stream.drain()])
        assert wire.counters == {refusal.partition(" ")[0]: 1}
        assert exchange.faults.tally(fault["kind"]).fired == 1
        result = await client.result("kline", symbol="BTCUSDT", interval="1", limit=4)
        rows = {int(row[0]): row for row in result["list"][1:]}
        assert len(bars) == (2 if fault["kind"] == "wrong_close" else 3)
        assert {bar.open_time_ms for bar in bars} <= set(rows)
        assert all(Decimal(rows[bar.open_time_ms][4]) * 10 == bar.close for bar in bars)


async def test_data_of_another_symbol_stand_in_place_of_a_true_frame() -> None:
    wire, now = reader(ahead_ms=10**9)
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(*TOPICS)
        await stream.drain()
        now[0] = exchange.clock.now_ms()
        for topic in TOPICS[1:]:
            exchange.arm("wrong_frame", form="foreign", topic=topic)
        exchange.arm("delivery", form="drop", topic="nothing")
        await exchange.advance(MINUTE)
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        foreign = {kind for kind in wire.counters if kind.startswith("foreign.")}
        assert foreign == {"foreign.orderbook", "foreign.tickers", "foreign.publicTrade"}
        assert exchange.faults.tally("wrong_frame").fired == 3


async def test_a_book_without_bottom_makes_the_daemon_ask_for_another() -> None:
    wire, now = reader(ahead_ms=10**9)
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(TOPICS[1])
        now[0] = exchange.clock.now_ms()
        read(wire, [json.dumps(frame) for frame in await stream.drain()])
        exchange.arm("wrong_frame", form="deep")
        await exchange.advance(4_000)
        read(wire, [json.dumps(frame) for frame in await stream.drain()][:1])
        assert wire.counters == {"deep.orderbook": 1}
        assert wire.stale_topics == {TOPICS[1]}


async def test_an_implausible_close_is_a_thousand_times_the_true_one() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(KLINE)
        exchange.arm("wrong_close", form="implausible")
        await exchange.advance(2 * MINUTE)
        sent = confirmed(await stream.drain())[0]
        result = await client.result(
            "kline", symbol="BTCUSDT", interval="1", start=sent["start"], limit=1
        )
        assert Decimal(sent["close"]) == 1_000 * Decimal(result["list"][0][4])


@pytest.mark.parametrize(
    ("form", "names", "factor"),
    [
        ("mark", ("markPrice",), Decimal("1.26")),
        ("ticker", ("markPrice",), Decimal("1.26")),
        ("mark_of_one", ("markPrice",), None),
        ("rate", ("fundingRate",), None),
    ],
)
async def test_a_false_ticker_is_one_that_the_next_ones_mend(
    form: str, names: tuple[str, ...], factor: Decimal | None
) -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("tickers.BTCUSDT")
        exchange.arm("wrong_frame", form=form)
        await exchange.advance(MINUTE)
        false, *others = [message for message in await stream.drain() if message["type"] == "delta"]
        result = await client.result("tickers", category="linear", symbol="BTCUSDT")
        for name in names:
            price, true = Decimal(false["data"][name]), Decimal(result["list"][0][name])
            said_of = {"markPrice": Decimal(1), "fundingRate": Decimal("-0.4")}
            if factor is None:
                assert price == said_of[name]
            else:
                assert abs(price / true - factor) < Decimal("0.02")
        assert any("markPrice" in other["data"] for other in others)
        assert all(Decimal(other["data"].get("markPrice", 50_000)) > 40_000 for other in others)


async def test_a_false_book_stands_a_third_too_low_once() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("orderbook.1.BTCUSDT")
        exchange.arm("wrong_frame", form="low")
        await exchange.advance(MINUTE)
        books = [frame["data"] for frame in await stream.drain() if frame.get("type") == "snapshot"]
        bids, asks = ([Decimal(book[side][0][0]) for book in books] for side in "ba")
        assert all(bid < ask for bid, ask in zip(bids, asks, strict=True))
        assert sum(bid < 50_000 for bid in bids) == 1


async def test_an_absurd_settlement_is_of_one_answer() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("wrong_page", form="settlement")
        query = {"category": "linear", "symbol": "BTCUSDT"}
        false, true = [(await client.result("funding/history", **query))["list"] for _ in range(2)]
        assert false[0]["fundingRate"] == "0.25"
        assert abs(Decimal(true[0]["fundingRate"])) < Decimal("0.001")
        assert false[1:] == true[1:]


async def test_a_frame_is_dated_ahead_by_more_than_a_fast_client_tolerates() -> None:
    fast = serving(candles(ROWS), start=START, speed=2_000)
    async with fast as (exchange, client), client.stream() as stream:
        await stream.subscribe(KLINE)
        exchange.arm("ahead")
        await exchange.advance(MINUTE)
        newest_ms = max(frame["ts"] for frame in await stream.drain())
        assert newest_ms - exchange.clock.now_ms() >= 3_000 * 2_000 - MINUTE


@pytest.mark.parametrize("status", [201, 204, 304, 400, 418, 429, 451, 500, 599])
async def test_any_status_is_answered_on_request(status: int) -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("http_status", status=status)
        url = exchange.rest_url + "/v5/market/time"
        async with client.session.get(url, allow_redirects=False) as response:
            assert response.status == status
        assert (await client.get("time"))["retCode"] == 0


async def test_any_code_a_redirect_and_a_lie_are_answered_on_request() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("retcode", code=10029)
        assert (await client.get("time"))["retCode"] == 10029
        exchange.arm("http_status", status=302)
        assert (await client.get("time"))["retMsg"] == "Route not found."
        for lie_ms in (-3_600_000, 2**62):
            exchange.arm("wrong_time", ms=lie_ms)
            document = await client.get("time")
            assert document["time"] == exchange.clock.now_ms() + lie_ms
            assert document["result"]["timeNano"] == str(document["time"] * 1_000_000)
        exchange.arm("wrong_time", topic="/v5/market/kline")
        assert (await client.get("time"))["time"] == exchange.clock.now_ms()
        document = await client.get("kline", symbol="BTCUSDT", interval="1", limit=2)
        assert document["time"] == exchange.clock.now_ms() + 3_600_000
        assert len(document["result"]["list"]) == 2


async def test_a_request_that_hangs_is_not_answered() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("hang", seconds=60)
        url = exchange.rest_url + "/v5/market/time"
        with pytest.raises(TimeoutError):
            async with client.session.get(url, timeout=ClientTimeout(0.05)):
                pass
        assert exchange.faults.tally("hang").fired == 1


async def test_rest_bodies_are_broken_in_five_ways() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        exchange.arm("malformed_body", count=5)
        bodies = []
        for _ in range(5):
            async with client.session.get(exchange.rest_url + "/v5/market/time") as response:
                bodies.append(await response.read())
        for body in bodies:
            with pytest.raises(MessageMalformed):
                decode_result(body, "time", ServerTime)
        assert len(set(bodies)) == 5


async def page(client: Client) -> Message:
    return await client.result("kline", symbol="BTCUSDT", interval="1", limit=4)


async def test_pages_of_candles_are_disturbed_in_six_ways_each_once() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        true = await page(client)
        starts = [int(row[0]) for row in true["list"]]

        async def disturbed(form: str) -> Message:
            exchange.arm("wrong_page", form=form, topic="/v5/market")
            await client.result(
                "instruments-info", category="linear"
            )  # no page of candles, so it is not hit
            message = await page(client)
            assert await page(client) == true
            return message

        assert (await disturbed("empty"))["list"] == []
        assert (await disturbed("short"))["list"] == true["list"][2:]
        foreign = await disturbed("foreign")
        assert foreign["symbol"] != "BTCUSDT"
        assert {row[4] for row in foreign["list"]} == {"0.5"}
        elsewhere = await disturbed("window")
        assert max(int(row[0]) for row in elsewhere["list"]) < min(starts)
        off = await disturbed("off_grid")
        assert [int(row[0]) % MINUTE for row in off["list"]] == [7_000] * 4
        implausible = (await disturbed("implausible"))["list"]
        assert Decimal(implausible[0][4]) == 1_001 * Decimal(true["list"][0][4])
        assert implausible[1:] == true["list"][1:]


async def test_a_fault_that_is_declared_once_is_found_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meaning = "one frame is sent in capitals"
    shout = FaultKind("frame", {"": Form(meaning, lambda body, _: FaultEffect((body.upper(),)))})
    monkeypatch.setitem(FAULTS, "shout", shout)
    assert f"| `shout` | {meaning} |" in surface_page()
    plain = await plain_frames()
    assert await disturbed_frames("shout") == [plain[0].upper(), *plain[1:]]
    exchange_command(list_faults=True)
    assert "shout  " in capsys.readouterr().out
    scheduled = {
        timed.fault.kind for timed in islice(FaultPlan(every_s=1).scheduled(), len(FAULTS))
    }
    assert "shout" in scheduled
    (listed,) = FaultPlan(faults=(ListedFault("shout"),)).listed()
    assert listed.fault == Fault("shout")
    with pytest.raises(ConfigInvalid, match="shout"):
        fault_from({"kind": "whisper"})
    async with (
        serving(candles(ROWS), start=START) as (exchange, client),
        client.session.get(f"{exchange.control_url}/faults") as response,
    ):
        assert "shout" in await response.json()


async def test_an_armed_fault_that_hits_nothing_has_not_fired() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("publicTrade.BTCUSDT")
        exchange.arm("wrong_close", form="missing")
        exchange.arm("delivery", form="drop", topic="kline.")
        await exchange.advance(3 * MINUTE)
        for kind in ("wrong_close", "delivery"):
            tally = exchange.faults.tally(kind)
            assert (tally.scheduled, tally.fired) == (1, 0)


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"kind": "explode"},
        {"kind": "delivery", "form": "lost"},
        {"kind": "delivery", "speed": 3},
        {"kind": "delivery", "count": "2"},
        {"kind": "delivery", "count": 0},
        {"kind": "delivery", "form": "delay", "ms": -1},
        {"kind": "http_status", "status": 600},
        {"kind": "http_status", "status": 99},
        {"kind": "retcode", "code": "10001"},
    ],
)
def test_a_request_that_is_no_fault_is_refused(request_body: Message) -> None:
    with pytest.raises(ConfigInvalid):
        fault_from(request_body)


async def test_faults_that_wait_are_bounded() -> None:
    async with serving(candles(ROWS)) as (exchange, _):
        exchange.arm("delivery", form="drop", count=1_000)
        with pytest.raises(ConfigInvalid, match="already wait"):
            exchange.arm("delivery", form="drop")


async def test_an_armed_provoking_fault_cuts_the_stream_so_that_the_client_asks() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        async with client.stream() as stream:
            await subscribed(stream)
            exchange.arm("retcode", code=10006, provoke=True)
            await stream.until_cut()
        assert isinstance(exchange, EmbeddedExchange)
        assert (await client.get("time"))["retCode"] == 10006
