"""The campaign of backtests: what it draws and refuses, and what its checker must find."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import campaign_backtests as campaign
import pytest
from checker import asked, check_universe
from drawn import RoundFailed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_kind_is_drawn_and_every_refusal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = campaign.Case("", {})
    for world in campaign.WORLDS:
        name = "candles" if world is campaign.crypto else world.__name__
        symbols = ["ACME"] if name == "shares" else ["AAAUSDT", "BBBUSDT"]
        monkeypatch.setattr(
            campaign,
            "WORLDS",
            (
                lambda _folder, _rng, name=name, symbols=symbols: campaign.Case(
                    name, {"market": {"symbols": symbols}}, ["--data", "x"]
                ),
            ),
        )
        for seed in range(200):
            case = campaign.drawn(seed, tmp_path)
            empty.kinds |= {case.world, *case.kinds}
            empty.words += [why for why, holds in campaign.REFUSED.items() if holds(case)]
    worlds = {"candles", "months", "book", "shares"}
    kinds = {"several", "twins", "cross", "isolated", "universe", "hedge"}
    kinds |= {"later", "actions", "no book"}
    assert empty.kinds == worlds | kinds
    assert set(empty.words) == set(campaign.REFUSED)


def universe(folder: Path) -> tuple[campaign.Case, Path]:
    """Replay a drawn run with a universe that traded."""
    for seed in range(100):
        place = folder / str(seed)
        place.mkdir()
        case = campaign.drawn(seed, place)
        if case.world != "candles" or case.kinds - {"twins"} != {"universe"}:
            continue
        config, path = place / "run.toml", place / "run.db"
        config.write_text(campaign.toml(case.sections))
        campaign.must("replay", "-c", str(config), *case.words, "--json", "--db", str(path))
        if asked(path, "SELECT count(*) FROM v_fills")[0][0] > 5:
            return case, path
    raise AssertionError("no seed draws a universe alone that trades")


def test_the_checker_finds_fills_outside_and_choices_twice(tmp_path: Path) -> None:
    case, path = universe(tmp_path)
    check_universe(path, case.name)
    campaign.check_account(case, path)
    for name, statement, said in (
        ("none", "UPDATE events SET content = json_set(content, '$.chosen', json('[]'))",
         "outside the universe"),
        ("twice", "UPDATE events SET market_ms = 7", "made twice"),
        ("gone", "UPDATE events SET kind = 'closed'", "nothing was ever chosen"),
    ):  # fmt: skip
        forged = Path(shutil.copy(path, tmp_path / f"{name}.db"))
        with closing(sqlite3.connect(forged)) as database:
            database.execute(f"{statement} WHERE kind = 'universe'")
            database.commit()
        with pytest.raises(RoundFailed, match=said):
            check_universe(forged, case.name)


def test_the_checker_finds_parts_that_do_not_add_up(tmp_path: Path) -> None:
    place = tmp_path / "parts"
    place.mkdir()
    rows = campaign.walk(random.Random(3), 200, 3_600_000, holes=True)
    data = campaign.written(place / "AAAUSDT.csv", rows)
    strategies = {
        "calm": {"share": "0.6", **campaign.SMA},
        "quick": {"share": "0.4", **campaign.SMA, "slow": 9},
    }
    sections: dict[str, dict[str, Any]] = {
        "market": {"symbols": ["AAAUSDT"], "interval": "60"},
        "strategies": strategies,
        "sizing": {"mode": "notional", "notional": "20000"},
    }
    case = campaign.Case("candles", sections, kinds={"several"})
    (place / "run.toml").write_text(campaign.toml(sections))
    path = place / "run.db"
    campaign.must("replay", "-c", str(place / "run.toml"), "--data", f"AAAUSDT={data}", "--json",
                  "--db", str(path))  # fmt: skip
    campaign.check_account(case, path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "UPDATE holdings SET quantity = quantity + 1 WHERE book = 1 AND sequence = "
            "(SELECT max(sequence) FROM holdings WHERE book = 1)"
        )
        database.commit()
    with pytest.raises(RoundFailed, match="parts hold"):
        campaign.check_account(case, path)


def test_the_checker_finds_sides_that_do_not_add_up_and_fees_of_another_rate(
    tmp_path: Path,
) -> None:
    place = tmp_path / "sides"
    place.mkdir()
    rows = campaign.walk(random.Random(5), 200, 3_600_000, holes=False)
    data = campaign.written(place / "AAAUSDT.csv", rows)
    sections: dict[str, dict[str, Any]] = {
        "market": {"symbols": ["AAAUSDT"], "interval": "60"},
        "account": {"position_mode": "hedge", "cash": "1000000"},
        "strategy": {"name": campaign.SIDES, "options": {"seed": 3}},
        "sizing": {"mode": "notional", "notional": "20000"},
    }
    case = campaign.Case("candles", sections, kinds={"hedge"})
    (place / "run.toml").write_text(campaign.toml(sections))
    path = place / "run.db"
    campaign.must("replay", "-c", str(place / "run.toml"), "--data", f"AAAUSDT={data}", "--json",
                  "--db", str(path))  # fmt: skip
    assert asked(path, "SELECT count(DISTINCT position_side), count(*) > 20 FROM v_fills") == [
        (2, 1)
    ]
    campaign.check_account(case, path)
    newest = "WHERE sequence = (SELECT max(sequence) FROM {})"
    for name, statement, said in (
        ("fee", f"UPDATE fills SET fee = fee * 2 {newest.format('fills')}", "a fee of"),
        ("side", "UPDATE fills SET position_side = iif(position_side = 'LONG', 'SHORT', 'LONG')",
         "side of linear:AAAUSDT"),
        ("cash", "UPDATE holdings SET cash = cash + 1 WHERE book = 1",
         "both sides have"),
        ("size", f"DELETE FROM fills {newest.format('fills')}", "is held"),
        ("ledger", "UPDATE ledger SET amount = amount + 1 WHERE kind > 0", "ledger"),
    ):  # fmt: skip
        forged = Path(shutil.copy(path, tmp_path / f"{name}.db"))
        with closing(sqlite3.connect(forged)) as database:
            database.execute(statement)
            database.commit()
        with pytest.raises(RoundFailed, match=said):
            campaign.check_account(case, forged)


def test_only_rounds_of_a_kind_are_played(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_of = {1: set(), 2: {"hedge"}, 3: {"hedge", "later"}, 4: {"cross"}, 5: {"hedge"}}
    monkeypatch.setattr(
        campaign, "drawn", lambda seed, _folder: campaign.Case("", {}, kinds=drawn_of[seed])
    )
    assert list(campaign.seeds_of("hedge", 1, 3)) == [2, 3, 5]
    assert list(campaign.seeds_of("", 1, 3)) == [1, 2, 3]


def test_what_is_not_refused_although_it_has_to_be_is_found(tmp_path: Path) -> None:
    case = campaign.Case("candles", {})
    with pytest.raises(RoundFailed, match="is not refused, but ended with 0"):
        campaign.check_refused(case, ["config", "check"], tmp_path / "none.db")
    (tmp_path / "none.db").touch()
    with pytest.raises(RoundFailed, match=r"leaves \['none.db'\]"):
        campaign.check_refused(case, ["replay", "x.csv", "--mode", "x"], tmp_path / "none.db")
