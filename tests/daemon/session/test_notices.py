"""Each event of a run makes one notice, and so does each change of a state."""

from __future__ import annotations

import string
from typing import Any

import builders
import msgspec
import pytest
from builders import MINUTE, START_MS

from tracepaper.daemon.config.notify import COMMON, KINDS, WORDINGS, NotifySection
from tracepaper.daemon.session.notices import Notice, Notices
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    LimitBreach,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
    Position,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    Command,
    CommandKind,
    Event,
    Gap,
    GapCause,
    ParityCheck,
    ParityOutcome,
    Side,
)
from tracepaper.strategies.units import DAY_MS, HOUR_MS

MIDNIGHT_MS = START_MS // DAY_MS * DAY_MS + DAY_MS
WELL = builders.decision(measures=(("edge", 2.0, 1.0, True),), reason="edge", action=Action.LONG)
REFUSED = builders.decision()
LATE = builders.decision(measures=(("late", 9_000.0, 5_000.0, False),), reason="late by 4 s")


def notices(on_breach: str = "halt", **section: Any) -> Notices:
    instruments = [builders.instrument(), builders.instrument("ETHUSDT")]
    run = builders.run(instruments=instruments)
    begun = msgspec.structs.replace(run, period_start_ms=START_MS - MINUTE)
    return Notices(NotifySection(**section), begun, on_breach=on_breach)


def closed(at_ms: int, decided: Decision | None = WELL, symbol: str = "BTCUSDT", **of: Any) -> Step:
    """Return the step of a bar that closes at *at_ms*."""
    bar = builders.bar(open_time_ms=at_ms - MINUTE, instrument_id=f"linear:{symbol}")
    return builders.step(bar, decided=decided, **of)


def told_of(notifier: Notices, *steps: Step) -> list[tuple[str, str]]:
    """Return kind and text of each notice of *steps*."""
    return [words(notice) for step in steps for notice in notifier.of_step(step)]


def words(notice: Notice) -> tuple[str, str]:
    template = WORDINGS[notice.kind].template
    return notice.kind, template.format_map(notice.fields)


def filled(role: OrderRole, **of: Any) -> Step:
    fill = builders.fill(**of)
    order = Order(
        *(fill.order_id, fill.instrument, fill.side, 1_000, 1_000, OrderStatus.FILLED),
        *("edge", START_MS, START_MS),
        kind=OrderKind.STOP,
        role=role,
    )
    step = closed(START_MS, None, fills=(fill,), position=Position(1_000, 101 * 10**8))
    return msgspec.structs.replace(step, orders=(order,))


# ---------------------------------------------------------------- fills and stops


def test_a_fill_says_what_was_traded_and_what_is_held_now() -> None:
    assert told_of(notices(), filled(OrderRole.SIGNAL)) == [
        ("fills", "BTCUSDT bought 1 at 101 (edge); long 1 BTC from 101, +0.00 %; equity 100,000.00")
    ]


@pytest.mark.parametrize("role", OrderRole)
def test_what_protects_is_told_apart_from_what_was_decided(role: OrderRole) -> None:
    ((kind, text),) = told_of(notices(), filled(role, side=Side.SELL))
    if role in {OrderRole.SIGNAL, OrderRole.LIST, OrderRole.COMMAND}:
        assert kind == "fills"
    else:
        assert kind == "stops"
        assert "order" not in text
    assert "sold 1 at 101" in text


def test_what_others_wrote_stays_one_line_without_control_characters() -> None:
    ((_, text),) = told_of(notices(), filled(OrderRole.SIGNAL, reason="a\x1b[31m\nb" + "x" * 5_000))
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 500


# ---------------------------------------------------------------- limits and commands


@pytest.mark.parametrize(
    ("on_breach", "action"), [("halt", "no new"), ("flatten", "all positions")]
)
def test_each_breach_that_a_step_records_is_told(on_breach: str, action: str) -> None:
    """A step records a breach once; the first of a run that takes over one is of any kind."""
    notifier = notices(on_breach)
    steps = [closed(START_MS + minute * MINUTE) for minute in range(3)]
    assert told_of(notifier, *steps) == []
    ((kind, text),) = told_of(notifier, breached(steps[0]), *steps)
    assert kind == "limits"
    assert text.startswith(f"risk.drawdown breached at equity 100,000.00: {action}")
    resume = builders.step(Command(CommandKind.RESUME, "", START_MS, START_MS))
    assert [kind for kind, _ in told_of(notifier, breached(resume))] == ["limits", "halt"]


def test_a_limit_that_only_refuses_is_told_once_a_day() -> None:
    notifier = notices("refuse", kinds=("limits",))
    over = builders.decision(measures=(("risk.daily_loss", 9.0, 5.0, False),))
    day = [closed(MIDNIGHT_MS + minute * MINUTE, of) for minute, of in enumerate((over, WELL) * 3)]
    following = closed(MIDNIGHT_MS + DAY_MS, over)
    found_in_all = told_of(notifier, *day, following)
    assert len(found_in_all) == 2
    assert found_in_all[0][1].endswith("no new exposure while it lasts")


@pytest.mark.parametrize("kind", CommandKind)
def test_a_command_is_told_with_its_note(kind: CommandKind) -> None:
    step = builders.step(Command(kind, "lunch", START_MS, START_MS))
    ((of, text),) = told_of(notices(), step)
    assert of == "halt"
    assert text.startswith(f"{kind.value}: ")
    assert text.endswith(" (lunch)")


# ---------------------------------------------------------------- feed, lateness, parity


def test_a_lost_feed_is_told_once_and_so_is_its_return() -> None:
    notifier = notices()
    states = [
        notice.fields["state"]
        for age_s in (0, 119, 121, 130, 500, 3, 2, 121)
        for notice in notifier.of_feed(age_s, 120, START_MS)
    ]
    assert states == ["lost", "back", "lost"]


def test_a_gap_is_told_only_where_its_bars_never_come() -> None:
    def gap(repaired_by: str, cause: GapCause = GapCause.MISSED) -> Step:
        until_ms = START_MS + 2 * MINUTE
        of: Event = Gap(
            *("linear:BTCUSDT", START_MS, until_ms, cause, repaired_by),
            *(until_ms, until_ms),
        )
        return builders.step(of)

    assert told_of(notices(), gap("rest")) == []
    ((kind, text),) = told_of(notices(), gap(""))
    assert kind == "feed"
    assert "feed absent: BTCUSDT has no bars from 2023-11-14T22:14Z to 2023-11-14T22:16Z" in text
    ((_, text),) = told_of(notices(), gap("", GapCause.FUNDING))
    assert "feed absent: BTCUSDT has no funding settlement of 2023-11-14T22:14Z" in text


def test_late_decisions_are_told_when_they_begin_and_end() -> None:
    notifier = notices(kinds=("late",))
    leaves = builders.altered(LATE, action=Action.FLAT, reason="out")
    assert told_of(notices(kinds=("late",)), closed(START_MS, leaves)) == [
        ("late", "decisions late: BTCUSDT enters nothing: out")
    ]
    pattern = [(LATE, "BTCUSDT"), (LATE, "ETHUSDT"), (LATE, "BTCUSDT"), (WELL, "BTCUSDT")]
    steps = [closed(START_MS, decided, symbol) for decided, symbol in pattern]
    assert told_of(notifier, *steps) == [("late", "decisions late: BTCUSDT is held: late by 4 s")]
    assert told_of(
        notifier, closed(START_MS, WELL, "ETHUSDT"), closed(START_MS, WELL, "ETHUSDT")
    ) == [("late", "decisions in time again: ETHUSDT")]


def test_each_parity_result_is_told() -> None:
    check = ParityCheck(ParityOutcome.IDENTICAL, "identical 6 of 6 decisions", 0, 1, 6, 6, 0)
    assert told_of(notices(), builders.step(check)) == [
        ("parity", "parity: identical 6 of 6 decisions")
    ]


# ---------------------------------------------------------------- digests


def test_refusals_are_counted_by_gate_over_a_span() -> None:
    notifier = notices(refusals_every="1h", kinds=("refusals",))
    begin_ms = MIDNIGHT_MS + 10 * MINUTE
    of = [REFUSED, WELL, LATE, REFUSED]
    steps = [closed(begin_ms + minute * MINUTE, each) for minute, each in enumerate(of)]
    assert told_of(notifier, *steps) == []
    over = closed(MIDNIGHT_MS + HOUR_MS)
    assert told_of(notifier, over, over) == [
        ("refusals", "3 of 5 decisions refused since 2023-11-15T00:10Z: edge 2, late 1")
    ]
    calm = [closed(MIDNIGHT_MS + HOUR_MS + minute * MINUTE) for minute in range(1, 120)]
    assert told_of(notifier, *calm) == []


def test_the_day_is_summed_up_at_its_time() -> None:
    notifier = notices(daily_at="00:30", kinds=("daily",))
    holding = ShadowStep("held", Position(), builders.account(100_000), ())
    later = msgspec.structs.replace(holding, account=builders.account(98_000))
    first = closed(MIDNIGHT_MS, shadows=(holding,))
    steps = [first, filled(OrderRole.SIGNAL), closed(MIDNIGHT_MS + 29 * MINUTE, REFUSED)]
    assert told_of(notifier, *steps) == []
    history = (START_MS - days * DAY_MS for days in (3, 2, 1))
    assert told_of(notices(daily_at="00:30"), *map(closed, history)) == []
    last = closed(MIDNIGHT_MS + 30 * MINUTE, of=builders.account(101_000), shadows=(later,))
    ((kind, text),) = told_of(notifier, last, closed(MIDNIGHT_MS + 31 * MINUTE))
    assert kind == "daily"
    assert text == (
        "equity 101,000.00, +1,000.00 (+1.00 %) since 2023-11-15T00:00Z; 1 fill, fees 0.00, "
        "1 of 3 decisions refused; held -2.00 %"
    )
    assert len(told_of(notifier, closed(MIDNIGHT_MS + DAY_MS + 30 * MINUTE))) == 1


def test_a_day_without_a_fill_is_summed_up_with_its_cause() -> None:
    notifier = notices(daily_at="00:30", kinds=("daily",))
    flat = builders.decision(
        measures=(("edge", 2.0, 1.0, True),), reason="too calm", action=Action.FLAT
    )
    last = closed(MIDNIGHT_MS + 30 * MINUTE, flat)
    ((_, text),) = told_of(notifier, closed(MIDNIGHT_MS, flat), last)
    assert text.endswith(
        "0 of 2 decisions refused. The strategy asked for no position on 2 of 2 bars. Its reason "
        "on 2: too calm."
    )


# ---------------------------------------------------------------- kinds and fields


def breached(step: Step) -> Step:
    """Return *step* as the one that records a breach."""
    breach = LimitBreach("risk.drawdown", 0.2, 0.1, START_MS)
    return msgspec.structs.replace(step, halted=breach)


def everything(notifier: Notices) -> list[Notice]:
    """Return notices of every kind."""
    check = ParityCheck(ParityOutcome.FAILED, "x", 0, 1, 0, 0, 0)
    steps = [
        closed(START_MS, LATE),
        breached(filled(OrderRole.SIGNAL)),
        filled(OrderRole.STOP),
        builders.step(Command(CommandKind.HALT, "", START_MS, START_MS)),
        builders.step(check),
        builders.step(Gap("linear:BTCUSDT", 0, 1, GapCause.DOWN, "", START_MS, START_MS)),
        closed(MIDNIGHT_MS),
    ]
    return [notice for step in steps for notice in notifier.of_step(step)]


def test_every_kind_has_the_fields_that_its_template_may_name_and_no_other() -> None:
    by_kind = {notice.kind: notice for notice in everything(notices())}
    assert set(by_kind) == set(KINDS)
    for kind, notice in by_kind.items():
        fields = set(WORDINGS[kind].fields)
        named = {name for _, name, _, _ in string.Formatter().parse(WORDINGS[kind].template)}
        assert named - {None} <= fields
        assert fields - set(notice.fields) <= {"symbol"}
        assert set(notice.fields) <= fields
        assert fields.isdisjoint(COMMON)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_off(kind: str) -> None:
    others = tuple(name for name in KINDS if name != kind)
    assert {notice.kind for notice in everything(notices(kinds=others))} == set(others)


def test_a_revision_of_a_bar_tells_nothing() -> None:
    revised = closed(MIDNIGHT_MS, None, accepted=False)
    assert told_of(notices(), closed(START_MS), revised) == []
