"""Control calls arm and report, for callers on this machine alone."""

from __future__ import annotations

from exchange_client import MINUTE, candles, serving, walk_rows

from tracepaper.replay.exchange.fault_kinds import FAULTS

ROWS = walk_rows(60, seed=9)


async def test_a_fault_is_armed_and_reported_with_its_time() -> None:
    async with serving(candles(ROWS)) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT")
        control = exchange.control_url
        request = {"kind": "wrong_close", "form": "missing"}
        async with client.session.post(f"{control}/fault", json=request) as response:
            assert await response.json() == {"armed": request}
        await exchange.advance(2 * MINUTE)
        async with client.session.get(f"{control}/faults") as response:
            report = await response.json()
        assert set(report) == set(FAULTS)
        assert all(set(row["forms"]) == set(FAULTS[kind].forms) for kind, row in report.items())
        assert report["wrong_close"]["scheduled"] == report["wrong_close"]["fired"] == 1
        (at_ms,) = report["wrong_close"]["times"]
        assert exchange.clock.now_ms() - 2 * MINUTE < at_ms <= exchange.clock.now_ms()
        assert (report["delivery"]["scheduled"], report["delivery"]["fired"]) == (0, 0)


async def test_nonsense_is_answered_with_a_sentence() -> None:
    async with serving(candles(ROWS)) as (exchange, client):
        for body in (b"{", b"[]", b'{"kind":"boom"}'):
            url = f"{exchange.control_url}/fault"
            async with client.session.post(url, data=body) as response:
                assert response.status == 400
                assert (await response.json())["error"]


async def test_foreign_hosts_and_web_pages_are_refused() -> None:
    async with serving(candles(ROWS)) as (exchange, client):
        url = f"{exchange.control_url}/faults"
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            async with client.session.get(url, headers=headers) as response:
                assert response.status == 403
        async with client.session.get(url) as response:
            assert response.status == 200
