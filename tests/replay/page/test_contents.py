"""Contents of a file of a run: the interface's answers, with selected decisions complete."""

from __future__ import annotations

import re
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from page_cases import shown_of
from pages import record_in, unpacked

from tracepaper.replay.page import contents, routes
from tracepaper.replay.page.contents import contents_of, run_page
from tracepaper.replay.page.databases import Databases

PLACES: Final = (
    *("", "/marks", "/account", "/health", "/refusals", "/report", "/equity", "/compare"),
)


@pytest.fixture(scope="module")
def held(cross_database: Path) -> dict[str, Any]:
    run = shown_of(cross_database).run_id
    return record_in(run_page(cross_database, run))


@cache
def opened(database: Path) -> Databases:
    return Databases([database])


def answer(database: Path, path: str, **query: Any) -> Any:
    """Return the interface's answer as JSON values."""
    given = {name: str(value) for name, value in query.items()}
    document = routes.match(path, given).respond(opened(database), lambda _share, _doing: None)
    return msgspec.json.decode(msgspec.json.encode(document))


def test_every_place_of_the_page_has_its_answer(held: dict[str, Any], cross_database: Path) -> None:
    run = shown_of(cross_database).run_id
    text = f"/api/v1/runs/{run}"
    named = {text + place for place in PLACES}
    named |= {f"{text}/{kind}?instrument=linear%3ABTCUSDT" for kind in ("candles", "candles")}
    whole = {name for name in held if re.fullmatch(rf"{text}/decisions/\d+", name)}
    assert held.keys() == named | whole | {f"/api/v1/{of}" for of in ("runs", "overview", "file")}
    assert held["/api/v1/file"]["whole"] == len(whole) > 50
    assert [row["run_id"] for row in held["/api/v1/runs"]["runs"]] == [run]
    for table in held[f"{text}/account"]["parts"]:
        assert "pages" not in table or len(table["rows"]) == table["pages"]["total"] > 50


def test_what_is_not_drawn_alone_is_the_interfaces_own_answer(
    held: dict[str, Any], cross_database: Path
) -> None:
    run = shown_of(cross_database).run_id
    for rest in ("", "/marks", "/health", "/refusals", "/report"):
        assert held[f"/api/v1/runs/{run}{rest}"] == answer(cross_database, f"/runs/{run}{rest}")
    text = f"/runs/{run}/candles"
    candles = held[f"/api/v1{text}?instrument=linear%3ABTCUSDT"]
    for level in candles:
        points = len(level["open"]) + 1
        exact = answer(cross_database, text, points=points) | {"from_ms": 0}
        assert level | {"spare": {}} == exact | {"spare": {}}
    for name, decision in held.items():
        if "/decisions/" in name:
            assert decision == answer(cross_database, name.removeprefix("/api/v1"))


def test_drawn_columns_are_rounded_and_the_others_are_not(
    held: dict[str, Any], cross_database: Path
) -> None:
    path = f"/runs/{shown_of(cross_database).run_id}"
    candles = held[f"/api/v1{path}/candles?instrument=linear%3ABTCUSDT"][0]
    exact = answer(cross_database, f"{path}/candles", points=20_000)
    for name in ("sequence", "action", "refused_by", "held", "failed", "open_time_ms"):
        assert candles[name] == exact[name], name
    for gate, column in exact["spare"].items():
        assert candles["spare"][gate] == pytest.approx(column, abs=0.00051, nan_ok=True), gate
    equity, given = (
        held[f"/api/v1{path}/equity"][0],
        answer(cross_database, f"{path}/equity", points=20_000),
    )
    assert equity["equity"] != given["equity"]
    for name, column in given["equity"].items():
        assert equity["equity"][name] == pytest.approx(column, abs=0.5)  # of a million


def test_the_decisions_that_matter_are_whole(held: dict[str, Any], cross_database: Path) -> None:
    path = f"/api/v1/runs/{shown_of(cross_database).run_id}"
    run, views = held[path], shown_of(cross_database).views
    wanted = {run["last_sequence"], run["first_sequence"], run["last_fill"]["decision_sequence"]}
    fills = views.rows("v_fills", newest=contents.FILLED)
    wanted |= {fill["decision_sequence"] for fill in fills}
    by_result = sorted(views.rows("v_trades"), key=itemgetter("net"))
    wanted |= {by_result[0]["entry_sequence"], by_result[-1]["entry_sequence"]}
    candles = held[f"{path}/candles?instrument=linear%3ABTCUSDT"][0]
    judged = dict(zip(candles["refused_by"], candles["sequence"], strict=True))
    wanted |= {sequence for gate, sequence in judged.items() if gate}
    wanted |= set(candles["sequence"][-contents.NEWEST :])
    assert {f"{path}/decisions/{sequence}" for sequence in wanted} <= held.keys()


def test_full_holds_every_decision_in_blocks(cross_database: Path) -> None:
    run = shown_of(cross_database)
    file_contents = contents_of(cross_database, run.run_id, full=True)
    sequences = run.views.rows("v_decisions")
    assert not any("/decisions/" in name for name in file_contents.record)
    names: list[str] = []
    for block in file_contents.blocks:
        answers = unpacked(block.text)
        of_block = [int(name.rpartition("/")[2]) for name in answers]
        assert (of_block[0], of_block[-1]) == (block.first, block.last)
        names += answers
    assert [int(name.rpartition("/")[2]) for name in names] == [
        row["sequence"] for row in sequences
    ]
    assert file_contents.record["/api/v1/file"]["whole"] == len(sequences)


def test_a_run_longer_than_a_file_takes_has_cells_and_its_newest_bars(
    cross_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "POINTS_MAX", 300)
    run = shown_of(cross_database)
    record = contents_of(cross_database, run.run_id).record
    path = f"/api/v1/runs/{run.run_id}/candles?instrument=linear%3ABTCUSDT"
    last_ms = record[f"/api/v1/runs/{run.run_id}"]["row"]["last_ms"]
    lengths = [level["interval_ms"] // 60_000 for level in record[path]]
    assert lengths[:3] == [1, 5, 15]
    for level in record[path]:
        assert len(level["open"]) <= 300
        assert level["open_time_ms"][-1] == last_ms // level["interval_ms"] * level["interval_ms"]
        early_ms = level["from_ms"] - level["open_time_ms"][0]  # its first cell is whole
        assert 0 <= early_ms < level["interval_ms"] or not level["from_ms"]
    assert record[path][0]["from_ms"] > 0 == record[path][-1]["from_ms"]


def test_each_instrument_has_its_columns(pair_database: Path) -> None:
    record = contents_of(pair_database, shown_of(pair_database).run_id).record
    for symbol in ("BTCUSDT", "SOLUSDT"):
        [path] = [name for name in record if name.endswith(f"candles?instrument=linear%3A{symbol}")]
        assert len(record[path][0]["open_time_ms"]) > 1_000
