"""What the interface answers about recorded runs, beside the views that say the same."""

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
from own_strategies import importable
from page_cases import shown_of
from report_cases import BTC, SAMPLE, STRICT, cross, replayed

from tracepaper.replay.document.values import as_parts
from tracepaper.replay.explain.decision import margin_text
from tracepaper.replay.page import (
    answers,
    decisions,
    derivations,
    documents,
    marks,
    records,
    rollups,
    runs,
)
from tracepaper.replay.page.databases import Databases, HttpRefusal, ShownRun
from tracepaper.replay.page.routes import RowParameters, match
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.report import build_report
from tracepaper.storage.database.lock import InstanceLock
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.types.decisions import Action


class Stopping(Strategy):
    """Goes in every ten bars, with a stop beside it."""

    warmup = 10

    def __init__(self, _options: dict[str, Any]) -> None:
        self._bars = 0

    def decide(self, _context: BarContext) -> Signal:
        """Go in or out."""
        self._bars += 1
        action = Action.LONG if self._bars // 10 % 2 else Action.FLAT
        return Signal(action, "now", stop=Percent(1) if action is Action.LONG else None)


@pytest.fixture(scope="module")
def rested(tmp_path_factory: pytest.TempPathFactory) -> ShownRun:
    """Replay the strategy with stops."""
    named = f'"{__name__}:{Stopping.__name__}"\n[sizing]'
    config = re.sub(r'"sma_cross".*?\[sizing\]', named, cross(), flags=re.DOTALL)
    return shown_of(replayed(tmp_path_factory.mktemp("rested"), config, "--data", BTC))


def test_a_run_says_what_its_views_say(shown: ShownRun) -> None:
    found = runs.run(shown)
    (last,) = shown.views.rows("v_equity", newest=1)
    assert found.row.decisions == shown.views.count("v_decisions")
    assert found.row.equity == found.accounts[0].equity == last["equity"]
    (held,) = shown.views.rows("v_positions", newest=1)
    assert float(found.holdings[0].quantity_text) == abs(held["quantity"])
    refused = dict(shown.views.counts("v_decisions", "refused_by"))
    assert {gate.gate: gate.refused for gate in found.gates if gate.refused} == refused
    assert found.warm_sequence is not None
    (warmed,) = shown.views.rows("v_decisions", sequence=found.warm_sequence)
    assert warmed["refused_by"] != "warm"


def test_candles_of_every_length_hold_the_same_bars(shown: ShownRun) -> None:
    name = next(iter(shown.columns.instruments))
    whole = runs.candles(shown, name, None, None, 20_000)
    assert whole.interval_ms == 60_000
    wide = runs.candles(shown, name, None, None, 60)
    assert len(wide.open) <= 60
    assert max(wide.high) == max(whole.high)
    assert min(wide.low) == min(whole.low)
    assert wide.close[-1] == whole.close[-1]
    assert sum(wide.volume) == pytest.approx(sum(whole.volume))
    assert all(at % wide.interval_ms == 0 for at in wide.open_time_ms)


def test_series_count_each_failed_gate_once(shown: ShownRun) -> None:
    name = next(iter(shown.columns.instruments))
    found = runs.series(shown, name, None, None, 60)
    for gate, counts in found.failed.items():
        assert sum(counts) == shown.views.count("v_gates", gate=gate, passed=0), gate
    spare = runs.series(shown, name, None, None, 20_000).spare["plausible"]
    row = shown.views.rows("v_gates", gate="plausible")[-1]
    assert spare[-1] == pytest.approx((row["threshold"] - row["measure"]) / row["threshold"])


def test_a_range_is_the_part_of_the_whole(shown: ShownRun) -> None:
    name = next(iter(shown.columns.instruments))
    whole = runs.candles(shown, name, None, None, 20_000)
    low, high = whole.open_time_ms[100], whole.open_time_ms[200]
    part = runs.candles(shown, name, low, high, 20_000)
    assert part.open_time_ms == whole.open_time_ms[100:200]
    assert part.sequence == whole.sequence[100:200]


def test_equity_ends_where_the_account_does(shown: ShownRun) -> None:
    found = runs.equity(shown, None, None, 50)
    (last,) = shown.views.rows("v_equity", newest=1)
    assert found.equity["this run"][-1] == last["equity"]
    assert "buy_and_hold" in found.equity
    assert all(len(one) == len(found.time_ms) for one in found.equity.values())


def test_every_fill_is_marked_with_its_decision(shown: ShownRun) -> None:
    found = marks.marks(shown, None, None)
    rows = shown.views.rows("v_fills")
    assert [one.order_id for one in found.fills] == [row["order_id"] for row in rows]
    assert not found.is_cut


def test_an_old_range_has_its_fills_and_each_list_its_own_bound(
    shown: ShownRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = marks.marks(shown, None, None).fills
    monkeypatch.setattr(marks, "MARKS_MAX", len(every) // 4)
    until_ms = every[3].filled_ms + 1
    found = marks.marks(shown, None, until_ms)
    assert found.fills == every[:4]
    assert not found.is_cut
    newest = marks.marks(shown, None, None)
    assert newest.fills == every[-(len(every) // 4) :]
    assert newest.is_cut


def test_orders_that_rested_are_those_of_the_views(rested: ShownRun) -> None:
    rows = [
        row
        for row in rested.views.rows("v_orders")
        if row["limit_price"] is not None or row["trigger_price"] is not None
    ]
    assert rows
    found = marks.marks(rested, None, None)
    assert [one.order_id for one in found.orders] == [row["order_id"] for row in rows]
    middle = rows[len(rows) // 2]["created_ms"]
    before = [row["order_id"] for row in rows if row["created_ms"] < middle]
    assert [one.order_id for one in marks.marks(rested, None, middle).orders] == before


def test_the_account_is_a_document_whose_curves_end_at_its_figures(shown: ShownRun) -> None:
    parts = as_parts(documents.account(shown).parts)
    accounts = runs.accounts(shown)
    table, chart = (
        next(part for part in parts if part["kind"] == kind) for kind in ("table", "chart")
    )
    assert [row[0] for row in table["rows"]] == [of.title for of in accounts]
    layers = {layer["name"]: layer for layer in chart["panels"][0]["layers"]}
    for of in accounts:
        assert layers[of.title]["y"][-1] == pytest.approx(100 * of.total_return, abs=1e-3)
    lost = chart["panels"][-2]["layers"][-1]
    equity = np.array(runs.equity(shown, None, None, 20_000).equity["this run"])
    worst = (1 - equity / np.maximum.accumulate(equity)).max()
    assert -min(lost["y"]) >= 100 * worst - 1e-3


def test_a_symbol_has_its_own_marks(pair_database: Path) -> None:
    shown = shown_of(pair_database)
    every = marks.marks(shown, None, None).fills
    for name in shown.columns.instruments:
        own = marks.marks(shown, None, None, name).fills
        assert own == [one for one in every if one.instrument == name] != every
    asked = {"instrument": "linear:NONE"}
    call = match(f"/runs/{shown.run_id}/marks", asked)
    with pytest.raises(HttpRefusal, match="no such instrument"):
        call.respond(Databases([pair_database]), lambda *_: None)


def test_a_decision_says_its_gates_and_its_way_to_the_fill(shown: ShownRun) -> None:
    fill = shown.views.rows("v_fills")[0]
    found = decisions.decision(shown, fill["decision_sequence"])
    way, gates = (next(part for part in found.parts if part.get("look") == look)
                  for look in ("timeline", "gauges"))  # fmt: skip
    assert f"at {Decimal(fill['price_text']):,}" in way["rows"][1][1]
    assert found.title.startswith(("Bought", "Sold"))
    rows = shown.views.rows("v_gates", sequence=found.sequence)
    assert [row[:2] for row in gates["rows"]] == [
        [row["gate"], measured(row["gate"], row["measure"])] for row in rows
    ]
    assert found.following is not None
    assert decisions.decision(shown, found.following).previous == found.sequence


def test_a_cold_decision_says_how_many_bars_it_lacks(shown: ShownRun) -> None:
    first = runs.run(shown).first_sequence
    assert first is not None
    found = decisions.decision(shown, first)
    assert found.title.startswith("Warming up: ")
    assert "It needs " in found.parts[0]["text"]


@pytest.mark.parametrize(
    ("margin", "said"),
    [(0.00094, ".00094"), (0.0153, ".015"), (0.5, ".50"), (1.234, "1.23"), (-0.00094, ".00094")],
)
def test_margins_have_no_leading_zero(margin: float, said: str) -> None:
    assert margin_text("shifted", margin) == said


def test_a_bar_is_found_by_when_it_opened_among_those_of_other_symbols(pair_database: Path) -> None:
    shown = shown_of(pair_database)
    for name in shown.columns.instruments:
        rows = shown.views.rows("v_bars", instrument=name)
        for row in (rows[0], rows[700], rows[-1]):
            assert shown.columns.sequence_at(name, row["open_time_ms"]) == row["sequence"]
        for absent in (rows[0]["open_time_ms"] - 1, rows[5]["open_time_ms"] + 1, 2**50):
            assert shown.columns.sequence_at(name, absent) is None


def test_each_account_is_measured_from_its_own_beginning(shown: ShownRun) -> None:
    for account in runs.run(shown).accounts:
        if account.is_stored and account.name != "this run":
            first, *_ = shown.views.rows("v_twin_equity", twin=account.name)
            assert account.total_return == pytest.approx(account.equity / first["equity"] - 1)


def test_rows_are_filtered_sorted_and_paged(shown: ShownRun) -> None:
    found = records.rows(shown, "decisions", {"allowed": "0"}, RowParameters(limit=10))
    assert found.total == shown.views.count("v_decisions", allowed=0)
    after = RowParameters(limit=10, after=found.next)
    more = records.rows(shown, "decisions", {"allowed": "0"}, after)
    assert more.rows[0][1] > found.rows[-1][1]
    whole = records.rows(shown, "fills", {}, RowParameters(limit=1_000))
    assert whole.next is None
    last = records.rows(shown, "fills", {}, RowParameters(limit=whole.total))
    assert (len(last.rows), last.next) == (whole.total, None)  # a page that is just full
    for view, filters in (("nope", {}), ("fills", {"x": "1"}), ("fills", {"price": "much"})):
        with pytest.raises(HttpRefusal):
            records.rows(shown, view, filters, RowParameters(limit=10))


def test_the_report_is_the_document_that_the_command_writes(shown: ShownRun) -> None:
    answer = match(f"/runs/{shown.run_id}/report", {}).respond(
        Databases([shown.database]), lambda *_: None
    )
    assert isinstance(answer, answers.Document)
    document = report_document(build_report(shown.database, shown.run_id))
    assert (answer.title, answer.parts) == (document.title, as_parts(document.parts))
    assert {part["kind"] for part in answer.parts} >= {"paragraph", "table", "chart", "fold"}
    assert len(msgspec.json.encode(answer)) < 2_000_000


def test_progress_of_a_whole_run_is_the_share_of_its_steps(shown: ShownRun) -> None:
    told: list[tuple[float, str]] = []
    found = derivations.verify(shown, lambda share, doing: told.append((share, doing)))
    assert found.identical == found.decisions > 0
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 5
    assert shares[-1] <= 1
    assert re.fullmatch(r"[\d,]+ of [\d,]+ steps derived again", told[-1][1])


@pytest.mark.parametrize(("on_breach", "by"), [("halt", "risk.drawdown"), ("refuse", None)])
def test_a_limit_that_halts_the_run_is_named(
    tmp_path: Path, on_breach: str, by: str | None
) -> None:
    limit = f'[risk]\nmax_drawdown = "0.0005"\non_breach = "{on_breach}"\n'
    found = shown_of(replayed(tmp_path, cross() + limit, "--data", BTC))
    held = runs.run(found).halt
    assert (None if held is None else held.by) == records.health(found).halted_by == by


def test_the_model_says_again_what_each_feature_added_and_where_each_head_looked(
    tmp_path: Path,
) -> None:
    until = ("--to", "2025-05-31T08:00:00Z")
    found = shown_of(replayed(tmp_path, STRICT, "--data", SAMPLE, *until))
    sequence = found.columns.span[1]
    while not found.views.rows("v_explanations", sequence=sequence):
        sequence -= 1
    told: list[float] = []
    answer = derivations.ask(found, sequence, lambda share, _doing: told.append(share))
    assert told == sorted(set(told))
    assert len(told) >= 5
    features, heads = as_parts(answer.parts)
    assert features["rows"][0][1]["sort"] != 0
    blocks = decisions.decision(found, sequence).looked
    ((layer,),) = [panel["layers"] for panel in heads["parts"][0]["panels"]]
    assert len(layer["rows"]) > 1
    for shares in layer["rows"]:
        assert len(shares) == len(blocks)
        assert sum(shares) == pytest.approx(100, abs=0.1)


def test_refusals_by_day_are_all_refusals(shown: ShownRun) -> None:
    _, days, _, refused = as_parts(records.refusals(shown).parts)
    counted = sum(map(sum, days["panels"][0]["layers"][0]["rows"]))
    assert counted == shown.views.count("v_decisions", allowed=0)
    assert refused in as_parts(derivations.report_of(shown).parts)


def test_a_rollup_is_what_the_bars_say_and_is_made_anew_where_it_is_damaged(
    cross_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "run.db"
    with sqlite3.connect(cross_database) as one, sqlite3.connect(database) as two:
        one.backup(two)
    name, plain = next(iter(shown_of(database).columns.instruments)), shown_of(database)
    due = plain.rollups.cells(name, None, None, 60)
    monkeypatch.setattr(rollups, "SHORT_BARS", 100)
    made = shown_of(database)
    made.rollups.build()
    assert made.rollups.path.exists()

    def same(found: tuple[int, rollups.Block]) -> bool:
        assert found[0] == due[0]
        return all(np.allclose(found[1][key], due[1][key], 1e-12, equal_nan=True) for key in due[1])

    assert same(made.rollups.cells(name, None, None, 60))
    monkeypatch.setattr(rollups, "DIRECT_BARS", 100)
    made.rollups.path.unlink()
    asked = shown_of(database)
    for group in (name, rollups.ACCOUNTS):  # the later is written down as well
        asked.rollups.cells(group, None, None, 60)
    shown_of(database, builds=False).rollups.cells(rollups.ACCOUNTS, None, None, 60)
    assert same(shown_of(database, builds=False).rollups.cells(name, None, None, 60))
    for damage in (b"", b"PK\x03\x04no", made.rollups.path.read_bytes()[:-50]):
        made.rollups.path.write_bytes(damage)
        with pytest.raises(rollups.RollupMissing):
            shown_of(database, builds=False).rollups.cells(name, None, None, 60)
    assert same(shown_of(database).rollups.cells(name, None, None, 60))


def test_a_copy_of_a_database_is_named_and_its_run_listed_once(
    cross_database: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(cross_database)) as one, closing(sqlite3.connect(copy)) as two:
        one.backup(two)
    found = runs.runs(Databases([copy, cross_database]))
    (row,) = found.runs
    assert row.database == "copy.db"
    (refused,) = found.refused
    assert refused.database == cross_database.name
    assert refused.error == f"Run {row.run_id} is shown from copy.db; name this file alone."


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
    shelf = Databases([database])
    lock = InstanceLock.acquire(database)
    try:
        states = [records.health(shelf.find(one)).state for one in (older, newer)]
        assert states == ["killed", "running"]
        assert records.health(shelf.find(older), older).state == "running"
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
    assert [one.name for one in runs.run(shown_of(path)).notes] == ["early"]
