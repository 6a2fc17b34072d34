"""``tracepaper.backtest``: a backtest from Python.

    import tracepaper

    run = tracepaper.backtest("sma_cross", "BTCUSDT-1m.csv", params={"fast": 20, "slow": 100})
    print(run)
    run.trades                     # a polars frame, else columns of numpy
    run.report(html="run.html")

It makes the run that ``tracepaper replay`` makes, by the same function.

The rules are docs/python.md, Y1 to Y9.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tracepaper.daemon.config.loading import Given, Sections, WithSettings, load, load_with_origins
from tracepaper.daemon.config.values import ASKS, STOCK
from tracepaper.daemon.session.user_class import is_importable, known_class
from tracepaper.daemon.session.user_code import has_source
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.columns import instant, iso
from tracepaper.replay.archive.read import candles_of_frame, is_frame
from tracepaper.replay.backtest.build import sessions_of
from tracepaper.replay.backtest.request import Made, Request, carry_out, names_a_run
from tracepaper.replay.dataframes import RunFrames, best_frames, open_run
from tracepaper.replay.report import BARS_DRAWN
from tracepaper.replay.report.figures import Headline, headline
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.report.trades import ClosedTrade, closed_trades
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import NOTHING

if TYPE_CHECKING:
    from rich.console import Console

    from tracepaper.replay.checks.verify import Verification
    from tracepaper.replay.dataframes import Kind

CALLER: Final = "the call of backtest"
WIDTH: Final = 100
"""Characters of a line in texts that are returned."""
TYPED: Final = (
    "no other process can import the class {}: to verify this run there, or to look ahead, put it "
    "into a module of its own"
)
UNSOURCED: Final = (
    "Python keeps no source of the class {}, so its id is that of its compiled code, which "
    "another Python compiles otherwise; put it into a file"
)

Frame = Any
"""A polars DataFrame where polars is installed, else a ``NumpyFrame`` of arrays."""


def backtest(  # noqa: PLR0913 - the options of a replay
    strategy: str | type | None,
    data: Any,  # noqa: ANN401 - a path, candles, a frame, or several
    *,
    params: Mapping[str, Any] | None = None,
    config: str | Path | Sections | None = None,
    db: str | Path | None = None,
    start: str | float | date | None = None,
    end: str | float | date | None = None,
    funding: str | Path | Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    depth: str | Path | Sequence[str | Path] = (),
    log: str = "full",
) -> Backtest:
    """Run *strategy* over *data* through the daemon's own engine; return the run.

    *strategy* is a built-in name, ``module:Class``, a class, or None for the configuration's own.
    *data* is a path or ``SYMBOL=PATH``, a frame of polars or pandas or a dictionary of columns,
    a dictionary of any of these by symbol, or a list of them. *params* are keys of ``[strategy]``
    for a built-in name, and the options of a class. *config* is a TOML file or a dictionary of
    sections, ``{"sizing": {"mode": "fixed", "quantity": "0.1"}}``; without it the working
    folder's ``tracepaper.toml`` counts, as on the command line. *db* is where the run is kept; None
    is a file that lives as long as the result. *start* (included) and *end* (excluded) bound the
    period: ISO text, UTC milliseconds, or a date. *funding* are files of settled rates,
    *frame_data* the candles of higher timeframes that begin before the data, *depth* files of
    order books that ``tracepaper data record`` wrote. *log* is ``full`` or ``acted``.

    Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``, each in one sentence.
    """
    made_of = strategy if isinstance(strategy, type) else None
    with known_class(made_of) as name:
        chosen = name or strategy_name(strategy)
        given = configured(config)
        request = Request(
            data=data_of(data, given),
            config=given,
            overrides={} if chosen is None else {"strategy": strategy_keys(chosen, params, given)},
            caller=CALLER,
            from_text=moment_of(start, "start"),
            to_text=moment_of(end, "end"),
            funding=paths_of(funding, "funding"),
            frames=() if frame_data is None else data_of(frame_data, given),
            depth=paths_of(depth, "depth"),
            log=log,
            warnings=told_of(made_of),
        )
        if chosen is None and params:
            raise ConfigInvalid("params are options of a strategy; name it as the first argument.")
        run = Backtest.made(request, made_of, None if db is None else Path(db))
        if made_of is not None and not has_source(made_of):
            warnings.warn(f"{UNSOURCED.format(made_of.__name__)}.", stacklevel=2)
        return run


class Backtest:
    """A run that was made: its figures, frames, report, explanations and checks.

    Frames are read when they are first asked for, and kept. A run without a database of its own
    is removed with :meth:`close`, at the end of ``with``, or when nothing refers to it any more.
    """

    def __init__(
        self,
        database: Path,
        run_id: str,
        made_of: type | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self.database = database
        self.run_id = run_id
        self._made_of = made_of
        self._remove = (
            None
            if folder is None
            else weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        )

    @classmethod
    def made(cls, request: Request, made_of: type | None, database: Path | None) -> Backtest:
        """Make the run of *request* in *database*, or in a file that lives with the result."""
        folder = None if database else Path(tempfile.mkdtemp(prefix="tracepaper-"))
        path = database or Path(f"{folder}") / "run.db"
        try:
            made: Made = carry_out(replace(request, database=path))
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(made.database, made.run_id, made_of, folder=folder)

    # ------------------------------------------------------------ frames

    @property
    def frames(self) -> RunFrames[Any]:
        """Every frame of the record (gates, explanations, bars, twins, ...), as ``open_run``."""
        self._require_open()
        return open_run(self.run_id, self.database, frames=best_frames())

    @cached_property
    def equity(self) -> Frame:
        """The account after each step."""
        return self.frames.equity()

    @cached_property
    def decisions(self) -> Frame:
        """A row a closed bar: action, verdict, reason, hashes."""
        return self.frames.decisions()

    @cached_property
    def fills(self) -> Frame:
        """The fills of the run's own account."""
        return self.frames.fills()

    @cached_property
    def orders(self) -> Frame:
        """The orders as they stood last."""
        return self.frames.orders()

    @cached_property
    def trades(self) -> Frame:
        """The closed trades: entry, exit, profit after fees, reasons."""
        kinds: dict[type, Kind] = {str: "text", float: "float", int: "integer"}
        names = {"instrument": str, "side": str, "quantity": float, "entered_ms": int,
                 "entered_utc": None, "left_ms": int, "left_utc": None, "entry_price": float,
                 "exit_price": float, "profit": float, "fees": float, "return_bp": float,
                 "entry_reason": str, "exit_reason": str, "entry_sequence": int,
                 "exit_sequence": int}  # fmt: skip
        closed = self._closed
        return self.frames.build(
            {
                name: ("moment", [getattr(one, f"{name[:-4]}_ms") for one in closed])
                if of is None
                else (kinds[of], [getattr(one, name) for one in closed])
                for name, of in names.items()
            }
        )

    # ------------------------------------------------------------ figures

    @cached_property
    def summary(self) -> Headline:
        """The figures of the run's account in one dictionary (docs/python.md, Y7)."""
        return headline(self._record, self._closed)

    @cached_property
    def _record(self) -> RunRecord:
        self._require_open()
        with Reader.open(self.database) as reader:
            return read_record(reader, self.database, self.run_id)

    @cached_property
    def _closed(self) -> list[ClosedTrade]:
        return closed_trades(self._record, self._record.account)

    def report(
        self,
        *,
        html: str | Path | None = None,
        chart: str | Path | None = None,
        last: int = BARS_DRAWN,
    ) -> Text:
        """Return the report: ``document`` as ``tracepaper report --json``, printed as its text.

        With *html* the page is written there as well; with *chart*, a .png or .svg, the price of
        the newest *last* bars with its trades, as by ``--chart FILE --last N``. Raises
        ``ConfigInvalid`` where either cannot be written, ``DataInvalid`` without two bars to draw.
        """
        from tracepaper.replay.report.report import build_report
        from tracepaper.replay.report.terminal import as_document, show_report
        from tracepaper.replay.report.trade_pictures import check, draw

        self._require_open()
        if chart is not None:
            check(Path(chart), last, "chart")
        require("plotly", "html", html)
        made = build_report(self.database, self.run_id)
        if html is not None:
            from tracepaper.replay.report.page import write_page

            write_page(made, Path(html))
        if chart is not None:
            draw(made, Path(chart), last=last)
        return Text(text_of(lambda console: show_report(console, made)), as_document(made))

    def explain(self, sequence: int = -1) -> Text:
        """Explain one decision; *sequence* is its column in ``decisions``.

        A negative one counts from the last decision back: -1 is the last. Raises ``DataInvalid``
        where there is no such decision.
        """
        from tracepaper.replay.document.terminal import show
        from tracepaper.replay.explain.decision import read_stored
        from tracepaper.replay.explain.document import Recomputed, document
        from tracepaper.replay.explain.tables import stored_parts

        self._require_open()
        stored = read_stored(self.database, self.run_id, self._sequence(sequence))
        parts = tuple(stored_parts(stored))
        return Text(
            text_of(lambda console: show(console, parts)), document(stored, Recomputed(), None)
        )

    def _sequence(self, given: int) -> int:
        if type(given) is not int:
            raise ConfigInvalid(f"{shown(given)} is no decision; give its sequence, or -1.")
        if given >= 0:
            return given
        known = self._record.decisions.sequence
        if -given > known.size:
            raise DataInvalid(f"The run has {known.size:,} decisions; {given} is before the first.")
        return int(known[given])

    def verify(self, *, sample: int | None = None) -> Verification:
        """Derive the run again from what it stored and compare every value, as ``verify`` does.

        ``holds`` of what is returned says whether all agree; *sample* compares the last so many
        steps alone.
        """
        from tracepaper.replay.checks.verify import verify_run

        self._require_open()
        with known_class(self._made_of), Reader.open(self.database) as reader:
            return verify_run(reader, self.database, self.run_id, sample=sample)

    # ------------------------------------------------------------ its life

    def close(self) -> None:
        """Remove the run where it has no database of its own; nothing more can be read then."""
        if self._remove is not None:
            self._remove()

    @property
    def _is_gone(self) -> bool:
        return not self.database.exists()

    def _require_open(self) -> None:
        if self._is_gone:
            raise DataInvalid(
                f"Run {self.run_id} is closed and its file removed; give backtest a db=FILE to "
                "keep one."
            )

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the run."""
        self.close()

    def __repr__(self) -> str:
        if self._is_gone:
            return f"<run {self.run_id}, closed>"
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        """Yield the run in a few lines: what it was, what it came to, and beside what."""
        self._require_open()
        record, found = self._record, self.summary
        yield (
            f"{record.run['strategy']} on {record.run['instruments']}, "
            f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"
        )
        bars = "" if found["bars"] is None else f"{found['bars']:,} bars, "
        yield f"{bars}{_number(found['days'], ',.1f')} days, {found['trades']:,} closed trades"
        yield (
            f"return {_percent(found['return'])}, a day "
            f"{_number(found['mean_day'], '+.1f', 1e4)} ± "
            f"{_number(found['mean_day_error'], '.1f', 1e4)} bp, worst drawdown "
            f"{_percent(found['max_drawdown'], sign='')}"
        )
        if found["sharpe"] is not None:
            error = _number(found["sharpe_error"], ".2f")
            yield f"Sharpe ratio a year {found['sharpe']:+.2f} ± {error}"
        held = (
            ""
            if found["held_return"] is None
            else (f", at its own exposure {_percent(found['held_return'])}")
        )
        yield f"buy and hold {_percent(found['buy_and_hold_return'])}{held}"
        if found["random_beaten"] is not None:
            share = _number(found["random_beaten"], ".0f", 100.0)
            yield f"beats {share} % of {found['random_twins']} random twins"
        yield from (f"Warning: {text}." for text in json.loads(record.run["warnings"] or "[]"))

    def _repr_html_(self) -> str:
        from tracepaper.replay.document.page import element, joined

        if self._is_gone:
            return str(element("p", repr(self)))
        first, *rest = self._lines()
        rows = (element("li", line) for line in rest)
        return str(joined([element("p", element("b", first)), element("ul", joined(rows))]))


class Text:
    """What is said of a run: printed as a terminal would show it, ``document`` as JSON has it."""

    def __init__(self, text: str, document: Mapping[str, Any]) -> None:
        self.text = text
        self.document = document

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any value of JSON
        return self.document[key]

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from tracepaper.replay.document.page import element

        return str(element("pre", self.text))


# ---------------------------------------------------------------- what is given


def configured(config: str | Given) -> Given:
    """Return *config* as a path or sections; raise ``ConfigInvalid`` where it is neither."""
    if isinstance(config, str):
        return Path(config)
    if config is None or isinstance(config, (Path, Mapping, WithSettings)):
        return config
    raise ConfigInvalid(
        f"config is {shown(config)}; give a TOML file, or a dictionary of sections such as "
        '{"account": {"cash": "10000"}}.'
    )


def strategy_name(strategy: object) -> str | None:
    """Return the name of a strategy that is no class; raise ``ConfigInvalid`` where it is none."""
    if strategy is None or isinstance(strategy, str):
        return strategy
    raise ConfigInvalid(
        f"strategy is {shown(strategy)}; give a name, module:Class, or the class itself, and its "
        "options as params."
    )


def paths_of(given: object, what: str) -> tuple[Path, ...]:
    """Return one path or several; raise ``ConfigInvalid``, which names *what*, for no path."""
    several: Sequence[object] = given if isinstance(given, (list, tuple)) else [given]
    paths = tuple(Path(one) for one in several if isinstance(one, (str, Path)))
    if len(paths) < len(several):
        raise ConfigInvalid(
            f"{what} is {shown(given)}; give the path of a file, or a list of them."
        )
    return paths


def strategy_keys(name: str, params: Mapping[str, Any] | None, config: Given) -> dict[str, Any]:
    """Return the keys of ``[strategy]`` that mean *name* with *params* over the configured ones."""
    if params is not None and not isinstance(params, Mapping):
        raise ConfigInvalid(f"params is {shown(params)}; give a dictionary of options.")
    given = plain_values(dict(params or {}), "params")
    has_options = ":" in name or ASKS.get(name) in (DataSource.CLOSES, DataSource.ORDER_BOOKS)
    if not has_options:
        return {**given, "name": name}
    own = load(config).strategy
    return {"name": name, "options": {**(own.options if own.name == name else {}), **given}}


def plain_values(value: dict[str, Any], said_as: str) -> dict[str, Any]:
    """Return *value* as JSON has it, so that what is stored gives the same strategy again."""

    def scalar(odd: object) -> object:
        is_number = getattr(odd, "ndim", None) == 0  # of numpy
        plain = getattr(odd, "item" if is_number else "tolist", None)
        if plain is None:
            raise TypeError(f"{shown(odd)} cannot be stored")
        return plain()

    try:
        found: dict[str, Any] = json.loads(json.dumps(value, default=scalar, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigInvalid(
            f"{said_as}: {error}; give finite numbers, texts, lists and dictionaries of them."
        ) from None
    return found


def data_of(data: object, config: Given) -> tuple[str | Candles, ...]:
    """Return *data* as paths and candles; raise ``ConfigInvalid`` where it is none."""
    found = tuple(_data(data, None, config))
    if not found:
        raise ConfigInvalid("There are no data; give a path, a frame, or several.")
    for item in found:
        if isinstance(item, str) and names_a_run(item):
            raise ConfigInvalid(
                f"{item} is a run, which is replayed with its own strategy; use `tracepaper replay "
                f"--data {item}`."
            )
    return found


def _data(
    data: Any,  # noqa: ANN401 - whatever users hand over
    symbol: str | None,
    config: Given,
) -> Iterator[str | Candles]:
    if isinstance(data, (str, Path)):
        yield str(data) if symbol is None else f"{symbol}={data}"
    elif isinstance(data, Candles):
        yield data
    elif is_frame(data):
        market = load(config).market
        yield candles_of_frame(
            data,
            symbol=symbol or _configured_symbol(config),
            category=Category.STOCK if market.asset == STOCK else Category.LINEAR,
            sessions_for=sessions_of(market),
        )
    elif isinstance(data, Mapping):
        for name, item in data.items():
            yield from _data(item, str(name), config)
    elif isinstance(data, Sequence):
        for item in data:
            yield from _data(item, symbol, config)
    else:
        raise ConfigInvalid(
            f"data is {shown(data)}; give a path, a frame, a dictionary of columns, or several."
        )


def _configured_symbol(config: Given) -> str | None:
    """Return the symbol that is configured, where it is one and somebody configured it."""
    found, origins = load_with_origins(config)
    symbols = found.market.symbols
    return symbols[0] if ("market", "symbols") in origins and len(symbols) == 1 else None


def moment_of(value: str | float | date | None, said_as: str) -> str | None:
    """Return *value* as a command line's time; instants without a zone are of UTC."""
    if value is None:
        return None
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return str(round(moment.timestamp() * 1000))
    try:
        return str(instant(value.isoformat() if isinstance(value, date) else str(value)))
    except ConfigInvalid:
        raise ConfigInvalid(
            f"{said_as} is {shown(value)}; give an ISO time such as 2025-06-01, UTC milliseconds "
            "or a date."
        ) from None


def told_of(made_of: type | None) -> tuple[str, ...]:
    """Note, for a run, that its class is known to this process alone."""
    if made_of is None or is_importable(made_of):
        return ()
    said = [TYPED.format(made_of.__name__)]
    if not has_source(made_of):
        said.append(UNSOURCED.format(made_of.__name__))
    return tuple(said)


# ---------------------------------------------------------------- what is said


def text_of(draw: Callable[[Console], None]) -> str:
    """Return the text that *draw* prints on a terminal without colours."""
    from tracepaper.daemon.terminal.console import Terminal

    written = StringIO()
    # In Jupyter Rich's consoles draw cells of their own and write nothing to their file.
    draw(Terminal(file=written, width=WIDTH, color_system=None, force_jupyter=False))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return NOTHING if value is None else f"{value * factor:{form}}"


def _percent(value: float | None, sign: str = "+") -> str:
    return NOTHING if value is None else f"{value * 100:{sign},.2f} %"
