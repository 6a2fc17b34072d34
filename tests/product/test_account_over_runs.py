"""One account over several runs: no trade is lost at a joint, and a forged joint is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from builders import bars, instrument, present, quote
from fed_daemon import MINUTE, Process
from forging import forged
from msgspec.structs import replace

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.trades import costs_and_funding
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, Event, Funding

WARM: Final = 8
COUNT: Final = 70
BARS: Final = bars(COUNT, seed=4)
SHADOWS: Final = ("full_size",)
CASES: Final[dict[str, dict[str, Any]]] = {
    "turns": {},
    "only long": {"strategy": {"long_only": True}},
    "stops": {"exits": {"stop_loss": "0.05%"}},
}
NUMBERED: Final = {"run_id", "sequence", "entry_run_id", "entry_sequence", "exit_sequence"}


def settings(case: str, life: int = 0, symbol: str = "BTCUSDT") -> Config:
    """Return the settings of *case*; each *life* has another hash, and the same decisions."""
    changed = CASES[case]
    crossing = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
    sections = {
        "market": {"symbols": [symbol]},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "execution": {"fill_within_ms": 60_000, "spread_bp": "1"},
        "gate": {"late_ms": 60_000 - life},
        **changed,
        "strategy": {**crossing, "shadows": [*SHADOWS], **changed.get("strategy", {})},
    }
    return resolved(load(None, sections), FillModel.QUOTE)


def events(first: int, last: int) -> list[Event]:
    """Return bars *first* to *last*, each behind a quote; every 30 a settlement."""
    made: list[Event] = []
    for at in range(first, last):
        before, item = BARS[at - 1].close, BARS[at]
        made += [quote(before - 5, before + 5, at_ms=item.open_time_ms + 500), item]
        if at % 30 == 29:
            made.append(Funding(item.instrument, 1_000_000, item.close_time_ms, item.close_time_ms))
    return made


def lived(path: Path, case: str, *cuts: int) -> list[str]:
    """Live through all bars with a run after each of *cuts*; return the runs."""
    runs = []
    for life, (first, last) in enumerate(pairwise([WARM, *cuts, COUNT])):
        process = Process(path, settings(case, life), FillModel.QUOTE, warm=first)
        process.begin()
        for warming in BARS[first - WARM : first]:
            process.feed(warming)
        process.start()
        for event in events(first, last):
            process.feed(event)
        process.stop()
        runs.append(process.opened.run.run_id)
    return runs


def trades(path: Path, runs: list[str], shadow: str = "") -> list[dict[str, Any]]:
    """Return the closed trades of *runs*."""
    found = []
    with Reader.open(path) as reader:
        for run in runs:
            views = RunViews(reader.connection, run)
            found += views.shadow_trades(shadow) if shadow else views.rows("v_trades")
    return found


def decided(path: Path, rows: list[dict[str, Any]]) -> list[int]:
    """Return the open times of the bars at whose decisions the trades of *rows* were opened."""
    found = []
    with Reader.open(path) as reader:
        for row in rows:
            step = reader.step(row["entry_run_id"], row["entry_sequence"])
            assert isinstance(step.event, Bar)
            found.append(step.event.open_time_ms)
    return found


def unnumbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *rows* without what is numbered by run."""
    return [{name: row[name] for name in row if name not in NUMBERED} for row in rows]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_trades_over_joints_are_those_of_one_run(tmp_path: Path, case: str, seed: int) -> None:
    path, uncut = tmp_path / "cut.db", tmp_path / "whole.db"
    cuts = sorted(random.Random(seed).sample(range(WARM + 1, COUNT - 1), 1 + 3 * seed))
    whole, runs = lived(uncut, case), lived(path, case, *cuts)
    for shadow in ("", *SHADOWS):
        due, joined = trades(uncut, whole, shadow), trades(path, runs, shadow)
        assert unnumbered(joined) == unnumbered(due)
        assert decided(path, joined) == decided(uncut, due)
        assert any(row["entry_run_id"] != row["run_id"] for row in joined) or not seed
    with Reader.open(path) as reader:
        for run in runs:
            verification = verify_run(reader, path, run)
            assert verification.passes, verification.differences
            assert verification.is_before_here == (run != runs[0])


def test_each_run_has_its_own_costs(tmp_path: Path) -> None:
    path = tmp_path / "cut.db"
    runs = lived(path, "turns", 30, 50)
    lived(tmp_path / "whole.db", "turns")
    for name in ("", *SHADOWS):
        costs = []
        with Reader.open(path) as reader:
            for run in runs:
                record = read_record(reader, path, run)
                accounts = {each.name: each for each in record.shadows} | {"": record.account}
                costs.append(costs_and_funding(accounts[name], record.terms))
                assert costs[-1].fee == pytest.approx(sum(f["fee"] for f in accounts[name].fills))
        with Reader.open(tmp_path / "whole.db") as reader:
            record = read_record(reader, tmp_path / "whole.db", reader.find("last"))
        accounts = {each.name: each for each in record.shadows} | {"": record.account}
        due = costs_and_funding(accounts[name], record.terms)
        assert due.funding != 0
        for figure in ("fee", "funding", "net", "gross"):
            joined = sum(getattr(each, figure) for each in costs)
            assert joined == pytest.approx(getattr(due, figure)), figure


def richer(account: CarriedAccount) -> CarriedAccount:
    cash = account.state["account"]["cash"] + 5_000 * 10**8
    return replace(
        account, state={**account.state, "account": {**account.state["account"], "cash": cash}}
    )


def cheaper(account: CarriedAccount) -> CarriedAccount:
    (first, *others) = account.open_trades
    entry = replace(first, entries=(first.entries[0], first.entries[1] - 10**8))
    return replace(account, open_trades=(entry, *others))


def earlier(account: CarriedAccount) -> CarriedAccount:
    """Let the next run decide the newest bar again."""
    last = {key: at_ms - MINUTE for key, at_ms in account.last_open_ms.items()}
    return replace(account, last_open_ms=last)


def elsewhere(account: CarriedAccount) -> CarriedAccount:
    return replace(account, origin=replace(account.origin, digest="00" * 32))


@pytest.mark.parametrize("plant", [richer, cheaper, earlier, elsewhere])
def test_an_account_that_a_run_did_not_end_with_is_found_at_the_joint(
    tmp_path: Path,
    plant: Callable[[CarriedAccount], CarriedAccount],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run that follows is whole in itself: only the run before tells."""
    path, of = tmp_path / "cut.db", CarriedAccount.of
    with monkeypatch.context() as patch:
        patch.setattr(CarriedAccount, "of", lambda *given: plant(present(of(*given))))
        _, run = lived(path, "turns", 50)
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, run).passes
        found = [each.field for each in verify_run(reader, path, run).differences]
    assert found == ["runs.account"]


def test_a_state_that_does_not_follow_from_the_account_is_found(tmp_path: Path) -> None:
    path = tmp_path / "cut.db"
    _, run = lived(path, "turns", 50)
    key = "(SELECT max(run_key) FROM runs)"
    forgery = f"UPDATE holdings SET cash = cash + 500000000000 WHERE run_key = {key}"
    changed = forged(path, tmp_path / "forged.db", forgery)
    with Reader.open(changed) as reader:
        assert not verify_run(reader, changed, run).passes


def test_a_start_with_other_symbols_is_refused_while_something_is_open(tmp_path: Path) -> None:
    ether = instrument("ETHUSDT")
    other = settings("turns", symbol=ether.symbol)
    for last, is_open in ((60, True), (WARM + 1, False)):
        path = tmp_path / f"{last}.db"
        process = Process(path, settings("turns"), FillModel.QUOTE, warm=WARM)
        process.live([*BARS[:WARM], *events(WARM, last)])
        process.stop()
        if is_open:
            with pytest.raises(ConfigInvalid, match="close it first"):
                Process(path, other, FillModel.QUOTE, warm=last, item=ether)
        else:
            begun = Process(path, other, FillModel.QUOTE, warm=last, item=ether)
            begun.stop()
            assert begun.opened.run.account is None


def test_a_live_run_that_denies_the_account_before_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cut.db"
    with monkeypatch.context() as patch:
        patch.setattr(CarriedAccount, "of", lambda *_given: None)
        first, run = lived(path, "turns", 50)
    with Reader.open(path) as reader:
        found = {each.field: each.second for each in verify_run(reader, path, run).differences}
    assert found["runs.parent_run_id"] == first


@pytest.mark.parametrize(
    "change",
    ["json_set(account, '$.format', 7)", "json_set(account, '$.luck', 1)", "account || ' '"],
)
def test_an_account_in_another_form_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "cut.db"
    _, run = lived(path, "only long", 50)
    statement = f"UPDATE runs SET account = {change} WHERE run_id = '{run}'"
    changed = forged(path, tmp_path / "forged.db", statement)
    with Reader.open(changed) as reader, pytest.raises(DataInvalid, match="account"):
        verify_run(reader, changed, run)
