"""What a prune keeps of dropped steps: no row of it can be changed without ``verify`` seeing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exchange_client import FIRST_MS, walk_rows
from exchange_client import candles as made_candles
from forging import another, audited, believed, forged, literal, verified, with_child
from hedged_cases import DRAWN as DRAWN_HEDGE
from recordings import copied, crossing, recorded
from records import prune, rows
from several_strategies import DRAWN as DRAWN_ACTIONS

from tracepaper.replay.archive import FundingRates
from tracepaper.replay.backtest.recorded import open_recorded
from tracepaper.replay.checks.diagnosis import Cause
from tracepaper.replay.checks.verify import kept_contradiction
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.record.columns import stored_columns
from tracepaper.strategies.types.market import Category

Pruned = Callable[[str], tuple[Path, str]]
"""Returns a pruned run of a kind, and the condition in SQL of the steps that were dropped."""
HOUR = 3_600_000
HOURS = 200
CROSSES = {"name": "sma_cross", "long_only": False, "share": "0.5"}
TWO = {"a": {**CROSSES, "fast": 3, "slow": 7}, "b": {**CROSSES, "fast": 2, "slow": 5}}
DRAWN = {
    name: {"name": DRAWN_ACTIONS, "share": "0.5", "options": {"seed": seed}}
    for seed, name in enumerate("ab", start=1)
}
KINDS: dict[str, dict[str, Any]] = {
    "crossing": {"execution": {"taker_fee": "0.0007"}},
    "stops": {
        "strategy": {"name": "recorded_strategies:ProtectedTurns", "options": {"bars": 300}},
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "execution": {"slippage_bp": "1"},
    },
    "rests": {
        "strategy": {
            "name": "tracepaper.strategies.examples.grid:Grid",
            "options": {"bars": 40, "spacing": 0.05},
        },
        "execution": {"fees": {"BTCUSDT": {"taker": "0.0011", "maker": "-0.0001"}}},
    },
    "spot": {
        "market": {"symbols": ["BTCUSDT"], "interval": "60", "category": "spot"},
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
        "sizing": {"mode": "equity", "fraction": "0.5"},
    },
    "hedge": {
        "strategy": {"name": DRAWN_HEDGE, "options": {"seed": 1, "shadows": ["ungated"]}},
        "account": {"position_mode": "hedge", "margin": "isolated", "leverage": "10"},
        "sizing": {"mode": "notional", "notional": "4000"},
    },
    "several": {"strategy": {}, "strategies": DRAWN},
    "several, reset each day": {"strategy": {}, "strategies": {**TWO, "reset": "day"}},
    "several in hedge mode": {
        "strategy": {},
        "strategies": TWO,
        "account": {"position_mode": "hedge"},
    },
    "two symbols on cross margin": {
        "market": {"symbols": ["BTCUSDT", "ETHUSDT"], "interval": "60"},
        "strategy": {
            "name": "sma_cross",
            "long_only": False,
            "fast": 3,
            "slow": 7,
            "shadows": ["ungated"],
        },
        "account": {"margin": "cross", "leverage": "5"},
    },
    "taken over": {"execution": {"slippage_bp": "2"}},
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Return what prunes a run of a kind to its last days, each once."""
    made: dict[str, tuple[Path, str]] = {}
    folder = tmp_path_factory.mktemp("kept")

    def of_kind(kind: str) -> tuple[Path, str]:
        if kind not in made:
            path = copied(whole(kind), folder / f"{len(made)}.db")
            if kind == "taken over":
                with_child(path)
            until = prune(path, keep_days=2).until_sequence
            run_key = 2 if kind == "taken over" else 1
            made[kind] = path, f"run_key = {run_key} AND sequence <= {until}"
        return made[kind]

    return of_kind


def whole(kind: str) -> Path:
    config = crossing(
        **{"interval": "60", "sizing": {"mode": "fixed", "quantity": "0.02"}, **KINDS[kind]}
    )
    category = Category(config.market.category)
    data = [
        made_candles(
            walk_rows(HOURS, seed=seed), interval_ms=HOUR, category=category, symbol=symbol
        )
        for seed, symbol in enumerate(config.market.symbols, start=1)
    ]
    rates = [FundingRates("builder", "BTCUSDT", *funding())] if category is Category.LINEAR else []
    return recorded(config, data, started_at_ms=1, group_steps=1, funding=rates)


def funding() -> tuple[Any, Any]:
    import numpy as np

    times = np.arange(FIRST_MS + 8 * HOUR, FIRST_MS + HOURS * HOUR, 8 * HOUR)
    return times, 1_000_000 + 10_000 * np.arange(len(times))


def contradiction(path: Path) -> str:
    """Return the first column that does not follow; empty if all do."""
    with Reader.open(path) as reader:
        recorded_run = open_recorded(reader, path, reader.find("last"))
        unlike = kept_contradiction(reader, recorded_run)
    return "" if unlike is None else unlike[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_prune_keeps_follows_from_its_fills(pruned: Pruned, kind: str) -> None:
    path, old = pruned(kind)
    (fills,) = rows(path, f"SELECT count(*) FROM fills WHERE {old}")[0]
    assert fills > 5
    assert audited(path)
    verification = verified(path)
    assert verification.passes, verification.differences[:3]


_DECISION = "the decision is dropped"
_PRICE = "the price is dropped"
_UNFILLED = "of an order that no fill followed"
NOT_HELD = {
    "orders.sequence": _UNFILLED,
    "orders.quantity": _UNFILLED,
    "orders.status": _UNFILLED,
    **dict.fromkeys(
        ("orders.reason", "orders.created_ms", "orders.eligible_ms", "orders.role", "orders.tag"),
        _DECISION,
    ),
    "orders.owner": _DECISION,
    **dict.fromkeys(("orders.post_only", "orders.reduce_only", "orders.until_ms"), _DECISION),
    **dict.fromkeys(("orders.price", "orders.trigger", "orders.triggered"), _PRICE),
    "fills.reason": _DECISION,
    "fills.while_down": "the event is dropped",
    **dict.fromkeys(("fills.model", "fills.filled_ms"), _PRICE),
    "fills.liquidity": "where maker and taker pay the same",
    "fills.order_id": "of a shadow account, whose orders are not stored",
    "ledger.market_ms": "the event is dropped",
    "holdings.sequence": "moved behind the steps that were dropped, where no step names it",
    "holdings.cash": "of strategies that share anew each day, at prices that are dropped",
    "holdings.margin": "it depends on the cash at each settlement in between",
    "holdings.long_funding": "moved between the sides of another account",
    "holdings.funding_paid": "of another account: the mark is dropped",
}
"""Columns of kept rows that depend on what a prune drops, and why nothing holds them."""
OF_TRADES = {"orders", "fills", "ledger", "holdings", "trades"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_in_any_column_of_a_kept_row_is_found(
    pruned: Pruned, tmp_path: Path, kind: str
) -> None:
    path, old = pruned(kind)
    passed = set()
    for table in sorted(OF_TRADES):
        for name in stored_columns(table):
            if name != "run_key" and not all(
                contradiction(forged(path, tmp_path / "forged.db", statement, hide=False))
                for statement in planted(path, table, name, old)
            ):
                passed.add(f"{table}.{name}")
    assert passed <= NOT_HELD.keys()


def planted(path: Path, table: str, name: str, old: str) -> list[str]:
    """Return statements that change one column in a middle one of its old rows with a value."""
    keys = [column.name for column in metadata.tables[table].primary_key.columns]
    found = rows(
        path,
        f"SELECT {', '.join(keys)}, {name} FROM {table} WHERE {old} AND {name} IS NOT NULL "
        f"ORDER BY {', '.join(keys)}",
    )
    if not found:
        return []
    *key, value = found[len(found) // 2]
    changed = another(value, str(metadata.tables[table].c[name].type))
    if name in keys and isinstance(value, int):
        changed = value + 5_000  # which no other row has
    where = " AND ".join(f"{k} = {v!r}" for k, v in zip(keys, key, strict=True))
    return [f"UPDATE {table} SET {name} = {literal(changed)} WHERE {where}"]


FIRST = "sequence = (SELECT min(sequence) FROM fills WHERE {old}) AND {old}"
LATER = "{of_run} AND sequence >= (SELECT min(sequence) FROM fills WHERE {old})"
LOSING = (
    "{old} AND order_id IN (SELECT order_id FROM ledger WHERE kind = 'realized' AND amount < 0)"
)
FORGED: dict[str, tuple[str, str]] = {
    "a rebate": (
        "rests",
        "UPDATE fills SET liquidity = 'TAKER' WHERE liquidity = 'MAKER' AND {old}",
    ),
    "a fee, with all that follows from it": (
        "crossing",
        f"""UPDATE fills SET fee = fee - 1 WHERE {FIRST};
        UPDATE ledger SET amount = amount + 1 WHERE kind = 'fee' AND {FIRST};
        UPDATE ledger SET balance = balance + 1 WHERE {LATER};
        UPDATE holdings SET cash = cash + 1, fees_paid = fees_paid - 1,
        account_fees_paid = account_fees_paid - 1 WHERE {LATER}""",
    ),
    "losing fills": ("stops", f"DELETE FROM fills WHERE {LOSING}"),
    "losing fills and their orders": (
        "stops",
        f"DELETE FROM fills WHERE {LOSING}; DELETE FROM orders WHERE {LOSING}",
    ),
    "losses in the ledger": ("stops", "DELETE FROM ledger WHERE {old} AND amount < 0"),
    "a fill without its entries": ("stops", f"DELETE FROM ledger WHERE {FIRST}"),
    "another amount": (
        "stops",
        """UPDATE ledger SET amount = amount + 5 WHERE kind = 'fee' AND {old};
        UPDATE ledger SET amount = amount - 5 WHERE kind = 'realized' AND {old}""",
    ),
    "an order of which nothing is known": (
        "stops",
        "DELETE FROM orders WHERE {old} AND order_id IN (SELECT order_id FROM fills)",
    ),
    "a market order that is a stop": (
        "crossing",
        "UPDATE orders SET kind = 'STOP' WHERE kind IS NULL AND {old}",
    ),
    "a market order with a price": (
        "crossing",
        "UPDATE orders SET price = 3 WHERE kind IS NULL AND {old}",
    ),
    "a limit that is a market order": (
        "rests",
        "UPDATE orders SET kind = NULL WHERE kind = 'LIMIT' AND {old}",
    ),
    "a limit whose price is gone": (
        "rests",
        "UPDATE orders SET price = NULL WHERE kind = 'LIMIT' AND {old}",
    ),
    "an order that waits, filled in full": (
        "stops",
        "UPDATE orders SET status = 'ACCEPTED' WHERE status = 'FILLED' AND {old}",
    ),
    "all orders of the other side": (
        "stops",
        "UPDATE orders SET side = iif(side = 'BUY', 'SELL', 'BUY') WHERE {old}",
    ),
    "the other side of the account": (
        "hedge",
        "UPDATE fills SET position_side = 'SHORT' WHERE position_side = 'LONG' AND {old}",
    ),
    "no side of the account": (
        "hedge",
        "UPDATE fills SET position_side = NULL WHERE book = 0 AND {old}",
    ),
    "the fills of one side": ("hedge", "DELETE FROM fills WHERE book = 2 AND {old}"),
    "the fills of another side": (
        "hedge",
        "UPDATE fills SET shadow = 'SHORT' WHERE book = 1 AND {old}",
    ),
    "the account's fills of one side": (
        "hedge",
        "DELETE FROM fills WHERE book = 0 AND position_side = 'SHORT' AND {old}",
    ),
    "a shadow's notional": (
        "two symbols on cross margin",
        "UPDATE fills SET notional = notional + 1 WHERE book > 0 AND {old}",
    ),
    "the parts of one strategy": (
        "several",
        "DELETE FROM fills WHERE model <> 'crossed' AND book = 1 AND {old}",
    ),
    "a crossing of one strategy": (
        "several",
        "DELETE FROM fills WHERE model = 'crossed' AND book = 1 AND {old}",
    ),
    "a fee on a crossing": (
        "several",
        "UPDATE fills SET fee = 1 WHERE model = 'crossed' AND {old}",
    ),
    "cash moved between strategies from the start": (
        "several",
        """UPDATE holdings SET cash = cash + (book * 2 - 3) * 300000000000
        WHERE book > 0 AND {old}""",
    ),
    "profit of the strategies, with its cash": (
        "several",
        """UPDATE holdings SET cash = cash + 10, account_realized_pnl = account_realized_pnl + 10
        WHERE book > 0 AND {old}""",
    ),
    "cash of a shadow": (
        "hedge",
        "UPDATE holdings SET cash = cash + 7 WHERE shadow = 'ungated' AND {old}",
    ),
    "a fill of a run that took over another": (
        "taken over",
        f"DELETE FROM fills WHERE {FIRST}",
    ),
    "what a run took over": (
        "taken over",
        """UPDATE ledger SET amount = amount - 1 WHERE kind = 'taken_over';
        UPDATE ledger SET balance = balance - 1 WHERE {of_run}""",
    ),
}
"""The kind of run, and what a forger changes of the steps that a prune drops."""


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_row_is_found_in_a_pruned_and_in_a_whole_run(
    pruned: Pruned, tmp_path: Path, what: str
) -> None:
    kind, statements = FORGED[what]
    path, old = pruned(kind)
    changes = statements.format(old=old, of_run=old.partition(" AND ")[0]).split(";")
    copy = forged(path, tmp_path / "forged.db", *changes, hide=False)
    assert contradiction(copy)
    path = copied(whole(kind), tmp_path / "whole.db")
    if kind == "taken over":
        with_child(path)
    assert not believed(forged(path, tmp_path / "forged.db", *changes))


def test_a_forged_row_that_a_prune_kept_is_blamed_on_the_record(
    pruned: Pruned, tmp_path: Path
) -> None:
    path, old = pruned("crossing")
    copy = forged(path, tmp_path / "forged.db", f"UPDATE fills SET fee = fee - 1 WHERE {old}")
    assert audited(copy), "the chain was made to fit"
    verification = verified(copy)
    assert not verification.passes
    assert verification.culprit is Cause.RECORD
    assert any(each.field.startswith("fills (step") for each in verification.differences)
