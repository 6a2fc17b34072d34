"""A network of order books fitted, and its checkpoint; below seven days it is called untrained.

The rules are docs/orderbook.md, D10 to D12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count, islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.training.book_data import UNKNOWN, BookMaterial, labels_of
from tracepaper.replay.training.book_figures import frequencies_of, judged, sentences_of
from tracepaper.replay.training.card import model_section, versions_section
from tracepaper.replay.training.fit import Fit, Policy, Progress
from tracepaper.storage.checkpoints import Checkpoint, save
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.networks.order_book import MOVES, OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import COLUMNS, KIND, Books, tokens_of

SCHEMA: Final = "book-1"
"""Of the columns of a token (``strategies/order_book.py``)."""
WARMUP: Final = 0.05
CLIP: Final = 1.0
WEIGHT_DECAY: Final = 0.01
VALIDATIONS: Final = 20
"""Times that a fit looks at its validation part."""
VALIDATED_WINDOWS: Final = 16


@dataclass(frozen=True)
class BookFitOptions:
    """How to fit: windows a step, and where the seed of all chance stands."""

    steps: int = 200
    windows: int = 4
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int = 2

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Self:
        """Build from a card's ``[training]``; raise ``ConfigInvalid`` for what it cannot have."""
        known = {each.name: each.default for each in fields(cls)}
        for name, value in section.items():
            if name not in known:
                raise ConfigInvalid(f"training.{name} is unknown; take it out.")
            wanted = (int, float) if isinstance(known[name], float) else (int,)
            if type(value) not in wanted:
                raise ConfigInvalid(f"training.{name} is {shown(value)}; it must be a number.")
        return cls(**section)

    def __post_init__(self) -> None:
        """Refuse what fits nothing, with one sentence each."""
        for name in ("steps", "windows", "threads"):
            if getattr(self, name) < 1:
                raise ConfigInvalid(f"--{name} is {getattr(self, name)}; give at least 1.")
        if not 0.0 < self.learning_rate < 1.0:
            raise ConfigInvalid(f"--learning-rate is {self.learning_rate}; give one below 1.")


def train_books(
    material: BookMaterial,
    config: OrderBookConfig,
    options: BookFitOptions,
    folder: Path,
    *,
    name: str,
    created_ms: int,
    say: Callable[[str], None],
) -> Checkpoint:
    """Fit a network on *material* and write it, with its card, to *folder*.

    Raises ``DataInvalid`` where no book of the training part knows a horizon. Nothing that the fit
    measures is said: below seven days of the exchange's own depth it would mean nothing.
    """
    torch.set_num_threads(options.threads)
    parts = material.parts()
    _refuse_short(parts.training, config, material)
    untrained = material.untrained()
    for sentence in (*material.notes, *untrained):
        say(sentence)
    network, stopped = fit(parts.training, parts.validation, config, options)
    card = _card(material, config, options, name=name, created_ms=created_ms)
    if untrained:
        card["honesty"] = {"sentences": untrained}
        card["model"]["trained"] = False
    else:
        frequencies = frequencies_of(parts.training, config.horizons)
        figures = judged(network, parts.untouched, frequencies)
        card["model"]["trained"] = True
        card["split"] = {"untouched_from": iso(int(parts.untouched[0].seen_ms[0]))}
        card["frequencies"] = frequencies
        card["figures"] = figures
        card["honesty"] = {"sentences": sentences_of(figures)}
    if stopped:
        say(stopped)
        card["honesty"]["sentences"] = [*card["honesty"]["sentences"], stopped]
    return save(folder, network.state_dict(), card)


def _refuse_short(training: list[Books], config: OrderBookConfig, material: BookMaterial) -> None:
    longest = max(map(len, training), default=0)
    if longest <= config.horizons[-1]:
        raise DataInvalid(
            f"{material.files[0].name} holds {longest} books in a row to learn from, and the "
            f"horizon of {config.horizons[-1]} needs more; record longer, or give shorter "
            "--horizons."
        )


def fit(
    training: list[Books],
    validation: list[Books],
    config: OrderBookConfig,
    options: BookFitOptions,
) -> tuple[OrderBookNetwork, str]:
    """Return a network fitted on windows of *training*, the best of its looks at *validation*.

    Every book of a window is a sample. The same options give the same network on one machine.
    Beside it why it stopped before its time, in words; else an empty text.
    """
    torch.manual_seed(options.seed)
    learnt = _Moves(OrderBookNetwork(config), training, validation, options)
    made = Fit(learnt, _policy(learnt.network, options))
    made.run(lambda _: None)
    learnt.network.load_state_dict(made.best)
    return learnt.network.eval(), made.progress.stopped


def _policy(network: OrderBookNetwork, options: BookFitOptions) -> Policy:
    """Return how a fit of books goes: all decay, and none is averaged."""
    steps = options.steps
    warm = max(1, int(WARMUP * steps))

    def rate(step: int) -> float:
        share = min((step + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * step / steps))
        return options.learning_rate * float(share)

    return Policy(
        steps,
        [{"params": list(network.parameters()), "weight_decay": WEIGHT_DECAY}],
        rate,
        clip=CLIP,
        validate_every=max(1, steps // VALIDATIONS),
        accumulate=options.windows,
        keeps_later=True,
    )


class _Moves:
    """What a network of order books learns: the next moves of the mid, at every book of a window.

    Its score is the mean validation loss, below 0.
    """

    def __init__(
        self,
        network: OrderBookNetwork,
        training: list[Books],
        validation: list[Books],
        options: BookFitOptions,
    ) -> None:
        least = network.config.horizons[0]
        self.network: OrderBookNetwork = network
        self._options = options
        self._known = [books for books in training if len(books) > least]
        self._looks = [books for books in validation if len(books) > least]

    def batches(self, done: int) -> Iterator[Books]:
        """Yield the windows after *done* others."""
        rng, config = np.random.default_rng(self._options.seed), self.network.config
        return islice((_window(self._known, config, rng) for _ in count()), done, None)

    def gradient(self, batch: Books) -> tuple[float, int]:
        """Add the gradient of a window; return its loss, and its books."""
        loss = _loss(self.network, batch)
        (loss / self._options.windows).backward()
        return float(loss.detach()), min(len(batch), self.network.config.window)

    def validate(self, network: nn.Module, progress: Progress) -> float:
        """Return the mean validation loss, below 0."""
        assert isinstance(network, OrderBookNetwork)
        score = -_validated(network, self._looks, network.config)
        progress.scores = [[score]]
        return score


def _window(stretches: list[Books], config: OrderBookConfig, rng: np.random.Generator) -> Books:
    """Return a window of some stretch that is drawn by its length."""
    lengths = np.array([len(books) for books in stretches])
    books = stretches[rng.choice(len(stretches), p=lengths / lengths.sum())]
    # Its labels are those of the stretch, so a window may end where the stretch does.
    span = min(len(books), config.window + config.horizons[-1])
    start = int(rng.integers(0, len(books) - span + 1))
    return books.part(start, start + span)


def _loss(network: OrderBookNetwork, books: Books) -> torch.Tensor:
    """Return the mean cross-entropy over the books of a window and the horizons that they know."""
    config = network.config
    labels = labels_of(books, config.horizons)[: config.window]
    tokens = tokens_of(books.part(0, config.window))
    logits = network(torch.from_numpy(tokens)[None])[0]
    wanted = torch.from_numpy(labels).flatten()
    return cross_entropy(logits.flatten(0, 1), wanted, ignore_index=UNKNOWN)


@torch.no_grad()
def _validated(network: OrderBookNetwork, stretches: list[Books], config: OrderBookConfig) -> float:
    """Return the mean loss over windows spread evenly over *stretches*; 0 where there are none."""
    windows = [
        books.part(start, start + config.window + config.horizons[-1])
        for books in stretches
        for start in range(0, len(books) - config.horizons[0], config.window)
    ]
    chosen = windows[:: max(1, len(windows) // VALIDATED_WINDOWS)]
    losses = [float(_loss(network, window)) for window in chosen]
    return sum(losses) / len(losses) if losses else 0.0


def _card(
    material: BookMaterial,
    config: OrderBookConfig,
    options: BookFitOptions,
    *,
    name: str,
    created_ms: int,
) -> dict[str, Any]:
    header = material.header
    category, _, symbol = header.instrument.partition(":")
    return {
        "model": dict(model_section(KIND, name, created_ms)),
        "architecture": asdict(config),
        "features": {"schema_id": SCHEMA, "columns": list(COLUMNS), "lookback": 1},
        "market": {
            "symbols": [symbol],
            "category": category,
            "interval": f"{header.every_ms} ms",
            "every_ms": header.every_ms,
            "price_decimals": header.price_decimals,
            "quantity_decimals": header.quantity_decimals,
        },
        "calibration": {"moves": list(MOVES)},
        "data": {
            "recorded_ms": material.recorded_ms,
            "stretches": len(material.stretches),
            "files": [_file(each) for each in map(asdict, material.files)],
        },
        "training": asdict(options),
        "versions": versions_section(),
    }


def _file(found: Mapping[str, Any]) -> dict[str, Any]:
    times = {"from": iso(found["from_ms"]), "until": iso(found["until_ms"])}
    return {key: found[key] for key in ("name", "sha256", "source", "books")} | times
