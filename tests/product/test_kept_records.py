"""Several strategies and hedge mode, what is done to their records: pruned, copied, shipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hedged_cases
import pytest
from builders import START_MS
from fed_daemon import MINUTE, Process
from fleet_cases import assert_same, of_command
from postgres_server import Cluster
from records import check_record, rows
from several_strategies import DRAWN, TOLD, configured

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.resume import recorded_reach
from tracepaper.storage import maintenance
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.fleet.follow import ship_once
from tracepaper.storage.fleet.pull import pull
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Event, Quote

KINDS = ("several", "hedged")
DAY = 20
"""Minutes of what a prune takes for a day here."""
BEFORE = 250
"""Events before the daemon is stopped behind a bar: a start forgets the newest prices."""
EXECUTION = FillModel.QUOTE


def config_of(kind: str) -> Config:
    execution: dict[str, Any] = {"fill_within_ms": 60_000}
    if kind == "hedged":
        made = hedged_cases.configured({"seed": 1}, execution=execution)
    else:
        options = (
            {"seed": 1},
            {"seed": 2, "fails_at": START_MS // MINUTE % 1_000 + 30},
            {"seed": 3},
        )
        made = configured(of=(TOLD, DRAWN, TOLD), options=options, execution=execution)
    return resolved(made, EXECUTION)


def given(kind: str) -> list[Event]:
    """Return bars, a quote before each close, settlements and mark prices.

    In hedge mode some of these liquidate.
    """
    walked = hedged_cases.walk(1, 130, quotes=True, shocks=kind == "hedged")
    return [
        event
        for event in walked
        if not isinstance(event, Quote) or event.market_ms % MINUTE > MINUTE // 2
    ]


@pytest.fixture(scope="module", autouse=True)
def short_days() -> Iterator[None]:
    """Let runs of minutes be pruned: none of them looks back on a day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "range_bars_of", lambda _engine, _key: 1)
        patch.setattr(maintenance, "DAY_MS", DAY * MINUTE)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the database of a daemon of each kind that was stopped, with events left to come."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind) / "a.db"
        process = Process(made[kind], config_of(kind), EXECUTION)
        process.live(given(kind)[:BEFORE])
        process.stop()
        assert sum(len(step.fills) for step in process.steps) > 20
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prune(path: Path, keep_days: int = 1) -> maintenance.Pruning:
    reach = partial(recorded_reach, path)
    return maintenance.prune(path, keep_days=keep_days, pruned_at_ms=5, reach=reach)[-1]


def essence(steps: list[Step]) -> list[Any]:
    """Return all of a run that a prune must not change: everything but ids."""
    return [
        (
            step.decision, step.strategies, step.position, step.account,
            [(o.side, o.position_side, o.quantity, o.filled, o.status, o.tag) for o in step.orders],
            [(f.side, f.position_side, f.quantity, f.price, f.fee) for f in step.fills],
            [(t.twin, t.position, t.account, t.confirmed) for t in step.twins],
        )
        for step in steps
        if type(step.event).__name__ in {"Bar", "Quote", "Funding", "Mark"}
    ]  # fmt: skip


def test_what_a_prune_keeps_is_derived_and_the_run_goes_on_as_if_it_had_kept_all(
    recorded: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    whole, path = (Path(shutil.copy(recorded[kind], tmp_path / name)) for name in ("a.db", "b.db"))
    assert prune(path).steps > DAY
    ((until,),) = rows(path, "SELECT until_sequence FROM prunes")
    for view in ("v_bars", "v_strategy_decisions", "v_positions", "v_twin_equity"):
        kept = f"WHERE sequence > {until} AND sequence < {BEFORE}"
        query = f"SELECT * FROM {view} {kept} ORDER BY 2, 3, 6"
        assert rows(path, query) == rows(whole, query)
    for view in ("v_orders", "v_fills", "v_twin_fills"):
        query = f"SELECT * FROM {view} ORDER BY sequence, order_id, 3, 4"
        assert rows(path, query) == rows(whole, query)
    since = "(SELECT min(f.sequence) FROM v_fills f WHERE f.filled_ms = t.opened_ms)"
    trades = f"SELECT {{}}, {since} FROM v_trades t ORDER BY sequence, ordinal"
    earned = trades.format("run_id, sequence, ordinal, side, quantity, net, entry_sequence")
    assert rows(path, earned) == rows(whole, earned)
    held = trades.format("bars_held")
    assert rows(path, held) == [
        (None if opened <= until else bars, opened) for bars, opened in rows(whole, held)
    ]
    assert check_record(path) >= DAY
    never = Process(tmp_path / "never.db", config_of(kind), EXECUTION)
    never.live(given(kind))
    expected = essence(never.steps)[BEFORE:]
    for database in (whole, path):
        process = Process(database, config_of(kind), EXECUTION)
        assert process.opened.resumed
        process.live(given(kind)[BEFORE:])
        process.stop()
        assert essence(process.steps) == expected
        check_record(database)
    assert prune(path).steps > DAY
    assert check_record(path) >= DAY


def test_what_is_shipped_is_the_record(
    recorded: dict[str, Path],
    kind: str,
    tmp_path: Path,
    postgres: Cluster,
    fleet_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, back = Path(shutil.copy(recorded[kind], tmp_path / "a.db")), tmp_path / "b.db"
    ship_once(path, fleet_url)
    pull(fleet_url, back)
    assert_same(path, back)
    check_record(back)
    for view in VIEWS:
        query = f"SELECT * FROM {view.name}"
        assert rows(back, query) == rows(path, query)
    held = (
        "SELECT sequence, side, instrument, quantity_text, equity_text, liquidation_price_text "
        "FROM v_positions ORDER BY sequence, side"
    )
    assert postgres.sql(fleet_url, held) == rows(path, held)
    newest = "WHERE sequence = (SELECT max(sequence) FROM v_positions) AND quantity <> 0"
    (run,) = of_command(fleet_url, capsys)
    assert [one["quantity"] for one in run["positions"]] == [
        quantity
        for (quantity,) in rows(
            path, f"SELECT quantity_text FROM v_positions {newest} ORDER BY side"
        )
    ]
    assert prune(path).steps > DAY
    ship_once(path, fleet_url)
    pull(fleet_url, tmp_path / "pruned.db")
    assert_same(path, tmp_path / "pruned.db")
    assert check_record(tmp_path / "pruned.db") >= DAY
