"""The interface's answers about recorded runs equal the views."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from builders import present
from fakes import ManualClock
from page_cases import shown_of
from records import tamper
from report_cases import BTC, SAMPLE, STRICT, cross, replayed
from storage_cases import other_events, plain_steps, undecided, write_run
from user_strategies import importable

from tracepaper.daemon.http.monitor import Monitor
from tracepaper.replay.document.values import Pages, Table, as_parts
from tracepaper.replay.page import (
    answers,
    decisions,
    derivations,
    documents,
    lists,
    marks,
    records,
    rollups,
    runs,
)
from tracepaper.replay.page.databases import Databases, HttpRefusal, OpenRun
from tracepaper.replay.page.routes import ROUTES, match
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.report import build_report
from tracepaper.storage.database.lock import InstanceLock
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import without_zeros


class StopEveryTenBars(Strategy):
    """Enters every ten bars, with a stop."""

    warmup = 10

    def __init__(self) -> None:
        self._bars = 0

    def decide(self, _context: BarContext) -> Signal:
        """Go in or out."""
        self._bars += 1
        action = Action.LONG if self._bars // 10 % 2 else Action.FLAT
        return Signal(action, "now", stop=Percent(1) if action is Action.LONG else None)


@pytest.fixture(scope="module")
def rested(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    """Replay the strategy with stops."""
    named = f'"{__name__}:{StopEveryTenBars.__name__}"\n[sizing]'
    config = re.sub(r'"sma_cross".*?\[sizing\]', named, cross(), flags=re.DOTALL)
    return shown_of(replayed(tmp_path_factory.mktemp("rested"), config, "--data", BTC))


def test_a_run_says_what_its_views_say(run: OpenRun) -> None:
    answer = runs.run(run)
    (last,) = run.views.rows("v_equity", newest=1)
    assert answer.row.decisions == run.views.count("v_decisions")
    assert answer.row.equity == answer.accounts[0].equity == last["equity"]
    (held,) = run.views.rows("v_positions", newest=1)
    assert float(answer.holdings[0].quantity_text) == abs(held["quantity"])
    refused = dict(run.views.counts("v_decisions", "refused_by"))
    assert {gate.gate: gate.refused for gate in answer.gates if gate.refused} == refused
    assert answer.warm_sequence is not None
    (warmed,) = run.views.rows("v_decisions", sequence=answer.warm_sequence)
    assert warmed["refused_by"] != "warm"


def test_candles_of_every_length_hold_the_same_bars(run: OpenRun) -> None:
    name = next(iter(run.columns.instruments))
    whole = runs.candles(run, name, None, None, 20_000)
    assert whole.interval_ms == 60_000
    wide = runs.candles(run, name, None, None, 60)
    assert len(wide.open) <= 60
    assert max(wide.high) == max(whole.high)
    assert min(wide.low) == min(whole.low)
    assert wide.close[-1] == whole.close[-1]
    assert sum(wide.volume) == pytest.approx(sum(whole.volume))
    assert all(at % wide.interval_ms == 0 for at in wide.open_time_ms)


def test_cells_count_each_failed_gate_once(run: OpenRun) -> None:
    name = next(iter(run.columns.instruments))
    candles = runs.candles(run, name, None, None, 60)
    for gate, counts in candles.failed.items():
        assert sum(counts) == run.views.count("v_gates", gate=gate, passed=0), gate
    spare = runs.candles(run, name, None, None, 20_000).spare
    for gate in ("plausible", "late"):  # of a late one only what is unusual is stored
        row = run.views.rows("v_gates", gate=gate)[-1]
        share = (row["threshold"] - row["measure"]) / row["threshold"]
        assert spare[gate][-1] == pytest.approx(share), gate


def test_a_range_is_the_part_of_the_whole(run: OpenRun) -> None:
    name = next(iter(run.columns.instruments))
    whole = runs.candles(run, name, None, None, 20_000)
    low, high = whole.open_time_ms[100], whole.open_time_ms[200]
    part = runs.candles(run, name, low, high, 20_000)
    assert part.open_time_ms == whole.open_time_ms[100:200]
    assert part.sequence == whole.sequence[100:200]


def test_equity_ends_where_the_account_does(run: OpenRun) -> None:
    curves = runs.equity(run, None, None, 50)
    (last,) = run.views.rows("v_equity", newest=1)
    assert curves.equity["this run"][-1] == last["equity"]
    assert all(len(curve) == len(curves.time_ms) for curve in curves.equity.values())


def test_every_fill_is_marked_with_its_decision(run: OpenRun) -> None:
    marked = marks.marks(run, None, None)
    rows = run.views.rows("v_fills")
    assert [fill.order_id for fill in marked.fills] == [row["order_id"] for row in rows]
    assert not marked.is_cut


def test_an_old_range_has_its_fills_and_each_list_its_own_bound(
    run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = marks.marks(run, None, None).fills
    monkeypatch.setattr(marks, "MARKS_MAX", len(every) // 4)
    until_ms = every[3].filled_ms + 1
    marked = marks.marks(run, None, until_ms)
    assert marked.fills == every[:4]
    assert not marked.is_cut
    newest = marks.marks(run, None, None)
    assert newest.fills == every[-(len(every) // 4) :]
    assert newest.is_cut


def test_orders_that_rested_are_those_of_the_views(rested: OpenRun) -> None:
    rows = [
        row
        for row in rested.views.rows("v_orders")
        if row["limit_price"] is not None or row["trigger_price"] is not None
    ]
    assert rows
    marked = marks.marks(rested, None, None)
    assert [order.order_id for order in marked.orders] == [row["order_id"] for row in rows]
    middle = rows[len(rows) // 2]["created_ms"]
    before = [row["order_id"] for row in rows if row["created_ms"] < middle]
    assert [order.order_id for order in marks.marks(rested, None, middle).orders] == before


def test_the_account_is_a_document_whose_curves_end_at_its_figures(run: OpenRun) -> None:
    parts = as_parts(documents.account(run).parts)
    accounts = runs.accounts(run)
    table, chart = (
        next(part for part in parts if part["kind"] == kind) for kind in ("table", "chart")
    )
    assert [row[0] for row in table["rows"]] == [of.title for of in accounts]
    layers = {layer["name"]: layer for layer in chart["panels"][0]["layers"]}
    for of in accounts:
        assert layers[of.title]["y"][-1] == pytest.approx(100 * of.total_return, abs=1e-3)
    lost = chart["panels"][-2]["layers"][-1]
    equity = np.array(runs.equity(run, None, None, 20_000).equity["this run"])
    worst = (1 - equity / np.maximum.accumulate(equity)).max()
    assert -min(lost["y"]) >= 100 * worst - 1e-3


def test_a_symbol_has_its_own_marks(pair_database: Path) -> None:
    run = shown_of(pair_database)
    every = marks.marks(run, None, None).fills
    for name in run.columns.instruments:
        fills = marks.marks(run, None, None, name).fills
        assert fills == [fill for fill in every if fill.instrument == name] != every
    query = {"instrument": "linear:NONE"}
    call = match(f"/runs/{run.run_id}/marks", query)
    with pytest.raises(HttpRefusal, match="no such instrument"):
        call.respond(Databases([pair_database]), lambda *_: None)


def test_a_decision_says_its_gates_and_its_way_to_the_fill(run: OpenRun) -> None:
    fill = run.views.rows("v_fills")[0]
    card = decisions.decision(run, fill["decision_sequence"])
    way, gates = (next(part for part in card.parts if part.get("look") == look)
                  for look in ("timeline", "gauges"))  # fmt: skip
    assert f"at {Decimal(fill['price_text']):,}" in way["rows"][1][1]
    assert card.title.startswith(("Bought", "Sold"))
    rows = run.views.rows("v_gates", sequence=card.sequence)
    assert [row[:2] for row in gates["rows"]] == [
        [row["gate"], measured(row["gate"], row["measure"])] for row in rows
    ]
    assert card.following is not None
    assert decisions.decision(run, card.following).previous == card.sequence


def test_a_cold_decision_says_how_many_bars_it_lacks(run: OpenRun) -> None:
    first = runs.run(run).first_sequence
    assert first is not None
    card = decisions.decision(run, first)
    assert card.title.startswith("Warming up: ")
    assert "It needs " in card.parts[0]["text"]


def test_a_bar_is_found_by_when_it_opened_among_those_of_other_symbols(pair_database: Path) -> None:
    run = shown_of(pair_database)
    for name in run.columns.instruments:
        rows = run.views.rows("v_bars", instrument=name)
        for row in (rows[0], rows[700], rows[-1]):
            assert run.columns.sequence_at(name, row["open_time_ms"]) == row["sequence"]
        for absent in (rows[0]["open_time_ms"] - 1, rows[5]["open_time_ms"] + 1, 2**50):
            assert run.columns.sequence_at(name, absent) is None


def test_each_account_is_measured_from_its_own_beginning(run: OpenRun) -> None:
    for account in runs.run(run).accounts:
        if account.name != "this run":
            first, *_ = run.views.rows("v_shadow_equity", shadow=account.name)
            assert account.total_return == pytest.approx(account.equity / first["equity"] - 1)


def page_of(run: OpenRun, view: str, filters: dict[str, str], **page: Any) -> tuple[Table, Pages]:
    table = records.view_table(run, view, filters, records.RowsPage(**page))
    return table, present(table.pages)


def test_rows_are_filtered_sorted_and_paged(run: OpenRun) -> None:
    first, pages = page_of(run, "decisions", {"allowed": "0"}, limit=10)
    refused = [row["sequence"] for row in run.views.rows("v_decisions", allowed=0)]
    assert pages.total == len(refused)
    assert pages.before is None
    more, after = page_of(run, "decisions", {"allowed": "0"}, limit=10, after=int(pages.after or 0))
    assert [row[0] for row in (*first.rows, *more.rows)] == refused[:20]
    assert after.before == "0"
    _, whole = page_of(run, "fills", {}, limit=1_000)
    assert whole.after is None
    last, pages = page_of(run, "fills", {}, limit=whole.total)
    assert (len(last.rows), pages.after) == (whole.total, None)  # a page that is just full
    dear, _ = page_of(run, "fills", {}, limit=3, sort="price", descending=True)
    stored = sorted(run.views.rows("v_fills"), key=lambda row: -row["price"])[:3]
    assert [(row["decision_sequence"], row["price"]) for row in dear.records()] == [
        (row["decision_sequence"], f"{Decimal(without_zeros(row['price_text'])):,}")
        for row in stored
    ]
    (part,) = as_parts([dear])
    texts = {cell["text"] for row in part["rows"] for cell in row if isinstance(cell, dict)}
    assert texts >= {f"{row['fee']:,.2f}" for row in stored}  # to the cent
    exact, _ = page_of(run, "fills", {}, limit=3, sort="price", descending=True, exact=True)
    fees = [str(row["fee"]).replace("\N{MINUS SIGN}", "-") for row in exact.records()]
    assert [Decimal(fee) for fee in fees] == [Decimal(row["fee_text"]) for row in stored]
    for view, filters in (("nope", {}), ("fills", {"x": "1"}), ("fills", {"price": "much"})):
        with pytest.raises(HttpRefusal):
            page_of(run, view, filters, limit=10)


def test_the_report_is_the_document_that_the_command_writes(run: OpenRun) -> None:
    answer = match(f"/runs/{run.run_id}/report", {}).respond(
        Databases([run.database]), lambda *_: None
    )
    assert isinstance(answer, answers.Document)
    document = report_document(build_report(run.database, run.run_id))
    assert (answer.title, answer.parts) == (document.title, as_parts(document.parts))
    assert {part["kind"] for part in answer.parts} >= {"paragraph", "table", "chart", "fold"}
    assert len(msgspec.json.encode(answer)) < 2_000_000


def test_progress_of_a_whole_run_is_the_share_of_its_steps(run: OpenRun) -> None:
    calls: list[tuple[float, str]] = []
    verification = derivations.verify(run, lambda share, doing: calls.append((share, doing)))
    assert verification.identical == verification.decisions > 0
    shares = [share for share, _ in calls]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 5
    assert shares[-1] <= 1
    assert re.fullmatch(r"[\d,]+ of [\d,]+ steps derived again", calls[-1][1])


def test_a_limit_that_refuses_alone_halts_nothing(tmp_path: Path) -> None:
    limit = '[risk]\nmax_drawdown = "0.0005"\nmax_daily_trades = 400\non_breach = "refuse"\n'
    run = shown_of(replayed(tmp_path, cross(fee="0.001") + limit, "--data", BTC))
    answer = runs.run(run)
    assert answer.halt == ""
    movable = {gate.key: gate.is_count for gate in answer.gates if gate.key}
    assert movable == {"risk.max_drawdown": False, "risk.max_daily_trades": True}
    assert answer.fees == {"taker_fee": 0.001, "maker_fee": 0.0002}
    assert "run, ended;" in records.health(run).title


def test_the_model_says_again_what_explain_full_says(tmp_path: Path) -> None:
    until = ("--to", "2025-05-31T08:00:00Z")
    run = shown_of(replayed(tmp_path, STRICT, "--data", SAMPLE, *until))
    sequence = run.columns.span[1]
    while not run.views.rows("v_explanations", sequence=sequence):
        sequence -= 1
    progress: list[float] = []
    answer = derivations.ask(run, sequence, lambda share, _doing: progress.append(share))
    assert progress == sorted(set(progress))
    assert len(progress) >= 4
    features, whole = as_parts(answer.parts)
    tables = {part["key"]: part["rows"] for part in whole["parts"] if part["kind"] == "table"}
    assert {"bars", "moved_by_feature", "deletion"} <= tables.keys()
    # Of an ensemble the network has the mean.
    moved = {name: cell["sort"] for name, *_, cell, _ in tables["moved_by_feature"]}
    assert {name: cell["sort"] for name, cell in features["rows"][: len(moved)]} == moved


def test_refusals_by_day_are_all_refusals(run: OpenRun) -> None:
    _, days, _, refused = as_parts(records.refusals(run).parts)
    counted = sum(map(sum, days["panels"][0]["layers"][0]["rows"]))
    assert counted == run.views.count("v_decisions", allowed=0)
    assert refused in as_parts(derivations.report_of(run).parts)


def test_a_rollup_is_what_the_bars_say_and_is_made_anew_where_it_is_damaged(
    cross_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "run.db"
    with sqlite3.connect(cross_database) as source, sqlite3.connect(database) as two:
        source.backup(two)
    name, plain = next(iter(shown_of(database).columns.instruments)), shown_of(database)
    due = plain.rollups.cells(name, None, None, 60)
    monkeypatch.setattr(rollups, "SHORT_BARS", 100)
    run = shown_of(database)
    run.rollups.build()
    assert run.rollups.path.exists()

    def same(cells: tuple[int, rollups.Block]) -> bool:
        assert cells[0] == due[0]
        return all(np.allclose(cells[1][key], due[1][key], 1e-12, equal_nan=True) for key in due[1])

    assert same(run.rollups.cells(name, None, None, 60))
    monkeypatch.setattr(rollups, "DIRECT_BARS", 100)
    run.rollups.path.unlink()
    damaged = shown_of(database)
    for group in (name, rollups.ACCOUNTS):  # the later is written down as well
        damaged.rollups.cells(group, None, None, 60)
    shown_of(database, builds=False).rollups.cells(rollups.ACCOUNTS, None, None, 60)
    assert same(shown_of(database, builds=False).rollups.cells(name, None, None, 60))
    for damage in (b"", b"PK\x03\x04no", run.rollups.path.read_bytes()[:-50]):
        run.rollups.path.write_bytes(damage)
        with pytest.raises(rollups.RollupMissing):
            shown_of(database, builds=False).rollups.cells(name, None, None, 60)
    assert same(shown_of(database).rollups.cells(name, None, None, 60))


def test_a_copy_of_a_database_is_named_and_its_run_listed_once(
    cross_database: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(cross_database)) as source, closing(sqlite3.connect(copy)) as two:
        source.backup(two)
    listed = runs.runs(Databases([copy, cross_database]))
    (row,) = listed.runs
    assert row.database == "copy.db"
    (refused,) = listed.refused
    assert refused.database == cross_database.name
    assert refused.error == f"Run {row.run_id} is shown from copy.db; name this file alone."


def unusual_run(state: str, folder: Path) -> Path:
    """Write a run that is halted, damaged or without a bar; return its database."""
    database = folder / "run.db"
    match state:
        case "halted by risk.drawdown":
            limit = '[risk]\nmax_drawdown = "0.0005"\n'
            replayed(folder, cross() + limit, "--data", BTC)
        case "damaged":
            write_run(database, plain_steps(40))
            tamper(database, "DELETE FROM steps WHERE sequence = 30")
        case _:
            write_run(database, [undecided(0, other_events()[0])])
    return database


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("halted by risk.drawdown", "This run is halted by risk.drawdown since "),
        ("damaged", "The row of run r-1 counts 40 steps and 39 are stored"),
        ("no bar yet", "No bar was decided yet"),
    ],
)
def test_what_is_unusual_of_a_run_begins_each_of_its_documents(
    tmp_path: Path, state: str, sentence: str
) -> None:
    databases = Databases([unusual_run(state, tmp_path)])
    table = lists.runs_document(runs.runs(databases)).parts[0]
    assert isinstance(table, Table)
    assert table.rows[0][1] == f"replay, {state}"
    run = shown_of(*databases.paths).run_id
    said = 0
    for route in ROUTES:
        if route.answer is not answers.Document or route.places != ["run"] or route.is_within:
            continue
        call = match(route.path.format(run=run), {})
        if state == "no bar yet" and route.path.endswith("/report"):  # as its command says
            with pytest.raises(TracepaperError, match="has decided no bar yet"):
                call.respond(databases, lambda *_: None)
            continue
        document = call.respond(databases, lambda *_: None)
        assert isinstance(document, answers.Document)
        assert document.parts[0]["text"].startswith(sentence), route.path
        assert sum(part.get("text") == document.parts[0]["text"] for part in document.parts) == 1
        said += 1
        for part in document.parts:
            if part["kind"] == "table":
                assert part["rows"] or part["notes"], (route.path, part["key"])
            assert part["kind"] != "chart" or any(panel["layers"] for panel in part["panels"])
        if route.path.endswith("/account"):  # a list that is empty is named
            texts = " ".join(part.get("text", "") for part in document.parts).lower()
            assert all(name in texts for name in records.LISTS)
    assert said == 6 - (state == "no bar yet")
    (listed,) = as_parts([page_of(databases.find(run), "fills", {})[0]])
    assert listed["rows"] or listed["notes"]
    title = records.health(databases.find(run)).title
    assert (state in title) is state.startswith("halted")


def test_of_the_runs_of_a_file_that_is_held_the_newest_is_running(
    cross_database: Path, tmp_path: Path
) -> None:
    database = tmp_path / "run.db"
    shutil.copy(cross_database, database)
    older = shown_of(database).run_id
    replayed(tmp_path, cross(quantity="2"), "--data", BTC)
    newer = shown_of(database).run_id
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM events WHERE kind = 'end'")
    databases = Databases([database])
    lock = InstanceLock.acquire(database)
    try:
        titles = [records.health(databases.find(run_id)).title for run_id in (older, newer)]
        assert ["run, killed;" in titles[0], "run, running;" in titles[1]] == [True, True]
        assert "run, running;" in records.health(databases.find(older), older).title
    finally:
        lock.release()


EARLY = """
from tracepaper import Action, Signal, Strategy
class Early(Strategy):
    warmup = 1
    notes = 0
    def decide(self, context):
        self.notes += 1
        return Signal(Action.HOLD, "none", note={"early": 1.5} if self.notes < 9 else None)
"""


def test_what_was_noted_early_alone_is_listed(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(EARLY)
    config = '[strategy]\nname = "noting:Early"\n'
    with importable(tmp_path):
        path = replayed(tmp_path, config, "--data", BTC, "--to", "2025-05-27T18:00")
    assert [note.name for note in runs.run(shown_of(path)).notes] == ["early"]


def test_what_is_counted_since_this_start_stands_beside_the_whole_run(run: OpenRun) -> None:
    monitor = Monitor(run=run.columns.run, clock=ManualClock(1_746_100_800_000))
    (fills,) = run.reader.connection.execute("SELECT count(*) FROM v_fills").fetchone()
    assert fills > 0
    texts = [
        part.text
        for part in records.health(run, status=monitor.status()).parts
        if hasattr(part, "text")
    ]
    assert (
        "Since this start at 2025-05-01 12:00 UTC: 0 bars decided, 0 warm-up bars, 0 fills. "
        f"The whole run: {fills} fills."
    ) in texts


def test_a_refusal_by_warm_is_the_last_refusal_of_a_run_that_was_refused_by_nothing_else(
    run: OpenRun,
) -> None:
    query = "SELECT max(sequence) FROM v_decisions WHERE refused_by = 'warm'"
    (last,) = run.reader.connection.execute(query).fetchone()
    refused = runs.run(run).last_refusal
    assert refused is not None
    assert (refused.sequence, refused.gate, refused.missed) == (last, "warm", "")
