"""What the daemon says of itself follows from its steps."""

from __future__ import annotations

from builders import MINUTE, START_MS, account, bar, decision, fill, forecast, instrument, run, step
from fakes import ManualClock, MemoryAudit
from msgspec import structs
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Histogram, Monitor, counts_text
from tracepaper.strategies.types.decisions import (
    Action,
    LimitBreach,
    Order,
    OrderStatus,
    Position,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause, Quote, Side
from tracepaper.strategies.units import MONEY_SCALE, unscaled

BTC = "linear:BTCUSDT"
CLOSE_MS = START_MS + MINUTE


def monitor(market_ms: int = CLOSE_MS) -> Monitor:
    return Monitor(run=run(), clock=ManualClock(market_ms), counters={"reconnects": 2})


def decided(sequence: int = 7) -> Step:
    return step(
        bar(late_ms=250),
        sequence=sequence,
        decided=decision(),
        prediction=forecast(),
        fills=(fill(),),
        position=Position(quantity=-1_500, unrealized_pnl=25 * 10**7),
        of=account(99_990),
        shadows=(ShadowStep("ungated", Position(), account(100_020), ()),),
    )


def test_a_fresh_monitor_is_not_ready_and_says_why() -> None:
    status = monitor().status()
    assert status["ready"] is False
    assert status["not_ready"] == [f"{BTC} has no bar yet"]
    assert status["sequence"] is None
    assert status["account"] is None


def test_the_status_says_why_nothing_filled_until_something_fills() -> None:
    watched = monitor()
    assert watched.status()["without_fills"] is None
    passed = decision(measures=(("edge", 2.0, 1.0, True),), reason="too calm", action=Action.FLAT)
    for sequence in (4, 5):
        watched.observe(step(bar(), sequence=sequence, decided=passed))
    watched.observe(step(bar(), sequence=6, decided=decision()))
    assert watched.status()["without_fills"] == (
        "The strategy asked for no position on the 2 bars that no gate refused. Its reason on 2: "
        "too calm. Gates refused 1, most by edge (1)."
    )
    asking = decision(measures=(("edge", 2.0, 1.0, True),), reason="a list", action=Action.ORDERS)
    rejected = OrderStatus.REJECTED
    refused = Order("7-0", BTC, Side.BUY, 1, 0, rejected, "off the tick", CLOSE_MS, CLOSE_MS)
    watched.observe(structs.replace(step(bar(), sequence=7, decided=asking), orders=(refused,)))
    why = str(watched.status()["without_fills"])
    assert "rejected its orders, most often: off the tick (1)" in why
    watched.observe(decided())
    assert watched.status()["without_fills"] is None


def test_the_status_counts_bars_that_did_not_come_in_time() -> None:
    watched = monitor()
    for minutes, repaired_by, cause in (
        (3, "", GapCause.MISSED),
        (2, "rest", GapCause.DISCONNECTED),
        (5, "rest", GapCause.DOWN),
        (7, "", GapCause.FUNDING),
        (9, "clock", GapCause.JUMPED),
    ):
        until_ms = START_MS + minutes * MINUTE
        gap = Gap(BTC, START_MS, until_ms, cause, repaired_by, until_ms, until_ms)
        watched.observe(step(gap))
    assert watched.status()["not_in_time"] == {"absent": 3, "late": 5, "repaired": 2}


def test_warm_up_bars_are_counted_apart_from_decided_ones() -> None:
    watched = monitor()
    for each in (step(bar()), step(bar()), decided()):
        watched.observe(each)
    assert counts_text(watched.status()) == "1 bar decided, 2 warm-up bars, 1 fill"


def test_a_decided_bar_makes_it_ready_with_exact_amounts() -> None:
    watched = monitor()
    watched.observe(decided())
    status = watched.status()
    assert status["ready"] is True
    assert (status["decisions"], status["fills"]) == (1, 1)
    assert status["refusals"] == {"edge": 1}
    assert status["counters"] == {"reconnects": 2}
    accounts = status["account"], status["shadows"]
    assert accounts[0]["equity"] == "99990"  # type: ignore[index]
    assert accounts[1]["ungated"]["equity"] == "100020"  # type: ignore[index]
    facts = status["instruments"][BTC]  # type: ignore[index]
    assert (facts["close"], facts["quantity"], facts["unrealized_pnl"]) == ("101", "-1.5", "2.5")
    assert (facts["action"], facts["allowed"], facts["refused_by"]) == ("HOLD", False, "edge")
    assert facts["gates"][-1] == {"gate": "edge", "measure": 0.4, "threshold": 1.0, "passed": False}


def test_on_margin_it_says_what_is_bound_and_where_it_ends() -> None:
    rules = {BTC: MarginRules(instrument(), 1_000, 5_500_000)}
    watched = Monitor(run=run(), clock=ManualClock(CLOSE_MS), margin=rules)
    held = Position(1_500, 150 * MONEY_SCALE, margin=15 * MONEY_SCALE)  # 1.5 at 100
    watched.observe(step(bar(), decided=decision(), position=held))
    status = watched.status()
    assert status["account"]["margin_used"] == "15"  # type: ignore[index]
    assert status["account"]["net_exposure"] == "150"  # type: ignore[index]
    facts = status["instruments"][BTC]  # type: ignore[index]
    bound = {name: facts[name] for name in ("margin", "leverage", "liquidation_price")}
    expected = rules[BTC].bounds(held.entry_notional, held.quantity, held.margin).liquidation
    assert bound == {
        "margin": "15",
        "leverage": "10",
        "liquidation_price": unscaled(expected, instrument().price_decimals),
    }
    watched.observe(step(bar(index=1), sequence=8, decided=decision(), position=Position()))
    flat = watched.status()
    assert flat["account"]["margin_used"] == "0"  # type: ignore[index]
    assert flat["account"]["gross_exposure"] == "0"  # type: ignore[index]
    assert "margin" not in flat["instruments"][BTC]  # type: ignore[index]
    plain = monitor()
    plain.observe(decided())
    assert "margin_used" not in plain.status()["account"]  # type: ignore[operator]


def test_on_cross_margin_it_says_the_ratio_at_which_the_account_is_liquidated() -> None:
    rules = {BTC: MarginRules(instrument(), 1_000, 0, is_cross=True)}
    watched = Monitor(run=run(), clock=ManualClock(CLOSE_MS), margin=rules)
    held = Position(1_500, 150 * MONEY_SCALE, unrealized_pnl=10 * MONEY_SCALE)
    observed = step(bar(), decided=decision(), position=held)
    watched.observe(observed)
    status = watched.status()
    account = status["account"]
    needed = rules[BTC].maintenance(160 * MONEY_SCALE)  # at the mark
    assert account["margin_used"] == "16"  # type: ignore[index]
    assert account["maintenance_ratio"] == needed / observed.account.equity  # type: ignore[index]
    assert "liquidation_price" not in status["instruments"][BTC]  # type: ignore[index]


def test_an_old_bar_is_not_ready() -> None:
    watched = monitor(CLOSE_MS + 4 * MINUTE)
    watched.observe(decided())
    assert watched.not_ready() == [f"the newest bar of {BTC} closed 240 s ago"]


def test_under_a_fast_clock_a_bar_is_old_after_seconds_of_the_machine() -> None:
    clock = ManualClock(CLOSE_MS)
    clock.time_scale = 600.0  # ten minutes a second
    watched = Monitor(run=run(), clock=clock)
    watched.observe(decided())
    clock.advance(market_ms=50 * MINUTE)
    assert watched.not_ready() == []
    clock.advance(market_ms=1)
    assert watched.not_ready() == [f"the newest bar of {BTC} closed 3000 s ago"]


def test_warming_up_is_not_ready() -> None:
    watched = monitor()
    cold = (("operator", 1.0, 1.0, True), ("warm", 3.0, 100.0, False))
    watched.observe(step(bar(), decided=decision(measures=cold)))
    assert watched.not_ready() == [f"{BTC} is warming up"]


def test_every_instrument_must_be_ready() -> None:
    two = run(instruments=[instrument(), instrument("ETHUSDT")])
    watched = Monitor(run=two, clock=ManualClock(CLOSE_MS))
    watched.observe(decided())
    assert watched.not_ready() == ["linear:ETHUSDT has no bar yet"]


def test_a_revision_changes_nothing_but_its_count() -> None:
    watched = monitor()
    watched.observe(decided())
    watched.observe(step(bar(20_000), sequence=8, accepted=False))
    status = watched.status()
    assert status["revisions"] == 1
    assert status["instruments"][BTC]["close"] == "101"  # type: ignore[index]


def test_the_operators_word_is_shown_at_once_and_after_a_restart() -> None:
    watched = monitor()
    for kind, state in (
        (CommandKind.HALT, "halted"),
        (CommandKind.RESUME, "running"),
        (CommandKind.FLATTEN, "halted"),
    ):
        watched.observe(step(Command(kind, "", CLOSE_MS, CLOSE_MS)))
        assert watched.status()["state"] == state
    restarted = monitor()
    halted = (("operator", 0.0, 1.0, False), ("warm", 9_000.0, 100.0, True))
    restarted.observe(step(bar(), decided=decision(measures=halted)))
    assert restarted.status()["state"] == "halted"
    breached, breach = monitor(), LimitBreach("risk.drawdown", 0.2, 0.1, CLOSE_MS)
    breached.observe(structs.replace(step(bar(), decided=decision()), halted=breach))
    assert breached.status()["halted_by"] == "risk.drawdown"


def test_metrics_say_the_same() -> None:
    watched = monitor()
    watched.observe(step(Quote(BTC, 1, 1, 2, 1, CLOSE_MS, CLOSE_MS)))
    watched.observe(decided())
    lines = generate_latest(registry_of(watched)).decode().splitlines()
    for line in (
        'tracepaper_events_total{kind="Bar"} 1.0',
        'tracepaper_events_total{kind="Quote"} 1.0',
        f'tracepaper_decisions_total{{action="{Action.HOLD}"}} 1.0',
        'tracepaper_refusals_total{gate="edge"} 1.0',
        'tracepaper_feed_total{what="reconnects"} 2.0',
        "tracepaper_fills_total 1.0",
        "tracepaper_ready 1.0",
        "tracepaper_halted 0.0",
        'tracepaper_equity{shadow=""} 99990.0',
        'tracepaper_equity{shadow="ungated"} 100020.0',
        f'tracepaper_price{{instrument="{BTC}"}} 101.0',
        f'tracepaper_position{{instrument="{BTC}"}} -1.5',
        f'tracepaper_bar_age_seconds{{instrument="{BTC}"}} 0.0',
        f'tracepaper_interval_seconds{{instrument="{BTC}"}} 60.0',
        f'tracepaper_confidence_entropy{{instrument="{BTC}"}} 0.2',
    ):
        assert line in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


class FeedTimes:
    """A feed that heard its newest frame and quote at given times."""

    def __init__(self, frame_s: float, quote_ms: int) -> None:
        self._frame_s, self._quote_ms = frame_s, quote_ms

    def frame_s(self) -> float:
        return self._frame_s

    def warm_at(self, _instrument: str) -> None:
        return None

    def quote_ms(self, instrument: str) -> int:
        assert instrument == BTC
        return self._quote_ms


def scraped(watched: Monitor, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of *name* at a scrape, by the values of their labels."""
    text = generate_latest(registry_of(watched)).decode()
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


AGES = ("bar_age", "quote_age", "frame_age", "commit_age")


def test_ages_grow_while_nothing_comes() -> None:
    clock = ManualClock(CLOSE_MS)
    watched = Monitor(run=run(), clock=clock, newest=FeedTimes(0.0, CLOSE_MS - 2_000))
    watched.observe(decided())
    for waited_s in (0, 30, 3_600):
        clock.advance(market_ms=waited_s * 1000, network_s=waited_s)
        ages = [scraped(watched, f"tracepaper_{name}_seconds") for name in AGES]
        since_s = clock.network_s()
        expected = [since_s, since_s + 2, since_s, since_s]
        assert [list(age.values()) for age in ages] == [[age_s] for age_s in expected]


def test_a_blocked_database_is_a_reason_not_to_be_ready() -> None:
    watched = Monitor(run=run(), clock=ManualClock(CLOSE_MS), obstacles=lambda: ("locked",))
    watched.observe(decided())
    assert watched.not_ready() == ["locked"]
    assert scraped(watched, "tracepaper_database_blocked") == {(): 1.0}


def test_a_decision_is_timed_from_its_bars_close_unless_the_bar_came_late() -> None:
    watched = monitor(CLOSE_MS + 300)
    watched.observe(decided())
    late = (("operator", 1.0, 1.0, True), ("late", 9e6, 1.0, False))
    watched.observe(step(bar(index=1), decided=decision(measures=late)))
    watched.observe(step(bar(index=2)))  # decided nothing
    counts = scraped(watched, "tracepaper_decision_seconds_bucket")
    assert (counts[("0.25",)], counts[("0.5",)], counts[("+Inf",)]) == (0, 1, 1)
    assert scraped(watched, "tracepaper_decision_seconds_sum") == {(): 0.3}


async def test_forecasts_and_commits_are_timed() -> None:
    clock = ManualClock(CLOSE_MS)
    watched = Monitor(run=run(), clock=clock)
    kept = MemoryAudit()

    async def slow(is_answered: bool) -> bool:
        await clock.sleep(0.4)
        return is_answered

    predict = watched.timed(slow, watched.model_s, bool)
    for is_answered in (True, True, False):
        assert await predict(is_answered) is is_answered
    append = watched.timed(kept.append, watched.commit_s)
    for _ in range(3):
        await append(decided())
    assert len(kept.steps) == 3
    assert scraped(watched, "tracepaper_model_seconds_count") == {(): 2.0}
    assert scraped(watched, "tracepaper_model_seconds_sum") == {(): 0.8}
    assert scraped(watched, "tracepaper_commit_seconds_bucket")[("0.001",)] == 3


def test_a_quantile_is_the_bound_of_its_class_and_none_beyond_every_bound() -> None:
    took_s = Histogram((0.1, 1.0))
    assert took_s.document("x") == {
        "name": "x", "count": 0, "mean": None, "p50": None, "p90": None, "p99": None,
    }  # fmt: skip
    for seconds in (*[0.05] * 50, *[0.5] * 40, *[2.0] * 10):
        took_s.add(seconds)
    document = took_s.document("x")
    assert (document["p50"], document["p90"], document["p99"]) == (0.1, 1.0, None)
    assert document["count"] == 100
