"""Datasets of order books: files → panels of books on a grid, split in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.recordings import RecordingHeader
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.side_inputs import (
    JUDGED_SOURCE,
    read_stored,
    require_reading,
    untrained_by,
)
from tracepaper.replay.learning.splits import Panel, Part, Segment, Span, Split, TrainingFile
from tracepaper.strategies.book_features import BookReading
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import COLUMNS, Books, tokens_of

SHARES: Final = (0.7, 0.8)
"""Shares of all books at which training and validation end; the rest is the test part."""
SCHEMA: Final = "book-1"
"""The schema of a token's columns (``strategies/order_book.py``)."""
FEATURES: Final = {"schema_id": SCHEMA, "columns": list(COLUMNS), "lookback": 1}
"""``[features]`` of a card, which is fixed."""
HEADS: Final = frozenset({"move"})


class BookSchema(NamedTuple):
    """The interface of a ``FeatureSchema`` for books."""

    schema_id: str = SCHEMA
    names: tuple[str, ...] = COLUMNS
    covariates: None = None
    lookback: int = 1


@dataclass(frozen=True, kw_only=True)
class BookPanel(Panel):
    """Books without a gap on a grid of ``every_ms``; a bar's prices are twice the mid in ticks."""

    books: Books
    header: RecordingHeader

    @classmethod
    def of(cls, books: Books, header: RecordingHeader) -> Self:
        """Return *books* as a panel of one instrument."""
        mid, item = books.doubled_mid, header.instrument
        scale = header.every_ms, item.price_decimals, item.quantity_decimals, 0
        prices = (mid, mid, mid, mid, np.zeros_like(mid))
        candles = Candles("", item.category, item.symbol, *scale, books.seen_ms, *prices, None)
        values = np.empty((len(mid), 0), dtype=np.float32)
        segment = Segment(candles, mid.astype(np.float64), values, np.ones(len(mid)), 0)
        return cls((segment,), books=books, header=header)

    def part(self, start: int, stop: int) -> Self:
        """Return the books from *start* until *stop*; labels end within them."""
        return self.of(self.books.part(start, stop), self.header)

    def shallower(self, levels: int) -> Self:
        """Return views of the books with at most *levels* levels per side."""
        return self.of(self.books.shallower(levels), self.header)

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the tokens [1, book, side * level, column] of a window.

        The first book has no book before it.
        """
        return tokens_of(self.books.part(start, stop))[None]


@dataclass(frozen=True, kw_only=True)
class BookDataset(Dataset):
    """The books of one instrument from several files, oldest first."""

    panels: Sequence[BookPanel]
    header: RecordingHeader
    torn_files: tuple[str, ...] = ()
    unit: ClassVar[str] = "books"
    bar: ClassVar[str] = "book"

    @classmethod
    def of(
        cls,
        header: RecordingHeader,
        stretches: Sequence[Books],
        horizons: Sequence[int],
        *,
        sources: Sequence[TrainingFile] = (),
        torn: Sequence[str] = (),
        untouched_ms: int | None = None,
    ) -> Self:
        """Return *stretches* of books without a gap, split by ``SHARES``.

        With *untouched_ms*, the end of a model's training data, the test part begins there. Raises
        ``DataInvalid`` if the books are too few for three parts.
        """
        seen_ms = np.concatenate([books.seen_ms for books in stretches])
        places = [round(len(seen_ms) * share) for share in SHARES]
        if untouched_ms is not None:
            trained_ms, stopped_ms = untouched_ms - 2, untouched_ms
        elif places[0] < places[1] < len(seen_ms):
            trained_ms, stopped_ms = (int(seen_ms[place]) for place in places)
        else:
            raise DataInvalid(
                f"--data holds {len(seen_ms)} books, too few to train, to validate and to test; "
                "record longer."
            )
        schema: Any = BookSchema()
        return cls(
            sources=sources,
            panels=[BookPanel.of(books, header) for books in stretches],
            # The calibration part is one millisecond without books: nothing is calibrated.
            split=Split(trained_ms, stopped_ms - 1, stopped_ms, embargo_bars=0),
            schema=schema,
            horizons=tuple(horizons),
            heads=HEADS,
            stored={},
            header=header,
            torn_files=tuple(torn),
        )

    @property
    def recorded_ms(self) -> int:
        """The recorded time without gaps."""
        return sum(map(len, self.panels)) * self.header.every_ms

    def untrained(self) -> list[str]:
        """Return why a model fitted to the books counts as untrained; empty if it does not."""
        return untrained_by(self.recorded_ms, {file.source for file in self.sources})

    @property
    def torn(self) -> Sequence[str]:
        """Sentences about incomplete files of a killed recorder (D4)."""
        return self.torn_files

    @property
    def of_network(self) -> dict[str, Any]:
        """The files' levels, which a network reads."""
        return {"levels": self.header.levels}

    @property
    def facts(self) -> dict[str, Any]:
        """The identity of the data: a fit resumes only from a state with equal facts."""
        return {"books": [file.sha256 for file in self.sources]}

    @property
    def card(self) -> dict[str, Any]:
        """The sections of a card that describe the data."""
        header, item = self.header, self.header.instrument
        return {
            "features": FEATURES,
            "market": {
                "symbols": [item.symbol],
                "category": item.category,
                "interval": f"{header.every_ms} ms",
                "every_ms": header.every_ms,
                "price_decimals": item.price_decimals,
                "quantity_decimals": item.quantity_decimals,
            },
            "data": {
                "recorded_ms": self.recorded_ms,
                "stretches": len(self.panels),
                **cards.data_section(self.sources),
            },
        }

    def panels_of(self, part: Part) -> list[BookPanel]:
        """Return the books of *part*, cut so that no window sees another part."""
        return self.within(self.split.span(part))

    def within(self, span: Span) -> list[BookPanel]:
        """Return the books of a *span* of time."""
        places = [np.searchsorted(panel.books.seen_ms, span).tolist() for panel in self.panels]
        cuts = zip(self.panels, places, strict=True)
        return [panel.part(start, stop) for panel, (start, stop) in cuts if stop > start]

    def bars(self, part: Part) -> int:
        """Return the number of books of *part*."""
        return sum(map(len, self.panels_of(part)))

    def require(self, config: Any) -> None:  # noqa: ANN401 - of a network of books
        """Raise ``ConfigInvalid`` if the books have too few levels for the network."""
        if config.levels > self.header.levels:
            raise ConfigInvalid(
                f"architecture.levels is {config.levels}, and the files hold {self.header.levels}; "
                "give as many at most."
            )


def read_books(
    paths: Sequence[str | Path], horizons: Sequence[int], card: Mapping[str, Any] | None = None
) -> BookDataset:
    """Read *paths*; raise ``DataInvalid`` for damage, overlap, and files of different kinds.

    The model of *card* is judged from the start of its untouched time, on recordings of the
    exchange only, with its instrument, depth and pace.
    """
    if not paths:
        raise ConfigInvalid("--data FILE is missing; `tracepaper data record` makes one.")
    files = read_stored([*map(Path, paths)])
    header = files[0][1].header
    if others := {file.header.instrument.id for _, file in files} - {header.instrument.id}:
        raise DataInvalid(
            f"--data holds books of {header.instrument.id} and of {', '.join(sorted(others))}; "
            "give files of one instrument, depth and pace."
        )
    sources = [
        TrainingFile(
            name=path.name,
            sha256=file.sha256,
            symbol=header.instrument.symbol,
            bars=len(file.times),
            from_ms=int(file.times[0]),
            until_ms=int(file.times[-1]),
            interval_ms=header.every_ms,
            source=file.header.source,
        )
        for path, file in files
    ]
    untouched_ms = None
    if card is not None:
        untouched_ms = instant(card["split"]["untouched_from"])
        check_fits(header, card, Path(paths[0]))
        if any(file.source != JUDGED_SOURCE for file in sources):
            raise DataInvalid(
                "Only books that `tracepaper data record` took from the exchange are judged; give "
                "files of them alone."
            )
    return BookDataset.of(
        header,
        [books for _, file in files for books in file.stretches()],
        horizons,
        sources=sources,
        torn=[file.torn for _, file in files if file.torn],
        untouched_ms=untouched_ms,
    )


def check_fits(header: RecordingHeader, card: Mapping[str, Any], path: Path) -> None:
    """Raise ``DataInvalid`` unless *path* has the instrument, depth and pace of *card*'s model."""
    market = card["market"]
    wanted = f"{market['category']}:{market['symbols'][0]}"
    if header.instrument.id != wanted:
        raise DataInvalid(
            f"{path} holds books of {header.instrument.id}, and the model was fitted on {wanted}; "
            "name a file of that."
        )
    reading = BookReading(header.levels, header.every_ms)
    require_reading(path, reading, BookReading(card["architecture"]["levels"], market["every_ms"]))
