"""Forged choices of a universe: changed, dropped, added, and all derived anew from that."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace as with_fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import instrument
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import audited, rechain, verified
from msgspec.structs import replace
from recordings import crossing, run_into

from tracepaper.daemon.config.market import UniverseRule
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.feed import ArchiveFeed
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.universe import choices
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.columns import SOURCE_CODES
from tracepaper.strategies.types.market import Bar, Event, Source, UniverseChange

HOUR = 3_600_000
NAMES = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
BARS = 60
RULE: dict[str, Any] = {"top": 2, "at": ["00:00", "06:00", "12:00", "18:00"]}

Forge = Callable[[UniverseChange], list[UniverseChange]]


def data(*, has_turnover: bool = True, bars: int = BARS) -> list[Candles]:
    """Return hours of three symbols, the first of which trades least, then most."""
    parts = []
    for seed, name in enumerate(NAMES):
        candles = made_candles(walk_rows(bars, seed=seed), interval_ms=HOUR, symbol=name)
        times = np.where(np.arange(bars) < 30, 1, 9) if seed == 0 else 3 + seed
        turnover = None if candles.turnover is None else candles.turnover * times
        parts.append(
            with_fields(
                candles, volume=candles.volume * times, turnover=turnover if has_turnover else None
            )
        )
    return parts


class ForgedFeed:
    """An archive's feed whose choices of a universe are others; all else is as it was."""

    def __init__(self, feed: ArchiveFeed, forge: Forge, place: int) -> None:
        self._feed, self._forge, self._place = feed, forge, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def events(self) -> Iterator[Event]:
        count = 0
        for event in self._feed.events():
            if not isinstance(event, UniverseChange):
                yield event
                continue
            yield from self._forge(event) if count == self._place else (event,)
            count += 1


def replayed(
    path: Path,
    candles: list[Candles],
    forge: Forge = lambda pick: [pick],
    *,
    place: int = 6,
    rule: dict[str, Any] = RULE,
    from_ms: int | None = None,
) -> Path:
    config = crossing(
        market={"symbols": NAMES, "interval": "60", "universe": rule},
        sizing={"mode": "notional", "notional": "1000"},
    )
    replay = build(config, MarketData(candles), started_at_ms=0, from_ms=from_ms)
    feed: Any = ForgedFeed(replay.feed, forge, place)
    run_into(path, with_fields(replay, feed=feed))
    return path


def named(path: Path) -> set[str]:
    """Return the fields in which ``verify`` finds the run to differ from its record."""
    verification = verified(path)
    assert audited(path)
    assert verification.passes is not bool(verification.differences)
    return {difference.field.partition(" ")[0] for difference in verification.differences}


def test_honest_choices_follow_from_the_bars(tmp_path: Path) -> None:
    begins = int(data()[0].open_time_ms[33])
    for number, (has_turnover, from_ms) in enumerate(((True, None), (False, None), (True, begins))):
        path = tmp_path / f"{number}.db"
        assert named(replayed(path, data(has_turnover=has_turnover), from_ms=from_ms)) == set()


def test_a_list_and_each_limit_are_honest_too(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("AAAUSDT\nCCCUSDT\n")
    limits: list[dict[str, Any]] = [
        {"file": str(tmp_path / "list.txt")},
        {"by": "volatility", "max_volatility": "0.05"},
        {"min_age_days": 1},
        {"min_turnover": "900000000"},
    ]
    for number, more in enumerate(limits):
        assert named(replayed(tmp_path / f"{number}.db", data(), rule=RULE | more)) == set()


def test_a_sentence_of_a_choice_by_a_list_is_held_to_its_figures(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("AAAUSDT\nCCCUSDT\n")
    by_list = RULE | {"file": str(tmp_path / "list.txt")}
    path = tmp_path / "forged.db"
    replayed(path, data(), lambda pick: [replace(pick, reason="all is well")], rule=by_list)
    assert named(path) == {"event.reason"}


def test_a_choice_comes_after_the_last_bars_and_by_the_candles_before_its_run(
    tmp_path: Path,
) -> None:
    def choices(name: str, *, from_ms: int | None = None) -> list[UniverseChange]:
        path = replayed(tmp_path / f"{name}.db", candles, rule=rule, from_ms=from_ms)
        with Reader.open(path) as reader:
            events = [event for _, _, event, _ in reader.events(reader.find("last"))]
        return [event for event in events if isinstance(event, UniverseChange)]

    candles = data(bars=130)  # more than the bars that warm a run
    opens, end_ms = candles[0].open_time_ms, candles[0].until_ms
    rule = RULE | {"at": [f"{hour:02d}:{end_ms // 60_000 % 60:02d}" for hour in range(24)]}
    whole = choices("whole")
    assert whole[-1].market_ms == end_ms
    later = choices("later", from_ms=int(opens[100]))
    assert later == [pick for pick in whole if pick.market_ms >= opens[100]]
    assert len(later) == 31


def test_a_turnover_beyond_64_bits_a_day_is_added_up_exactly() -> None:
    part = data()[0]
    vast = with_fields(part, turnover=np.full(BARS, 2**61, dtype=np.int64))
    rule, at_ms = UniverseRule(top=1), int(part.open_time_ms[30])
    changes = choices(rule, MarketData([vast]), [instrument(part.symbol)], start_ms=at_ms)
    ((_, turnover, _, _),) = changes[0].candidates
    assert int(turnover) == round(Fraction(24 * 2**61, 10**part.turnover_decimals))


def others(change: UniverseChange) -> tuple[str, ...]:
    return tuple(key for key, *_ in change.candidates if key not in change.chosen)


def figures(change: UniverseChange, **changed: Any) -> UniverseChange:
    """Return *one* whose first candidate has other figures."""
    names = ("id", "turnover", "volatility", "age")
    first = dict(zip(names, change.candidates[0], strict=True)) | changed
    return replace(change, candidates=(tuple(first.values()), *change.candidates[1:]))


@pytest.mark.parametrize(
    ("forge", "field"),
    [
        (lambda pick: [replace(pick, chosen=(pick.chosen[0], *others(pick)))], "event.chosen"),
        (lambda change: [replace(change, chosen=change.chosen[:1])], "event.chosen"),
        (lambda pick: [replace(pick, reason="all is well")], "event.reason"),
        (lambda pick: [figures(pick, turnover="7")], "event.candidates"),
        (lambda pick: [figures(pick, volatility="0.5")], "event.candidates"),
        (lambda pick: [figures(pick, age=900)], "event.candidates"),
        (lambda change: [replace(change, candidates=change.candidates[:2])], "event.candidates"),
        (lambda pick: [], "event.universe"),
        (lambda pick: [pick, pick], "event.universe"),
        (lambda pick: [pick, replace(pick, market_ms=pick.market_ms + HOUR)], "event.universe"),
        (lambda pick: [replace(pick, market_ms=pick.market_ms - 1)], "event.universe"),
        (lambda pick: [replace(pick, market_ms=pick.market_ms + 1)], "event.universe"),
    ],
)
def test_a_choice_that_was_forged_before_all_was_derived_is_found(
    tmp_path: Path, forge: Forge, field: str
) -> None:
    assert field in named(replayed(tmp_path / "forged.db", data(), forge))


def test_a_first_choice_that_is_missing_is_found(tmp_path: Path) -> None:
    path = replayed(tmp_path / "forged.db", data(), lambda _: [], place=0)
    assert "event.universe" in named(path)


def test_a_last_choice_that_is_missing_is_found_by_the_bars_behind_it(tmp_path: Path) -> None:
    rule = RULE | {"at": ["13:00"]}  # of the 60 hours: at their start, and twice
    path = replayed(tmp_path / "forged.db", data(), lambda _: [], place=2, rule=rule)
    assert named(path) == {"event.universe"}


def test_amid_its_files_a_forged_choice_is_found_a_day_after_the_first_bar(tmp_path: Path) -> None:
    begins = int(data()[0].open_time_ms[20])
    path = replayed(
        tmp_path / "forged.db",
        data(),
        lambda pick: [figures(pick, turnover="7")],
        place=6,
        from_ms=begins,
    )
    assert "event.candidates" in named(path)


@pytest.mark.parametrize(
    ("forge", "fields"),
    [
        (lambda pick: [pick], set()),
        (lambda pick: [figures(pick, age=1)], {"event.candidates"}),  # its bars show three days
        (lambda pick: [figures(pick, age=900)], set()),  # its file may be as old as that
        (lambda pick: [figures(pick, turnover="7")], {"event.candidates", "event.chosen"}),
    ],
)
def test_a_symbol_is_no_younger_than_the_bars_that_a_run_amid_its_files_holds(
    tmp_path: Path, forge: Forge, fields: set[str]
) -> None:
    bars = data(bars=130)
    begins = int(bars[0].open_time_ms[100])
    path = replayed(tmp_path / "forged.db", bars, forge, place=5, from_ms=begins)
    with Reader.open(path) as reader:
        events = [event for _, _, event, _ in reader.events(reader.find("last"))]
    assert (
        min(event.open_time_ms for event in events if isinstance(event, Bar))
        > bars[0].open_time_ms[0]
    )
    assert named(path) == fields


def as_live(path: Path) -> Path:
    """Make the bars of a run those of a stream, whose figures nothing else in the record gives."""
    with closing(sqlite3.connect(path)) as database:
        stream = SOURCE_CODES[Source.STREAM]
        database.execute("UPDATE steps SET source = ? WHERE instrument IS NOT NULL", (stream,))
        database.commit()
        sources = database.execute("SELECT DISTINCT source FROM v_bars").fetchall()
    assert sources == [("stream",)]
    rechain(path)
    return path


@pytest.mark.parametrize(
    ("forge", "fields"),
    [
        (lambda pick: [pick], set()),
        (lambda pick: [figures(pick, volatility="0.5")], set()),  # it agrees with itself
        (lambda pick: [], set()),  # an exchange may not have answered
        (lambda pick: [replace(pick, market_ms=pick.market_ms + 1)], set()),
        (lambda pick: [replace(pick, chosen=(pick.chosen[0], *others(pick)))], {"event.chosen"}),
        (lambda change: [replace(change, chosen=change.chosen[::-1])], {"event.chosen"}),
        (lambda pick: [replace(pick, chosen=pick.chosen[:1])], {"event.chosen"}),
        (lambda pick: [replace(pick, chosen=(*pick.chosen, *others(pick)))], {"event.chosen"}),
        (lambda pick: [replace(pick, chosen=("linear:NONE", pick.chosen[0]))], {"event.chosen"}),
        (lambda change: [replace(change, chosen=(change.chosen[0],) * 2)], {"event.chosen"}),
        (lambda change: [replace(change,
                              candidates=(*change.candidates, ("linear:NONE", "1", "0.01", 3)),
                              reason=change.reason.replace("of 3", "of 4"))],
         {"event.candidates", "event.reason"}),
        (lambda pick: [replace(pick, reason="all is well")], {"event.reason"}),
        (lambda pick: [replace(pick, market_ms=pick.market_ms - 1)], set()),  # a clock behind
        (lambda pick: [replace(pick, market_ms=pick.market_ms - HOUR)], {"event.universe"}),
        (lambda pick: [pick, replace(pick, market_ms=pick.market_ms + HOUR)], {"event.universe"}),
    ],
)  # fmt: skip
def test_a_live_choice_is_held_to_its_own_figures_and_its_time(
    tmp_path: Path, forge: Forge, fields: set[str]
) -> None:
    assert named(as_live(replayed(tmp_path / "forged.db", data(), forge))) == fields


def test_a_live_run_has_a_choice_before_its_first_decision(tmp_path: Path) -> None:
    path = as_live(replayed(tmp_path / "forged.db", data(), lambda _: [], place=0))
    assert named(path) == {"event.universe"}


def test_from_amid_a_run_honest_choices_pass_and_a_forged_one_is_found(tmp_path: Path) -> None:
    begins = int(data()[0].open_time_ms[10])
    for name, forge in (
        ("honest", lambda pick: [pick]),
        ("forged", lambda pick: [figures(pick, turnover="7")]),
    ):
        path = replayed(tmp_path / f"{name}.db", data(), forge, place=8)
        verification = verified(path, from_ms=begins)
        assert verification.passes is (name == "honest"), verification.differences
