"""Read-only questions in SQL: what ``audit sql`` and its prepared sisters ask."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.strategies.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR})

# A question may read, compute and name itself; it may not attach, write or set anything.
_ALLOWED: Final = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)

# The newest rows are chosen by their sequence alone, and only they are then worked out: to sort
# whole rows of a long run would cost a hundred times as much.
_NEWEST: Final = (
    "WHERE run_id = :run AND sequence IN (SELECT sequence FROM {view} WHERE run_id = :run "
    "ORDER BY sequence DESC LIMIT :limit)"
)
DECISIONS: Final = (
    "SELECT sequence, open_time_iso, instrument, action, refused_by, reason, mean_return, "
    "confidence, regime, target_quantity_text AS target_quantity, decision_sha256 "
    f"FROM v_decisions {_NEWEST.format(view='v_decisions')} ORDER BY sequence DESC LIMIT :limit"
)
TRADES: Final = (
    "SELECT sequence, filled_iso, instrument, order_id, side, quantity_text AS quantity, "
    "price_text AS price, fee_text AS fee, fee_base_text AS fee_base, liquidity, model, reason, "
    f"status FROM v_fills {_NEWEST.format(view='v_fills')} "
    "ORDER BY sequence DESC, ordinal DESC LIMIT :limit"
)
EQUITY: Final = (
    "SELECT sequence, market_iso, instrument, quantity_text AS quantity, cash_text AS cash, "
    "equity_text AS equity, realized_pnl_text AS realized_pnl, "
    "unrealized_pnl_text AS unrealized_pnl, fees_paid_text AS fees_paid, "
    "funding_paid_text AS funding_paid "
    f"FROM v_equity {_NEWEST.format(view='v_equity')} ORDER BY sequence DESC LIMIT :limit"
)


class Answered(NamedTuple):
    """The answer to a question."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def documents(self) -> list[dict[str, Any]]:
        """Return a dictionary a row; blobs as lower-case hexadecimal text."""
        return [
            {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]

    def oldest_first(self) -> Answered:
        """Return the rows in the opposite order."""
        return Answered(self.columns, self.rows[::-1])


def ask(
    connection: sqlite3.Connection,
    sql: str,
    parameters: dict[str, object] | Sequence[object] = (),
) -> Answered:
    """Return what *sql*, one SELECT, answers; raise ``ConfigInvalid`` for anything else."""
    # SQLite makes a table-valued function on first use, which the authorizer would refuse.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")
    connection.set_authorizer(_authorize)
    try:
        cursor = connection.execute(sql, parameters)
        rows = cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        if getattr(error, "sqlite_errorcode", 0) in _DAMAGED:
            raise  # the file is to blame, not the question
        refused = "not authorized" in str(error) or "prohibited" in str(error)
        reason = str(error).rstrip(".")
        said = "only one SELECT that reads tables and views is taken" if refused else reason
        raise ConfigInvalid(
            f"The question cannot be asked: {said}; `SELECT * FROM v_runs` is a good start."
        ) from error
    finally:
        connection.set_authorizer(None)
    if cursor.description is None:
        raise ConfigInvalid("The question is empty; `SELECT * FROM v_runs` is a good start.")
    return Answered(tuple(column[0] for column in cursor.description), rows)


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
