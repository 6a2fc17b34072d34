"""The route table of the HTTP interface: path, parameters, answer and a sentence for each route.

Dispatch, checks of parameters, the OpenAPI document and ``docs/http.md`` are derived from it. A
route's function gets by name: names in its path, parameters of the query, the run as ``shown``, and
``databases``, ``report``, ``filters``, ``query``, ``status`` or ``verified``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tracepaper.replay.document.values import TitledParts, as_document
from tracepaper.replay.page import answers, decisions, lists, marks, records, runs
from tracepaper.replay.page.databases import Databases, HttpRefusal, OpenRun
from tracepaper.replay.page.process import STREAMS

PREFIX: Final = "/api/v1"
POINTS: Final = 2_000
POINTS_MAX: Final = 20_000

Time = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Report = Callable[[float, str], None]
"""``(share, doing)``: reports the progress of a long answer."""


class Parameter(NamedTuple):
    """A parameter of the query, with its default."""

    kind: Any
    default: Any
    meaning: str


PARAMETERS: Final[Mapping[str, Parameter]] = {
    "instrument": Parameter(str | None, None,
        "`category:SYMBOL`; by default the run's first, for marks all"),
    "from_ms": Parameter(Time | None, None,
        "first open time, UTC ms; by default the beginning"),
    "until_ms": Parameter(Time | None, None,
        "end of the range, exclusive, UTC ms; by default after the newest bar"),
    "points": Parameter(Annotated[int, Meta(ge=2, le=POINTS_MAX)], POINTS,
        "maximum number of cells"),
    "changes": Parameter(str, "", "`section.key=value`, separated by semicolons"),
    "drop": Parameter(str, "", "names of gates, separated by commas"),
    "counted": Parameter(bool, default=False,
        meaning="wait for counts that are not yet known; otherwise they are null"),
    "sort": Parameter(str | None, None, "the column to sort by"),
    "descending": Parameter(bool, default=False, meaning="whether the last row comes first"),
    "exact": Parameter(bool, default=False, meaning="whether money has all its decimals"),
    "limit": Parameter(Annotated[int, Meta(ge=1, le=records.ROWS_MAX)], records.ROWS,
        "maximum number of rows"),
    "after": Parameter(Annotated[int, Meta(ge=0, le=2**53)], 0,
        "`after` or `before` of the previous answer"),
}  # fmt: skip
MEANINGS: Final[Mapping[str, str]] = {
    "run": "the run's full id, from `/runs`",
    "left": "a run's id",
    "right": "another run's id",
    "sequence": "the decision's sequence number",
    "sweep": "a sweep's id, from `/runs`",
    "view": "a documented view without `v_`, such as `decisions` ([storage](storage.md))",
    **{name: parameter.meaning for name, parameter in PARAMETERS.items()},
}
"""Meaning of each name in a path and of each parameter."""


@dataclass(frozen=True)
class ReadRoute:
    """One address of the interface; ``respond`` returns an answer or a document.

    With ``is_open``, columns of a view are further parameters. With ``is_within``, the document is
    part of another one and does not repeat the warnings on the run.
    """

    path: str
    sentence: str
    respond: Callable[..., Struct | TitledParts]
    answer: type[Struct] = answers.Document
    takes: str = ""
    is_open: bool = False
    is_within: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of its paths."""
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path))

    @property
    def places(self) -> list[str]:
        """The names within its path."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def parameters(self) -> type[Struct]:
        """The parameters of its query."""
        return _parameters(self.takes)

    @property
    def streams(self) -> bool:
        """Whether the answer comes in lines, with progress."""
        return STREAMS.fullmatch(self.path) is not None


@cache
def _parameters(names: str) -> type[Struct]:
    declared = [(name, PARAMETERS[name]) for name in names.split()]
    fields = [(name, parameter.kind, parameter.default) for name, parameter in declared]
    return msgspec.defstruct("Parameters", fields, kw_only=True)


def _instrument(shown: OpenRun, name: str | None) -> str | None:
    """Return *name*; raise ``HttpRefusal`` if the run has no such instrument."""
    instruments = shown.columns.instruments
    if name is not None and name not in instruments:
        listed = ", ".join(instruments)
        raise HttpRefusal(400, f"The run has no such instrument, only {listed}.")
    return name


def _sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise HttpRefusal(404, "Name a decision by its sequence, a whole number.")
    return int(text)


def _candles(
    shown: OpenRun, instrument: str | None, from_ms: int | None, until_ms: int | None, points: int
) -> Struct:
    if not shown.columns.instruments:
        raise HttpRefusal(409, "The record of this run has lost its instruments; restore a backup.")
    first = next(iter(shown.columns.instruments))
    return runs.candles(shown, instrument or first, from_ms, until_ms, points)


def _run(
    databases: Databases, shown: OpenRun, verified: answers.ParityState | None, *, counted: bool
) -> Struct:
    return runs.run(shown, databases.served, counted=counted, verified=verified)


def _late(name: str = "derivations") -> ModuleType:
    """Import a module that takes seconds to load and is rarely needed."""
    return import_module(f"tracepaper.replay.page.{name}")


def _sweep(databases: Databases, sweep: str) -> Struct:
    document = databases.sweep(sweep).document
    if document is None:
        raise HttpRefusal(
            409,
            "This sweep is not finished; run its command again to complete it and get its page.",
        )
    return answers.Document(**document)


_R, _D = "/runs/{run}", "/runs/{run}/decisions/{sequence}"
ROUTES: Final = (
    ReadRoute("/runs", "Every run of every database, the newest first.", runs.runs, answers.Runs),
    ReadRoute("/overview", "Every run and sweep, as the page lists them.",
          lambda databases, counted: lists.runs_document(runs.runs(databases, counted=counted)),
          takes="counted"),
    ReadRoute(_R, "One run: its summary, configuration and accounts.",
          _run, answers.Run, "counted"),
    ReadRoute(f"{_R}/candles", "Candles of one instrument with their decisions and notes, in "
          "cells.", _candles, answers.Candles, "from_ms until_ms points instrument"),
    ReadRoute(f"{_R}/equity", "Equity of every account at the end of each cell.",
          runs.equity, answers.Equity, "from_ms until_ms points"),
    ReadRoute(f"{_R}/marks", "Fills, orders that rested at a price, and gaps of a range.",
          marks.marks, answers.Marks, "from_ms until_ms instrument"),
    ReadRoute(_D, "One decision in full.", decisions.decision, answers.Decision),
    ReadRoute(f"{_D}/verify", "Verifies one decision against the record; lines of JSON.",
          lambda shown, sequence, report: _late().verify_decision(shown, sequence, report)),
    ReadRoute(f"{_D}/nearest", "The smallest changes with which a decision that did not trade "
          "would have traded, derived again from the record.",
          lambda shown, sequence: _late().nearest_of(shown, sequence)),
    ReadRoute(f"{_D}/ask", "Runs the model again for one decision; lines of JSON.",
          lambda shown, sequence, report: _late().ask(shown, sequence, report)),
    ReadRoute(f"{_R}/verify", "Verifies the whole run against its record; lines of JSON.",
          lambda shown, report: _late().verify(shown, report), answers.ParityState),
    ReadRoute(f"{_R}/report", "The report of the run: tables, charts and texts.",
          lambda shown: _late().report_of(shown)),
    ReadRoute(f"{_R}/model", "The run's model: its card, and its forecasts against outcomes.",
          lambda shown: _late("model").model_document(shown)),
    ReadRoute(f"{_R}/what-if", "The run compared with itself under other keys, fewer gates or "
          "a later start.", lambda shown, query: _late().what_if_of(shown, **query),
          takes="changes drop from_ms", is_within=True),
    ReadRoute(f"{_R}/views/{{view}}", "Rows of a documented view; any of its columns is a filter.",
          lambda shown, view, filters, query: TitledParts(view, (
              records.view_table(shown, view, filters, records.RowsPage(**query)),)),
          takes="from_ms until_ms sort descending exact limit after", is_open=True),
    ReadRoute(f"{_R}/account", "Every account with its curve, the positions, and the newest "
          "trades, orders, fills and ledger lines.",
          lambda shown, limit: _late("documents").account(shown, limit), takes="limit"),
    ReadRoute(f"{_R}/refusals", "Refusals by day, and what each gate saved or cost.",
          records.refusals),
    ReadRoute(f"{_R}/health", "The health of the run: parity, gaps, restarts.", records.health),
    ReadRoute(f"{_R}/compare", "The runs that this run can be compared with.",
          lambda databases, shown, counted: lists.beside_document(
              shown, runs.runs(databases, counted=counted)), takes="counted"),
    ReadRoute("/runs/{left}/compare/{right}", "Two runs compared.",
          lambda databases, left, right: _late("documents").compare(
              databases.find(left), databases.find(right))),
    ReadRoute("/sweeps/{sweep}", "A sweep: its heat map, every run, and the estimate of luck.",
          _sweep),
)  # fmt: skip
"""All addresses that read; the server itself answers ``/stream`` and ``/openapi.json``."""


@dataclass(frozen=True)
class Call:
    """A request with its route and checked parameters."""

    route: ReadRoute
    query: Mapping[str, Any]
    names: Mapping[str, str]  # of the path
    filters: Mapping[str, str]

    def respond(self, databases: Databases, report: Report) -> Struct:
        """Return the answer."""
        values: dict[str, Any] = {"databases": databases, "report": report, "filters": self.filters}
        values |= {"query": self.query, "served": databases.served, **self.query, **self.names}
        if (run := self.names.get("run")) is not None:
            values["shown"] = databases.find(run)
            values["status"] = databases.status if run == databases.served else None
            values["verified"] = msgspec.convert(databases.verified, answers.ParityState | None)
            if "instrument" in self.query:
                values["instrument"] = _instrument(values["shown"], self.query["instrument"])
        if "sequence" in self.names:
            values["sequence"] = _sequence(self.names["sequence"])
        names = signature(self.route.respond).parameters
        answer = self.route.respond(**{name: values[name] for name in names if name in values})
        if not isinstance(answer, TitledParts):
            return answer
        if self.names.keys() == {"run"} and not self.route.is_within:
            answer = runs.with_warnings(values["shown"], answer)
        return answers.Document(**as_document(answer))


def match(path: str, query: Mapping[str, str]) -> Call:
    """Return the call for *path* (without the prefix) and *query*, or raise ``HttpRefusal``."""
    for route in ROUTES:
        if matched := route.pattern.fullmatch(path):
            return _checked(route, matched.groupdict(), query)
    raise HttpRefusal(404, f"There is no such address; {PREFIX}/openapi.json lists all.")


def _checked(route: ReadRoute, names: Mapping[str, str], query: Mapping[str, str]) -> Call:
    accepted = route.takes.split()
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
    return Call(route, msgspec.structs.asdict(parameters), names, others)
