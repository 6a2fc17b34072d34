"""``tracepaper data check|fetch|record|samples``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    CommandAnswer,
    ConfigOption,
    answers,
    reject_without_effect,
    tell,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import INTERVALS, count_of, duration, interval_text, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.daemon.bybit.order_book import DepthRequest
    from tracepaper.replay.archive.download import FetchResult
    from tracepaper.replay.archive.recordings import RecordingQuality
    from tracepaper.replay.archive.series import Quality

app = typer.Typer(help="Check and fetch candles; record order books; copy samples.")

GAPS_SHOWN: Final = 5


PathsArgument = Annotated[
    list[str],
    typer.Argument(metavar="PATH…", help="Files; SYMBOL=PATH if the file name lacks the symbol."),
]
CategoryOption = Annotated[
    Category | None, typer.Option("--category", help="The category; by default from the name.")
]


@app.command()
@answers
def check(
    paths: PathsArgument,
    *,
    category: CategoryOption = None,
    columns: ColumnsOption = None,
) -> CommandAnswer:
    """Check files of candles or order books: what each holds, or why it is rejected."""
    from tracepaper.replay.archive import read_candles
    from tracepaper.replay.archive.series import quality

    documents: list[dict[str, object]] = []
    lines: list[str] = []
    rejected = 0
    for path in paths:
        try:
            if (recorded := _recorded(Path(path), columns)) is not None:
                document, file_lines = asdict(recorded), _recorded_lines(recorded)
            else:
                figures = quality(read_candles(path, category=category, columns=columns or ()))
                document, file_lines = asdict(figures), _lines(figures)
            documents.append({"valid": True, **document})
        except (ConfigInvalid, DataInvalid) as error:
            if isinstance(error, ConfigInvalid) and not documents:
                raise
            rejected += 1
            documents.append({"path": path, "valid": False, "error": str(error)})
            file_lines = [f"✗ {error}"]
        lines += file_lines
    return CommandAnswer(
        {"files": documents, "refused": rejected}, "\n".join(lines), min(rejected, 1)
    )


def _lines(quality: Quality) -> list[str]:
    from tracepaper.strategies.units import duration, iso

    gaps = [f"{iso(start)} to {iso(until)}" for start, until in quality.gaps[:GAPS_SHOWN]]
    span = (
        f"{quality.rows:,} candles that open from {iso(quality.first_ms)} to {iso(quality.last_ms)}"
    )
    if quality.sessions is not None:
        span += f", {quality.sessions:,} sessions"
    scales = (
        f"prices to {_unit(quality.price_decimals)}, volume to {_unit(quality.volume_decimals)}"
    )
    holes = f"{count_of(len(quality.gaps), 'hole')}, {count_of(quality.missing, 'candle')} missing"
    if quality.gaps:
        holes += f", the longest of {duration(max(until - start for start, until in quality.gaps))}"
    lines = [
        f"✓ {quality.path}",
        f"  {quality.instrument}, {interval_text(quality.interval_ms)}, {span}",
        f"  {scales}, turnover {_unit(quality.turnover_decimals)}",
        f"  {quality.zero_volume:,} without volume, {quality.flat:,} with a single price",
        f"  {holes}{_listed(gaps, len(quality.gaps))}",
    ]
    if quality.open_is_previous_close is not None:
        lines.append(f"  {percent(quality.open_is_previous_close, 1)} open at the previous close")
    return lines + [f"  ⚠ {note}" for note in quality.notes]


def _listed(shown: Sequence[str], count: int) -> str:
    """Return the first of *count* gaps after a colon; empty without gaps."""
    more = [f"and {count - GAPS_SHOWN} more"] if count > GAPS_SHOWN else []
    return f": {'; '.join([*shown, *more])}" if shown else ""


def _unit(decimals: int | None) -> str:
    """Return the smallest unit of a number with *decimals*: ``0.01`` for 2."""
    if decimals is None:
        return "missing"
    return f"0.{'0' * (decimals - 1)}1" if decimals else "1"


@app.command()
@answers
def record(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Such as BTCUSDT.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file, or one to continue.")],
    depth: Annotated[int, typer.Option(help="Levels per side, 1 to 1,000.")] = 50,
    every: Annotated[
        int, typer.Option(metavar="MS", help="Market milliseconds between order books.")
    ] = 1_000,
    lasting: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="Duration, such as 30s, 10m or 8h; by default until stopped.",
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FRAMES", help="Read a recorded session instead of an exchange."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Another exchange, such as the rest_url that `tracepaper exchange` prints."
        ),
    ] = None,
    category: Annotated[
        Category | None, typer.Option(help="linear or spot; by default linear, or the session's.")
    ] = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Record an exchange's order book to a file until Ctrl-C; the file marks gaps."""
    from tracepaper.daemon.bybit.order_book import DepthRequest
    from tracepaper.replay.archive.recordings import BooksFile
    from tracepaper.replay.commands.recording import exchange_of, record_session

    request = DepthRequest(category or Category.LINEAR, symbol, depth, every)
    if frames is not None:
        reject_without_effect({"--url": url, "--for": lasting}, "leave --from out")
    if frames is None:
        message = record_session(exchange_of(config, url), request, out, lasting=lasting)
    else:
        message = _record_frames(frames, config, request, out, category)
    if message:
        tell(message)
    quality = BooksFile(out).quality()
    return CommandAnswer(asdict(quality), "\n".join(_recorded_lines(quality)))


def _recorded(path: Path, columns: Sequence[str] | None) -> RecordingQuality | None:
    """Summarise the recording at *path*, which has no *columns*; None for other files."""
    from tracepaper.replay.archive.recordings import BooksFile, recording_header

    if recording_header(path) is None:
        return None
    if columns:
        raise DataInvalid(f"{path} holds an order book without columns; leave --columns out.")
    return BooksFile(path).quality()


def _record_frames(
    frames: Path, config: Path | None, request: DepthRequest, out: Path, category: Category | None
) -> str:
    """Write the books of a recorded session to *out*; return a message about a torn end, if any.

    *category* selects the frames if the session has several categories.
    """
    from tracepaper.daemon.config.loading import load
    from tracepaper.replay.archive.download import sample_frames
    from tracepaper.replay.exchange.recorded import read_recording

    session = read_recording(frames, category)
    request = replace(request, category=Category(session.category))
    topic = session.book_topic(request.symbol, request.levels)
    return sample_frames(
        ((frame.received_ms, frame.body) for frame in session.frames(topic)),
        session.instrument(request.symbol),
        request,
        out,
        topic=topic,
        ahead_ms=load(config).exchange.ahead_ms,
    )


def _recorded_lines(quality: RecordingQuality) -> list[str]:
    """Describe a recording, line by line."""
    from tracepaper.strategies.units import iso

    what = f"{quality.levels} levels a side each {quality.every_ms:,} ms"
    lines = [f"✓ {quality.path}", f"  {quality.instrument}, {what}, from {quality.source}"]
    gaps = [
        f"{iso(gap.from_ms)} to {iso(gap.until_ms)} ({gap.cause})"
        for gap in quality.gaps[:GAPS_SHOWN]
    ]
    if quality.first_ms is None or quality.last_ms is None:
        lines.append("  no books yet")
    else:
        span = f"from {iso(quality.first_ms)} to {iso(quality.last_ms)}"
        recorded = f"{duration(quality.recorded_ms)} without the gaps"
        lines += [
            f"  {quality.books:,} books {span}, {recorded}",
            f"  {quality.bytes:,} bytes, {quality.bytes_each or 0:,.0f} a book",
            f"  {len(quality.gaps)} gaps{_listed(gaps, len(quality.gaps))}",
        ]
    if quality.thin:
        lines.append(f"  {quality.thin:,} books lack levels on a side")
    return lines + ([f"  {quality.torn}"] if quality.torn else [])


@app.command()
@answers
def samples(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Target folder, created if missing.")
    ] = Path("samples"),
) -> CommandAnswer:
    """Copy the bundled candles, frames and configurations that the documentation uses."""
    from tracepaper.replay.samples import copy_samples

    copies = copy_samples(folder)
    return CommandAnswer(
        {"folder": str(folder), "files": [path.name for path in copies]},
        f"{folder} holds {len(copies)} files; {folder / 'SOURCES.md'} names their sources.",
    )


@app.command()
@answers
def fetch(
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="Such as BTCUSDT.")],
    *,
    interval: Annotated[
        str,
        typer.Option(help="1 3 5 15 30 60 120 240 360 720 D W or M, as Bybit names them."),
    ] = "1",
    from_text: Annotated[
        str | None,
        typer.Option("--from", help="First time, UTC; by default the file's first candle."),
    ] = None,
    to_text: Annotated[str | None, typer.Option("--to", help="End, UTC; by default now.")] = None,
    category: Annotated[Category, typer.Option(help="linear or spot.")] = Category.LINEAR,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the CSV files, created if missing.")
    ] = Path("candles"),
    source: Annotated[
        Literal["bybit", "yahoo"],
        typer.Option(help="yahoo has days and hours of shares, by yfinance."),
    ] = "bybit",
    config: ConfigOption = None,
) -> CommandAnswer:
    """Download candles from the exchange to one file per symbol; run it again to continue."""
    import sys

    from tracepaper.daemon.clock import SystemClock
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.shutdown import run_loop
    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.archive.download import FetchRequest, fetch_order

    if interval not in INTERVALS:
        raise ConfigInvalid(f"--interval is {interval!r}: give one of {', '.join(INTERVALS)}.")
    order = FetchRequest(
        folder=out,
        category=category,
        symbols=tuple(dict.fromkeys(symbols)),
        interval_ms=INTERVALS[interval],
        from_ms=None if from_text is None else instant(from_text),
        until_ms=None if to_text is None else instant(to_text),
    )
    if source == "yahoo":
        require("yfinance", "--source yahoo")
        from tracepaper.replay.archive.yahoo import INTERVALS as YAHOO
        from tracepaper.replay.archive.yahoo import fetch_shares

        if order.interval_ms not in YAHOO or order.from_ms is None:
            raise ConfigInvalid(
                "--source yahoo has days and hours: give --interval D or 60, and --from."
            )
        until_ms = min(order.until_ms or sys.maxsize, SystemClock().wall_ms())
        outcomes = fetch_shares(
            out, order.symbols, order.interval_ms, from_ms=order.from_ms, until_ms=until_ms
        )
    else:
        outcomes = run_loop(fetch_order(load(config), order, quiet=not sys.stderr.isatty()))
    lines = map(_outcome_line, outcomes)
    return CommandAnswer({"series": [asdict(outcome) for outcome in outcomes]}, "\n".join(lines))


def _outcome_line(outcome: FetchResult) -> str:
    count = len(outcome.absent)
    spans = (
        f"{count} spans of it, asked for twice" if count > 1 else "a span of it, asked for twice"
    )
    absent = f"; the exchange lacks {spans}" if count else ""
    return (
        f"{outcome.instrument}, {interval_text(outcome.interval_ms)}: {outcome.bars:,} candles "
        f"fetched into {outcome.file}{absent}"
    )
