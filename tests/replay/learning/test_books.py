"""Training on order books: parts, labels, cards of untrained models, and figures of others."""

from __future__ import annotations

import io
import json
import math
import re
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_cases import FIRST_MS, depth, header, long, walk, write
from learning import choose
from msgspec import structs

from tracepaper.daemon.cli import invoke
from tracepaper.replay.explain.order_book import book_map
from tracepaper.replay.learning.card import experimental
from tracepaper.replay.learning.estimators import order_book
from tracepaper.replay.learning.estimators.order_book import (
    BookFitOptions,
    answers,
    book_forecasts,
    figures_of,
    frequencies_of,
    learn_books,
    load_books,
    sentences_of,
)
from tracepaper.replay.learning.fit import FitOptions, Policy, policy_of
from tracepaper.replay.learning.order_books import BookDataset, BookPanel, read_books
from tracepaper.replay.learning.samples import NO_LABEL, Samples, move
from tracepaper.replay.learning.splits import Part, Split
from tracepaper.storage.checkpoints import CARD_NAME, DEFAULT_CHECKPOINT, read_card
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import Books, books_of

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = choose(
    "window=8",
    "dim=8",
    "layers=1",
    "heads=2",
    "training.steps=2",
    "horizons=1,3",
    "training.threads=1",
    "training.windows=1",
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of two stretches of generated books."""
    path = tmp_path_factory.mktemp("depth") / "btc.depth"
    write(path, walk(90))
    write(path, walk(60, seed=2, first_ms=FIRST_MS + 500_000), cause="disconnected")
    return path


@pytest.fixture(scope="module")
def checkpoint(recorded: Path) -> tuple[Path, str]:
    """Return a checkpoint trained on it, and the printed output."""
    folder = recorded.parent / "model"
    return folder, printed(*train(recorded, folder))


def train(data: Path, out: Path, *more: str) -> list[object]:
    """Return the arguments of a short training."""
    return ["train", *choose("model.kind=orderbook"), "--data", data, "--out", out, *TINY, *more]


def evaluate(data: Path, folder: Path, *more: str) -> list[object]:
    """Return the arguments of an evaluation."""
    return ["evaluate", folder, "--data", data, *choose("evaluation.threads=1"), *more]


def printed(*words: object, code: int = 0) -> str:
    """Run a command, check its exit *code*, and return its output."""
    with io.StringIO() as out, redirect_stdout(out), redirect_stderr(out):
        ended, text = invoke([str(word) for word in words]), out.getvalue()
    assert ended == code, text
    return text


# ---------------------------------------------------------------- nothing is claimed

CLAIM = re.compile(
    r"accurac|log.?loss|brier|beat|frequenc|(?<!no )figures?|\d %|better|\bhits?\b", re.IGNORECASE
)


def test_the_pattern_of_a_claim_finds_one() -> None:
    for claim in ("accuracy 0.61", "Log loss", "[figures]", "51.2 % of books", "hits = 3"):
        assert CLAIM.search(claim)
    assert not CLAIM.search("no figure of it would mean anything; its card has no figures")


def test_a_model_of_generated_books_says_untrained_and_holds_no_accuracy(
    checkpoint: tuple[Path, str], recorded: Path
) -> None:
    folder, output = checkpoint
    minutes = "untrained: 2.5 minutes of depth, seven days are needed"
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    read = tomllib.loads(card)
    texts = {
        "train": output,
        "card": card.replace("columns = ", ""),
        "models": printed("models", "list", str(folder)),
        "evaluate": printed(*evaluate(recorded, folder)),
    }
    for name, text in texts.items():
        assert minutes in text, name
        assert CLAIM.search(text) is None, (name, CLAIM.search(text))
    assert read["model"]["trained"] is False
    assert not {"figures", "frequencies", "split"} & set(read)
    document = json.loads(printed(*evaluate(recorded, folder, "--json")))
    assert (document["figures"], len(document["says"])) == ({}, 2)


@pytest.mark.parametrize("source", ["loopback", "frames"])
def test_eight_days_of_another_source_are_untrained_too(tmp_path: Path, source: str) -> None:
    books, of = long(source)
    write(tmp_path / "a", books, of=of)
    (sentence,) = read_books([tmp_path / "a"], (1,)).untrained()
    assert sentence.startswith(f"untrained: books from {source} are no recording of the exchange")
    books, of = long("exchange", days=6.9)
    write(tmp_path / "b", books, of=of)
    (sentence,) = read_books([tmp_path / "b"], (1,)).untrained()
    assert sentence.startswith("untrained: 9,900.0 minutes of depth")


def test_what_seven_days_of_the_exchange_show_is_judged(tmp_path: Path) -> None:
    """The file pretends to be a recording; its moves are planted, so the figures are known."""
    books, of = long("exchange")
    write(tmp_path / "a", books, of=of)
    steps = choose("training.steps=30", "training.windows=4", "horizons=1", "window=24")
    steps += choose("training.learning_rate=0.02")
    output = printed(*train(tmp_path / "a", tmp_path / "m", *steps))
    card = tomllib.loads((tmp_path / "m" / CARD_NAME).read_text(encoding="utf-8"))
    figures = card["figures"]["1"]
    assert "trained" not in card["model"]
    assert (figures["books"], figures["days"]) == (37, 2)
    assert figures["accuracy"] > 0.9
    assert 0.4 < figures["accuracy_of_most_frequent"] < 0.6
    assert 0.4 < figures["accuracy_of_last_move"] < 0.6
    assert figures["log_loss"] < 0.55
    assert figures["log_loss_of_frequencies"] > 0.6
    assert figures["is_better"] is False  # by two days nothing is told
    assert "its log loss on 2 untouched days is not credibly better than" in output
    assert "too few days to judge" in output
    assert "experimental" in printed("models", "list", str(tmp_path / "m"))
    table = printed(*evaluate(tmp_path / "a", tmp_path / "m"))
    assert "Accuracy" in table
    assert f"{figures['log_loss']:.4f}" in table
    write(tmp_path / "b", books, of=structs.replace(of, source="loopback"))
    strange = printed(*evaluate(tmp_path / "b", tmp_path / "m"), code=1)
    assert "Only books that `tracepaper data record` took from" in strange
    write(tmp_path / "c", books[:50], of=of)
    assert "holds no book of the span" in printed(*evaluate(tmp_path / "c", tmp_path / "m"), code=2)


def figures_on(
    network: OrderBookNetwork, untouched: Books, frequencies: dict[str, list[float]]
) -> dict[str, Any]:
    rows = book_forecasts(network, whole(untouched), frequencies)
    return {str(horizon): figures_of(of) for horizon, of in rows.by_horizon()}


def fitted(data: BookDataset, config: OrderBookConfig, options: BookFitOptions) -> OrderBookNetwork:
    torch.manual_seed(options.seed)
    network = OrderBookNetwork(config)
    fit = learn_books(network, data, options)
    fit.run(lambda _: None)
    network.load_state_dict(fit.best)
    return network.eval()


def learnt_from(books: Books) -> BookDataset:
    """Return books of two levels, all in the training part."""
    data = BookDataset.of(header(2, every_ms=3_600_000), [books], (1,))
    return replace(data, split=Split(2**62, 2**62 + 1, 2**62 + 2, embargo_bars=0))


def whole(books: Books) -> list[Samples]:
    return learnt_from(books).samples(Part.TRAIN)


def test_a_planted_move_is_better_than_its_frequency_once_there_are_days() -> None:
    planted = books_of(long("exchange", days=42)[0], 2)
    config = OrderBookConfig(levels=2, window=24, dim=8, layers=1, heads=2, horizons=(1,))
    learnt = learnt_from(planted.part(0, 120))
    network = fitted(learnt, config, BookFitOptions(30, 1, 0.02))
    frequencies = frequencies_of(learnt.samples(Part.TRAIN), (1,))
    figures = figures_on(network, planted.part(140, 1_008), frequencies)
    assert figures["1"]["days"] == 37
    assert figures["1"]["is_better"] is True
    assert "experimental" not in sentences_of(figures)[-1]
    assert experimental(read_card(DEFAULT_CHECKPOINT) | {"figures": figures}) == ""
    mixed = Books(planted.seen_ms, planted.market_ms, planted.price, planted.size[::-1].copy())
    figures = figures_on(network, mixed.part(140, 288), frequencies)
    assert figures["1"]["is_better"] is False
    assert "beside persistence" in experimental(
        read_card(DEFAULT_CHECKPOINT) | {"figures": figures}
    )


# ---------------------------------------------------------------- labels, parts, windows


def test_labels_are_exact_and_end_with_the_stretch() -> None:
    mids = [10, 10, 12, 9, 9]
    books = books_of(
        [depth([(mid, 1)], [(mid + 1, 1)], FIRST_MS + row) for row, mid in enumerate(mids)], 1
    )
    panel = BookPanel.of(books, header(1))
    moves = [move(panel.price, panel.unit, horizon)[0].tolist() for horizon in (1, 3, 9)]
    assert moves == [
        [1, 2, 0, 1, NO_LABEL], [0, 0, NO_LABEL, NO_LABEL, NO_LABEL], [NO_LABEL] * 5
    ]  # fmt: skip


def test_no_part_or_label_reaches_over_a_gap_or_into_the_next(recorded: Path) -> None:
    material = read_books([recorded], (3,))
    assert [len(panel) for panel in material.panels] == [90, 60]
    parts = [material.samples(part) for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)]
    lengths = [[len(samples.panel) for samples in part] for part in parts]
    assert lengths == [[90, 15], [15], [30]]
    times = [np.concatenate([samples.segment.open_time_ms for samples in of]) for of in parts]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
    for samples in parts[0]:
        assert (samples.labels["move"][0, -3:] == NO_LABEL).all()
        assert samples.rows.tolist() == list(range(len(samples.panel) - 3))


def test_each_answer_knows_half_a_window_where_it_can() -> None:
    torch.manual_seed(0)
    network = OrderBookNetwork(
        OrderBookConfig(levels=5, window=9, dim=8, heads=2, horizons=(1,))
    ).eval()
    for count in (1, 4, 8, 9, 10, 13, 17, 40):
        books = books_of(list(walk(count)), 5)
        scores = answers(network, BookPanel.of(books, header()))
        assert scores.shape == (count, 1, 3)
        assert np.abs(np.exp(scores).sum(axis=-1) - 1).max() < 1e-6
        first = answers(network, BookPanel.of(books.part(0, min(count, 9)), header()))
        assert np.abs(scores[: len(first)] - first).max() < 1e-6


def spoilt(at: int) -> Callable[..., Policy]:
    """Return a policy whose rate is too high from a step on, so that the next loss overflows."""

    def policy(network: OrderBookNetwork, options: FitOptions) -> Policy:
        base = policy_of(network, options)  # no option is let through that overflows
        return base._replace(rate=lambda step: base.rate(step) if step < at else math.inf)

    return policy


def test_a_loss_that_is_not_finite_ends_the_fit_and_the_card_says_so(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "was not finite (nan) at step 4; kept are the weights of step 2."
    monkeypatch.setattr(f"{order_book.__name__}.policy_of", spoilt(2))
    output = printed(*train(recorded, tmp_path / "m", *choose("training.steps=6")))
    assert sentence in " ".join(output.split())
    card = tomllib.loads((tmp_path / "m" / CARD_NAME).read_text(encoding="utf-8"))
    assert card["honesty"]["sentences"][-1].endswith(sentence)
    network, _ = load_books(tmp_path / "m")
    assert all(bool(torch.isfinite(weights).all()) for weights in network.parameters())
    monkeypatch.setattr(f"{order_book.__name__}.policy_of", spoilt(0))
    wild = printed(*train(recorded, tmp_path / "n", *choose("training.steps=6")), code=1)
    assert "before the first validation" in wild


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, recorded: Path) -> None:
    headers = {
        "eth": header(of="linear:ETHUSDT"),
        "deep": header(levels=4),
        "fine": header(price_decimals=2),
    }
    for name, of in headers.items():
        write(tmp_path / name, walk(5, levels=of.levels, first_ms=FIRST_MS + 10**9), of=of)
        with pytest.raises(DataInvalid, match=r"depth and pace|in other units"):
            read_books([recorded, tmp_path / name], (1,))
    write(tmp_path / "same", walk(5, first_ms=FIRST_MS + 3_000))
    with pytest.raises(DataInvalid, match="hold books of the same time; leave one out"):
        read_books([recorded, tmp_path / "same"], (1,))


# ---------------------------------------------------------------- the map


def test_the_map_sums_to_one_and_never_reaches_over_a_gap(
    checkpoint: tuple[Path, str], recorded: Path
) -> None:
    folder, _ = checkpoint
    at = FIRST_MS + 503_000
    mapped = book_map(folder, recorded, at, threads=1)
    assert mapped.books.seen_ms.tolist() == [FIRST_MS + 500_000 + 1_000 * n for n in range(4)]
    assert mapped.weights.shape == (4, 2, 5)
    assert abs(float(mapped.weights.astype(np.float64).sum()) - 1) < 1e-6
    assert all(abs(sum(row) - 1) < 1e-6 for row in mapped.probabilities)
    assert len(book_map(folder, recorded, None, threads=1).books) == 8
    assert len(book_map(folder, recorded, FIRST_MS + 89_999, threads=1).books) == 8
    for outside in (FIRST_MS - 1, FIRST_MS + 90_000, FIRST_MS + 499_999, FIRST_MS + 10**9):
        with pytest.raises(ConfigInvalid, match="holds no book of that time; its books are of"):
            book_map(folder, recorded, outside, threads=1)


def test_explain_prints_the_map_and_the_whole_of_it_as_json(
    checkpoint: tuple[Path, str], recorded: Path
) -> None:
    folder, _ = checkpoint
    words = ("--depth", str(recorded), "--checkpoint", str(folder))
    text = printed("explain", *words)
    assert "untrained: 2.5 minutes of depth, seven days are needed" in text
    rows = re.findall(r"^ ?(?:ask|bid) .* ([\d.]+) ?$", text, re.MULTILINE)
    assert len(rows) == 6
    assert sum(map(float, rows)) == pytest.approx(100, abs=0.4)
    document = json.loads(printed("explain", *words, "--at", "2025-01-01T00:01:00.500Z", "--json"))
    assert document["at"] == "2025-01-01T00:01:00Z"
    weights = np.array([document["bid"]["weights"], document["ask"]["weights"]])
    assert weights.shape == (2, 8, 5)
    assert abs(weights.sum() - 1) < 1e-6
    (newest,) = list(walk(61))[60:]
    prices = np.frombuffer(newest.bids, "<i8")[::2] / 10
    assert [float(text) for text in document["bid"]["price"]] == prices.tolist()


def test_wrong_usage_is_one_sentence(
    checkpoint: tuple[Path, str], recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = checkpoint
    model, data = str(folder), str(recorded)
    eth = tmp_path / "eth.depth"
    write(eth, walk(20), of=header(of="linear:ETHUSDT"))
    write(tmp_path / "slow", walk(20, every_ms=2_000), of=header(every_ms=2_000))
    write(tmp_path / "few", walk(8))
    torn = tmp_path / "torn.depth"
    torn.write_bytes(recorded.read_bytes()[:90])
    fit = ["train", *choose("model.kind=orderbook"), "--out", str(tmp_path / "m"), "--data"]
    by_model, explain = ("--checkpoint", model), ("explain", "--depth")
    wrong: dict[tuple[str, ...], str] = {
        (*explain, data, *by_model, "--at", "noonZ"): "is not a time",
        (*explain, str(eth), *by_model): "fitted on linear:BTCUSDT",
        (*explain, str(tmp_path / "slow"), *by_model): "the model reads 5 levels each",
        (*explain, data, "--checkpoint", "flash-1m"): "not orderbook; name one that",
        (*explain, data): "Give --depth FILE and --checkpoint FOLDER together",
        (*explain, str(torn), *by_model): "no file of `tracepaper data record`",
        ("evaluate", "--data", data, model, "--inspect", "intervals"): "--inspect intervals is for",
        (*fit, data, *choose("mask=full")): "kind orderbook has no architecture.mask",
        (*fit, data, *choose("horizons=5m")): "architecture.horizons is",
        (*fit, data, *choose("horizons=200")): "train part holds no labelled book",
        (*fit, data, *choose("training.steps=0")): "training.steps is 0: Expected `int` >= 1",
        (*fit, str(tmp_path / "few")): "holds 8 books, too few to train",
        (*fit, str(eth), "--data", data): "one instrument, depth and pace",
        (*fit, str(Path(__file__))): "is no file of `tracepaper data record`",
    }  # fmt: skip
    for arguments, sentence in wrong.items():
        assert invoke(arguments) in (1, 2), arguments
        error = capfd.readouterr().err.strip()
        assert sentence in error.splitlines()[-1], arguments


def test_weights_of_another_shape_are_refused(checkpoint: tuple[Path, str], tmp_path: Path) -> None:
    from tracepaper.storage.checkpoints import load, save

    model = load(checkpoint[0])
    card = {**model.card, "architecture": {**model.card["architecture"], "dim": 16}}
    save(tmp_path / "m", model.tensors, card)
    with pytest.raises(CheckpointMismatch, match="not those of the card's architecture"):
        load_books(tmp_path / "m")


def test_books_of_one_level_and_thin_books_are_learnt_from(tmp_path: Path) -> None:
    thin = [depth([(100 + n % 2, 5)], [(103, 7)], FIRST_MS + 1_000 * n) for n in range(40)]
    write(tmp_path / "a", thin)
    printed(*train(tmp_path / "a", tmp_path / "m"))
    mapped = book_map(tmp_path / "m", tmp_path / "a", None, threads=1)
    assert isinstance(mapped.books, Books)
    assert mapped.attribution.l1_error < 1e-5
