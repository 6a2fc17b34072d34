"""Six views in PostgreSQL, with the names, columns, types and results of a file's views.

They are translated from the same declarations, so a new column there appears here too. The only
further column is ``database_id``, the last one. ``_WORDS`` translates SQL that PostgreSQL reads
differently from SQLite; ``FUNCTIONS`` defines functions that PostgreSQL lacks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracepaper.storage.database.views import (
    V_DECISIONS,
    V_EQUITY,
    V_FILLS,
    V_ORDERS,
    V_POSITIONS,
    V_RUNS,
)
from tracepaper.storage.record.columns import TABLES
from tracepaper.storage.record.rows import RUN_TABLES

if TYPE_CHECKING:
    from tracepaper.storage.database.view_columns import View

FLEET_VIEWS: Final = (V_RUNS, V_DECISIONS, V_ORDERS, V_FILLS, V_EQUITY, V_POSITIONS)
_CASTS: Final = {
    "INTEGER": "CAST({} AS bigint)",
    "REAL": "CAST({} AS double precision)",
    "TEXT": 'CAST({} AS text) COLLATE "C"',
}


def _function(signature: str, returns: str, body: str) -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {signature} RETURNS {returns} LANGUAGE sql IMMUTABLE "
        f"PARALLEL SAFE AS $$ SELECT {body} $$"
    )


FUNCTIONS: Final = (
    _function("hex(bytea)", "text", "upper(encode($1, 'hex'))"),
    # Only the forms that the views use: a fraction of any length, and milliseconds.
    _function(
        "printf(text, bigint, bigint)",
        "text",
        "'.' || lpad($3::text, greatest($2::int, length($3::text)), '0')",
    ),
    _function(
        "printf(text, bigint)",
        "text",
        "'.' || lpad($2::text, greatest(3, length($2::text)), '0') || 'Z'",
    ),
    _function(
        "strftime(text, bigint, text)",
        "text",
        "to_char(timestamp '1970-01-01' + $2 * interval '1 second', "
        """'YYYY-MM-DD"T"HH24:MI:SS')""",
    ),
    _function("json_extract(text, text)", "text", "$1::json ->> substr($2, 3)"),
    # A sum of doubles as SQLite computes it: Kahan-Babuska summation.
    _function(
        "real_sum_step(double precision[], double precision)",
        "double precision[]",
        "CASE WHEN $2 IS NULL THEN $1 ELSE ARRAY[$1[1] + $2, $1[2] + CASE WHEN abs($1[1]) > abs($2)"
        " THEN ($1[1] - ($1[1] + $2)) + $2 ELSE ($2 - ($1[1] + $2)) + $1[1] END, 1] END",
    ),
    _function(
        "real_sum_end(double precision[])",
        "double precision",
        "CASE WHEN $1[3] = 1 THEN $1[1] + $1[2] END",
    ),
    (
        "CREATE OR REPLACE AGGREGATE real_sum(double precision) (SFUNC = real_sum_step, "
        "STYPE = double precision[], INITCOND = '{0,0,0}', FINALFUNC = real_sum_end)"
    ),
)
"""SQLite's functions that the translated views call."""

_WORDS: Final = (
    (re.compile(r"\bAS REAL\)"), "AS double precision)"),
    (re.compile(r"\bAS INTEGER\)"), "AS bigint)"),
    (re.compile(r"(json_extract\([^()]*_ms'\))"), r"\1::bigint"),
    (re.compile(r"\bsum\((\w\.\w+)\)"), r"sum(\1)::bigint"),
    (re.compile(r"\bsum\(CAST"), "real_sum(CAST"),
    (re.compile(r"\+(\w\.\w+)\b"), r"\1"),  # the plus keeps one of SQLite's indexes out
    # OFFSET 0 makes PostgreSQL look up later rows of an order by its index.
    (
        re.compile(r"\b(\w\.sequence > \w\.sequence)\b"),
        r"\1 OFFSET 0",
    ),
    # PostgreSQL needs a name for a subquery in FROM, and the order within an aggregate.
    (
        re.compile(r"\(SELECT group_concat\((\w+)\) FROM \((SELECT .*?)\)\)$"),
        r"(SELECT string_agg(\1, ',') FROM (\2) AS listed)",
    ),
    (
        re.compile(r"\(SELECT json_group_array\((.*?\))\) FROM "),
        (
            r"(SELECT '[' || coalesce(string_agg(to_json(\1)::text, ',' ORDER BY e.sequence), '') "
            "|| ']' FROM "
        ),
    ),
)
_TABLE: Final = re.compile(rf"\b(FROM|JOIN) ({'|'.join(TABLES)}) (\w) (ON|WHERE) ")
_LOOKUP: Final = re.compile(
    rf"\bJOIN ({'|'.join(RUN_TABLES)}) (\w) ON "
    r"(\2\.run_key = \w\.run_key AND \2\.sequence = .*?)(?= (?:LEFT )?JOIN | WHERE |$)"
)
_OF_THE_RUN: Final = re.compile(
    rf"^FROM runs r JOIN ({'|'.join(RUN_TABLES)}) (\w) ON (.*?)(?= (?:LEFT )?JOIN )"
)
_LOOKED_UP: Final = r"JOIN LATERAL (SELECT * FROM \1 \2 WHERE \3 OFFSET 0) AS \2 ON true"
_BIRTH: Final = re.compile(r"\b(\w)\.birth\b")


def translate(sql: str) -> str:
    """Return *sql*, the text of a view in SQLite, for PostgreSQL.

    Every table is restricted to the database of the run ``r``. A row that belongs to a step is
    looked up by its key: without ``OFFSET 0`` PostgreSQL would join the rows of all runs, which it
    wrongly estimates as cheaper.
    """
    for pattern, words in _WORDS:
        sql = pattern.sub(words, sql)
    sql = _BIRTH.sub(r"substring(\1.order_id from '^[0-9]+')::bigint", sql)
    sql = _LOOKUP.sub(_LOOKED_UP, sql)
    return _TABLE.sub(r"\1 \2 \3 \4 \3.database_id = r.database_id AND ", sql)


def select(view: View) -> str:
    """Return the query of *view* for PostgreSQL; it reads the rows of each run by key."""
    return _query(view, _OF_THE_RUN.sub(f"FROM runs r {_LOOKED_UP}", view.source))


def select_step(view: View) -> str:
    """Return the query of one step's rows of *view*; database, run and sequence are ``%s``.

    The step is found in ``steps`` by its key.
    """
    word = "AND" if view.source.rstrip().endswith("IS NOT NULL") else "WHERE"
    query = _query(view, view.source).replace("%", "%%")
    return f"{query} {word} r.database_id = %s AND r.run_key = %s AND s.sequence = %s"


def _query(view: View, source: str) -> str:
    listed = ",\n  ".join(
        f'{_CASTS[column.kind].format(translate(column.sql))} AS "{column.name}"'
        for column in view.columns
    )
    return f"SELECT\n  {listed},\n  r.database_id\n{translate(source)}"


def statements() -> tuple[str, ...]:
    """Return the statements that drop and create the views, in order."""
    return tuple(
        statement
        for view in FLEET_VIEWS
        for statement in (
            f"DROP VIEW IF EXISTS {view.name}",
            f"CREATE VIEW {view.name} AS {select(view)}",
        )
    )
