"""What a live feed is told at its start, and what stands in its line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from tracepaper.strategies.types import Bar, Event, GapCause, Mark, Quote


class FeedStart(Struct, frozen=True):
    """What the run already holds, by instrument id.

    ``known`` has the newest bar's open time (None or missing: none, so warm-up bars are fetched),
    ``known_funding`` the newest settlement's time, ``recent`` the bars by which closes are judged.
    ``first`` are handed on before all else, and
    ``started`` makes the event that follows the warm-up bars: a model is warm once it is handed on,
    and only then is anything subscribed. ``is_served`` says that this exchange served the run
    before, so that nothing it says now is a mistake of the configuration.
    """

    period_start_ms: int
    warmup_bars: int
    known: Mapping[str, int | None] = {}
    known_funding: Mapping[str, int] = {}
    recent: Mapping[str, Sequence[Bar]] = {}
    first: tuple[Event, ...] = ()
    started: Callable[[], Event] | None = None
    is_served: bool = False


class Page(Struct, frozen=True):
    """What REST answered about the bars of an instrument from ``from_ms`` on."""

    instrument: str
    from_ms: int
    bars: tuple[Bar, ...]
    answered_s: float  # network time


class Blame(Struct, frozen=True):
    """Bars of this instrument that come after this place in the line may be missing, and why."""

    instrument: str
    cause: GapCause


class Submitted(Struct, frozen=True):
    """An event from outside or from a background task, handed on as it stands."""

    event: Event


class Stop(Struct, frozen=True):
    """The end of the feed."""


Item = Bar | Quote | Mark | Page | Blame | Submitted | Stop
