"""Files of order books → stretches without a hole, their labels, and the parts of their time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.order_book import DepthHeader, read_depth
from tracepaper.replay.learning.splits import Fold, Part, Span
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import COLUMNS, Books, Integers
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, iso

if TYPE_CHECKING:
    from tracepaper.replay.learning.openings import NamedSpan

DAYS_LEAST: Final = 7
"""Days of depth, without the gaps, below which nothing is said of a model."""
JUDGED_SOURCE: Final = "exchange"
UNKNOWN: Final = -100
"""The label of a book whose horizon lies behind a gap, or in a later part."""
_END_MS: Final = 2**62
SHARES: Final = (0.7, 0.8)
"""Of all books: where training and validation end; the rest stays untouched for the figures."""


SCHEMA: Final = "book-1"
"""Of the columns of a token (``strategies/order_book.py``)."""
FEATURES: Final = {"schema_id": SCHEMA, "columns": list(COLUMNS), "lookback": 1}
"""``[features]`` of a card, which no recipe chooses."""


@dataclass(frozen=True)
class BookSource:
    """A file as the card names it."""

    name: str
    sha256: str
    source: str
    books: int
    from_ms: int
    until_ms: int
    symbol: ClassVar[str] = ""  # the file names it
    columns: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class BookDataset:
    """What files of one instrument's books hold together, oldest first."""

    header: DepthHeader
    stretches: tuple[Books, ...]
    sources: tuple[BookSource, ...]
    torn: tuple[str, ...] = ()
    """What is left out of files whose recorder was killed (D4)."""
    parts: Fold | None = None
    """Its parts; None for those by ``SHARES`` of all books."""
    judged_from_ms: int = 0
    """Earlier untouched books are seen, and not judged."""
    fold: Fold | None = None
    """Of several that are fitted anew, the one that stands in ``parts``."""
    notes: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()
    panel_symbols: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "books"

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> BookDataset:
        """Read *paths*; raise ``DataInvalid`` for damage, overlap, and files that do not belong."""
        stretches: list[Books] = []
        files: list[BookSource] = []
        torn: list[str] = []
        header: DepthHeader | None = None
        for path in map(Path, paths):
            depth = read_depth(path)
            header = header or depth.header
            _same(header, depth.header, path, files)
            stretches += depth.stretches()
            files.append(
                BookSource(
                    path.name,
                    hashlib.sha256(path.read_bytes()).hexdigest(),
                    depth.header.source,
                    len(depth.books),
                    int(depth.books.seen_ms[0]),
                    int(depth.books.seen_ms[-1]),
                )
            )
            torn += [depth.torn] if depth.torn else []
        if header is None:
            raise ConfigInvalid("--data FILE is missing; `tracepaper data record` makes one.")
        ordered = sorted(files, key=lambda file: file.from_ms)
        for before, after in pairwise(ordered):
            if after.from_ms <= before.until_ms:
                raise DataInvalid(
                    f"{before.name} and {after.name} hold books of the same time; leave one out."
                )
        stretches.sort(key=lambda books: int(books.seen_ms[0]))
        return cls(header, tuple(stretches), tuple(ordered), tuple(torn))

    @property
    def interval_ms(self) -> int:
        """The time between two books."""
        return self.header.every_ms

    @property
    def recorded_ms(self) -> int:
        """How long was recorded, without the gaps."""
        return sum(map(len, self.stretches)) * self.header.every_ms

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from it; empty where it can."""
        return untrained_by(self.recorded_ms, {file.source for file in self.sources})

    @property
    def of_network(self) -> dict[str, Any]:
        """What of a network's keys follows from the data: levels, as many as the files hold.

        A recipe that is fitted anew keeps its own.
        """
        return {} if self.parts is not None else {"levels": self.header.levels}

    @property
    def facts(self) -> dict[str, Any]:
        """What tells a fit from others: a kept state is taken up by one with the same alone."""
        return {"books": [file.sha256 for file in self.sources]}

    @property
    def card(self) -> dict[str, Any]:
        """The sections of a card that say what was learnt from."""
        header, files = self.header, map(asdict, self.sources)
        category, _, symbol = header.instrument.partition(":")
        return {
            "features": FEATURES,
            "market": {
                "symbols": [symbol],
                "category": category,
                "interval": f"{header.every_ms} ms",
                "every_ms": header.every_ms,
                "price_decimals": header.price_decimals,
                "quantity_decimals": header.quantity_decimals,
            },
            "data": {
                "recorded_ms": self.recorded_ms,
                "stretches": len(self.stretches),
                "files": [
                    {key: file[key] for key in ("name", "sha256", "source", "books")}
                    | {"from": iso(file["from_ms"]), "until": iso(file["until_ms"])}
                    for file in files
                ],
            },
        }

    def bars(self, part: Part) -> int:
        """Return how many books *part* has."""
        return sum(map(len, self.books(part)))

    def suits(self, config: Any) -> None:  # noqa: ANN401 - of a network of books
        """Raise ``ConfigInvalid`` where books are too shallow for that network."""
        if config.levels > self.header.levels:
            raise ConfigInvalid(
                f"architecture.levels is {config.levels}, and the files hold {self.header.levels}; "
                "give as many at most."
            )

    def require(self, config: Any) -> None:  # noqa: ANN401 - of a network of books
        """Raise as ``suits``, and ``DataInvalid`` where no book to learn from knows a horizon."""
        self.suits(config)
        longest = max(map(len, self.books(Part.TRAIN)), default=0)
        if longest <= config.horizons[-1]:
            raise DataInvalid(
                f"{self.sources[0].name} holds {longest} books in a row to learn from, and the "
                f"horizon of {config.horizons[-1]} needs more; record longer, ask for fewer folds, "
                "or give shorter horizons."
            )

    def untouched(self) -> tuple[tuple[str, ...], int, int] | None:
        """Return its symbol, and from and until when its last part is; None where untrained."""
        if self.untrained():
            return None
        # The card names the time to the second.
        start = instant(iso(self.untouched_ms))
        return self.symbols(Part.TEST), start, int(self.stretches[-1].seen_ms[-1]) + 1

    def symbols(self, _: Part) -> tuple[str, ...]:
        """Return its symbol."""
        return (self.header.instrument.partition(":")[2],)

    @cached_property
    def spans(self) -> Fold:
        """The times of training, validation and untouched books."""
        if self.parts is not None:
            return self.parts
        times = np.concatenate([books.seen_ms for books in self.stretches])
        first, second = (round(len(times) * share) for share in SHARES)
        bounds = [int(times[0]), int(times[first]), int(times[second]), int(times[-1]) + 1]
        training, validation, untouched = pairwise(bounds)
        return Fold((training,), (validation,), (untouched,), 0)

    @property
    def untouched_ms(self) -> int:
        """When the first untouched book was seen."""
        return int(self.books(Part.TEST)[0].seen_ms[0])

    @property
    def embargo_ms(self) -> int:
        """What folds leave out between parts: nothing."""
        return 0

    def books(self, part: Part) -> list[Books]:
        """Return the stretches of *part*; no label of one reaches into the next."""
        spans = {
            Part.TRAIN: self.spans.train,
            Part.VALIDATION: self.spans.validation,
            Part.TEST: self.spans.test,
        }[part]
        return [books for span in spans for books in self.between(*span)]

    def seen_until(self, untouched_ms: int) -> BookDataset:
        """Return it for a model that has seen all until *untouched_ms*."""
        return replace(self, parts=Fold((), (), ((untouched_ms, _END_MS),), 0))

    def spanned(self, span: NamedSpan) -> BookDataset:
        """Return it whose untouched books end with *span*; those before it are seen.

        Raises ``ConfigInvalid`` for a span that begins too early, and ``DataInvalid`` where no book
        is untouched.
        """
        begun = self.spans.test[0][0]
        if span.from_ms is not None and span.from_ms < begun:
            raise ConfigInvalid(
                f"The span {span.text} begins before {iso(begun)}, until when the model had seen "
                "all; judge it on later books."
            )
        until_ms = _END_MS if span.until_ms is None else span.until_ms
        if not self.between(begun, until_ms):
            raise DataInvalid(
                f"All books of --data until {span.until or 'their end'} are from before "
                f"{iso(begun)}, and learnt from; give later ones."
            )
        parts = replace(self.spans, test=((begun, until_ms),))
        return replace(self, parts=parts, judged_from_ms=span.from_ms or 0)

    def folded(self, fold: Fold) -> BookDataset:
        """Return it by *fold*."""
        return replace(self, parts=fold, fold=fold)

    def with_known_baselines(self) -> tuple[BookDataset, tuple[str, ...]]:
        """Return it: what a network is held to stands on its card."""
        return self, ()

    def compared(self, _: Integers) -> BookDataset:
        """Return it: a table finds the books that another answers too."""
        return self

    def before(self) -> Span:
        """Return the time of the books before the untouched, at least seven days of them."""
        stretches = self.between(None, self.spans.test[0][0])
        recorded = sum(map(len, stretches)) * self.interval_ms / DAY_MS
        if recorded < DAYS_LEAST:
            raise ConfigInvalid(
                f"The books before the untouched time are {recorded:.1f} days of depth, and folds "
                "need seven: give the files that the model was trained on, or record longer."
            )
        return int(stretches[0].seen_ms[0]), int(stretches[-1].seen_ms[-1]) + self.interval_ms

    def between(self, from_ms: int | None, until_ms: int | None) -> list[Books]:
        """Return the stretches from *from_ms* until *until_ms*, exclusive; None is as far as known.

        A stretch that a bound cuts ends there: no label of it reaches further.
        """
        stretches = []
        for books in self.stretches:
            start = 0 if from_ms is None else int(np.searchsorted(books.seen_ms, from_ms))
            stop = len(books) if until_ms is None else int(np.searchsorted(books.seen_ms, until_ms))
            if stop > start:
                stretches.append(books.part(start, stop))
        return stretches


def untrained_by(recorded_ms: int, sources: Collection[str]) -> list[str]:
    """Return why nothing can be said of what is learnt from so much depth of these *sources*."""
    reasons = []
    if recorded_ms < DAYS_LEAST * DAY_MS:
        reasons.append(
            f"untrained: {recorded_ms / MINUTE_MS:,.1f} minutes of depth, seven days are "
            "needed; no figure of it would mean anything."
        )
    if others := sorted({*sources} - {JUDGED_SOURCE}):
        reasons.append(
            f"untrained: books from {' and '.join(others)} are no recording of the exchange "
            "itself; only those that `tracepaper data record` took from it are judged."
        )
    return reasons


def _same(
    wanted: DepthHeader, header: DepthHeader, path: Path, before: Sequence[BookSource]
) -> None:
    """Raise ``DataInvalid`` unless the books of *path* can stand beside those *before*."""
    if header.words() != wanted.words():
        raise DataInvalid(
            f"{path} holds {header.words()}, and {before[0].name} {wanted.words()}; give files of "
            "one instrument, depth and pace."
        )
    if (header.price_decimals, header.quantity_decimals) != (
        wanted.price_decimals,
        wanted.quantity_decimals,
    ):
        raise DataInvalid(
            f"{path} counts {header.instrument} in other units than {before[0].name}; the "
            "exchange changed its filters between them, so give files of one side of it."
        )


def labels_of(books: Books, horizons: Sequence[int]) -> Integers:
    """Return which way the mid of *books* moved to each horizon, int64 [book, horizon].

    0 is down, 1 flat and 2 up; ``UNKNOWN`` where the books end before. Exact: no rounding is in it.
    """
    mid = books.doubled_mid
    labels = np.full((len(books), len(horizons)), UNKNOWN, dtype=np.int64)
    for column, horizon in enumerate(horizons):
        if horizon < len(books):
            labels[:-horizon, column] = np.sign(mid[horizon:] - mid[:-horizon]) + 1
    return labels
