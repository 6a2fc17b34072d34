"""Networks of order books on holdouts; embedded books never have figures.

The files claim to be of the exchange, which no test can have; what is in them is planted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_cases import FIRST_MS, depth, header, walk, write
from learning import by_forecaster, choose
from pages import said_in

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import FILE_NAME, read_uses
from tracepaper.replay.learning.order_books import BookDataset
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import Part, Split
from tracepaper.storage.checkpoints import load
from tracepaper.strategies.order_book import books_of
from tracepaper.strategies.types.market import Depth
from tracepaper.strategies.units import DAY_MS

WHOLE, UNTOUCHED = 20, 40
"""Days with a full recording, and days after them."""
PACE_MS = 3_600_000
A_DAY = 24
LATER = 3
"""Books of each day of the untouched time; earlier days have all."""
AS_TEXT = "A=2025-01-21:2025-02-10,B=2025-02-10:2025-03-02"
CLAIM = re.compile(r"accurac|log.?loss|better|\d %|\bhits?\b|model less", re.IGNORECASE)


def planted(seen_ms: Sequence[int], *, mirrored_from: int | None = None) -> list[Depth]:
    """Return books whose mid follows the lean of the book before, and from a row on opposes it."""
    rng = np.random.default_rng(4)
    books, bid = [], 10_000
    for row, at_ms in enumerate(seen_ms):
        lean = int(rng.integers(0, 2))
        sizes = (50, 5) if lean else (5, 50)
        bids, asks = [(bid, sizes[0]), (bid - 1, 9)], [(bid + 1, sizes[1]), (bid + 2, 9)]
        books.append(depth(bids, asks, at_ms))
        is_mirrored = mirrored_from is not None and row >= mirrored_from
        bid += 1 if lean != is_mirrored else -1
    return books


def hours(days: float) -> list[int]:
    return [FIRST_MS + row * PACE_MS for row in range(round(days * A_DAY))]


def trained(out: Path, data: Path, *more: object) -> str:
    words = [
        "train",
        *choose("model.kind=orderbook"),
        "--data",
        data,
        "--out",
        out,
        *choose(
            "window=12",
            "dim=8",
            "layers=1",
            "heads=2",
            "horizons=1,2",
            "training.threads=1",
            "training.windows=2",
            "training.learning_rate=0.02",
        ),
        *more,
    ]
    assert invoke([str(word) for word in words]) == 0
    return str(out)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("books") / "btc.depth"
    of = header(levels=2, every_ms=PACE_MS, source="exchange")
    days = [hours(WHOLE)]
    days += [
        [FIRST_MS + day * DAY_MS + row * PACE_MS for row in range(LATER)]
        for day in range(WHOLE, WHOLE + UNTOUCHED)
    ]
    books = iter(planted([at_ms for day in days for at_ms in day]))
    for day in days:
        write(
            path,
            [next(books) for _ in day],
            of=of,
            cause="disconnected" if day[0] > FIRST_MS else "",
        )
    return path


@pytest.fixture(scope="module")
def good(file: Path) -> str:
    return trained(file.parent / "good", file, *choose("training.steps=80"))


@pytest.fixture(scope="module")
def poor(file: Path) -> str:
    return trained(file.parent / "poor", file, *choose("training.steps=1", "dim=4", "heads=1"))


def answered(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code = invoke(["evaluate", *map(str, words), *choose("evaluation.threads=1"), "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert invoke(["evaluate", *map(str, words), *choose("evaluation.threads=1")]) != 0
    output = capsys.readouterr()
    assert CLAIM.search(output.out) is None
    assert output.err.count("\n") == 1
    return output.err


def test_spans_are_judged_apart_and_beside_another_network(
    good: str, poor: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ("--data", file, "--holdout", AS_TEXT, "--html", page)
    report = answered(capsys, good, *words, "--compare", poor)
    assert [(span["name"], span["days"]) for span in report["holdouts"]] == [("A", 20), ("B", 20)]
    books = [span["figures"]["1"]["books"] for span in report["holdouts"]]
    assert books == [20 * (LATER - 1)] * 2  # no label reaches over a gap
    for span in report["holdouts"]:
        [model, *others] = by_forecaster(span["tables"]["accuracy"]["rows"], 1).values()
        assert model["value"]["value"] > 0.9
        assert [row["verdict"] for row in others] == ["better", "better"]
        [_, row] = by_forecaster(span["tables"]["beside_log_loss"]["rows"], 1).values()
        assert (row["forecaster"], row["verdict"], row["days"]) == (poor, "better", 20)
    assert [span["uses"] for span in report["holdouts"]] == [2, 2]
    counted = {use.model for use in read_uses(Path(good).parent / FILE_NAME)}
    assert {report["id"], report["beside"][0]["id"]} <= counted
    assert "the model minus each other model" in said_in(page)
    turned = answered(capsys, poor, *words, "--compare", good)["holdouts"][0]["tables"]
    other = by_forecaster(turned["beside_log_loss"]["rows"], 1)[good]
    same = by_forecaster(report["holdouts"][0]["tables"]["beside_log_loss"]["rows"], 1)[poor]
    assert other["verdict"] == "worse"
    assert other["difference"]["value"] == pytest.approx(-same["difference"]["value"])


def test_the_whole_is_what_the_card_says(
    good: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = load(Path(good)).card
    [training, *_] = [
        use for use in read_uses(Path(good).parent / FILE_NAME) if use.model == card["model"]["id"]
    ]
    assert training.from_ms == instant(
        card["split"]["untouched_from"]
    )  # what a training judges, it has opened
    report = answered(capsys, good, "--data", file)
    assert report["figures"] == card["figures"]
    dates = ("--from", "2025-02-10", "--to", "2025-03-02")
    part = answered(capsys, good, "--data", file, *dates)
    assert part["figures"]["1"]["days"] == 20


def test_no_held_out_book_moves_a_fit(tmp_path: Path) -> None:
    """From the middle of the test on, the mid moves against the lean; earlier books stay."""
    middle = 15 * A_DAY
    of = header(levels=2, every_ms=PACE_MS, source="exchange")
    plain, other = (
        BookDataset.of(of, [books_of(planted(hours(20), mirrored_from=start), 2)], [1])
        for start in (None, middle)
    )
    keys = {"window": 12, "dim": 8, "layers": 1, "heads": 2, "horizons": [1]}
    options = {"steps": 4, "windows": 1, "learning_rate": 0.02, "threads": 1}
    kind = {"kind": "orderbook"}
    card = recipe_of({"model": kind, "architecture": {**keys, "levels": 2}, "training": options})
    ends = (FIRST_MS + 9 * DAY_MS, FIRST_MS + 10 * DAY_MS - 1, FIRST_MS + 10 * DAY_MS)

    def before(data: BookDataset) -> np.ndarray:
        parted = replace(data, split=Split(*ends, embargo_bars=0))
        model = card.kind.fit(parted, card, FitRun(tmp_path, say=lambda _: None)).scaled(parted)
        answers = model.answers(parted, Part.TEST)
        return answers.value("log_probability")[
            answers.open_ms < FIRST_MS + (middle - 12) * PACE_MS
        ]

    assert np.array_equal(before(plain), before(other))


# --- what is refused


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--holdout", AS_TEXT),
        ("--html", "page.html"),
    ],
)
def test_of_embedded_books_no_option_prints_a_figure(
    more: tuple[str, ...],
    tmp_path: Path,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the page is written there
    embedded = tmp_path / "own.depth"
    write(embedded, walk(60, levels=2), of=header(levels=2))
    model = trained(tmp_path / "model", embedded, *choose("training.steps=1"))
    capsys.readouterr()
    for data in (embedded, file):
        assert invoke(["evaluate", model, "--data", str(data), *more]) == 0
        text = capsys.readouterr().out
        assert text.startswith("untrained: 1.0 minutes of depth, seven days are needed")
        assert CLAIM.search(text) is None
    assert answered(capsys, model, "--data", embedded, *more)["figures"] == {}


def test_what_cannot_be_asked_of_books_is_refused_in_one_sentence(
    good: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = header(levels=2, every_ms=PACE_MS)
    write(tmp_path / "loopback", planted(hours(8)), of=of)
    untrained = trained(tmp_path / "u", tmp_path / "loopback", *choose("training.steps=1"))
    wrong: list[tuple[tuple[object, ...], str]] = [
        ((good, "--holdout", "A=2025-01-05:2025-02-10"), "begins before 2025-01-21"),
        ((good, "--from", "2026-01-01"), "holds no book of the span"),
        ((good, "--inspect", "context=5"), "--inspect context is for models of bars"),
        (
            (good, *choose("evaluation.explained_bars=600")),
            "--set evaluation.explained_bars is for models of bars",
        ),
        ((good, "--compare", good), "is a model that is judged already"),
        ((good, "--compare", untrained), "--compare " + untrained + ": untrained: books from"),
        ((good, "--compare", "flash-15m"), "one forecasts the mid of an order book"),
    ]
    for (model, *more), sentence in wrong:
        assert sentence in refused(capsys, model, "--data", file, *more), sentence
    loopback = refused(capsys, good, "--data", tmp_path / "loopback")
    assert "Only books that `tracepaper data record` took from" in loopback


def test_a_checkpoint_is_checked_by_an_interpreter_that_drops_assertions() -> None:
    """The check reads the network outside any ``assert``."""
    script = """
from tracepaper.replay.learning.estimators.order_book import OrderBookModel
from tracepaper.strategies.errors import ConfigInvalid
try:
    OrderBookModel({"model": {"kind": "tree"}}, {}).network
except ConfigInvalid as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-O", "-c", script], capture_output=True, text=True, check=False
    )
    assert "of the kind 'tree'" in ended.stdout, ended.stderr
