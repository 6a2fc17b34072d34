"""``Dataset``: what is learnt from and judged on, of several symbols and intervals, split in time.

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

from tracepaper.daemon.session.user_code import file_sha256
from tracepaper.replay.archive import Candles, merge_candles, read_candles
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.sessions import on_common_sessions, sessions_named
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
    Parts,
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
    from tracepaper.replay.learning.holdouts import Holdout
    from tracepaper.replay.learning.splits import Fold, Span


NO_BASELINES: Final = (
    "The checkpoint keeps no baselines, and the candles hold no bar of its training, so it stands "
    "beside what needs no fitting alone; give candles from before {until}, or train it again."
)


@dataclass(frozen=True)
class Dataset:
    """What is learnt from: files, panels, the split, and samples by part.

    ``panels`` are bars of the interval that a model is made for, ``others`` of further ones, which
    only training sees. Each is of one symbol, or where a model answers for all of them at once, of
    the closes that all have. ``horizons`` are bars of the first.
    """

    sources: Sequence[TrainingFile]
    panels: Sequence[Panel]
    split: Split
    schema: FeatureSchema
    horizons: tuple[int, ...]
    others: Sequence[Panel] = ()
    stored: FittedBaselines | None = None
    """Baselines that were fitted before; None fits them on the training part."""
    heads: frozenset[str] = EVERY_HEAD
    """The heads that are learnt, whose labels are needed."""
    vectors: SideInputs | None = None
    """What stands beside the bars, such as covariates; the schema has it joined."""
    fold: Fold | None = None
    """Its parts stand in place of the split's."""
    only: NDArray[np.int64] | None = field(default=None, compare=False)
    """Where given, the samples are those of these bars alone, by their ``Segment.keys``."""
    notes: tuple[str, ...] = ()
    """What must be said of closes that are not used, a sentence each."""
    narrow: Dataset | None = None
    """The same bars by the features of one member of an ensemble, where the others have more."""
    unit: ClassVar[str] = "rows of features"
    """What a network sees, in words."""
    bar: ClassVar[str] = "bar"

    @classmethod
    def read(  # noqa: PLR0913 - how files are read
        cls,
        paths: Sequence[str],
        split: Callable[[Sequence[Segment]], Split],
        horizons: Sequence[int],
        schema_id: str = "v2",
        *,
        intervals: Sequence[int] = (),
        calendar: str | None = None,
        columns: Sequence[str] = (),
        stored: FittedBaselines | None = None,
        vectors: SideInputs | None = None,
    ) -> Dataset:
        """Load *paths* and split their calendar; *stored* are baselines that were fitted before.

        *vectors* are joined to the bars that could know them.

        *schema_id* names a schema, or a family of which the interval's is taken. The model is made
        for the first of *intervals*, in milliseconds; without any, for that of the schema's name or
        else of the first file. Raises ``ConfigInvalid`` and
        ``DataInvalid`` for what cannot be learnt from.
        """
        interval_ms = own_interval(schema_id, intervals)
        wanted = tuple(intervals) or ((interval_ms,) if interval_ms else ())
        files = read_files(paths, wanted, calendar=calendar, columns=columns)
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
            raise DataInvalid(
                f"No file holds {schemas[main_ms].lookback} bars without a hole; give --data longer"
                " candles."
            )
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
        beside_bars = vectors.of_bars(main, data.schema.names)
        data = data.joined_with(beside_bars, data.split.train_until_ms)
        if not data.panels:
            raise DataInvalid(
                "--covariates or --depth has nothing that a bar of the candles could know; give "
                "files of their symbols and time."
            )
        return data

    def joined_with(self, vectors: SideInputs, until_ms: int) -> Self:
        """Return the same with *vectors*; those without a scale are fitted before *until_ms*."""
        joined, count = vectors.joined(until_ms), len(self.schema.recipe.names)

        def anew(panels: Sequence[Panel]) -> Sequence[Panel]:
            plain = [replace(s, values=s.values[:, :count]) for p in panels for s in p.segments]
            return alone(joined_to(plain, joined))

        return replace(
            self,
            panels=anew(self.panels),
            others=anew(self.others),
            schema=with_covariates(self.schema, joined),
            vectors=vectors,
        )

    def standardised(self, until_ms: int) -> Self:
        """Return the same with vectors standardised by their rows before *until_ms* alone."""
        if self.vectors is None:
            return self
        return self.joined_with(self.vectors.fitted(until_ms), until_ms)

    @property
    def segments(self) -> list[Segment]:
        """The bars of each panel and symbol."""
        return [segment for panel in self.panels for segment in panel.segments]

    @property
    def interval_ms(self) -> int:
        """The interval that a model is made for."""
        return self.segments[0].interval_ms

    @property
    def intervals(self) -> tuple[int, ...]:
        """Every interval that is learnt from, the model's first."""
        every = (*self.panels, *self.others)
        return tuple(dict.fromkeys(panel.segments[0].interval_ms for panel in every))

    @property
    def read_as(self) -> dict[str, Any]:
        """How the files were read, as a card keeps it."""
        calendar = self.segments[0].candles.calendar
        named: dict[str, Any] = {}
        if calendar is not None:
            named["calendar"] = calendar.sessions.name
        if self.others:
            named |= {"intervals": [interval_text(interval) for interval in self.intervals]}
        return named

    @property
    def times(self) -> tuple[str, ...]:
        """The horizons as times, such as ``30m``; with a calendar, times of trading."""
        return tuple(interval_text(bars * self.interval_ms) for bars in self.horizons)

    @property
    def parts(self) -> Parts:
        """What says which bars are in which part."""
        return self.fold or self.split

    @property
    def panel_symbols(self) -> tuple[str, ...]:
        """The symbols of panels of several, in their order; none where each is of one."""
        symbols = self.panels[0].symbols
        return symbols if len(symbols) > 1 else ()

    def folded(self, fold: Fold) -> Self:
        """Return the same by *fold*, whose baselines are fitted anew.

        Covariates are standardised by what the fold learns from alone.
        """
        data = self.standardised(max(until for _, until in fold.train))
        narrow = self.narrow
        if narrow is not None:  # its baselines would stand beside no figure
            narrow = replace(narrow.folded(fold), stored=unfitted())
        return replace(data, fold=fold, stored=None, narrow=narrow)

    def spanned(self, span: Holdout) -> Self:
        """Return the same whose test part is *span*.

        Raises ``ConfigInvalid`` where the span is not after all that the model saw, or has no bar.
        """
        split, begun = self.split, self.split.calibration_until_ms
        if span.from_ms is not None and span.from_ms < begun:
            raise ConfigInvalid(
                f"The span {span.text} begins before {date_of(begun)}, until when the model had "
                "seen all; judge it on later time."
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
        """Return the same with its baselines, and a sentence where only unfitted ones remain."""
        if self.stored is not None or self.has(Part.TRAIN):
            return self, ()
        until = date_of(self.split.train_until_ms)
        return replace(self, stored=unfitted()), (NO_BASELINES.format(until=until),)

    def compared(self, keys: NDArray[np.int64]) -> Self:
        """Return the same of the bars *keys* alone, with the baselines that need no fitting."""
        return replace(self, stored=unfitted(), only=keys)

    @property
    def torn(self) -> Sequence[str]:
        """What is left out of files whose recorder was killed (D4)."""
        return () if self.vectors is None else self.vectors.torn

    @property
    def of_network(self) -> dict[str, Any]:
        """What of a network's keys follows from the data."""
        minutes = self.interval_ms // MINUTE_MS
        return {"interval_minutes": minutes, "symbols": self.panel_symbols}

    @property
    def facts(self) -> dict[str, Any]:
        """What tells a fit from others: a kept state is taken up by one with the same alone."""
        return {
            "candles": [source.sha256 for source in self.sources],
            "split": cards.parts_section(self.split),
            "features": self.schema.schema_id,
            **({} if self.vectors is None else {"vectors": self.vectors.sha256}),
        }

    @property
    def card(self) -> dict[str, Any]:
        """The sections of a card that say what was learnt from."""
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
        """Return how many labelled bars *part* has."""
        return sum(len(of.rows) * len(of.panel.segments) for of in self.samples(part))

    def require(self, config: Any) -> None:  # noqa: ANN401 - of any network
        """Raise ``ConfigInvalid`` where no answer of that network can be calibrated, or judged."""
        field = config.receptive_field
        for part in (Part.CALIBRATION, Part.TEST) if self.fold is None else ():
            if not any(len(samples.whole_rows(field)) for samples in self.samples(part)):
                raise no_context(part, field)

    @property
    def embargo_ms(self) -> int:
        """What is left out between parts."""
        return self.split.embargo_bars * self.interval_ms

    def before(self) -> Span:
        """Return the time from the first bar that has features until the untouched time."""
        first = min(int(segment.open_time_ms[segment.first]) for segment in self.segments)
        last = max(int(segment.close_time_ms[-1]) for segment in self.segments)
        return first, min(last, self.split.calibration_until_ms)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what it was made of, not what follows from it: baselines answer by functions."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def fitted(self) -> FittedBaselines:
        """The baselines as arrays, fitted on the training part when first asked for."""
        if self.stored is not None:
            return self.stored
        training = self.samples(Part.TRAIN)
        return fit_baselines([of_asset for samples in training for of_asset in samples.each])

    @cached_property
    def baselines(self) -> dict[str, Answer]:
        """What the baselines answer."""
        return answers(self.fitted)

    def horizons_at(self, interval_ms: int) -> tuple[int, ...]:
        """Return the horizons in bars of one of ``intervals``."""
        return tuple(bars * self.interval_ms // interval_ms for bars in self.horizons)

    def untrained(self) -> list[str]:
        """Return why nothing can be said of what is learnt from it; empty where it can."""
        return [] if self.vectors is None else self.vectors.untrained()

    def untouched(self) -> tuple[tuple[str, ...], int, int] | None:
        """Return the symbols of the test part, and from and until when it may be.

        None where nothing is judged.
        """
        if self.untrained():
            return None
        last = max(int(segment.close_time_ms[-1]) for segment in self.segments)
        # The card names the time to the second.
        return self.symbols(Part.TEST), instant(iso(self.split.calibration_until_ms)), last

    def symbols(self, part: Part) -> tuple[str, ...]:
        """Return the symbols that *part* has labelled bars of."""
        of_part = [
            segment.candles.symbol
            for segment in self.segments
            if self.parts.labelled(segment, self.horizons, part).any()
        ]
        return tuple(sorted(set(of_part)))

    def has(self, part: Part) -> bool:
        """Return whether *part* has a labelled bar."""
        return bool(
            samples_in(self.panels_of(part), self.horizons, self.parts, part, lambda *_: {})
        )

    def panels_of(self, part: Part) -> Sequence[Panel]:
        """Return the panels of which some time is in *part*; a window may begin before it."""
        del part
        return self.panels

    def samples(self, part: Part) -> list[Samples]:
        """Return the samples of one part; of training, those of every interval.

        Raises ``DataInvalid`` where a horizon has no label in it.
        """
        samples = self.labelled(part)
        self.require_every_horizon(part, samples)
        if self.only is None or self.panel_symbols:  # labels of the others stay in a panel
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
        """Return the samples of one part as ``samples`` does, whatever a horizon lacks."""
        samples = self.native(part)
        if not samples:
            raise DataInvalid(
                f"The {part.value} part holds no labelled {self.bar}; move the split's dates."
            )
        if part is Part.TRAIN:
            for panel in self.others:
                horizons = self.horizons_at(panel.segments[0].interval_ms)
                samples += samples_in([panel], horizons, self.parts, part, self._labels)
        return samples

    def native(self, part: Part) -> list[Samples]:
        """Return the samples of one part at the model's own interval; none where there are none."""
        return samples_in(self.panels_of(part), self.horizons, self.parts, part, self._labels)

    def _labels(self, panel: Panel, horizons: Sequence[int]) -> Labels:
        return targets(panel, horizons, self.heads)


SYMBOLS_LEAST: Final = 2
"""Symbols of a network over several."""


def alone(segments: Iterable[Segment]) -> list[Panel]:
    """Return each of *segments* as a panel of one."""
    return [Panel((segment,)) for segment in segments]


def joined_to(segments: Sequence[Segment], joined: CovariateColumns) -> list[Segment]:
    """Return *segments* with the features of vectors, each from the first bar that has some.

    One of which no bar has any is left out. A later bar that has none is no sample, and neutral to
    those after it, as it is in a run.
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


# --- closes that several symbols have


def close_by_close(data: Dataset, split: Callable[[Sequence[Segment]], Split]) -> Dataset:
    """Return *data* at the closes that all of its symbols have, which *split* cuts anew.

    A close counts where every symbol has a bar and a row of features. Raises ``ConfigInvalid`` or
    ``DataInvalid`` where nothing is common. The rules are docs/several.md, P23 and P26.
    """
    symbols = tuple(dict.fromkeys(segment.candles.symbol for segment in data.segments))
    if len(symbols) < SYMBOLS_LEAST:
        raise ConfigInvalid(
            "A network over several assets needs candles of at least two symbols; repeat "
            "--data for each."
        )
    by_symbol = {
        symbol: [segment for segment in data.segments if segment.candles.symbol == symbol]
        for symbol in symbols
    }
    times_by_symbol = [  # where a row of features is
        np.concatenate([segment.open_time_ms[segment.first :] for segment in by_symbol[symbol]])
        for symbol in symbols
    ]
    times = reduce(np.intersect1d, times_by_symbol)
    if not len(times):
        raise DataInvalid(
            f"There is no close at which all of {', '.join(symbols)} have a bar and "
            f"{data.schema.lookback} bars before it; give --data of one time."
        )
    holes = np.flatnonzero(np.diff(times) != data.interval_ms) + 1
    panels = [
        Panel(tuple(_cut(by_symbol[symbol], run) for symbol in symbols))
        for run in np.split(times, holes)
    ]
    return replace(
        data,
        panels=panels,
        others=(),
        split=split([segment for panel in panels for segment in panel.segments]),
        notes=_unused(by_symbol, panels),
    )


def _cut(segments: Sequence[Segment], times: NDArray[np.int64]) -> Segment:
    """Return the bars of these *times*, and before them as many as rows of features look back on.

    Bars that follow one another are of one segment: where one ends, the next lacks its lookback.
    """
    (segment,) = [
        of for of in segments if of.open_time_ms[of.first] <= times[0] <= of.open_time_ms[-1]
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
    """Return a sentence that says how many closes are not used; none where all are."""
    held = {name: np.concatenate([s.open_time_ms for s in by_symbol[name]]) for name in by_symbol}
    every = np.unique(np.concatenate(list(held.values())))
    unused = len(every) - sum(len(panel) - panel.first for panel in panels)
    if not unused:
        return ()
    listing = ", ".join(f"{name} {len(times):,}" for name, times in held.items())
    why = "for not every symbol has a bar with its features there"
    return (f"Of {len(every):,} closes {unused:,} are not used, {why}; their bars are {listing}.",)


# --- files


@dataclass(frozen=True)
class CandleFiles:
    """What the files hold, and their candles by interval: a series an instrument, oldest first."""

    sources: tuple[TrainingFile, ...]
    candles: dict[int, list[Candles]]


def read_files(
    paths: Sequence[str],
    intervals: Sequence[int] = (),
    *,
    calendar: str | None = None,
    columns: Sequence[str] = (),
) -> CandleFiles:
    """Read candle files (PATH or SYMBOL=PATH) as bars of *intervals*, in milliseconds.

    Without *intervals* they are bars of the first file's. With a *calendar*, such as ``XNAS``, bars
    are those of its sessions; *columns* are choices as of ``read_candles``. Raises ``DataInvalid``
    for a file that makes bars of none of them, whose price never moves or that holds no volume, and
    ``ConfigInvalid`` for one whose symbol cannot be known.
    """
    parts = _read(paths, calendar, columns)
    for part in parts:
        _reject_dead(part)
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
    for interval_ms, held in by_interval.items():
        for part in parts:
            if _makes(part, (interval_ms,)):
                _add(held, part.resampled(interval_ms))
    return CandleFiles(tuple(_source(part, columns) for part in parts), by_interval)


def _read(paths: Sequence[str], calendar: str | None, columns: Sequence[str]) -> list[Candles]:
    if calendar is None:
        return [read_candles(path, columns=columns) for path in paths]
    sessions_for = sessions_named(calendar)
    parts = [
        read_candles(path, category=Category.STOCK, columns=columns, sessions_for=sessions_for)
        for path in paths
    ]
    return on_common_sessions(parts, sessions_for)


def _makes(part: Candles, intervals: Sequence[int]) -> bool:
    return any(interval_ms % part.interval_ms == 0 for interval_ms in intervals)


def _reject_dead(part: Candles) -> None:
    """Raise ``DataInvalid`` where there is nothing to learn from."""
    if int(part.high.max()) == int(part.low.min()):
        raise DataInvalid(
            f"{part.path}: the price never moves in {len(part)} bars; give candles of a market "
            "that trades."
        )
    if not part.volume.any():
        raise DataInvalid(
            f"{part.path}: no bar has any volume, which features need; give candles with volume."
        )


def _add(held: list[Candles], part: Candles) -> None:
    """Add to the series *held* the bars of *part* that no other file had."""
    used = [candles.open_time_ms for candles in held if candles.symbol == part.symbol]
    fresh = np.ones(len(part), dtype=np.bool_)
    for times in used:
        fresh &= ~np.isin(part.open_time_ms, times, assume_unique=True)
    if fresh.any():
        new = part[fresh]
        for at, candles in enumerate(held):
            if candles.instrument == new.instrument:
                held[at] = replace(merge_candles([candles, new])[0], path=candles.path)
                break
        else:
            held.append(new)


def _source(part: Candles, columns: Sequence[str]) -> TrainingFile:
    file = Path(part.path)
    return TrainingFile(
        name=file.name,
        sha256=file_sha256(file),
        symbol=part.symbol,
        bars=len(part),
        from_ms=int(part.open_time_ms[0]),
        until_ms=part.until_ms,
        interval_ms=part.interval_ms,
        columns=tuple(columns),
    )


# --- intervals and horizons


def own_interval(schema_id: str, intervals: Sequence[int]) -> int:
    """Return the interval that a model is made for; 0 where only the data say."""
    return intervals[0] if intervals else interval_of(schema_id)


def _schemas(schema_id: str, intervals: tuple[int, ...]) -> dict[int, FeatureSchema]:
    """Return the schema of each interval; raise ``ConfigInvalid`` where the first is of another."""
    main_ms, *other_intervals = intervals
    family = schema_id.partition("-")[0]
    return {
        main_ms: schema_of(schema_id, main_ms),
        **{interval_ms: schema_of(family, interval_ms) for interval_ms in other_intervals},
    }


def intervals_of(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the intervals that *texts* name, in milliseconds.

    Raises ``ConfigInvalid`` for what is no interval, or no list of texts.
    """
    if isinstance(texts, str):
        raise ConfigInvalid(f'intervals is the text {texts!r}; write a list, such as ["15m"].')
    lengths = []
    for text in texts:
        length_ms = time_of(text) or INTERVALS.get(text.strip(), 0)
        if not length_ms:
            raise ConfigInvalid(f"The interval {text!r} is none; write one such as 15m or 1h.")
        lengths.append(length_ms)
    return tuple(dict.fromkeys(lengths))


def in_bars(text: str, interval_ms: int) -> tuple[int, ...]:
    """Return the horizons of *text*, bars and times by commas such as ``5m,30``, in bars, rising.

    Raises ``ConfigInvalid`` for what is no whole number of bars, or none at all.
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
