"""``lookahead`` and ``recursive`` with order books: later ones move nothing, or are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_strategies as users
from depth_cases import FIRST_MS, walk, write
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import RecordedDepth, read_depth
from tracepaper.replay.backtest.market_data import SOURCES, Cutoff, MarketData
from tracepaper.replay.backtest.tracks import depth_track
from tracepaper.replay.checks.compare import CheckFinding
from tracepaper.replay.checks.derived import DerivedRun, MovedStep, derive_candles, first_moved
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import lookahead
from tracepaper.replay.checks.perturbations import FutureProbe
from tracepaper.replay.checks.probes import Limits
from tracepaper.strategies.order_book import check_books

MINUTE_MS = 60_000
FAIR = """
books = now.depth
return by(books is not None and books.size[:, 0, 0].sum() > books.size[:, 1, 0].sum())
"""


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> list[RecordedDepth]:
    path = tmp_path_factory.mktemp("books") / "btc.depth"
    write(path, walk(3_600, first_ms=FIRST_MS + 60 * MINUTE_MS))
    return [read_depth(path)]


@pytest.fixture(scope="module")
def candles() -> list[Candles]:
    walk = made_candles(walk_rows(120))
    return [replace(walk, open_time_ms=walk.open_time_ms + FIRST_MS - int(walk.open_time_ms[0]))]


def configured(name: str) -> Config:
    return load(
        None,
        {
            "strategy": {"name": f"{name}:Mine"},
            "sizing": {"mode": "fixed", "quantity": "1"},
            "market": {"symbols": ["BTCUSDT"], "depth": 5},
        },
    )


def written(folder: Path, name: str, decide: str) -> Config:
    (folder / f"{name}.py").write_text(users.source(head="books = 20", decide=decide))
    return configured(name)


def checked(
    config: Config, folder: Path, fresh: FreshProcesses, *given: Any, **limits: Any
) -> CheckFinding:
    candles, depth = given
    with users.importable(folder):
        return lookahead(
            config, MarketData(candles, depth=depth), fresh, Limits(probes=2, **limits)
        )


def test_who_sees_the_books_that_are_handed_on_passes(
    tmp_path: Path, fresh: FreshProcesses, candles: list[Candles], depth: list[RecordedDepth]
) -> None:
    config = written(tmp_path, "fair_books", FAIR)
    finding = checked(config, tmp_path, fresh, candles, depth)
    assert (finding.differences, finding.depends) == ([], []), finding.sentence()
    assert (finding.without_later, finding.probes) == (120, 2)


def probed(config: Config, data: MarketData, *probes: FutureProbe) -> list[MovedStep | None]:
    """Return what moves under *probes*, derived in this process."""
    base = DerivedRun(derive_candles(config, data, "step", 60.0))
    moved = []
    for probe in probes:
        with probe.changed(config, data) as (other, future):
            run = DerivedRun(derive_candles(other, future, "step", 60.0))
        moved.append(first_moved(base, run, until_ms=probe.at_ms)[0])
    return moved


@pytest.mark.parametrize("cut", [True, False])
def test_a_feed_that_hands_books_on_too_early_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    candles: list[Candles],
    depth: list[RecordedDepth],
    cut: bool,
) -> None:
    """Planted: books of the next half a minute are dated back to the bar's close."""
    config = written(tmp_path, f"early_{cut}", FAIR)
    data = MarketData(candles, depth=depth)
    first_ms = int(candles[0].open_time_ms[0])
    probes = [FutureProbe(first_ms, first_ms + bar * MINUTE_MS, cut) for bar in (80, 90, 100)]
    with users.importable(tmp_path):
        honest = probed(config, data, *probes)
        assert honest == [None, None, None]

        def early(recorded: RecordedDepth, *given: Any, **named: Any) -> Any:
            return depth_track(recorded.changed(later_ms=-30_000), *given, **named)

        monkeypatch.setattr("tracepaper.replay.backtest.tracks.depth_track", early)
        answers = probed(config, data, *probes)
    assert any(answers)


def test_the_later_books_are_gone_or_others(depth: list[RecordedDepth]) -> None:
    (whole,) = depth
    until = SOURCES["depth"].until

    def books_at(close_ms: int, *, cut: bool) -> RecordedDepth:
        [recorded] = until([whole], Cutoff(0, close_ms, {}, cut))
        assert isinstance(recorded, RecordedDepth)
        return recorded

    at_ms = int(whole.times[700])
    cut = books_at(at_ms, cut=True)
    assert cut.times.tolist() == whole.times[:701].tolist()
    assert cut.starts.tolist() == [0]
    other = books_at(at_ms, cut=False)
    check_books(other.read_all(), "what is taken for later books")
    same = (other.read_all().price == whole.read_all().price).all(axis=(1, 2))
    assert np.flatnonzero(~same).tolist() == list(range(701, len(whole.read_all())))
    none = books_at(0, cut=True)
    assert (len(none.read_all()), none.starts.tolist(), none.causes) == (0, [], ())
