"""Forgeries of two columns at once, and in runs with books, covariates and several symbols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import depth_cases
import numpy as np
import pytest
import user_strategies as users
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from forging import TAKEN_AS_TOLD, audited, believed, forged, literal, plantings, verified
from recordings import crossing, record
from records import rows
from vector_cases import CONTEXT, sections

from tracepaper.daemon.config.loading import restore
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.books import read_depth
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.order_book import books_in, packed_books
from tracepaper.strategies.types.market import Depths

LOOKS = users.source(
    head="books = 3",
    decide="books = now.depth\n"
    "return by(books is not None and int(books.size[:, 0, 0].sum()) % 2 == 0)",
)
IGNORES = users.source(decide="return by(bar.close > bar.open)")


def recorded(path: Path, candles: list[Candles], depth: Any = (), **given: Any) -> Path:
    """Replay *candles* into a new database at *path*."""
    given = {"sizing": {"mode": "fixed", "quantity": "0.01"}, **given}
    config = crossing(*(part.symbol for part in candles), **given)
    record(path, config, candles, started_at_ms=1, depth=depth)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("pairs") / "plain.db", [made_candles(walk_rows(60))])


def first(path: Path, column: str) -> str:
    """Return a statement that changes *column* where its values are not null."""
    *_, statement = plantings(path, column)
    return statement


# ---------------------------------------------------------------- what says the same twice

SAID_TWICE = (
    *("code_version", "libraries", "device", "dtype", "torch_version", "instruction_set"),
    *("threads", "backend", "mode", "model_id", "model_sha256"),
)


@pytest.mark.parametrize("of_a_model", [False, True])
def test_where_a_run_was_made_is_told_by_its_row_and_its_start_together(
    plain: Path, modelled: Path, tmp_path: Path, *, of_a_model: bool
) -> None:
    path, passed = modelled if of_a_model else plain, set()
    start = "(SELECT min(sequence) FROM events WHERE kind = 'model_change')"
    for name in SAID_TWICE:
        ((value,),) = rows(path, f"SELECT {name} FROM runs")
        other = value + 1 if isinstance(value, int) else value.replace("3.", "4.") + " "
        in_start = (
            f"UPDATE events SET content = json_set(content, '$.{name}', {literal(other)}) "
            f"WHERE sequence = {start}"
        )
        target = tmp_path / "forged.db"
        copy = forged(path, target, f"UPDATE runs SET {name} = {literal(other)}", in_start)
        if believed(copy, path):
            passed.add(f"runs.{name}")
    named = {f"runs.{name}" for name in SAID_TWICE} & set(TAKEN_AS_TOLD)
    assert passed == (named if of_a_model else {"runs.code_version", "runs.libraries"})


def test_a_library_that_is_forged_loosens_nothing_where_no_model_answers(
    plain: Path, tmp_path: Path
) -> None:
    change = 'replace({}, \'"numpy": "\', \'"numpy": "9.\')'
    start = "(SELECT min(sequence) FROM events WHERE kind = 'model_change')"
    path = forged(
        plain,
        tmp_path / "forged.db",
        f"UPDATE runs SET libraries = {change.format('libraries')}",
        "UPDATE events SET content = json_set(content, '$.libraries', "
        f"(SELECT libraries FROM runs)) WHERE sequence = {start}",
    )
    verification = verified(path)
    assert (verification.passes, verification.exact, verification.elsewhere) == (True, True, "")


KEYS_OF_CONFIG: dict[str, tuple[dict[str, Any], bool]] = {
    "a deadline that nothing missed": ({"model": {"deadline_ms": 77}}, True),
    "the fee that the instrument says": ({"execution": {"taker_fee": "0.00055"}}, True),
    "an option that nothing reads": ({"strategy": {"stop_loss": "5"}}, False),
    "a fee": ({"execution": {"taker_fee": "0.0006"}}, False),
}


@pytest.mark.parametrize("name", KEYS_OF_CONFIG)
def test_a_key_and_the_hash_of_the_configuration_are_believed_where_it_has_no_effect(
    plain: Path, tmp_path: Path, name: str
) -> None:
    change, passes = KEYS_OF_CONFIG[name]
    ((text,),) = rows(plain, "SELECT config FROM runs")
    document = json.loads(text)
    for section, keys in change.items():
        document[section].update(keys)
    try:
        other = restore(json.dumps(document))
    except Exception:  # noqa: BLE001 - verify refuses it as well
        text, digest = json.dumps(document), "0" * 64
    else:
        text, digest = other.canonical_json(), other.sha256()
    path = forged(
        plain,
        tmp_path / "forged.db",
        f"UPDATE runs SET config = {literal(text)}, config_sha256 = {literal(digest)}",
    )
    assert believed(path) is passes


# ---------------------------------------------------------------- books


@pytest.fixture(scope="module", params=[LOOKS, IGNORES], ids=["looked at", "ignored"])
def booked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Yield a run beside order books, at which its decisions look or do not."""
    folder = tmp_path_factory.mktemp("booked")
    name = f"books_{request.param is LOOKS}"
    (folder / f"{name}.py").write_text(request.param)
    books = folder / "books.depth"
    depth_cases.write(books, depth_cases.walk(700))
    walk = made_candles(walk_rows(12))
    shift = depth_cases.FIRST_MS - int(walk.open_time_ms[0])
    walk = replace(walk, open_time_ms=walk.open_time_ms + shift)
    with users.importable(folder):
        path = recorded(
            folder / "run.db", [walk], [read_depth(books)], strategy={"name": f"{name}:Mine"}
        )
        assert believed(path)
        yield path


def depths(path: Path) -> list[tuple[int, Depths]]:
    with Reader.open(path) as reader:
        steps = reader.events(reader.find("last"))
        return [(at, event) for at, _, event, _ in steps if isinstance(event, Depths)]


def test_a_byte_of_books_is_found(booked: Path, tmp_path: Path) -> None:
    query = "SELECT sequence, books FROM events WHERE books IS NOT NULL LIMIT 1 OFFSET 3"
    ((step, books),) = rows(booked, query)
    flipped = books[:9] + bytes([books[9] ^ 1]) + books[10:]
    change = f"UPDATE events SET books = {literal(flipped)} WHERE sequence = {step}"
    path = forged(booked, tmp_path / "forged.db", change)
    assert audited(path)
    assert not believed(path)


def test_two_books_that_change_places_are_believed_where_no_decision_follows_from_them(
    booked: Path, tmp_path: Path
) -> None:
    ((step, books),) = rows(
        booked,
        "SELECT sequence, books FROM events WHERE books IS NOT NULL "
        "ORDER BY sequence LIMIT 1 OFFSET 4",
    )
    event = next(depth for _, depth in depths(booked) if depth.books == books)
    held = books_in(event)
    order = np.arange(len(held))
    order[[-1, -2]] = order[[-2, -1]]
    swapped = replace(held, price=held.price[order], size=held.size[order])
    packed = packed_books(event.instrument, swapped, every_ms=event.every_ms, seen_ms=event.seen_ms)
    path = forged(
        booked,
        tmp_path / "forged.db",
        f"UPDATE events SET books = {literal(packed.books)} WHERE sequence = {step}",
    )
    assert audited(path)
    assert believed(path)


# ---------------------------------------------------------------- vectors


@pytest.fixture(scope="module")
def vectored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectored")
    walk = made_candles(walk_rows(CONTEXT + 12))
    lines = [f"{at + 1_000},{at % 7 / 7}" for at in walk.open_time_ms[::3].tolist()]
    news = folder / "news.csv"
    news.write_text("\n".join(["time,mood", *lines]), encoding="utf-8")
    return recorded(folder / "run.db", [walk], **sections(folder, news))


def test_forged_vectors_are_found(vectored: Path, tmp_path: Path) -> None:
    assert believed(vectored)
    ((text,),) = rows(vectored, "SELECT libraries FROM runs")
    (kept,) = [name for name in json.loads(text) if "vector" in name]
    other = text.replace(json.loads(text)[kept], "0" * 64)
    start = "(SELECT min(sequence) FROM events WHERE kind = 'model_change')"
    path = forged(
        vectored,
        tmp_path / "forged.db",
        f"UPDATE runs SET libraries = {literal(other)}",
        "UPDATE events SET content = json_set(content, '$.libraries', "
        f"(SELECT libraries FROM runs)) WHERE sequence = {start}",
    )
    assert not believed(path, vectored)
    for column in ("answers.mean_return", "answers.entropy"):
        assert not believed(
            forged(vectored, tmp_path / "one.db", first(vectored, column)), vectored
        )
