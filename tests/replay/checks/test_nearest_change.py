"""What would have traded is derived as the record has it, and follows from the change."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from functools import partial

import pytest
from command_line import Cli
from scenarios import SCENARIOS

from tracepaper.daemon.config.loading import Sections
from tracepaper.replay.checks.changed_run import changed_run
from tracepaper.replay.checks.nearest_change import (
    DISTANCES,
    REFINED,
    DecisionAgain,
    nearest_changes,
)
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.strategies.types.decisions import Action, OrderRole, Step
from tracepaper.strategies.types.market import Bar

DERIVED = (
    "crossing", "orders by list", "declared state and columns", "several symbols", "a hole",
    "drawn signals", "frames", "trend", "a model with gates",
)  # fmt: skip
whole_log = partial(MemoryLog, keeps_all=True)


def decisions(reader: Reader) -> list[Step]:
    return [step for step in reader.steps(reader.find("last")) if step.decision is not None]


def sent(step: Step) -> bool:
    return any(
        order.role is OrderRole.SIGNAL and order.order_id.startswith(f"{step.sequence}-")
        for order in step.orders
    )


@pytest.mark.parametrize("name", DERIVED)
def test_a_decision_that_is_not_changed_is_derived_as_it_was(name: str) -> None:
    path = SCENARIOS[name].recorded()
    with Reader.open(path) as reader:
        every = decisions(reader)
        for stored in every[:: len(every) // 3 + 1]:
            again = DecisionAgain(reader, path, reader.find("last"), stored.sequence).step()
            assert (again.decision, again.orders) == (stored.decision, stored.orders)


def test_the_close_is_the_one_at_which_the_averages_cross() -> None:
    path = SCENARIOS["crossing"].recorded()
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        (item,) = reader.run(run_id).instruments
        closes = {bar.open_time_ms: bar.close for bar in reader.bars(run_id, item.id, 1_000_000)}
        every = decisions(reader)
    times, found = sorted(closes), 0
    for step in every[:: len(every) // 14]:
        changes = nearest_changes(path, run_id, step.sequence)
        assert not (sent(step) and changes)
        for change in (each for each in changes if each.what == "close"):
            assert isinstance(step.event, Bar)
            at, was = times.index(step.event.open_time_ms), step.event.close
            fast, slow = (
                sum(closes[each] for each in times[at - bars + 1 : at]) for bars in (3, 7)
            )
            crossing = (3 * slow - 7 * fast) / 4  # where (fast + close) / 3 = (slow + close) / 7
            close = int(Decimal(change.value).scaleb(item.price_decimals))
            assert (close - crossing) * (was - crossing) <= 0  # on the other side
            precision = 0.05 * abs(crossing - was) + DISTANCES[0] * was / 2**REFINED
            assert abs(close - crossing) <= precision + item.tick_size
            found += 1
    assert found > 3


def sign(quantity: int) -> int:
    return (quantity > 0) - (quantity < 0)


def strict() -> Sections:
    sections = dict(SCENARIOS["a model with gates"].sections())
    return sections | {"gate": {**sections["gate"], "direction": "0.6"}}


def test_a_threshold_that_would_have_traded_trades_in_a_what_if_from_there_on() -> None:
    path = replace(SCENARIOS["a model with gates"], sections=strict, mode="scan").recorded()
    with Reader.open(path) as reader:
        run_id, traded = reader.find("last"), []
        for step in decisions(reader):
            if step.decision is None or step.decision.refused_by in {None, "warm"}:
                continue
            assert step.position is not None
            side = sign(step.position.quantity)
            for change in nearest_changes(path, run_id, step.sequence):
                assert isinstance(step.event, Bar)
                section, _, key = change.what.partition(".")
                changed = changed_run(
                    reader,
                    path,
                    run_id,
                    changes={section: {key: change.value}},
                    from_ms=step.event.open_time_ms,
                )
                with whole_log() as log:
                    changed.derive(log)
                    first = decisions(log.reader)[0].decision
                assert first is not None
                assert first.allowed
                wanted = side if first.action is Action.HOLD else sign(first.target_quantity or 0)
                assert (wanted != side) is change.trades
                assert change.trades or first.reason in change.sentence
                traded.append(change.trades)
            if len(traded) >= 6:
                break
    assert set(traded) == {False, True}


def test_explain_says_what_would_have_traded(cli: Cli) -> None:
    path = SCENARIOS["crossing"].recorded()
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        every = decisions(reader)[20:]
        step = next(each for each in every if nearest_changes(path, run_id, each.sequence))
    place = f"last:{step.sequence}"
    document = cli.json("explain", place, "--db", path)
    (change,) = document["nearest_changes"]
    assert change["sentence"] in " ".join(cli.out("explain", place, "--db", path).split())


def test_what_if_and_parity_take_the_same_place(cli: Cli) -> None:
    path = SCENARIOS["crossing"].recorded()
    with Reader.open(path) as reader:
        step = decisions(reader)[20]
    place = f"last:{step.sequence}"
    document = cli.json("whatif", place, "--set", "execution.taker_fee=0.001", "--db", path)
    assert [row["sequence"] for row in document["chosen"]["rows"]] == [step.sequence]
    assert cli.json("parity", place, "last", "--db", path)["compared"] == 1
    assert cli.json("parity", place, "--db", path)["compared"] == 1
    assert "without WHERE" in cli.err("parity", place, "--day", "2025-01-01", code=2)
