"""The checker: sound records of every kind break no law, and a planted fault names its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_changes import applied
from campaign_mutants import Mutation
from recordings import copied, stored
from world.backtests import KINDS, recorded_backtest
from world.checker import Truth, violations


def sound(kind: str, seed: int = 1) -> tuple[Path, Truth]:
    """Return the database of a drawn run, made once, and what it was served."""
    kept: list[tuple[Path, Truth]] = []
    folder = stored(
        ("world.checker", kind, seed),
        lambda folder: kept.append(recorded_backtest(kind, seed, folder)),
    )
    if kept:
        _TRUTHS[kind, seed] = kept[0][1]
    return folder / f"{kind}-{seed}.db", _TRUTHS[kind, seed]


_TRUTHS: dict[tuple[str, int], Truth] = {}


def laws(database: Path, truth: Truth) -> set[str]:
    return {violation.law for violation in violations([database], truth)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_record_breaks_no_law(kind: str) -> None:
    database, truth = sound(kind)
    assert violations([database], truth) == []


LAST_FEE = "(SELECT max(sequence) FROM ledger WHERE kind = 'fee')"


@pytest.mark.parametrize(
    ("law", "statement", "kind"),
    [
        ("bars", "UPDATE steps SET volume = volume + 1 WHERE sequence = 5", "plain"),
        ("bars", "DELETE FROM steps WHERE sequence = 3", "plain"),
        ("decisions", "UPDATE steps SET outcome = NULL WHERE sequence = 60", "plain"),
        ("ledger", f"UPDATE ledger SET amount = amount - 1 WHERE sequence = {LAST_FEE}", "plain"),
        ("ledger", f"DELETE FROM ledger WHERE sequence = {LAST_FEE} AND kind = 'fee'", "plain"),
        (
            "positions",
            "UPDATE holdings SET realized_pnl = realized_pnl + 1 WHERE shadow IS NULL",
            "plain",
        ),
    ],
)
def test_a_changed_row_names_its_law(tmp_path: Path, law: str, statement: str, kind: str) -> None:
    database, truth = sound(kind)
    database = copied(database, tmp_path / "changed.db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        assert connection.execute(statement).rowcount
        connection.commit()
    assert law in laws(database, truth)


@pytest.mark.parametrize(
    ("law", "kind", "change"),
    [
        ("fees", "plain", ("ExecutionCosts.fee", "notional * rate", "notional * (rate - 9)")),
        (
            "settlements",
            "plain",
            ("Market.pay", "line.pay_funding(moment.rate,", "line.pay_funding(-moment.rate,"),
        ),
        (
            "fills",
            "plain",
            ("Market._match_open", "bar.open, at_ms, FillModel", "bar.close, at_ms, FillModel"),
        ),
        (
            "stops",
            "exits",
            (
                "Market._match",
                "self._take_all(order, price, at_ms)",
                "self._take_all(order, price + self._executor.tick, at_ms)",
            ),
        ),
        (
            "limits",
            "limits",
            (
                "Market._arrive",
                "not may_take and is_through(order, price)",
                "not may_take and order.price is not None",
            ),
        ),
        (
            "liquidations",
            "margin",
            ("Executor.liquidated", "price, mark, FillModel", "mark, mark, FillModel"),
        ),
        (
            "margin liquidations",
            "margin",
            ("MarginRules.required", "self._closing_fee(entry, initial)", "0"),
        ),
        ("orders", "plain", ("Line._order_to", "needed = target - self.held", "needed = target")),
        (
            "levels",
            "exits",
            ("Planner.to_tick", "divide_half_even(price, self._tick)", "price - 9"),
        ),
        ("equity settlements", "plain", ("Broker.on_bar", "mark = bar.close", "mark = bar.open")),
        (
            "signals",
            "plain",
            ("SmaCross.observe", "len(closes) == self._slow", "len(closes) == 99"),
        ),
    ],
)
def test_a_changed_rule_names_its_law(
    tmp_path: Path, law: str, kind: str, change: Sequence[str]
) -> None:
    with applied(Mutation("controls", *change)):
        database, truth = recorded_backtest(kind, 1, tmp_path)
    assert laws(database, truth) == {*law.split()}


def test_a_command_that_was_answered_has_to_be_stored() -> None:
    database, truth = sound("plain")
    answered: dict[str, Any] = {"answered": [("note", "HALT")], "sent": ["note"]}
    assert laws(database, replace(truth, **answered)) == {"commands"}
