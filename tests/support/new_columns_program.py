"""A program that defines a column in many tables and nothing else, and then uses the database.

Columns must be defined before anything else of storage is imported, so it runs as a process.
"""

# ruff: noqa: E402 - the imports below are the point

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tracepaper.strategies.gates.gate import GateInputs, GateKind, gate


@gate(GateKind.INTEGRITY, "usual half ranges", at_most=1e6)
def calm(seen: GateInputs) -> float | None:
    """Distance of the close from the last one, in halves of the usual range."""
    return 2 * seen.plausible  # its column is one that the older database lacks as well


from tracepaper.storage.record.columns import INTEGER, MONEY, PRICE, REAL, TABLES, Column


def defined(table: str, column: Column) -> None:
    """Define *column* as the last one of *table* before its digest."""
    known = TABLES[table]
    at = len(known) - (known[-1].name == "digest")
    TABLES[table] = (*known[:at], column, *known[at:])


def spread(fill: Any) -> int:
    """Return what spread and slippage cost, at the fill's scale."""
    return int(abs(fill.price - fill.reference_price))


def certainty(step: Any) -> float | None:
    """Return the probability of a rise, where there is a forecast."""
    return step.prediction.p_up[0] if hasattr(step.prediction, "p_up") else None


NEW = {
    "steps": Column(
        name="hour",
        kind=INTEGER,
        doc="hour of the day",
        null=True,
        read=lambda step: step.event.market_ms // 3_600_000 % 24,
    ),
    "answers": Column(name="certainty", kind=REAL, doc="how sure", null=True, read=certainty),
    "outcomes": Column(
        name="letters", doc="letters of the reason", null=True, read=lambda made: len(made.reason)
    ),
    "holdings": Column(
        name="doubled", doc="twice the cash", scale=MONEY, null=True, read=lambda of: 2 * of.cash
    ),
    "orders": Column(
        name="open_part", doc="not yet filled", null=True, read=lambda of: of.quantity - of.filled
    ),
    "fills": Column(name="spread", doc="spread paid", scale=PRICE, null=True, read=spread),
    "twin_fills": Column(name="spread", doc="spread paid", scale=PRICE, null=True, read=spread),
}
VIEWED = {
    "steps": "v_decisions",
    "answers": "v_decisions",
    "outcomes": "v_decisions",
    "holdings": "v_equity",
    "orders": "v_orders",
    "fills": "v_fills",
    "twin_fills": "v_twin_fills",
}


for _table, _column in NEW.items():
    defined(_table, _column)

import storage_cases as cases
from forging import rechain

from tracepaper import open_run
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database import views
from tracepaper.storage.database.exports import chosen, export
from tracepaper.storage.database.reader import Reader


def main(folder: Path) -> None:
    """Write runs with the new columns to *folder*, and write down what was found of them."""
    path = folder / "runs.db"
    found: dict[str, Any] = {}
    rich = cases.rich_steps()
    cases.write_run(path, cases.plain_steps(20), of=cases.run("before"))
    cases.write_run(path, rich, of=cases.run("new"))
    cases.write_run(path, cases.plain_steps(40), of=cases.run("plain"))
    found["new"] = looked_at(path, "new")
    with Reader.open(path) as reader:
        steps = [stored.step for stored in reader.steps("new")]
        export(reader, "new", folder / "csv", "csv", chosen(",".join(set(VIEWED.values()))))
    found["comes back"] = steps == rich
    found["files"] = {
        table: NEW[table].name in header(folder / "csv" / f"{view}.csv")
        for table, view in VIEWED.items()
    }
    frames = open_run("new", path)
    found["frames"] = {
        table: NEW[table].name in getattr(frames, view.removeprefix("v_"))().columns
        for table, view in VIEWED.items()
    }
    text = views.documentation()
    found["documented"] = {
        table: f"| `{column.name}` |" in text and column.doc in text
        for table, column in NEW.items()
    }
    found["forged"] = {table: forged(path, folder / "forged.db", table) for table in NEW}
    rechain(path)
    found["rechained"] = looked_at(path, "new")
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def looked_at(path: Path, run_id: str) -> dict[str, Any]:
    """Return what the check says of a run, and the values of the new columns in the views."""
    with Reader.open(path) as reader:
        audited = audit(reader.connection, run_id)
        values = {}
        for table, view in VIEWED.items():
            query = f"SELECT {NEW[table].name} FROM {view} WHERE run_id = ?"
            rows = reader.connection.execute(query, (run_id,)).fetchall()
            values[table] = sorted({value for (value,) in rows if value is not None})
        steps = len(list(reader.steps(run_id)))
    return {
        "problem": audited.problem and audited.problem.sentence,
        "warnings": len(audited.warnings),
        "steps": steps,
        "values": values,
    }


def header(path: Path) -> list[str]:
    """Return the names in the first line of a CSV file."""
    return path.read_text(encoding="utf-8").splitlines()[0].split(",")


def forged(path: Path, target: Path, table: str) -> str:
    """Return what the check says after a value of the new column of *table* was changed."""
    target.write_bytes(path.read_bytes())
    name = NEW[table].name
    with closing(sqlite3.connect(target)) as raw:
        raw.execute(
            f"UPDATE {table} SET {name} = {name} + 1 WHERE step = "
            f"(SELECT max(step) FROM {table} WHERE step >> 28 = 2 AND {name} IS NOT NULL)"
        )
        raw.commit()
    with Reader.open(target) as reader:
        problem = audit(reader.connection, "new").problem
    return "" if problem is None else problem.what


if __name__ == "__main__":
    main(Path(sys.argv[1]))
