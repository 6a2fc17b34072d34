"""The trading network with order books: trained, replayed, verified, killed and explained.

The second to the fifth level lean as the coming minutes' volatility will be; the others are noise.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from book_modality_cases import (
    COUNT,
    ENDS,
    EVERY_MS,
    LEVELS,
    RECIPE,
    SPLIT,
    SYMBOL,
    candles,
    leans,
    write_books,
)
from killed_replays import killed, resumed
from learning import MINUTE_MS, START_MS, Say, choose, write_csv
from recordings import record
from records import run_again

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load as load_config
from tracepaper.replay.archive import slice_candles
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.archive.order_book import read_depth
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.parity import ComparedRun, compare_runs
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import DataRequest, candle_model, read_candles_of
from tracepaper.replay.learning.side_inputs import BookInputs
from tracepaper.replay.learning.splits import Part, Split
from tracepaper.storage.checkpoints import load
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.book_features import RunBooks, reading_of
from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.forecasters.build import build as forecaster_of
from tracepaper.strategies.order_book import Books, packed_books
from tracepaper.strategies.types.market import Bar, Depths

SHORT = 640
MANY = 12_000  # bars: more than seven days
HOLE = (600, 605)  # bars without a book
CSV = f"bybit_linear_{SYMBOL}_1m.csv.gz"
CONFIG: dict[str, dict[str, Any]] = {
    "market": {"symbols": [SYMBOL]},
    "strategy": {"name": "attention"},
    "gate": {"horizon": 30, "direction": "0.3", "edge": "0.001"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles, books and a checkpoint that was trained on both."""
    made = tmp_path_factory.mktemp("books")
    every = candles(COUNT)
    write_csv(every, made)
    (made / "few").mkdir()
    write_csv(slice_candles(every, slice(0, SHORT)), made / "few")
    write_books(made / "books.depth", COUNT, gaps=(HOLE,))
    (made / "recipe.toml").write_text(RECIPE + SPLIT, "utf-8")
    assert invoke(trained(made, "out")) == 0
    return made


def trained(made: Path, out: str, *words: str) -> list[str]:
    told = (made / "recipe.toml", "--data", made / CSV, "--depth", made / "books.depth")
    return [str(word) for word in ("train", *told, "--out", made / out, *words)]


def config(folder: Path, **model: Any) -> Any:
    """Return a configuration by the checkpoint of *folder*, which reads its books."""
    given = {
        **CONFIG,
        "market": {**CONFIG["market"], "depth": LEVELS, "depth_every_ms": EVERY_MS},
        "model": {"checkpoint": str(folder / "out"), "threads": 1, **model},
    }
    return load_config(None, given)


def replayed(folder: Path, database: Path, depth: Path) -> str:
    """Replay the first bars beside *depth* into *database*; return the run's id."""
    data = [slice_candles(candles(COUNT), slice(0, SHORT))]
    return record(database, config(folder), data, depth=[read_depth(depth)])


@pytest.fixture(scope="module")
def database(folder: Path) -> Path:
    """Return a database with one replay."""
    replayed(folder, folder / "run.db", folder / "books.depth")
    return folder / "run.db"


def answers(database: Path, say: Say) -> dict[int, Any]:
    """Return what the model said at each bar, by its place."""
    asked = "select open_time_ms, mean_return from v_decisions order by sequence"
    code, out, err = say("audit", "sql", asked, "--db", database, "--json")
    assert code == 0, err
    return {
        (row["open_time_ms"] - START_MS) // MINUTE_MS: row["mean_return"] for row in json.loads(out)
    }


def check(database: Path) -> None:
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        assert verify_run(reader, database, run_id).differences == []


# ---------------------------------------------------------------- features


def by_hand(newest: Books, before: Books | None, levels: int) -> dict[str, float]:
    """Return some features of a book from its levels one by one, as D21 words them."""
    bids, asks = (
        [
            (float(p), float(s))
            for p, s in zip(newest.price[0, side], newest.size[0, side], strict=True)
        ]
        for side in (0, 1)
    )
    mid = (bids[0][0] + asks[0][0]) / 2
    first, last = 2, min(5, levels)
    held = {"bid": bids[first - 1 : last], "ask": asks[first - 1 : last]}
    size = {side: sum(s for _, s in own) for side, own in held.items()}
    name = f"{first}_{last}"
    found = {
        "mid_spread": (asks[0][0] - bids[0][0]) / mid * 1e4,
        f"{name}_imbalance": (size["bid"] - size["ask"]) / (size["bid"] + size["ask"]),
    }
    whole = sum(s for _, s in bids + asks)
    for side, own in held.items():
        found[f"{name}_{side}_share"] = size[side] / whole
        found[f"{name}_{side}_wall"] = max(s for _, s in own) / size[side]
        found[f"{name}_{side}_distance"] = (
            sum(s * abs(p - mid) for p, s in own) / size[side] / mid * 1e4
        )
    if before is None:
        return found | {"mid_moved": 0.0, f"{name}_bid_grown": 0.0, f"{name}_ask_grown": 0.0}
    was = {side: float(before.size[0, at, first - 1 : last].sum()) for at, side in enumerate(held)}
    mid_before = float(before.price[0, 0, 0] + before.price[0, 1, 0]) / 2
    grown = {f"{name}_{side}_grown": math.log(size[side] / was[side]) for side in held}
    return found | grown | {"mid_moved": (mid / mid_before - 1) * 1e4}


def test_a_row_is_what_a_reader_of_the_rule_would_compute(folder: Path) -> None:
    supplied = BookInputs.read([folder / "books.depth"])
    (file,) = supplied.files[SYMBOL]
    closes = START_MS + MINUTE_MS * np.arange(1, 40, dtype=np.int64)
    found = supplied.source.at(SYMBOL, closes)
    assert found.time_ms.tolist() == closes.tolist()  # a book of the very millisecond counts
    names = supplied.reading.columns
    for place, close_ms in enumerate(closes.tolist()):
        at = int(np.searchsorted(file.times, close_ms, side="right")) - 1
        before = file.part(at - 1, at) if at else None
        row = dict(zip(names, found.values[place].tolist(), strict=True))
        wanted = by_hand(file.part(at, at + 1), before, LEVELS)
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_training_and_a_run_have_the_same_row_of_each_bar(folder: Path, database: Path) -> None:
    """The file, read by places, against the run's own events in the order in which they came."""
    supplied = BookInputs.read([folder / "books.depth"])
    reading = reading_of(load(folder / "out").card)
    assert reading == supplied.reading
    live = RunBooks(supplied.reading)
    with Reader.open(database) as reader:
        events = [event for _, _, event, _ in reader.events(reader.find("last"))]
    for event in events:
        live.see(event)
    closes = np.array([event.close_time_ms for event in events if isinstance(event, Bar)])
    one, two = supplied.source.at(SYMBOL, closes), live.at(SYMBOL, closes)
    assert np.array_equal(one.values, two.values, equal_nan=True)
    assert np.array_equal(one.time_ms, two.time_ms)
    lacks = np.isnan(one.values).any(axis=1)
    assert np.flatnonzero(lacks).tolist() == list(range(*HOLE))


def test_bars_without_a_book_are_no_samples(folder: Path) -> None:
    first, second, third = (START_MS + MINUTE_MS * end for end in ENDS)
    split = Split(first, second, third, embargo_bars=30)
    supplied = BookInputs.read([folder / "books.depth"])
    data = Dataset.read([str(folder / CSV)], lambda _: split, (5, 30), vectors=supplied)
    (segment,) = data.segments
    lacks = segment.lacks
    assert lacks is not None
    assert np.flatnonzero(lacks).tolist() == list(range(*HOLE))
    assert np.isfinite(segment.values[segment.first :]).all()
    without = Dataset.read([str(folder / CSV)], lambda _: split, (5, 30))
    assert without.segments[0].lacks is None


def test_the_card_says_which_books_and_claims_nothing_of_few(folder: Path, say: Say) -> None:
    card = load(folder / "out").card
    of = card["features"]["book"]
    assert (of["levels"], of["every_ms"]) == (LEVELS, EVERY_MS)
    assert [file["name"] for file in of["files"]] == ["books.depth"]
    assert "--depth books.depth" in card["training"]["command"]
    assert set(card["architecture"]["levels"]) == {"", "mid", "1", "2_5", "6"}
    assert card["model"]["trained"] is False
    assert card["figures"] == {}
    first, second = card["honesty"]["sentences"]
    assert first.startswith("untrained: 2,595.0 minutes of depth, seven days are needed")
    assert "loopback are no recording of the exchange itself" in second
    beside = ("--data", folder / CSV, "--depth", folder / "books.depth")
    for words in (("evaluate", folder / "out", *beside), ("evaluate", folder / "out", *beside[:2])):
        code, out, _ = say(*words)
        assert code == 0
        assert "seven days are needed" in out


# ---------------------------------------------------------------- runs


def test_bars_without_a_book_are_refused_and_the_others_answered(database: Path, say: Say) -> None:
    check(database)
    asked = "select refused_by, count(*) n from v_decisions group by 1"
    code, out, err = say("audit", "sql", asked, "--db", database, "--json")
    assert code == 0, err
    found = {row["refused_by"]: row["n"] for row in json.loads(out)}
    assert (found["warm"], found["finite"]) == (495, HOLE[1] - HOLE[0])


def test_a_run_whose_books_begin_late_is_sampled_where_there_is_none(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    """A pass over known bars is held to its own answers at a bar without a book, too."""
    write_books(tmp_path / "late.depth", SHORT, gaps=((0, SHORT - 5),))
    run_id = replayed(folder, tmp_path / "late.db", tmp_path / "late.depth")
    said = answers(tmp_path / "late.db", say)
    assert [mean is not None for mean, _ in said.values()][-6:] == [False] + 5 * [True]
    with Reader.open(tmp_path / "late.db") as reader:
        assert verify_run(reader, tmp_path / "late.db", run_id).differences == []
    query = "SELECT min(sequence) FROM v_decisions WHERE refused_by = 'finite'"
    code, out, _ = say("audit", "sql", query, "--db", tmp_path / "late.db")
    sequence = out.split()[-1]
    code, _, err = say("explain", f"last:{sequence}", "--full", "--db", tmp_path / "late.db")
    assert code == 1
    assert "was refused by the gate finite, for its model gave no usable forecast" in err


def test_a_run_is_fed_its_own_books_and_decides_the_same(database: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.db"
    found = run_again(database, again)
    assert (found.compared, found.identical, found.differences) == (SHORT, SHORT, [])
    check(again)


@pytest.mark.parametrize("after", [602])
def test_a_replay_killed_anywhere_goes_on_as_if_it_had_not_been(
    folder: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    bars, books = slice_candles(candles(COUNT), slice(0, SHORT)), folder / "books.depth"
    data = MarketData([bars], depth=[read_depth(books)])
    cut = killed(
        lambda path: build(config(folder), data, started_at_ms=0, database=path),
        tmp_path,
        monkeypatch,
        bars=after - 1,
        every=1,
        group_steps=1,
    )
    run_id = resumed(cut, data)
    with Reader.open(database) as one, Reader.open(cut) as two:
        found = compare_runs(ComparedRun(one, one.find("last")), ComparedRun(two, run_id))
    assert (found.compared, found.differences) == (SHORT, [])
    check(cut)


def test_a_book_after_the_close_moves_no_answer(
    folder: Path, database: Path, tmp_path: Path, say: Say
) -> None:
    """Planted: other books from a millisecond after a close on, and from the close on."""
    whole = answers(database, say)
    at_ms = START_MS + MINUTE_MS * 560
    for name, from_ms, first in (("later", at_ms + 1, 560), ("sooner", at_ms, 559)):
        other = tmp_path / f"{name}.depth"
        write_books(other, COUNT, gaps=(HOLE,), other_from_ms=from_ms)
        replayed(folder, tmp_path / f"{name}.db", other)
        moved = answers(tmp_path / f"{name}.db", say)
        assert min(bar for bar in whole if whole[bar] != moved[bar]) == first


def test_a_false_book_gives_no_row_nor_does_what_stood_before_it(folder: Path) -> None:
    """Planted in the last or the last but one book of a bar: its mid is 2 % off, or 0.5 %."""
    supplied = BookInputs.read([folder / "books.depth"])
    (file,) = supplied.files[SYMBOL]
    bar, close_ms = bars_of(candles(COUNT))[20], START_MS + 21 * MINUTE_MS
    at = int(np.searchsorted(file.times, close_ms)) - 1  # before the one of the close
    for false, factor, known, has_before in (
        (1, 1.02, False, False), (1, 1.005, True, True),
        (0, 0.98, True, False), (None, 1.0, True, True),
    ):  # fmt: skip
        books = RunBooks(supplied.reading)
        books.see(bars_of(candles(COUNT))[19])
        for place in (0, 1):
            one = file.part(at + place, at + place + 1)
            price = one.price if place != false else np.round(one.price * factor).astype(np.int64)
            told = replace(one, price=price)
            seen_ms = int(one.seen_ms[0])
            books.see(packed_books(f"linear:{SYMBOL}", told, every_ms=EVERY_MS, seen_ms=seen_ms))
        books.see(bar)
        row = books.at(SYMBOL, np.array([close_ms])).values[0]
        assert bool(np.isfinite(row).all()) is known, (false, factor)
        moved = row[supplied.reading.columns.index("2_5_bid_grown")]
        assert bool(known and moved != 0) is has_before, (false, factor)


def test_a_changed_book_of_the_record_is_found(database: Path, tmp_path: Path) -> None:
    """Without the book of one bar, the answers of that bar and those after it do not follow."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        events = [event for _, _, event, _ in reader.events(run_id)]
    place = max(at for at, event in enumerate(events) if isinstance(event, Depths)) - 20
    place = next(at for at in range(place, 0, -1) if isinstance(events[at], Depths))
    books = RunBooks(BookInputs.read([database.parent / "books.depth"]).reading)
    for event in events[:place] + events[place + 1 :]:
        books.see(event)
    bar = next(event for event in events[place:] if isinstance(event, Bar))
    assert np.isnan(books.at(SYMBOL, np.array([bar.close_time_ms])).values).all()


# ---------------------------------------------------------------- explained


def test_the_explanation_has_the_share_of_each_modality_and_group_of_levels(
    database: Path, say: Say
) -> None:
    code, out, err = say("explain", "last", "--full", "--db", database, "--json")
    assert code == 0, err
    parts = {
        part["modality"]: part for part in json.loads(out)["full"]["attribution"]["modalities"]
    }
    assert parts.keys() == {"price", "volume", "time", "book"}
    assert sum(part["weight"] for part in parts.values()) == pytest.approx(1.0, abs=1e-5)
    levels = parts["book"]["levels"]
    assert levels.keys() == {"mid", "1", "2_5", "6"}
    assert sum(levels.values()) == pytest.approx(parts["book"]["weight"], rel=1e-5)
    code, out, err = say("explain", "last", "--full", "--db", database)
    assert code == 0, err
    assert "By levels of the order book" in out


def test_heads_are_told_at_bars_that_were_answered(database: Path, say: Say) -> None:
    code, out, err = say("report", "last", "--heads", "--db", database, "--json")
    assert code == 0, err
    assert json.loads(out)["heads"]["decisions"] > 0


def test_the_network_of_a_checkpoint_shows_its_maps_beside_books(folder: Path, say: Say) -> None:
    data = ("--data", folder / CSV)
    code, out, err = say(
        "models", "check", folder / "out", *data, "--depth", folder / "books.depth", "--json"
    )
    assert code == 0, (out, err)
    assert json.loads(out)["model_id"] == load(folder / "out").id
    code, _, err = say("models", "check", folder / "out", *data)
    assert code == 2
    assert "was trained with order books; give files of them by --depth" in err


# ---------------------------------------------------------------- refused


def test_what_cannot_read_them_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    beside = ("--data", folder / CSV, "--depth", folder / "books.depth", "--out", tmp_path / "o")
    recipe = folder / "recipe.toml"
    few = tmp_path / "few.depth"
    write_books(few, 40, every_ms=30_000)
    spot = write_books(tmp_path / "spot.depth", 40, instrument=f"spot:{SYMBOL}")
    only = choose('modalities=["price", "volume", "time"]')
    cases = [
        (("train", *beside, *choose("model.kind=flash")), 2, "a modality of the kind trading"),
        (("train", recipe, *beside, *only), 2, "name book as well, or give no --depth"),
        (
            ("train", recipe, *beside[:2], "--out", tmp_path / "o",
             *choose('modalities=["price", "book"]')),
            2, "No feature is of the modality book; leave it out, give --depth FILE",
        ),
        (("train", recipe, *beside, "--covariates", "x.csv"), 2, "give one of them"),
        (("train", recipe, *beside, "--depth", folder / "books.depth"), 1, "of the same time"),
        (("train", recipe, *beside, "--depth", few), 1, "of one depth and pace"),
        (
            ("train", recipe, *beside[:2], "--depth", spot, *beside[4:]), 1,
            f"books of spot:{SYMBOL}, and the candles are of linear:{SYMBOL}; give books and",
        ),
        (("evaluate", "default", *beside[:4]), 2, "was trained without order books; leave --depth"),
    ]  # fmt: skip
    for words, wanted, sentence in cases:
        code, _, err = say(*words)
        assert sentence in err, (words, err)
        assert code == wanted
    assert sorted(one.name for one in tmp_path.iterdir()) == ["few.depth", "spot.depth"]


def test_what_a_killed_recorder_left_is_told_and_left_out(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    torn = tmp_path / "torn.depth"
    torn.write_bytes((folder / "books.depth").read_bytes() + b"half a block")
    words = trained(folder, "torn")
    words[words.index("--depth") + 1] = str(torn)
    words[words.index("--out") + 1] = str(tmp_path / "out")
    code, _, err = say(*words)
    assert code == 0
    told = "The last 12 bytes of"
    assert told in err
    run_id = replayed(folder, tmp_path / "torn.db", torn)
    with Reader.open(tmp_path / "torn.db") as reader:
        warnings = reader.run(run_id).warnings
    assert [told in one and one.endswith("left out") for one in warnings].count(True) == 1


def test_a_run_without_the_books_that_the_model_reads_is_refused(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        f'[market]\nsymbols = ["{SYMBOL}"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / "out"}"\nthreads = 1\n[gate]\nhorizon = 30\n',
        encoding="utf-8",
    )
    few = tmp_path / "few.depth"
    write_books(few, 40, levels=3)
    words = ("replay", "-c", file, "--data", folder / "few" / CSV, "--db", tmp_path / "r.db")
    books = ("--depth", folder / "books.depth")
    cases = [
        ((), "reads order books of 6 levels each 20,000 ms, and [market] has depth = 0"),
        (("--depth", few), "and [market] has depth = 3"),
        ((*books, *choose("model.covariates=x.csv")), "take out [model] covariates"),
        ((*books, *choose("model.retrain=7d")), "is not retrained in service"),
    ]
    for more, sentence in cases:
        code, _, err = say(*words, *more)
        assert code == 2, (more, err)
        assert sentence in err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.toml", "few.depth"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"levels": "six"}, "must name levels and every_ms"),
        ({"levels": 4}, "lists other columns than this version makes"),
        ({"scale": [0.0]}, "with a centre and a scale above 0"),
    ],
)
def test_a_card_that_does_not_say_its_books_is_refused(
    folder: Path, changed: dict[str, Any], sentence: str
) -> None:
    found = load(folder / "out")
    features = {**found.card["features"], "book": {**found.card["features"]["book"], **changed}}
    card = {**found.card, "features": features}
    with pytest.raises(CheckpointMismatch, match=sentence):
        forecaster_of(card, found.tensors)


# ---------------------------------------------------------------- learnt


def test_of_seven_days_it_learns_the_levels_that_tell_and_is_judged(
    tmp_path: Path, say: Say
) -> None:
    """With books the forecast volatility follows their lean; without them it can only in part."""
    write_csv(candles(MANY), tmp_path)
    write_books(tmp_path / "books.depth", MANY, every_ms=MINUTE_MS, source="exchange")
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")
    more = ("training.steps=200", "training.batch=8", "training.learning_rate=0.003")
    words = trained(tmp_path, "with", *choose(*more))
    code, _, err = say(*words)
    assert code == 0, err
    at = words.index("--depth")
    words[words.index("--out") + 1] = str(tmp_path / "without")
    code, _, err = say(*words[:at], *words[at + 2 :])
    assert code == 0, err
    followed = {}
    for name in ("with", "without"):
        found = load(tmp_path / name)
        books = BookInputs.read([tmp_path / "books.depth"]) if name == "with" else None
        data = read_candles_of(found.card, DataRequest([str(tmp_path / CSV)], inputs=books))
        said = candle_model(found.card, found.tensors).answers(data, Part.TEST)
        (segment,), shortest = data.segments, said.at(said.horizons[0])
        places = np.flatnonzero(np.isin(segment.keys, shortest.keys))
        assert len(places) == len(shortest.keys) > 1_000
        forecast = np.log(shortest.value("scale") * shortest.labels["unit"])
        followed[name] = float(np.corrcoef(forecast, leans(MANY)[places])[0, 1])
    assert followed["with"] > 0.8
    assert followed["without"] < 0.7
    assert load(tmp_path / "with").card["figures"]
    given = (
        "evaluate", tmp_path / "with", "--data", tmp_path / CSV, "--depth",
        tmp_path / "books.depth", *choose("evaluation.explained_bars=500"), "--json",
    )  # fmt: skip
    code, out, err = say(*given)
    assert code == 0, err
    assert json.loads(out)["id"] == load(tmp_path / "with").id
    code, _, err = say(*given[:4], *choose("evaluation.explained_bars=500"))
    assert code == 2
    assert "order books of 6 levels each 60,000 ms; give files of them by --depth" in err
