"""The route table of the HTTP interface: path, parameters, answer and one sentence each.

Dispatch, checks of parameters, the OpenAPI document and ``docs/http.md`` follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from tracepaper.replay.page import answers, decisions, fleet, marks, records, runs
from tracepaper.replay.page.databases import Databases, HttpRefusal, ShownRun

PREFIX: Final = "/api/v1"
POINTS: Final = 2_000
POINTS_MAX: Final = 20_000
ROWS_MAX: Final = 1_000

Time = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Report = Callable[[float, str], None]
"""``(share, doing)``: says how far an answer that takes long has come."""


class NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """None."""


class CountParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to wait until every decision is counted."""

    counted: bool = False


class RangeParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """A range of time, and how many cells may show it."""

    from_ms: Time | None = None
    until_ms: Time | None = None
    points: Annotated[int, Meta(ge=2, le=POINTS_MAX)] = POINTS


class InstrumentParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """An instrument, a range of time, and how many cells may show it."""

    instrument: str | None = None
    from_ms: Time | None = None
    until_ms: Time | None = None
    points: Annotated[int, Meta(ge=2, le=POINTS_MAX)] = POINTS


class MarkParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """An instrument and a range of time."""

    instrument: str | None = None
    from_ms: Time | None = None
    until_ms: Time | None = None


class RowParameters(Struct, frozen=True):
    """A range of time, an order and a page; any column of the view filters by equality."""

    from_ms: Time | None = None
    until_ms: Time | None = None
    sort: str | None = None
    descending: bool = False
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = 100
    after: str | None = None


class ChangeParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """What is changed: keys, gates that are left out, a later start."""

    changes: str = ""
    drop: str = ""
    from_ms: Time | None = None


class PullParameters(Struct, frozen=True, forbid_unknown_fields=True):
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


@dataclass(frozen=True)
class ReadRoute:
    """One address of the interface."""

    path: str
    sentence: str
    parameters: type[Struct]
    answer: type[Struct]
    respond: Callable[..., Any]
    is_heavy: bool = False  # answered by the second process, so that the chart stays quick
    streams: bool = False  # answered in lines, as they come
    is_open: bool = False  # takes columns of a view as further parameters

    @property
    def pattern(self) -> re.Pattern[str]:
        """What a path must match."""
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path))

    @property
    def places(self) -> list[str]:
        """The names within its path."""
        return re.findall(r"\{(\w+)\}", self.path)


def _sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise HttpRefusal(404, "A decision is named by its sequence, a whole number.")
    return int(text)


def _instrument(shelf: Databases, run: str, parameters: InstrumentParameters) -> tuple[Any, ...]:
    shown = shelf.find(run)
    name = parameters.instrument
    if not shown.columns.instruments:
        raise HttpRefusal(409, "The record of this run has lost its instruments; restore a backup.")
    name = next(iter(shown.columns.instruments)) if name is None else _known(shown, name)
    return shown, name, parameters.from_ms, parameters.until_ms, parameters.points


def _known(shown: ShownRun, instrument: str) -> str:
    instruments = shown.columns.instruments
    if instrument not in instruments:
        raise HttpRefusal(400, f"The run has no such instrument, only {', '.join(instruments)}.")
    return instrument


def _runs(shelf: Databases, parameters: CountParameters, _report: Report) -> Struct:
    return runs.runs(shelf, counted=parameters.counted)


def _run(shelf: Databases, parameters: CountParameters, _report: Report, run: str) -> Struct:
    shown = shelf.find(run)
    pulled_ms = shelf.pulled_ms(shown.database)
    return runs.run(shown, shelf.served, counted=parameters.counted, pulled_ms=pulled_ms)


def _equity(shelf: Databases, parameters: RangeParameters, _report: Report, run: str) -> Struct:
    return runs.equity(shelf.find(run), parameters.from_ms, parameters.until_ms, parameters.points)


def _marks(shelf: Databases, parameters: MarkParameters, _report: Report, run: str) -> Struct:
    shown = shelf.find(run)
    if parameters.instrument is not None:
        _known(shown, parameters.instrument)
    return marks.marks(shown, parameters.from_ms, parameters.until_ms, parameters.instrument)


def _decision(
    shelf: Databases, _parameters: NoParameters, _report: Report, run: str, sequence: str
) -> Struct:
    return decisions.decision(shelf.find(run), _sequence(sequence))


def _late(name: str = "derivations") -> ModuleType:
    """Return a module that takes seconds to import, and is asked for by few."""
    return import_module(f"tracepaper.replay.page.{name}")


def _fleet(shelf: Databases, _parameters: NoParameters, _report: Report) -> Struct:
    return fleet.list_fleet(shelf)


def _pull(shelf: Databases, parameters: PullParameters, report: Report) -> Struct:
    return fleet.pull_run(shelf, parameters.database_id, parameters.run_id, report)


def _sweep(shelf: Databases, _parameters: NoParameters, _report: Report, sweep: str) -> Struct:
    document = shelf.sweep(sweep).document
    if document is None:
        raise HttpRefusal(
            409, "This sweep is not whole; the same command goes on, and its page comes with it."
        )
    return answers.Document(**document)


def _rows(
    shelf: Databases,
    parameters: RowParameters,
    _report: Report,
    run: str,
    view: str,
    **filters: str,
) -> Struct:
    return records.rows(
        shelf.find(run),
        view,
        filters,
        from_ms=parameters.from_ms,
        until_ms=parameters.until_ms,
        sort=parameters.sort,
        descending=parameters.descending,
        limit=parameters.limit,
        after=parameters.after,
    )


def _refusals(shelf: Databases, _parameters: NoParameters, _report: Report, run: str) -> Struct:
    return records.refusals(shelf.find(run))


def _health(shelf: Databases, _parameters: NoParameters, _report: Report, run: str) -> Struct:
    status = shelf.status if run == shelf.served else None
    return records.health(shelf.find(run), shelf.served, status)


_R, _D = "/runs/{run}", "/runs/{run}/decisions/{sequence}"
ROUTES: Final = (
    ReadRoute("/runs", "Every run of every database, the newest first.",
          CountParameters, answers.Runs, _runs),
    ReadRoute(_R, "One run: its summary, configuration and accounts.",
          CountParameters, answers.Run, _run),
    ReadRoute(f"{_R}/candles", "Candles of one instrument, in cells that fit.",
          InstrumentParameters, answers.Candles,
          lambda shelf, parameters, _, run: runs.candles(*_instrument(shelf, run, parameters))),
    ReadRoute(f"{_R}/series", "The decisions of one instrument, by cell of its candles; a cell "
          "in which nothing was decided is left out.",
          InstrumentParameters, answers.Series,
          lambda shelf, parameters, _, run: runs.series(*_instrument(shelf, run, parameters))),
    ReadRoute(f"{_R}/noted", "Numbers that the strategy noted, in the cells of the candles.",
          InstrumentParameters, answers.NotedNumbers,
          lambda shelf, parameters, _, run: runs.noted(*_instrument(shelf, run, parameters))),
    ReadRoute(f"{_R}/equity", "Equity of every account and of buy and hold, at the end of "
          "each cell.",
          RangeParameters, answers.Equity, _equity),
    ReadRoute(f"{_R}/marks", "Fills, orders that rested at a price, and gaps of a range.",
          MarkParameters, answers.Marks, _marks),
    ReadRoute(_D, "One decision, whole.", NoParameters, answers.Decision, _decision),
    ReadRoute(f"{_D}/verify", "Derives one decision again from the record, now; lines of JSON.",
          NoParameters, answers.DerivedDecision,
          lambda shelf, _, report, run, sequence: _late().verify_decision(
              shelf.find(run), _sequence(sequence), report), is_heavy=True, streams=True),
    ReadRoute(f"{_D}/ask", "Asks the run's model again about one decision; lines of JSON.",
          NoParameters, answers.Document,
          lambda shelf, _, report, run, sequence: _late().ask(
              shelf.find(run), _sequence(sequence), report), is_heavy=True, streams=True),
    ReadRoute(f"{_R}/verify", "Derives the whole run again from its record; lines of JSON.",
          NoParameters, answers.ParityState,
          lambda shelf, _, report, run: _late().verify(shelf.find(run), report),
          is_heavy=True, streams=True),
    ReadRoute(f"{_R}/report", "The report of the run: tables, charts and texts.",
          NoParameters, answers.Document,
          lambda shelf, *_, run: _late().report_of(shelf.find(run)), is_heavy=True),
    ReadRoute(f"{_R}/model", "The run's model: its card, and how its forecasts came true.",
          NoParameters, answers.Document,
          lambda shelf, *_, run: _late().model_of(shelf.find(run)), is_heavy=True),
    ReadRoute(f"{_R}/what-if", "What other keys, fewer gates or a later start would have made "
          "of the run.",
          ChangeParameters, answers.Document,
          lambda shelf, parameters, _, run: _late().what_if_of(
              shelf.find(run), parameters.changes, parameters.drop, parameters.from_ms),
          is_heavy=True),
    ReadRoute(f"{_R}/views/{{view}}", "Rows of a documented view; any of its columns filters.",
          RowParameters, answers.Rows, _rows, is_open=True),
    ReadRoute(f"{_R}/account", "Every account with its curve, and what is held.",
          NoParameters, answers.Document,
          lambda shelf, *_, run: _late("documents").account(shelf.find(run)), is_heavy=True),
    ReadRoute(f"{_R}/refusals", "Refusals by day, and what each gate saved or cost.",
          NoParameters, answers.Document, _refusals, is_heavy=True),
    ReadRoute(f"{_R}/health", "Whether the run is sound.", NoParameters, answers.Health, _health),
    ReadRoute("/runs/{left}/compare/{right}", "Two runs beside each other.",
          NoParameters, answers.Document,
          lambda shelf, *_, left, right: _late("documents").compare(
              shelf.find(left), shelf.find(right)), is_heavy=True),
    ReadRoute("/sweeps/{sweep}", "A sweep: its heat map, every run, and how much is luck.",
          NoParameters, answers.Document, _sweep),
    ReadRoute("/fleet", "Every run of a fleet: health, lag, equity, positions, last decision and "
              "alarms; of `tracepaper ui --fleet` alone.",
              NoParameters, fleet.Fleet, _fleet),
    ReadRoute("/fleet/pull", "Pulls one run of the fleet, which the other addresses then know; "
              "lines of JSON.",
              PullParameters, fleet.PulledRun, _pull, is_heavy=True, streams=True),
)  # fmt: skip
"""Every address that reads; ``/stream`` and ``/openapi.json`` are the server's own."""


@dataclass(frozen=True)
class Call:
    """A request that was matched and checked."""

    route: ReadRoute
    parameters: Struct
    names: dict[str, str]  # of the path, and filters

    def respond(self, shelf: Databases, report: Report) -> Struct:
        """Return the answer."""
        return self.route.respond(shelf, self.parameters, report, **self.names)


def match(path: str, query: Mapping[str, str]) -> Call:
    """Find the route of *path* (without the prefix) and check *query*; raise ``HttpRefusal``."""
    for route in ROUTES:
        if matched := route.pattern.fullmatch(path):
            return Call(route, *_checked(route, matched.groupdict(), query))
    raise HttpRefusal(404, f"There is no such address; {PREFIX}/openapi.json lists all.")


def _checked(
    route: ReadRoute, names: dict[str, str], query: Mapping[str, str]
) -> tuple[Struct, dict[str, str]]:
    accepted = route.parameters.__struct_fields__
    others = {name: value for name, value in query.items() if name not in accepted}
    if others and not route.is_open:
        listed = ", ".join(accepted) or "no parameter"
        raise HttpRefusal(
            400, f"There is no parameter {next(iter(others))[:40]!r}; it takes {listed}."
        )
    if clash := others.keys() & {
        "run",
        "view",
        "shelf",
        "parameters",
        "report",
        "_parameters",
        "_report",
    }:
        raise HttpRefusal(400, f"{min(clash)} is no column.")
    given = {name: value for name, value in query.items() if name in accepted}
    try:
        parameters = msgspec.convert(given, route.parameters, strict=False)
    except msgspec.ValidationError as error:
        raise HttpRefusal(400, f"A parameter is wrong: {error}.") from None
    return parameters, {**names, **others}
