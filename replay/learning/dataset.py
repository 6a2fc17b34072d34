"""``Dataset``: the data to learn from and judge on, of several symbols and intervals.

The rules are docs/models.md, L32 to L34.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.config.values import STOCK
from tracepaper.daemon.session.user_code import file_sha256
from tracepaper.replay.archive import Candles, merge_candles
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.doubts import OF_SHARES
from tracepaper.replay.archive.read import CandleInput, read_candles
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.baselines import (
    Answer,
    FittedBaselines,
    answers,
    fit_baselines,
    unfitted,
)
from tracepaper.replay.learning.samples import EVERY_HEAD, Labels, Samples, samples_in, targets
from tracepaper.replay.learning.side_inputs import OtherInputs, SideInputs
from tracepaper.replay.learning.splits import (
    Panel,
    Part,
    Segment,
    Split,
    TrainingFile,
    date_of,
    segments_of,
)
from tracepaper.replay.learning.windows import no_context
from tracepaper.strategies.covariates import CovariateColumns
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rows import (
    FeatureSchema,
    interval_of,
    schema_of,
    with_covariates,
)
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import INTERVALS, MINUTE_MS, bars_in, interval_text, iso, time_of

if TYPE_CHECKING:
    from tracepaper.replay.learning.splits import Holdout


NO_BASELINES: Final = (
    "The checkpoint keeps no baselines, and the candles hold no bar of its training, so it is "
    "compared only with baselines that need no fit; give candles from before {until}, or train it "
    "again."
)


@dataclass(frozen=True)
class Dataset:
    """The files, panels and split of the data, with samples by part.

    ``panels`` have the model's interval; ``others`` have further intervals, for training only. A
    panel is of one symbol or, for a model that forecasts all symbols together, of their common
    closes. ``horizons`` count bars of the model's interval.
    """

    sources: Sequence[TrainingFile]
    panels: Sequence[Panel]
    split: Split
    schema: FeatureSchema
    horizons: tuple[int, ...]
    others: Sequence[Panel] = ()
    stored: FittedBaselines | None = None
    """Fitted baselines; None fits them on the training part."""
    heads: frozenset[str] = EVERY_HEAD
    """The heads that need labels."""
    vectors: SideInputs | None = None
    """Side inputs, such as covariates; panels and schema include them."""
    only: NDArray[np.int64] | None = field(default=None, compare=False)
    """Restricts the samples to these bars, by ``Segment.keys``."""
    notes: tuple[str, ...] = ()
    """Sentences about closes that are not used."""
    narrow: Dataset | None = None
    """The same bars with the fewer features of one member of an ensemble."""
    unit: ClassVar[str] = "rows of features"
    """A network's inputs, for messages."""
    bar: ClassVar[str] = "bar"

    @classmethod
    def read(  # noqa: PLR0913 - how files are read
        cls,
        inputs: Sequence[CandleInput],
        split: Callable[[Sequence[Segment]], Split],
        horizons: Sequence[int],
        schema_id: str = "v2",
        *,
        intervals: Sequence[int] = (),
        asset: str | None = None,
        columns: Sequence[str] = (),
        stored: FittedBaselines | None = None,
        vectors: SideInputs | None = None,
    ) -> Dataset:
        """Load *inputs* and split their time; *stored* are baselines that were fitted before.

        *vectors* are joined to the bars at which they are known. *schema_id* names a schema or a
        family of schemas. The model's interval is the first of *intervals*, in milliseconds; by
        default that of the schema, else of the first file. Raises ``ConfigInvalid`` and
        ``DataInvalid`` for files and options that do not fit.
        """
        interval_ms = own_interval(schema_id, intervals)
        wanted = tuple(intervals) or ((interval_ms,) if interval_ms else ())
        files = read_files(inputs, wanted, asset=asset, columns=columns)
        schemas = _schemas(schema_id, tuple(files.candles))
        segments = {
            interval_ms: [
                segment
                for candles in series
                for segment in segments_of(candles, schemas[interval_ms])
            ]
            for interval_ms, series in files.candles.items()
        }
        main_ms, *other_intervals = files.candles
        if not segments[main_ms]:
            notes = (note for part in files.candles[main_ms] for note in part.notes)
            hint = next((note for note in notes if OF_SHARES in note), "give longer ones")
            bars_needed = schemas[main_ms].lookback
            raise DataInvalid(f"No candles have {bars_needed} bars without a gap; {hint}.")
        bars = tuple(sorted(horizons))
        for interval_ms in other_intervals:
            _reject_part_bars(bars, main_ms, interval_ms)
        main = segments[main_ms]
        others = [segment for interval_ms in other_intervals for segment in segments[interval_ms]]
        data = cls(
            files.sources, alone(main), split(main), schemas[main_ms], bars, alone(others), stored
        )
        if vectors is None:
            return data
        if other_intervals and isinstance(vectors, OtherInputs):
            raise ConfigInvalid(
                "A network that asks another symbol learns from bars of one interval; name one."
            )
        data = data.joined_with(vectors.of_bars(main, data.schema.names), data.split.train_until_ms)
        if not data.panels:
            raise DataInvalid(
                "--covariates or --depth has no value that is known at a bar of the candles; give "
                "files of their symbols and time."
            )
        return data

    def joined_with(self, vectors: SideInputs, until_ms: int) -> Self:
        """Return a copy with *vectors*; missing scales are fitted on rows before *until_ms*."""
        joined, count = vectors.joined(until_ms), len(self.schema.recipe.names)

        def rejoined(panels: Sequence[Panel]) -> Sequence[Panel]:
            plain = [replace(s, values=s.values[:, :count]) for p in panels for s in p.segments]
            return alone(joined_to(plain, joined))

        return replace(
            self,
            panels=rejoined(self.panels),
            others=rejoined(self.others),
            schema=with_covariates(self.schema, joined),
            vectors=vectors,
        )

    @property
    def segments(self) -> list[Segment]:
        """The bars of each panel and symbol."""
        return [segment for panel in self.panels for segment in panel.segments]

    @property
    def interval_ms(self) -> int:
        """The interval of the model's bars."""
        return self.segments[0].interval_ms

    @property
    def intervals(self) -> tuple[int, ...]:
        """Every interval of the training data, the model's first."""
        panels = (*self.panels, *self.others)
        return tuple(dict.fromkeys(panel.segments[0].interval_ms for panel in panels))

    @property
    def read_as(self) -> dict[str, Any]:
        """The asset and intervals of reading the files, for a card."""
        options: dict[str, Any] = {}
        if all(segment.candles.category is Category.STOCK for segment in self.segments):
            options["asset"] = STOCK
        if self.others:
            options["intervals"] = [interval_text(interval) for interval in self.intervals]
        return options

    @property
    def times(self) -> tuple[str, ...]:
        """The horizons as times, such as ``30m``; of shares, times of trading."""
        return tuple(interval_text(bars * self.interval_ms) for bars in self.horizons)

    @property
    def panel_symbols(self) -> tuple[str, ...]:
        """The symbols of panels over several symbols, in order; empty if each has one."""
        symbols = self.panels[0].symbols
        return symbols if len(symbols) > 1 else ()

    def spanned(self, span: Holdout) -> Self:
        """Return a copy with *span* as the test part.

        Raises ``ConfigInvalid`` if the span begins before the test part or has no labelled bar.
        """
        split, test_ms = self.split, self.split.calibration_until_ms
        if span.from_ms is not None and span.from_ms < test_ms:
            raise ConfigInvalid(
                f"The span {span.text} begins before {date_of(test_ms)}, and the model was fitted "
                "on data until then; judge it on later time."
            )
        spanned = replace(
            split,
            test_from_ms=split.test_from_ms if span.from_ms is None else span.from_ms,
            test_until_ms=split.test_until_ms if span.until_ms is None else span.until_ms,
        )
        data = replace(self, split=spanned)
        if not data.has(Part.TEST):
            raise ConfigInvalid(
                f"--data holds no {self.bar} of the span {span.text} whose outcome is known; give "
                "files of that time."
            )
        return data

    def with_known_baselines(self) -> tuple[Self, tuple[str, ...]]:
        """Return a copy with available baselines, and a note if only unfitted ones remain."""
        if self.stored is not None or self.has(Part.TRAIN):
            return self, ()
        until = date_of(self.split.train_until_ms)
        return replace(self, stored=unfitted()), (NO_BASELINES.format(until=until),)

    def compared(self, keys: NDArray[np.int64]) -> Self:
        """Return a copy restricted to the bars *keys*, with baselines that need no fit."""
        return replace(self, stored=unfitted(), only=keys)

    @property
    def torn(self) -> Sequence[str]:
        """Sentences about incomplete files of a killed recorder (D4)."""
        return () if self.vectors is None else self.vectors.torn

    @property
    def of_network(self) -> dict[str, Any]:
        """The values of a network's keys that the data determine."""
        minutes = self.interval_ms // MINUTE_MS
        return {"interval_minutes": minutes, "symbols": self.panel_symbols}

    @property
    def facts(self) -> dict[str, Any]:
        """The identity of the data: a fit resumes only from a state with equal facts."""
        return {
            "candles": [source.sha256 for source in self.sources],
            "split": cards.parts_section(self.split),
            "features": self.schema.schema_id,
            **({} if self.vectors is None else {"vectors": self.vectors.sha256}),
        }

    @property
    def card(self) -> dict[str, Any]:
        """The sections of a card that describe the data."""
        return {
            "features": cards.features_section(self.schema, self.vectors) | self.read_as,
            "market": {
                "interval": cards.interval_name(self.interval_ms),
                "symbols": sorted({source.symbol for source in self.sources}),
                "horizons": list(self.times),
            },
            "split": cards.split_section(self.split),
            "data": cards.data_section(self.sources),
        }

    def bars(self, part: Part) -> int:
        """Return the number of labelled bars of *part*."""
        return sum(len(each.rows) * len(each.panel.segments) for each in self.samples(part))

    def require(self, config: Any) -> None:  # noqa: ANN401 - of any network
        """Raise ``ConfigInvalid`` if calibration or test is too short for the network's window."""
        field = config.receptive_field
        for part in (Part.CALIBRATION, Part.TEST):
            if not any(len(samples.whole_rows(field)) for samples in self.samples(part)):
                raise no_context(part, field)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only the fields: the cached baselines are functions, which cannot be pickled."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def fitted(self) -> FittedBaselines:
        """The baselines as arrays, fitted on the training part at first use."""
        if self.stored is not None:
            return self.stored
        training = self.samples(Part.TRAIN)
        return fit_baselines([asset for samples in training for asset in samples.each])

    @cached_property
    def baselines(self) -> dict[str, Answer]:
        """The baselines as functions, by name."""
        return answers(self.fitted, self.segments)

    def horizons_at(self, interval_ms: int) -> tuple[int, ...]:
        """Return the horizons in bars of one of ``intervals``."""
        return tuple(bars * self.interval_ms // interval_ms for bars in self.horizons)

    def untrained(self) -> list[str]:
        """Return sentences if an input is from an untrained model; such a fit is not judged."""
        return [] if self.vectors is None else self.vectors.untrained()

    def untouched(self) -> tuple[tuple[str, ...], int, int] | None:
        """Return symbols, start and end of the untouched time; None if nothing is judged."""
        if self.untrained():
            return None
        last = max(int(segment.close_time_ms[-1]) for segment in self.segments)
        # Rounded down to the second, as in the card.
        return self.symbols(Part.TEST), instant(iso(self.split.calibration_until_ms)), last

    def symbols(self, part: Part) -> tuple[str, ...]:
        """Return the symbols with labelled bars in *part*."""
        symbols = {
            segment.candles.symbol
            for segment in self.segments
            if self.split.labelled(segment, self.horizons, part).any()
        }
        return tuple(sorted(symbols))

    def has(self, part: Part) -> bool:
        """Return whether *part* has a labelled bar."""
        return bool(
            samples_in(self.panels_of(part), self.horizons, self.split, part, lambda *_: {})
        )

    def panels_of(self, part: Part) -> Sequence[Panel]:
        """Return the panels that overlap *part*; a window may begin before it."""
        del part
        return self.panels

    def samples(self, part: Part) -> list[Samples]:
        """Return the samples of one part; the training part includes those of other intervals.

        Raises ``DataInvalid`` where a horizon has no label in it.
        """
        samples = self.labelled(part)
        self.require_every_horizon(part, samples)
        if self.only is None or self.panel_symbols:  # a panel keeps the labels of all bars
            return samples
        kept = []
        for labelled in samples:
            weights = labelled.weights * np.isin(labelled.segment.keys, self.only)[:, None]
            if weights.any():
                kept.append(replace(labelled, weights=weights))
        if not kept:
            raise DataInvalid(f"it has no {self.bar} in common with the judged model")
        return kept

    def require_every_horizon(self, part: Part, samples: Sequence[Samples]) -> None:
        """Raise ``DataInvalid`` where a horizon has no label in the *samples* of *part*."""
        for column, (bars, time) in enumerate(zip(self.horizons, self.times, strict=True)):
            if not any(labelled.weights[:, column].any() for labelled in samples):
                raise DataInvalid(
                    f"The {part.value} part has no {self.bar} whose next {bars} ({time}) end in "
                    "it; give more files or shorter horizons. `tracepaper train` without --out "
                    "counts the labels of each part."
                )

    def labelled(self, part: Part) -> list[Samples]:
        """Return ``samples`` of one part without the check that every horizon has a label."""
        samples = self.native(part)
        if not samples:
            raise DataInvalid(
                f"The {part.value} part holds no labelled {self.bar}; move the split's dates."
            )
        if part is Part.TRAIN:
            for panel in self.others:
                horizons = self.horizons_at(panel.segments[0].interval_ms)
                samples += samples_in([panel], horizons, self.split, part, self._labels)
        return samples

    def native(self, part: Part) -> list[Samples]:
        """Return the samples of one part at the model's interval, which may be empty."""
        return samples_in(self.panels_of(part), self.horizons, self.split, part, self._labels)

    def _labels(self, panel: Panel, horizons: Sequence[int]) -> Labels:
        return targets(panel, horizons, self.heads)


SYMBOLS_LEAST: Final = 2
"""The least number of symbols of a network over several assets."""


def alone(segments: Iterable[Segment]) -> list[Panel]:
    """Return each of *segments* as a panel of one."""
    return [Panel((segment,)) for segment in segments]


def joined_to(segments: Sequence[Segment], joined: CovariateColumns) -> list[Segment]:
    """Return *segments* with the features of vectors, each from the first bar that has some.

    A segment without any such bar is left out. A later bar without features is no sample, and its
    features are 0 in the windows of later bars, as in a run.
    """
    kept = []
    for segment in segments:
        columns = joined.at(segment.candles.symbol, segment.close_time_ms, segment.interval_ms)
        usable = np.flatnonzero(np.isfinite(columns).all(axis=1))
        if not len(usable):
            continue
        first = max(segment.first, int(usable[0]))
        values = np.concatenate([segment.values, columns], axis=1)
        lacks: NDArray[np.bool_] = ~np.asarray(np.isfinite(columns).all(axis=1))
        lacks[:first] = False
        values[lacks] = np.nan_to_num(values[lacks], nan=0.0)
        values[:first] = np.nan
        kept.append(
            replace(segment, values=values, first=first, lacks=lacks if lacks.any() else None)
        )
    return kept


# --- common closes of several symbols


def close_by_close(data: Dataset, split: Callable[[Sequence[Segment]], Split]) -> Dataset:
    """Return *data* at the common closes of all symbols, with the parts of *split*.

    At a common close every symbol has a bar and a row of features. Raises ``ConfigInvalid`` for a
    single symbol or shares, and ``DataInvalid`` without a common close. The rules are
    docs/several.md, P23 and P26.
    """
    if any(segment.candles.category is Category.STOCK for segment in data.segments):
        raise ConfigInvalid(
            "A network over several assets does not support shares, whose closes have nights "
            "between them; train a network for each share."
        )
    symbols = tuple(dict.fromkeys(segment.candles.symbol for segment in data.segments))
    if len(symbols) < SYMBOLS_LEAST:
        raise ConfigInvalid(
            "A network over several assets needs candles of at least two symbols; give those "
            "of a second one."
        )
    by_symbol = {
        symbol: [segment for segment in data.segments if segment.candles.symbol == symbol]
        for symbol in symbols
    }
    times_by_symbol = [  # of bars with features
        np.concatenate([segment.open_time_ms[segment.first :] for segment in by_symbol[symbol]])
        for symbol in symbols
    ]
    times = reduce(np.intersect1d, times_by_symbol)
    if not len(times):
        raise DataInvalid(
            f"There is no close at which all of {', '.join(symbols)} have a bar and "
            f"{data.schema.lookback} bars before it; give --data of one time."
        )
    gaps = np.flatnonzero(np.diff(times) != data.interval_ms) + 1
    panels = [
        Panel(tuple(_cut(by_symbol[symbol], run) for symbol in symbols))
        for run in np.split(times, gaps)
    ]
    return replace(
        data,
        panels=panels,
        others=(),
        split=split([segment for panel in panels for segment in panel.segments]),
        notes=_unused(by_symbol, panels),
    )


def _cut(segments: Sequence[Segment], times: NDArray[np.int64]) -> Segment:
    """Return the bars at consecutive *times*, with the lookback of their features before them.

    Consecutive bars are in one segment, since a new segment starts with a lookback without rows.
    """
    (segment,) = [
        each
        for each in segments
        if each.open_time_ms[each.first] <= times[0] <= each.open_time_ms[-1]
    ]
    first = int(np.searchsorted(segment.open_time_ms, times[0]))
    rows = slice(first - segment.first, first + len(times))
    return replace(
        segment,
        candles=segment.candles[rows],
        close=segment.close[rows],
        values=segment.values[rows],
        sigma=segment.sigma[rows],
        lacks=None,
    )


def _unused(by_symbol: dict[str, list[Segment]], panels: Sequence[Panel]) -> tuple[str, ...]:
    """Return a sentence with the number of unused closes; empty if all are used."""
    opened = {name: np.concatenate([s.open_time_ms for s in by_symbol[name]]) for name in by_symbol}
    closes = len(np.unique(np.concatenate(list(opened.values()))))
    unused = closes - sum(len(panel) - panel.first for panel in panels)
    if not unused:
        return ()
    listing = ", ".join(f"{name} {len(times):,}" for name, times in opened.items())
    why = "for not every symbol has a bar with its features there"
    return (f"Of {closes:,} closes {unused:,} are not used, {why}; their bars are {listing}.",)


# --- files


@dataclass(frozen=True)
class CandleFiles:
    """The files, and their candles by interval: one series per instrument, oldest first."""

    sources: tuple[TrainingFile, ...]
    candles: dict[int, list[Candles]]


def read_files(
    inputs: Sequence[CandleInput],
    intervals: Sequence[int] = (),
    *,
    asset: str | None = None,
    columns: Sequence[str] = (),
) -> CandleFiles:
    """Read candles (files or frames) as bars of *intervals*, in milliseconds.

    *intervals* defaults to that of the first file. *asset* is ``stock`` if all are of shares; else
    their names tell it. *columns* are the choices of ``read_candles``. Raises ``DataInvalid`` for a
    file that makes bars of no interval or has no volume, and ``ConfigInvalid``
    for a file without a symbol.
    """
    parts = [read_candles(item, category=asset, columns=columns) for item in inputs]
    for part in parts:
        if not part.volume.any():
            raise DataInvalid(
                f"{part.path}: no bar has any volume, which features need; give candles with "
                "volume."
            )
    wanted = tuple(intervals) or (parts[0].interval_ms,)
    if MONTH_MS in wanted:
        raise DataInvalid(
            f"{parts[0].path}: months are too few to learn from; give a shorter interval."
        )
    for part in parts:
        if not _makes(part, wanted):
            names = ", ".join(map(interval_text, wanted))
            raise DataInvalid(
                f"{part.path} has bars of {interval_text(part.interval_ms)}, which make none of"
                f" {names}; leave it out, or train on a multiple of its interval."
            )
    by_interval: dict[int, list[Candles]] = {interval_ms: [] for interval_ms in wanted}
    for interval_ms, series in by_interval.items():
        for part in parts:
            if _makes(part, (interval_ms,)):
                _add(series, part.resampled(interval_ms))
    sources = (_source(*read, columns) for read in zip(inputs, parts, strict=True))
    return CandleFiles(tuple(sources), by_interval)


def _makes(part: Candles, intervals: Sequence[int]) -> bool:
    return any(interval_ms % part.interval_ms == 0 for interval_ms in intervals)


def _add(series: list[Candles], part: Candles) -> None:
    """Add to *series* the bars of *part* whose time the symbol does not have yet."""
    used = [candles.open_time_ms for candles in series if candles.symbol == part.symbol]
    fresh = np.ones(len(part), dtype=np.bool_)
    for times in used:
        fresh &= ~np.isin(part.open_time_ms, times, assume_unique=True)
    if fresh.any():
        new = part[fresh]
        for at, candles in enumerate(series):
            if candles.instrument == new.instrument:
                series[at] = replace(merge_candles([candles, new])[0], path=candles.path)
                break
        else:
            series.append(new)


def _source(item: CandleInput, part: Candles, columns: Sequence[str]) -> TrainingFile:
    file = Path(part.path)
    return TrainingFile(
        name=file.name,
        sha256=file_sha256(file) if isinstance(item, str) else part.sha256,
        symbol=part.symbol,
        bars=len(part),
        from_ms=int(part.open_time_ms[0]),
        until_ms=part.until_ms,
        interval_ms=part.interval_ms,
        columns=tuple(columns),
    )


# --- intervals and horizons


def own_interval(schema_id: str, intervals: Sequence[int]) -> int:
    """Return the model's interval; 0 if it follows from the data."""
    return intervals[0] if intervals else interval_of(schema_id)


def _schemas(schema_id: str, intervals: tuple[int, ...]) -> dict[int, FeatureSchema]:
    """Return each interval's schema; raise ``ConfigInvalid`` if *schema_id* is of another."""
    main_ms, *other_intervals = intervals
    family = schema_id.partition("-")[0]
    return {
        main_ms: schema_of(schema_id, main_ms),
        **{interval_ms: schema_of(family, interval_ms) for interval_ms in other_intervals},
    }


def intervals_of(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the intervals that *texts* name, in milliseconds.

    Raises ``ConfigInvalid`` for an invalid interval.
    """
    lengths = []
    for text in texts:
        length_ms = time_of(text) or INTERVALS.get(text.strip(), 0)
        if not length_ms:
            raise ConfigInvalid(f"{text!r} is no interval; write one such as 15m or 1h.")
        lengths.append(length_ms)
    return tuple(dict.fromkeys(lengths))


def in_bars(text: str, interval_ms: int) -> tuple[int, ...]:
    """Return the horizons of *text* in bars, ascending; ``5m,30`` is a time and a number of bars.

    Raises ``ConfigInvalid`` for a horizon that is no positive whole number of bars.
    """
    return tuple(sorted({bars_in(each, interval_ms, name="horizons") for each in text.split(",")}))


def _reject_part_bars(horizons: Sequence[int], main_ms: int, interval_ms: int) -> None:
    """Raise ``ConfigInvalid`` where a horizon is no whole number of bars of another interval."""
    for bars in horizons:
        if bars * main_ms % interval_ms:
            raise ConfigInvalid(
                f"A horizon of {interval_text(bars * main_ms)} is no whole number of bars of "
                f"{interval_text(interval_ms)}; leave that interval out, or give longer horizons."
            )
