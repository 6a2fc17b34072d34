"""A kind of event is its type, the engine's case and the row's name: a fake of each is followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast, get_args

import builders
import pytest
import storage_cases as cases
from engines import engine_of
from msgspec import Struct

from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record import rows
from tracepaper.strategies.types.market import CloseStart, Event, RunEnd


class Outage(Struct, frozen=True):
    """The exchange says that it will be away."""

    instrument: str
    minutes: int
    market_ms: int
    seen_ms: int


def test_every_kind_has_a_name_and_comes_back_as_it_was(tmp_path: Path) -> None:
    at: dict[str, Any] = {"market_ms": builders.START_MS + 1, "seen_ms": builders.START_MS + 2}
    events: list[Event] = [
        builders.bar(),
        *cases.other_events(),
        CloseStart(builders.START_MS, 1, (cases.ETH.id,), **at),
        RunEnd(builders.START_MS + 3, **at),
    ]
    kinds = set(get_args(Event))
    assert set(rows.EVENT_TYPES.values()) == {type(event) for event in events} == kinds
    assert set(rows.INDEXED_EVENTS) <= set(rows.EVENT_TYPES)
    steps = [cases.undecided(number, event) for number, event in enumerate(events)]
    cases.write_run(tmp_path / "events.db", steps)
    with Reader.open(tmp_path / "events.db") as reader:
        assert list(reader.steps("r-1")) == steps


def test_a_new_kind_is_stored_read_back_shown_and_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", rows.EVENT_TYPES), "outage", Outage)
    monkeypatch.setitem(cast("dict[Any, str]", rows.EVENT_KINDS), Outage, "outage")
    fake: Any = Outage(cases.BTC.id, 30, builders.START_MS + 1, builders.START_MS + 2)
    first = cases.undecided(0, builders.bar())
    steps = [first, cases.undecided(1, fake)]
    path = tmp_path / "events.db"
    cases.write_run(path, steps)
    with Reader.open(path) as reader:
        assert list(reader.steps("r-1")) == steps
        stored = reader.connection.execute(
            "SELECT instrument, content FROM v_events WHERE kind = 'outage'"
        ).fetchall()
        assert [(named, json.loads(content)) for named, content in stored] == [
            (cases.BTC.id, {"minutes": 30})
        ]
        assert audit(reader.connection, "r-1").passes


def test_the_engine_refuses_a_kind_without_a_case() -> None:
    engine = engine_of({"strategy": {"name": "sma_cross"}}, [builders.instrument()])
    fake: Any = Outage("linear:BTCUSDT", 30, builders.START_MS + 1, builders.START_MS + 2)
    with pytest.raises(AssertionError, match="Expected code to be unreachable"):
        engine.step(fake, None)
