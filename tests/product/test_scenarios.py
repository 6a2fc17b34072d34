"""Every law of a run, asked of every feature: a table of scenarios and laws."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import present
from forging import audited, forged, unequal
from killed_replays import killed, resumed
from recorded_strategies import Peeks
from recordings import copied, record
from records import check_record, rows, run_again
from scenarios import SCENARIOS, Scenario

from tracepaper.daemon.engine.state import decode_state
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError

LEFT_OUT = {
    "run_id",
    "entry_run_id",
    "sequence",
    "ordinal",
    "order_id",
    "digest",
    "head",
    "seen_ms",
    "seen_iso",
}
"""What tells one record from another of the same run: a start is a step too."""
VIEWS = {
    "v_bars": "market_ms",
    "v_gaps": "market_ms",
    "v_events": "market_ms",
    "v_decisions": "open_time_ms",
    "v_gates": "",
    "v_explanations": "",
    "v_notes": "open_time_ms",
    "v_orders": "",
    "v_fills": "filled_ms",
    "v_trades": "",
    "v_ledger": "market_ms",
    "v_equity": "market_ms",
    "v_positions": "market_ms",
    "v_shadow_fills": "filled_ms",
    "v_shadow_equity": "market_ms",
}
"""Views of a run, and the column of their time; without one a row belongs to a step."""


def rows_of(
    path: Path,
    *,
    from_ms: int = 0,
    until_ms: int = 2**62,
    views: Collection[str] = tuple(VIEWS),
    again: Collection[str] = (),
) -> dict[str, list[Any]]:
    """Return what *views* of a record show of a span of time, whatever step it is stored by.

    Events of the kinds *again* are left out.
    """
    kinds = ", ".join(map(repr, ("model_change", "end", *again)))
    by_view: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(path)) as database:
        for view in views:
            names = [row[1] for row in database.execute(f"PRAGMA table_info({view})")]
            kept = [
                f"v.{name}"
                for name in names
                if name not in LEFT_OUT and not name.endswith(("_sequence", "_iso"))
            ]
            time = f"v.{VIEWS[view]}" if VIEWS[view] else "e.market_ms"
            query = (
                f"SELECT {', '.join(kept)} FROM {view} v JOIN v_events e USING (run_id, sequence) "
                f"WHERE e.kind NOT IN ({kinds}) AND {time} >= {from_ms} "
                f"AND {time} < {until_ms}"
            )
            by_view[view] = sorted(database.execute(query).fetchall(), key=repr)
    return by_view


def state(path: Path) -> list[Any]:
    """Return what the newest stored state declares and owns."""
    with Reader.open(path) as reader:
        stored = present(reader.state_at(reader.find("last")))
    engine_state = decode_state(stored[0])
    lines = engine_state.account.lines
    return [
        engine_state.declared, engine_state.account.cash,
        {key: (line.holding, line.protection) for key, line in lines.items()},
    ]  # fmt: skip


def assert_same(old: Path, other: Path, views: Collection[str] = tuple(VIEWS), **span: Any) -> None:
    first, second = (rows_of(path, views=views, **span) for path in (old, other))
    for view, expected in first.items():
        assert second[view] == expected, (other.name, view)


def assert_goes_on(scenario: Scenario, path: Path, from_ms: int = 0) -> None:
    """Assert that a run that was started again is the whole run, from a time on."""
    whole, views = scenario.recorded(), set(VIEWS)
    if scenario.is_close:
        views = {"v_bars", "v_events", "v_orders", "v_fills", "v_ledger", "v_equity"}
    if from_ms:
        views -= {"v_trades"}  # which say what was before
    assert_same(whole, path, views, from_ms=from_ms, again=scenario.again)
    assert state(path) == state(whole)
    query = (
        "SELECT open_time_ms, instrument, action, refused_by, target_quantity_text, reason "
        f"FROM v_decisions WHERE open_time_ms >= {from_ms} ORDER BY 1, 2"
    )
    assert rows(path, query) == rows(whole, query)


CHEAP = pytest.mark.parametrize(
    "scenario",
    [name for name, scenario in SCENARIOS.items() if not scenario.is_dear],
    indirect=True,
)
"""Of a law that is not asked of dear scenarios."""


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return SCENARIOS[request.param]


# ---------------------------------------------------------------- the laws


def test_what_it_shows_is_derived_from_its_record(scenario: Scenario) -> None:
    path = scenario.recorded()
    for query in scenario.shows:
        assert rows(path, query)[0][0], query
    [(decisions,)] = rows(path, "SELECT count(*) FROM v_decisions")
    assert check_record(path) == decisions
    shown, judged = shown_measures(path), judged_measures(path)
    assert shown.keys() == judged.keys()
    for of, measures in judged.items():
        assert shown[of].keys() == measures.keys(), of
        for gate, measure in measures.items():
            if measure is None:
                assert shown[of][gate] is None, (of, gate)
            else:  # JSON of SQLite has fifteen digits
                assert shown[of][gate] == pytest.approx(measure, rel=1e-13, abs=0), (of, gate)


def shown_measures(path: Path) -> dict[int, dict[str, float | None]]:
    """Return the measures of each gate by step, by the view."""
    shown: dict[int, dict[str, float | None]] = {}
    for sequence, gate, measure in rows(path, "SELECT sequence, gate, measure FROM v_gates"):
        shown.setdefault(sequence, {})[gate] = measure
    return shown


def judged_measures(path: Path) -> dict[int, dict[str, float | None]]:
    """Return the same by the stored steps."""
    with Reader.open(path) as reader:
        return {
            step.sequence: dict(zip(decision.gate_set.gates, decision.measures, strict=True))
            for step in reader.steps(reader.find("last"))
            if (decision := step.decision) is not None
        }


@CHEAP
def test_any_bar_can_be_the_first_that_is_derived(scenario: Scenario) -> None:
    path = scenario.recorded()
    times = [at for (at,) in rows(path, "SELECT DISTINCT open_time_ms FROM v_decisions ORDER BY 1")]
    with Reader.open(path) as reader:
        for part in (0.1, 0.5, 0.95):
            at_ms = times[round(len(times) * part)]
            verification = verify_run(reader, path, reader.find("last"), from_ms=at_ms)
            assert verification.passes, verification.differences[:3]
            assert verification.from_ms == at_ms


@CHEAP
def test_fed_again_it_decides_the_same(scenario: Scenario, tmp_path: Path) -> None:
    path, again = scenario.recorded(), tmp_path / "again.db"
    parity = run_again(path, again)
    assert parity.differences == []
    assert parity.identical == parity.compared > 0
    assert_same(path, again)


def test_killed_at_a_step_and_resumed_it_is_as_if_it_had_not_been(
    scenario: Scenario, tmp_path: Path
) -> None:
    paths = [copied(cut, tmp_path / cut.name) for cut in scenario.killed()]
    assert paths
    for cut in paths:
        resumed(cut, scenario.data())
        assert_goes_on(scenario, cut)
    check_record(cut)


@CHEAP
def test_killed_amid_a_group_of_steps_it_goes_on_behind_a_whole_close(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = scenario.data()
    cut = killed(
        lambda path: build(
            scenario.config(), data, started_at_ms=0, database=path, mode=scenario.mode
        ),
        tmp_path,
        monkeypatch,
        bars=round(0.9 * sum(map(len, data.candles))),
        every=1,
    )
    resumed(cut, data)
    assert_goes_on(scenario, cut)


def test_whatever_is_forged_in_it_is_found(scenario: Scenario, tmp_path: Path) -> None:
    path = scenario.recorded()
    for statement in scenario.forged:
        changed = forged(path, tmp_path / "forged.db", statement)
        assert is_found(changed, path), statement


def is_found(path: Path, database: Path) -> bool:
    """Return whether rows contradict each other, or the derivation."""
    try:
        return not audited(path) or bool(unequal(path, database))
    except TracepaperError:
        return True  # one sentence


def other_from(candles: Sequence[Candles], from_ms: int) -> list[Candles]:
    """Return *candles* with other prices from a time on."""
    later = []
    for candle in candles:
        factor = np.where(candle.open_time_ms >= from_ms, 21, 20)
        prices = {
            name: getattr(candle, name) * factor // 20 for name in ("open", "high", "low", "close")
        }
        later.append(replace(candle, **prices))
    return later


def moved(
    scenario: Scenario, folder: Path, hand: Callable[[Sequence[Candles]], None] = lambda _data: None
) -> list[str]:
    """Return the views in which another future, or none, moves what came before.

    *hand* is called with the candles of each run before it.
    """
    candles, views = scenario.candles(), set(VIEWS) - {"v_orders"}  # which show what became of them
    hand(candles)
    times, path = candles[0].open_time_ms, scenario.recorded()
    from_ms = int(times[scenario.early + (len(times) - scenario.early) * 2 // 3])
    short = [cut[cut.open_time_ms < from_ms] for cut in candles]
    expected = rows_of(path, until_ms=from_ms, views=views)
    assert expected["v_decisions"]
    differences = []
    for name, data in (("short", short), ("other", other_from(candles, from_ms))):
        hand(data)
        options = {"mode": scenario.mode, **scenario.files()}
        record(folder / f"{name}.db", scenario.config(), data, **options)
        rows = rows_of(folder / f"{name}.db", until_ms=from_ms, views=views)
        differences += [f"{name} {view}" for view in views if rows[view] != expected[view]]
    return differences


def test_no_later_bar_moves_what_came_before(scenario: Scenario, tmp_path: Path) -> None:
    assert moved(scenario, tmp_path) == []


def test_a_strategy_that_was_handed_the_future_breaks_that_law(tmp_path: Path) -> None:
    peeks = replace(
        SCENARIOS["crossing"],
        sections=lambda: {
            "market": {"symbols": ["BTCUSDT"], "interval": "60"},
            "strategy": {"name": "recorded_strategies:Peeks"},
        },
        files=dict,
    )
    assert {"short v_decisions", "other v_decisions"} <= {*moved(peeks, tmp_path, Peeks.hand)}
