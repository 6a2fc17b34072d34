"""One account over several runs: no trade is lost at a joint, and a forged joint is found."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import chain, count, pairwise, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import pytest
from builders import bars, instrument, present, quote
from command_line import Cli
from fed_daemon import MINUTE, Process
from forging import forged
from msgspec.structs import replace

import tracepaper
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session import rotation
from tracepaper.daemon.session.account_chain import account_chain, joints_of
from tracepaper.daemon.session.account_file import begin_with, exported
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.carried_account import CarriedAccount
from tracepaper.daemon.session.rotation import rotate
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.trades import costs_and_funding
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.covariates import sync_names
from tracepaper.storage.database.lock import Holder, lock_file
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid, Fatal
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Bar, Category, Event, Funding, Instrument, RunKind

WARM: Final = 8
COUNT: Final = 70
BARS: Final = bars(COUNT, seed=4)
OTHERS: Final = bars(COUNT, seed=5)
"""Those of another symbol."""
SHADOWS: Final = ("full_size",)
CASES: Final[dict[str, dict[str, Any]]] = {
    "turns": {},
    "only long": {"strategy": {"long_only": True}},
    "stops": {"exits": {"stop_loss": "0.05%"}},
    "declared state": {
        "strategy": {
            "name": "tracepaper.strategies.examples.rsi_reversion:RsiReversion",
            "options": {"bars": 2, "low": 45, "high": 55, "losses": 1, "pause": 3},
        }
    },
    # A buy pays its fee in the coin, so a sale leaves less than a step of it.
    "spot": {
        "market": {"category": "spot", "symbols": ["BTCUSDT"]},
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "strategy": {"long_only": True},
    },
    "pair": {"market": {"symbols": ["BTCUSDT", "ETHUSDT"]}},
}
NUMBERED: Final = {"run_id", "sequence", "entry_run_id", "entry_sequence", "exit_sequence"}


def settings(case: str, life: int = 0, symbol: str = "BTCUSDT") -> Config:
    """Return the settings of *case*; each *life* has another hash, and the same decisions."""
    changed = CASES[case]
    own = changed.get("strategy", {})
    crossing = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}
    sections = {
        "market": {"symbols": [symbol]},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "execution": {"fill_within_ms": 60_000, "spread_bp": "1"},
        "gate": {"late_ms": 60_000 - life},
        **changed,
        "strategy": {**({} if "name" in own else crossing), "shadows": [*SHADOWS], **own},
    }
    return resolved(load(None, sections), FillModel.QUOTE)


def traded(case: str) -> list[Instrument]:
    """Return the instruments of *case*."""
    market = CASES[case].get("market", {})
    category = Category(market.get("category", "linear"))
    symbols = market.get("symbols", ["BTCUSDT"])
    return [instrument(symbol=symbol, category=category) for symbol in symbols]


def events(first: int, last: int, case: str = "turns") -> list[Event]:
    """Return bars *first* to *last*, each behind a quote; every 30 a settlement."""
    made = list[Event]()
    for at in range(first, last):
        for traded_bars, item in zip((BARS, OTHERS), traded(case), strict=False):
            before, bar = traded_bars[at - 1].close, replace(traded_bars[at], instrument=item.id)
            opened_ms, closed_ms = bar.open_time_ms, bar.close_time_ms
            made.append(quote(before - 5, before + 5, at_ms=opened_ms + 500, instrument_id=item.id))
            made.append(bar)
            if at % 30 == 29 and item.category is Category.LINEAR:
                made.append(Funding(item.id, 1_000_000, closed_ms, closed_ms))
    return made


def life(path: Path, case: str, number: int, first: int, last: int) -> str:
    """Live from bar *first* to *last* with the settings of this *number*; return the run."""
    items = traded(case)
    process = Process(path, settings(case, number), FillModel.QUOTE, warm=first, items=items)
    process.begin()
    if not process.opened.resumed:
        for traded_bars, item in zip((BARS, OTHERS), items, strict=False):
            for warming in traded_bars[first - WARM : first]:
                process.feed(replace(warming, instrument=item.id))
        process.start()
    for event in events(first, last, case):
        process.feed(event)
    process.stop()
    return process.opened.run.run_id


def lived(path: Path, case: str, *cuts: int) -> list[str]:
    """Live through all bars with a run after each of *cuts*; return the runs."""
    lives = enumerate(pairwise([WARM, *cuts, COUNT]))
    return [life(path, case, number, *span) for number, span in lives]


def lived_in_files(path: Path, case: str, *cuts: int) -> list[Path]:
    """Live through all bars with a file after each of *cuts*; return the files, oldest first."""
    files = []
    for first, last in pairwise([WARM, *cuts, COUNT]):
        life(path, case, 0, first, last)
        if last < COUNT:
            files.append(rotate(path, path.with_name(f"until_{last}.db")).older)
    return [*files, path]


def trades(runs: list[tuple[Path, str]], shadow: str = "") -> list[dict[str, Any]]:
    """Return the closed trades of *runs*."""
    found = []
    for path, run in runs:
        with Reader.open(path) as reader:
            views = RunViews(reader.connection, run)
            found += views.shadow_trades(shadow) if shadow else views.rows("v_trades")
    return found


def decided(runs: list[tuple[Path, str]], rows: list[dict[str, Any]]) -> list[int]:
    """Return the open times of the bars at whose decisions the trades of *rows* were opened."""
    found, files = [], {run: path for path, run in runs}
    for row in rows:
        with Reader.open(files[row["entry_run_id"]]) as reader:
            step = reader.step(row["entry_run_id"], row["entry_sequence"])
        assert isinstance(step.event, Bar)
        found.append(step.event.open_time_ms)
    return found


def unnumbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return *rows* without what is numbered by run."""
    return [{name: row[name] for name in row if name not in NUMBERED} for row in rows]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("seed", "is_in_files"), [(0, False), (1, False), (1, True)])
def test_trades_over_joints_are_those_of_one_run(
    tmp_path: Path, case: str, seed: int, is_in_files: bool
) -> None:
    path, uncut = tmp_path / "cut.db", tmp_path / "whole.db"
    cuts = sorted(random.Random(seed).sample(range(WARM + 1, COUNT - 1), 4 if seed else 1))
    whole = [(uncut, run) for run in lived(uncut, case)]
    files = lived_in_files(path, case, *cuts) if is_in_files else [path]
    if not is_in_files:
        lived(path, case, *cuts)
    chain = account_chain([*reversed(files)])
    assert len(chain) == len(cuts) + 1
    for account in (each.account for each in chain if each.account is not None):
        assert [each for each in account.sums() if each[1] != each[2]] == []
    assert [joint.follows for joint in joints_of(chain)] == [True] * len(cuts)
    runs = [(each.path, present(each.run).run_id) for each in chain]
    for shadow in ("", *SHADOWS):
        due, joined = trades(whole, shadow), trades(runs, shadow)
        assert unnumbered(joined) == unnumbered(due)
        assert decided(runs, joined) == decided(whole, due)
        assert any(row["entry_run_id"] != row["run_id"] for row in joined) or not seed
    for place, (file, run) in enumerate(runs):
        with Reader.open(file) as reader:
            verification = verify_run(reader, file, run)
            assert verification.passes, verification.differences
            assert verification.is_before_here == (place > 0 and not is_in_files)


FILE_EVENTS: Final = frozenset({"os.link", "os.rename", "os.remove", "sqlite3.connect"})


def killed_rotation(path: Path, operation: int) -> bool:
    """Rotate *path* in a process that dies before this *operation* on a file; return if it did."""
    if not (child := os.fork()):
        done = count()

        def die(event: str, arguments: tuple[object, ...]) -> None:
            is_operation = event in FILE_EVENTS and str(path.parent) in str(arguments[0])
            is_sync = event == "open" and arguments[0] == str(path.parent)
            if (is_operation or is_sync) and next(done) == operation:
                os._exit(9)

        sys.addaudithook(die)
        rotate(path)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def files_of(path: Path) -> list[Path]:
    """Return *path* and the older files beside it."""
    return [*sorted(path.parent.glob(f"{path.name}.????-*[0-9]")), path]


def test_a_rotation_that_is_killed_at_any_operation_loses_nothing(tmp_path: Path) -> None:
    """It is then repeated: at once, after a daemon ran, or after a backup."""
    base, uncut = tmp_path / "base.db", tmp_path / "whole.db"
    life(base, "turns", 0, WARM, 60)
    due = unnumbered(trades([(uncut, run) for run in lived(uncut, "turns")]))
    with Reader.open(base) as reader:
        run_id = reader.find("last")
        left = Holder(1, "", run_id, reader.counted(run_id)[1])
    keep = base.with_name("base.db.checkpoints")
    keep.mkdir()
    (keep / "model").write_bytes(b"weights")
    outcomes = set[tuple[bool, bool]]()
    for operation in takewhile(lambda _: (False, True) not in outcomes, count()):
        path, begin = tmp_path / str(operation) / "tp.db", 60
        path.parent.mkdir()
        backup(base, path)
        lock_file(path).write_bytes(2 * (msgspec.json.encode(left) + b"\n"))  # of a killed daemon
        is_killed = killed_rotation(path, operation)
        if operation % 3 == 0:
            begin = 62
            life(path, "turns", 0, 60, begin)
        elif operation % 3 == 1:
            backup(path, path.with_name("copy.db"))
            assert len(account_chain([path.with_name("copy.db")])) == 1
        is_rotated = account_chain([path])[0].origin is not None
        if not is_rotated:
            rotate(path)
        outcomes.add((is_killed, is_rotated))
        life(path, "turns", 0, begin, COUNT)
        chain = account_chain(files_of(path))
        assert [joint.follows for joint in joints_of(chain)] == [True]
        assert unnumbered(trades([(each.path, present(each.run).run_id) for each in chain])) == due
        with Reader.open(path) as reader:
            assert reader.connection.execute("SELECT count(*) FROM begins").fetchone() == (0,)
        assert not path.with_name("tp.db.partial").exists()
    assert outcomes == {(True, False), (True, True), (False, True)}


def test_a_disk_that_fails_after_the_last_operation_leaves_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    run_ids = lived(path, "turns", 20)
    folders = list[Path]()

    def failing(folder: Path) -> None:
        folders.append(folder)
        if len(folders) == 2:  # the new file has its name
            raise OSError(errno.EIO, "Input/output error", str(folder))
        sync_names(folder)

    monkeypatch.setattr(rotation, "sync_names", failing)
    with pytest.raises(AuditUnwritable):
        rotate(path, tmp_path / "older.db")
    older = account_chain([tmp_path / "older.db"])
    assert [present(each.run).run_id for each in older] == run_ids
    assert account_chain([path])[0].run is None


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
                Process(path, other, FillModel.QUOTE, warm=last, items=[ether])
        else:
            begun = Process(path, other, FillModel.QUOTE, warm=last, items=[ether])
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


def content(folder: Path) -> dict[str, bytes]:
    """Return what the files in *folder* hold, after a header of SQLite."""
    return {file.name: file.read_bytes()[100:] for file in folder.iterdir() if file.is_file()}


def test_a_rotation_that_cannot_be_done_says_why_and_changes_nothing(tmp_path: Path) -> None:
    path, older, empty = (tmp_path / f"{name}.db" for name in ("tp", "older", "empty"))
    life(path, "turns", 0, WARM, 20)
    SqlAuditLog.open(empty).close()

    def refuses(words: str, name: Path = older, of: Path = path) -> None:
        before = content(tmp_path)
        with pytest.raises(Fatal, match=words):
            rotate(of, name, attempts=2, pause_s=0)
        assert content(tmp_path) == before

    refuses("There is no database", of=tmp_path / "missing.db")
    refuses("holds no live run with a step", of=empty)
    refuses("stays in", tmp_path / "elsewhere" / "older.db")
    refuses(r"exists already; name another, as in `tracepaper db rotate .*empty\.db-2`", empty)
    refuses("Restore a backup", of=forged(path, tmp_path / "forged.db", CHANGED, hide=False))
    (log := tmp_path / "older.db-wal").write_bytes(b"log")
    refuses("belongs to a database that is missing")
    log.unlink()
    with TemporaryDirectory(dir="/dev/shm") as other_disk:
        (Path(other_disk) / "weights").write_bytes(b"weights")
        (kept := tmp_path / "tp.db.checkpoints").symlink_to(other_disk)
        refuses("cannot get a second name")
    kept.unlink()
    SqlAuditLog.open(path).close()
    with Reader.open(path), pytest.raises(AuditUnwritable, match="open, so it cannot be rotated"):
        rotate(path, older, attempts=2, pause_s=0)
    process = Process(path, settings("turns"), FillModel.QUOTE, warm=20)
    with pytest.raises(ConfigInvalid, match=f"in use by process {os.getpid()}"):
        rotate(path, older)
    process.stop()
    assert not older.exists()
    (link := tmp_path / "link.db").symlink_to(path)
    assert rotate(link).older.parent == path.parent
    assert link.is_symlink()


CHANGED: Final = "UPDATE steps SET close = close + 1 WHERE sequence = 33"


def test_a_page_lets_go_of_a_database_that_is_rotated(tmp_path: Path) -> None:
    life(path := tmp_path / "tp.db", "turns", 0, WARM, 20)
    shown = Databases([path])
    reader = shown.reader(path)
    with closing(open_writer(path)) as writer:
        shown.let_go(idle=False)
        assert reader.run_ids()
        present(writer.lock).announce_rotation()
        shown.let_go(idle=False)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            reader.run_ids()
        with pytest.raises(DataInvalid, match="is being rotated"):
            shown.reader(path)
    assert shown.reader(path).run_ids()


def test_files_that_are_not_one_account_are_named(tmp_path: Path) -> None:
    path, restored = tmp_path / "tp.db", tmp_path / "restored.db"
    life(path, "turns", 0, WARM, 20)
    backup(path, tmp_path / "copy.db")
    backup(path, restored)
    first = rotate(path, tmp_path / "first.db").older
    life(path, "turns", 0, 20, 30)
    second = rotate(path, tmp_path / "second.db").older
    life(path, "turns", 0, 30, 40)
    lived(other := tmp_path / "other.db", "turns")
    for files, words in (
        ((first, first), "the same file; give it once"),
        ((first, path), r"None of the files holds run \w+, with whose account run \w+ of .*tp.db"),
        ((first, tmp_path / "copy.db", second, path), "both hold run"),
        ((first, second, path, other), "different accounts"),
    ):
        with pytest.raises(DataInvalid, match=words):
            account_chain(files)
    assert [each.path for each in account_chain([path, first, second])] == [first, second, path]
    shutil.copy(first, held := tmp_path / "held.db")
    life(restored, "turns", 1, 20, 30)  # another life of the account from the same moment
    with pytest.raises(DataInvalid, match="Two runs go on with the account"):
        account_chain([restored, second])
    life(held, "turns", 0, 20, 22)  # the older file is traded on
    with pytest.raises(DataInvalid, match="it went on afterwards"):
        account_chain([held, second])


@pytest.mark.parametrize("plant", [richer, cheaper, earlier])
def test_an_account_changed_between_two_files_is_found(
    tmp_path: Path, plant: Callable[[CarriedAccount], CarriedAccount], cli: Cli
) -> None:
    path = tmp_path / "tp.db"
    life(path, "turns", 0, WARM, 50)
    older = rotate(path).older
    with closing(sqlite3.connect(path)) as connection:
        (text,) = connection.execute("SELECT account FROM begins").fetchone()
        changed = plant(CarriedAccount.read(text)).json()
        connection.execute("UPDATE begins SET account = ?", (changed,))
        connection.commit()
    life(path, "turns", 0, 50, COUNT)
    assert cli("audit", "verify", path)[0] == 0, "the file alone is whole"
    code, out, _ = cli("audit", "verify", older, path)
    assert code == 1
    assert "does not follow from the record" in out


def test_a_head_is_found_in_the_file_that_holds_it(tmp_path: Path, cli: Cli) -> None:
    first, second = lived_in_files(tmp_path / "tp.db", "turns", 50)
    for file in (first, second):
        head = cli("audit", "head", "--db", file)[1].split()[-1]
        code, out, _ = cli("audit", "verify", second, first, "--head", head)
        assert (code, "had the head that was kept" in out) == (0, True)
    assert cli("audit", "verify", first, second, "--head", "0" * 64)[0] == 1
    assert cli("audit", "verify", first, tmp_path / "missing.db")[0] == 2


@pytest.mark.parametrize("case", ["turns", "spot", "declared state"])
def test_an_account_goes_on_from_its_json_alone(tmp_path: Path, case: str) -> None:
    old, new, file = (tmp_path / name for name in ("old.db", "new.db", "account.json"))
    first = life(old, case, 0, WARM, 50)
    account = exported(old)
    file.write_text(account.json())
    for _ in range(2):  # a start that failed may be repeated
        begin_with(file, new, settings(case))
    with Reader.open(new) as reader:
        assert CarriedAccount.waiting(reader, RunKind.LIVE) == account
    second = life(new, case, 0, 50, COUNT)
    begin_with(file, new, settings(case))
    due = trades([(tmp_path / "whole.db", run) for run in lived(tmp_path / "whole.db", case)])
    assert unnumbered(trades([(old, first), (new, second)])) == unnumbered(due)
    with Reader.open(new) as reader:
        assert verify_run(reader, new, second).passes
    with pytest.raises(ConfigInvalid, match="begins an empty database"):
        begin_with(file, old, settings(case))


def test_an_account_that_cannot_be_taken_up_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path, file, new = (tmp_path / name for name in ("old.db", "account.json", "new.db"))
    life(path, "turns", 0, WARM, 50)
    account = exported(path)
    whole = msgspec.json.decode(account.json())
    paid = whole["totals"][""]

    def refuses(words: str, changed: object = whole, symbol: str = "BTCUSDT") -> None:
        file.write_bytes(msgspec.json.encode(changed))
        with pytest.raises(Fatal, match=words):
            begin_with(file, new, settings("turns", symbol=symbol))
        assert not new.exists()

    refuses("names others", symbol="ETHUSDT")
    refuses("no account of format 1", whole | {"format": 2})
    refuses("unknown field `luck`", whole | {"luck": 1})
    refuses("missing required field `begun_ms`", {k: whole[k] for k in whole if k != "begun_ms"})
    refuses(
        "cash is missing or unknown",
        whole | {"state": {**whole["state"], "account": {"lines": {}}}},
    )
    refuses("fees_paid is 0", whole | {"totals": whole["totals"] | {"": paid | {"fees_paid": 0}}})
    refuses("equity is", msgspec.to_builtins(richer(account)))
    refuses("the quantity in linear:BTCUSDT is", whole | {"open_trades": []})
    held = [each | {"held": 2 * each["held"]} for each in whole["open_trades"]]
    refuses("does not add up", whole | {"open_trades": held})
    process = Process(path, settings("turns"), FillModel.QUOTE, warm=50)
    with pytest.raises(ConfigInvalid, match=f"in use by process {os.getpid()}"):
        exported(path)
    process.stop()


NOT_OF_ONE_RUN: Final = {"run_id", "runs", "database"}


def report_json(cli: Cli, *arguments: object) -> dict[str, Any]:
    """Return the report as JSON, without what names runs and numbers their steps."""
    code, out, err = cli("report", *arguments, "--json")
    assert code == 0, err
    report = {key: value for key, value in json.loads(out).items() if key not in NOT_OF_ONE_RUN}
    for trade in chain.from_iterable(report["trades"].values()):
        del trade["entry_sequence"], trade["exit_sequence"]
    return report


def test_the_report_of_an_account_is_that_of_one_run(tmp_path: Path, cli: Cli) -> None:
    lived(tmp_path / "whole.db", "turns")
    lived(tmp_path / "cut.db", "turns", 30, 50)
    files = lived_in_files(tmp_path / "tp.db", "turns", 30, 50)
    due = report_json(cli, "--db", tmp_path / "whole.db")
    assert report_json(cli, "--db", tmp_path / "cut.db") == due
    assert report_json(cli, *reversed(files)) == due
    with tracepaper.account([*files], frames="numpy") as account:
        for name in ("trades", "fills", "equity", "ledger", "orders", "positions"):
            runs = [tracepaper.open_run(file, frames="numpy") for file in files]
            rows = [run_id for run in runs for run_id in getattr(run, name)["run_id"]]
            assert [*getattr(account, name)["run_id"]] == rows
        assert account.summary["return"] == due["accounts"][0]["return"]


def test_what_a_report_leaves_out_is_said_first(tmp_path: Path, cli: Cli) -> None:
    first, second = lived_in_files(tmp_path / "tp.db", "turns", 50)
    out = cli("report", "--db", second)[1]
    assert "whose history is in another file" in " ".join(out.split())
    alone = cli("report", present(account_chain([first])[0].run).run_id, "--db", first)[1]
    assert "whose history" not in alone


def test_what_if_begins_with_the_account_that_the_run_took_over(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "cut.db"
    _, run = lived(path, "turns", 30)

    def accounts(*changes: str) -> list[dict[str, Any]]:
        code, out, err = cli("whatif", run, "--db", path, "--json", *changes)
        assert code == 0, err
        rows: list[dict[str, Any]] = json.loads(out)["accounts"]["rows"]
        return rows

    recorded, same, _ = accounts("--set", "gate.late_ms=59_000")
    assert {**same, "account": ""} == {**recorded, "account": ""}
    recorded, cheap, _ = accounts("--set", "execution.taker_fee=0")
    assert cheap["fees_paid"] == 0
    saved = cheap["profit"]["value"] - recorded["profit"]["value"]
    assert saved == pytest.approx(recorded["fees_paid"])
