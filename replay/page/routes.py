"""The route table of the HTTP interface: path, parameters, answer and one sentence each.

Dispatch, checks of parameters, the OpenAPI document and ``docs/http.md`` follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tracepaper.replay.document.values import TitledParts, as_document
from tracepaper.replay.page import answers, decisions, fleet, lists, marks, records, runs
from tracepaper.replay.page.databases import Databases, HttpRefusal, ShownRun
from tracepaper.replay.page.process import STREAMS

PREFIX: Final = "/api/v1"
POINTS: Final = 2_000
POINTS_MAX: Final = 20_000
ROWS: Final = 50
ROWS_MAX: Final = 5_000

Time = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Report = Callable[[float, str], None]
"""``(share, doing)``: says how far an answer that takes long has come."""


class NoParameters(Struct, frozen=True):
    """None."""


class CountParameters(Struct, frozen=True):
    """Whether to wait until every decision is counted."""

    counted: bool = False


class SpanParameters(Struct, frozen=True):
    """A range of time."""

    from_ms: Time | None = None
    until_ms: Time | None = None


class RangeParameters(SpanParameters, frozen=True):
    """A range of time, and how many cells may show it."""

    points: Annotated[int, Meta(ge=2, le=POINTS_MAX)] = POINTS


class InstrumentParameters(RangeParameters, frozen=True):
    """An instrument, a range of time, and how many cells may show it."""

    instrument: str | None = None


class MarkParameters(SpanParameters, frozen=True):
    """An instrument and a range of time."""

    instrument: str | None = None


class ListParameters(Struct, frozen=True):
    """How many of the newest rows of each list are asked for."""

    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = ROWS


class RowParameters(SpanParameters, frozen=True):
    """A range of time, an order and a page; any column of the view filters by equality."""

    sort: str | None = None
    descending: bool = False
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = ROWS
    after: str | None = None


class ChangeParameters(Struct, frozen=True):
    """What is changed: keys, gates that are left out, a later start."""

    changes: str = ""
    drop: str = ""
    from_ms: Time | None = None


class PullParameters(Struct, frozen=True):
    """A run of the fleet."""

    database_id: Annotated[str, Meta(min_length=1)]
    run_id: Annotated[str, Meta(min_length=1)]


MEANINGS: Final[Mapping[str, str]] = {
    "run": "the run's whole id, of `/runs`",
    "left": "a run's id",
    "right": "another run's id",
    "sequence": "the decision's place in its run",
    "sweep": "a sweep's id, of `/runs`",
    "view": "a documented view without `v_`, such as `decisions` ([storage](storage.md))",
    "instrument": "`category:SYMBOL`; the run's first where it is left out, for marks all",
    "from_ms": "first open time, UTC ms; the beginning where it is left out",
    "until_ms": "end of the range, exclusive, UTC ms; the newest bar where it is left out",
    "points": "at most so many cells",
    "changes": "`section.key=value`, with semicolons between",
    "drop": "names of gates, with commas between",
    "counted": "wait for counts that a long run has not yet; they are null otherwise",
    "sort": "a column of the view",
    "descending": "whether the last row comes first",
    "limit": "at most so many rows",
    "after": "`next` of the rows before",
    "database_id": "the id of the run's database, of `/fleet`",
    "run_id": "the run's whole id, of `/fleet`",
}
"""What each parameter means."""


class RouteRequest(NamedTuple):
    """What a route answers from: its parameters, the names within its path, and filters."""

    shelf: Databases
    parameters: Any
    report: Report
    names: Mapping[str, str]
    filters: Mapping[str, str]

    @property
    def shown(self) -> ShownRun:
        """The run that the path names."""
        return self.shelf.find(self.names["run"])

    @property
    def verified(self) -> answers.ParityState | None:
        """What a reader of this page had the run compared with."""
        return msgspec.convert(self.shelf.verified, answers.ParityState | None)

    @property
    def decision(self) -> tuple[ShownRun, int]:
        """The decision that the path names: its run, and its place there."""
        text = self.names["sequence"]
        if not text.isdecimal() or len(text) > 12:
            raise HttpRefusal(404, "A decision is named by its sequence, a whole number.")
        return self.shown, int(text)

    @property
    def span(self) -> tuple[int | None, int | None]:
        """The range of time."""
        return self.parameters.from_ms, self.parameters.until_ms

    @property
    def cells(self) -> tuple[ShownRun, str, int | None, int | None, int]:
        """Which cells of which instrument are asked for, the run's first where none is named."""
        shown, name = self.shown, self.parameters.instrument
        if not shown.columns.instruments:
            raise HttpRefusal(
                409, "The record of this run has lost its instruments; restore a backup."
            )
        name = next(iter(shown.columns.instruments)) if name is None else _named(shown, name)
        return shown, name, *self.span, self.parameters.points


def _named(shown: ShownRun, instrument: str) -> str:
    instruments = shown.columns.instruments
    if instrument not in instruments:
        raise HttpRefusal(400, f"The run has no such instrument, only {', '.join(instruments)}.")
    return instrument


@dataclass(frozen=True)
class ReadRoute:
    """One address of the interface; what it responds with may be a document's parts.

    One that is open takes columns of a view as further parameters; one that stands within another
    document of its run does not say again what is unusual of the run.
    """

    path: str
    sentence: str
    respond: Callable[[RouteRequest], Struct | TitledParts]
    answer: type[Struct] = answers.Document
    parameters: type[Struct] = NoParameters
    is_open: bool = False
    is_within: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        """What a path must match."""
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path))

    @property
    def places(self) -> list[str]:
        """The names within its path."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def streams(self) -> bool:
        """Whether it is answered in lines, as they come."""
        return STREAMS.fullmatch(self.path) is not None


def _run(of: RouteRequest) -> Struct:
    return runs.run(
        of.shown,
        of.shelf.served,
        counted=of.parameters.counted,
        pulled_ms=of.shelf.pulled_ms(of.shown.database),
        verified=of.verified,
    )


def _marks(of: RouteRequest) -> Struct:
    if (name := of.parameters.instrument) is not None:
        _named(of.shown, name)
    return marks.marks(of.shown, *of.span, name)


def _late(name: str = "derivations") -> ModuleType:
    """Return a module that takes seconds to import, and is asked for by few."""
    return import_module(f"tracepaper.replay.page.{name}")


def _sweep(of: RouteRequest) -> Struct:
    document = of.shelf.sweep(of.names["sweep"]).document
    if document is None:
        raise HttpRefusal(
            409, "This sweep is not whole; the same command goes on, and its page comes with it."
        )
    return answers.Document(**document)


def _health(of: RouteRequest) -> TitledParts:
    status = of.shelf.status if of.names["run"] == of.shelf.served else None
    return records.health(of.shown, of.shelf.served, status, of.verified)


_R, _D = "/runs/{run}", "/runs/{run}/decisions/{sequence}"
ROUTES: Final = (
    ReadRoute("/runs", "Every run of every database, the newest first.",
          lambda of: runs.runs(of.shelf), answers.Runs),
    ReadRoute("/overview", "Every run and sweep, as the place Runs lists them.",
          lambda of: lists.runs_document(runs.runs(of.shelf, counted=of.parameters.counted)),
          parameters=CountParameters),
    ReadRoute(_R, "One run: its summary, configuration and accounts.",
          _run, answers.Run, CountParameters),
    ReadRoute(f"{_R}/candles", "Candles of one instrument with their decisions and notes, in "
          "cells that fit.",
          lambda of: runs.candles(*of.cells), answers.Candles, InstrumentParameters),
    ReadRoute(f"{_R}/equity", "Equity of every account and of buy and hold, at the end of "
          "each cell.",
          lambda of: runs.equity(of.shown, *of.span, of.parameters.points),
          answers.Equity, RangeParameters),
    ReadRoute(f"{_R}/marks", "Fills, orders that rested at a price, and gaps of a range.",
          _marks, answers.Marks, MarkParameters),
    ReadRoute(_D, "One decision, whole.",
          lambda of: decisions.decision(*of.decision), answers.Decision),
    ReadRoute(f"{_D}/verify", "Derives one decision again from the record, now; lines of JSON.",
          lambda of: _late().verify_decision(*of.decision, of.report), answers.DerivedDecision),
    ReadRoute(f"{_D}/ask", "Asks the run's model again about one decision; lines of JSON.",
          lambda of: _late().ask(*of.decision, of.report)),
    ReadRoute(f"{_R}/verify", "Derives the whole run again from its record; lines of JSON.",
          lambda of: _late().verify(of.shown, of.report), answers.ParityState),
    ReadRoute(f"{_R}/report", "The report of the run: tables, charts and texts.",
          lambda of: _late().report_of(of.shown)),
    ReadRoute(f"{_R}/model", "The run's model: its card, and how its forecasts came true.",
          lambda of: _late("model").model_document(of.shown)),
    ReadRoute(f"{_R}/what-if", "What other keys, fewer gates or a later start would have made "
          "of the run.",
          lambda of: _late().what_if_of(of.shown, of.parameters), parameters=ChangeParameters,
          is_within=True),
    ReadRoute(f"{_R}/views/{{view}}", "A page of a documented view; any of its columns filters.",
          lambda of: records.view(of.shown, of.names["view"], of.filters, of.parameters),
          parameters=RowParameters, is_open=True),
    ReadRoute(f"{_R}/account", "Every account with its curve, what is held, and the newest trades, "
          "orders, fills and lines of the ledger.",
          lambda of: _late("documents").account(of.shown, of.parameters.limit),
          parameters=ListParameters),
    ReadRoute(f"{_R}/refusals", "Refusals by day, and what each gate saved or cost.",
          lambda of: records.refusals(of.shown)),
    ReadRoute(f"{_R}/health", "Whether the run is sound.", _health),
    ReadRoute(f"{_R}/compare", "The runs that may stand beside one.",
          lambda of: lists.beside_document(
              of.shown, runs.runs(of.shelf, counted=of.parameters.counted)),
          parameters=CountParameters),
    ReadRoute("/runs/{left}/compare/{right}", "Two runs beside each other.",
          lambda of: _late("documents").compare(*map(of.shelf.find, of.names.values()))),
    ReadRoute("/sweeps/{sweep}", "A sweep: its heat map, every run, and how much is luck.", _sweep),
    ReadRoute("/fleet", "Every run of a fleet: health, lag, equity, positions, last decision and "
          "alarms; of `tracepaper ui --fleet` alone.",
          lambda of: fleet.list_fleet(of.shelf)),
    ReadRoute("/fleet/pull", "Pulls one run of the fleet, which the other addresses then know; "
          "lines of JSON.",
          lambda of: fleet.pull_run(
              of.shelf, of.parameters.database_id, of.parameters.run_id, of.report),
          fleet.PulledRun, PullParameters),
)  # fmt: skip
"""Every address that reads; ``/stream`` and ``/openapi.json`` are the server's own."""


@dataclass(frozen=True)
class Call:
    """A request that was matched and checked."""

    route: ReadRoute
    parameters: Struct
    names: Mapping[str, str]  # of the path
    filters: Mapping[str, str]

    def respond(self, shelf: Databases, report: Report) -> Struct:
        """Return the answer."""
        given = RouteRequest(shelf, self.parameters, report, self.names, self.filters)
        answer = self.route.respond(given)
        if not isinstance(answer, TitledParts):
            return answer
        if self.names.keys() == {"run"} and not self.route.is_within:
            said = [part for part in runs.unusual(given.shown) if part not in answer.parts]
            answer = TitledParts(answer.title, (*said, *answer.parts))
        return answers.Document(**as_document(answer))


def match(path: str, query: Mapping[str, str]) -> Call:
    """Find the route of *path* (without the prefix) and check *query*; raise ``HttpRefusal``."""
    for route in ROUTES:
        if matched := route.pattern.fullmatch(path):
            return _checked(route, matched.groupdict(), query)
    raise HttpRefusal(404, f"There is no such address; {PREFIX}/openapi.json lists all.")


def _checked(route: ReadRoute, names: Mapping[str, str], query: Mapping[str, str]) -> Call:
    accepted = route.parameters.__struct_fields__
    others = {name: value for name, value in query.items() if name not in accepted}
    if others and not route.is_open:
        listed = ", ".join(accepted) or "no parameter"
        raise HttpRefusal(
            400, f"There is no parameter {next(iter(others))[:40]!r}; it takes {listed}."
        )
    given = {name: value for name, value in query.items() if name in accepted}
    try:
        parameters = msgspec.convert(given, route.parameters, strict=False)
    except msgspec.ValidationError as error:
        raise HttpRefusal(400, f"A parameter is wrong: {error}.") from None
    return Call(route, parameters, names, others)
