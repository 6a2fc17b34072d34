"""A backtest as requested: data, configuration, span.

``carry_out`` is the one way in which both make a run; ``perform`` is the command around it.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import print_json, reads_record
from tracepaper.daemon.config.loading import COMMAND_LINE, Given, Sections, WithSettings, load
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.archive import Candles, FundingRates, read_candles, read_funding
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.archive.corporate_actions import ActionRow, read_actions
from tracepaper.replay.archive.order_book import DepthSource, StoredDepth
from tracepaper.replay.backtest.book_feed import EventsSource
from tracepaper.replay.backtest.build import Replay, build, configuration, read_market
from tracepaper.replay.backtest.feed import refuse_elsewhere
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import (
    Progress,
    Tally,
    resume_replay,
    run_replay,
    sessions_before,
)
from tracepaper.replay.report.terminal import (
    decision_to_explain,
    program_name,
    show_summary,
    summarise,
)
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.covariates import kept_covariates
from tracepaper.storage.database.lock import lock_file
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome
from tracepaper.strategies.units import MONEY_DECIMALS, count_of, unscaled

INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Request:
    """The options of one replay; *overrides* are keys of the configuration that win over all."""

    data: tuple[str | Candles, ...]
    config: Given = None
    overrides: Sections = field(default_factory=dict)
    caller: str = COMMAND_LINE  # who set them, in an error
    symbol: str | None = None
    category: str | None = None
    columns: tuple[str, ...] = ()
    from_text: str | None = None
    to_text: str | None = None
    resume: str | None = None
    funding: tuple[Path | FundingRates, ...] = ()
    actions: tuple[Path | ActionRow, ...] = ()
    frames: tuple[str | Candles, ...] = ()
    depth: tuple[Path | DepthSource, ...] = ()
    events: tuple[Path | EventsSource, ...] = ()
    mode: str = "scan"
    database: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """The run that a request made."""

    database: Path
    run_id: str
    tally: Tally
    seconds: float


@dataclass(frozen=True)
class Watch:
    """Who looks on: shows how far a replay is, and is asked whether it shall stop."""

    progress: Callable[[Replay], AbstractContextManager[Progress]] = lambda _replay: nullcontext(
        lambda _bars: None
    )
    stopped: Callable[[], bool] = lambda: False


def perform(
    request: Request,
    *,
    as_json: bool = False,
    check_made: Callable[[Path, str], ParityCheck] | None = None,
) -> None:
    """Carry *request* out and print it; raise ``typer.Exit`` 130 where Ctrl-C ended it early.

    *check_made* derives a finished run again, by database and id; its result is printed too.
    """
    quiet = as_json or not sys.stderr.isatty()
    with _interruptible() as stopped:
        made = carry_out(request, Watch(partial(_progress, quiet=quiet), stopped))
    check = None
    if check_made is not None and made.tally.finished:
        check = check_made(made.database, made.run_id)
    _say(made, check, as_json=as_json)
    if not made.tally.finished:
        raise typer.Exit(INTERRUPTED)
    if check is not None and check.outcome is not ParityOutcome.IDENTICAL:
        raise typer.Exit(1)


def carry_out(request: Request, watch: Watch | None = None) -> Made:
    """Make the run of *request*; leave nothing behind where its start fails.

    Reads no signal and awaits nothing, so it may be called in any thread and inside a running
    event loop. Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``, in one sentence.
    """
    watch = watch or Watch()
    clock = SystemClock()
    recorded = [item for item in request.data if isinstance(item, str) and names_a_run(item)]
    if recorded and len(request.data) > 1:
        raise ConfigInvalid("A recorded run is replayed alone; give --data FILE.db#RUN once.")
    if recorded:
        _check_recorded(recorded[0], request)
    database = request.database or Path(f"replay-{clock.wall_ms()}.db")
    if request.resume is not None and not database.exists():
        raise ConfigInvalid(
            "--resume goes on with a run of --db FILE; name the database that holds it."
            if request.database is None
            else f"{database} does not exist, so it holds no run that could go on (one that was "
            "stopped before its first bars is not stored); leave --resume out to begin it."
        )
    if request.mode not in ("scan", "step"):
        raise ConfigInvalid(f"--mode is {request.mode!r}; write scan or step.")
    began_s = clock.network_s()
    is_new, kept = not database.exists(), _kept(database)
    audit = SqlAuditLog.open(database)
    try:
        tally, run_id = _run(request, recorded, audit, database, clock, watch)
        if tally.finished:
            audit.end(clock.wall_ms())
    finally:
        audit.close()
        if not audit.is_open:  # the start failed: nothing is left behind
            _remove_failed_start(database, kept, is_new=is_new)
    return Made(database, run_id, tally, clock.network_s() - began_s)


def _check_recorded(run: str, request: Request) -> None:
    """Refuse what a recorded run, which is fed again as it was, could only ignore."""
    given = {
        "--set": isinstance(request.config, WithSettings),
        "--config": request.config,
        "--symbol": request.symbol,
        "--category": request.category,
        "--columns": request.columns,
        "--from": request.from_text,
        "--to": request.to_text,
        "--resume": request.resume,
        "--funding": request.funding,
        "--actions": request.actions,
        "--frame-data": request.frames,
        "--depth": request.depth,
        "--events": request.events,
        "--mode": request.mode != "scan",
    }
    for option, value in given.items():
        if value:
            raise ConfigInvalid(
                f"{run} is fed again whole and by its own configuration; leave {option} out."
            )


def names_a_run(item: str) -> bool:
    """Return whether *item* is ``FILE.db#RUN``; files and ``SYMBOL=PATH`` may hold a ``#`` too."""
    file, mark, _ = item.rpartition("#")
    return bool(mark) and not Path(item).exists() and ("=" not in file or Path(file).exists())


def folders_beside(database: Path) -> tuple[Path, Path]:
    """Return the folders in which checkpoints and covariates that *database* used are kept."""
    return database.with_name(database.name + ".checkpoints"), kept_covariates(database)


def _kept(database: Path) -> set[Path]:
    """Return the checkpoints and files of covariates that lie beside *database*."""
    return {
        kept for folder in folders_beside(database) if folder.is_dir() for kept in folder.iterdir()
    }


def _remove_failed_start(database: Path, kept: set[Path], *, is_new: bool) -> None:
    """Remove what a start made that failed; *kept* was there before."""
    for made in _kept(database) - kept:
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)
    for folder in folders_beside(database):
        if not any(one.parent == folder for one in kept):
            with suppress(OSError):  # there is none, or somebody put something into it
                folder.rmdir()
    if is_new:
        database.unlink(missing_ok=True)
        lock_file(database).unlink(missing_ok=True)


def _run(
    request: Request,
    recorded: Sequence[str],
    audit: SqlAuditLog,
    database: Path,
    clock: SystemClock,
    watch: Watch,
) -> tuple[Tally, str]:
    if recorded:
        tally = Tally(stopped=watch.stopped)
        rerun = reads_record(rerun_recorded)
        return tally, rerun(recorded[0], audit, database, tally, started_at_ms=clock.wall_ms())
    if request.resume is not None and isinstance(request.config, WithSettings):
        raise ConfigInvalid(
            f"Run {request.resume} goes on by its own configuration; leave --set out."
        )
    asked = dict(request.overrides)
    if request.category is not None:
        asked["market"] = {**asked.get("market", {}), "category": request.category}
    # A mistake in it is said before the data are read.
    given = load(request.config, asked, caller=request.caller)
    candles = read_market(
        given.market,
        request.data,
        symbol=request.symbol,
        category=request.category,
        columns=request.columns,
        sessions_for=None if request.resume is None else sessions_before(database, request.resume),
    )
    funding = [
        read_funding(item, symbol=request.symbol) if isinstance(item, Path) else item
        for item in request.funding
    ]
    actions = [item for item in request.actions if isinstance(item, ActionRow)]
    actions += read_actions(*(item for item in request.actions if isinstance(item, Path)))
    frames = [
        read_candles(
            item, symbol=request.symbol, category=request.category, columns=request.columns
        )
        if isinstance(item, str)
        else item
        for item in request.frames
    ]
    from_ms, until_ms = _time(request.from_text, "--from"), _time(request.to_text, "--to")
    depth = [StoredDepth(item) if isinstance(item, Path) else item for item in request.depth]
    refuse_elsewhere(depth, candles, from_ms, until_ms)
    events = [EventsSource(one) if isinstance(one, Path) else one for one in request.events]
    if request.resume is not None:
        tally = Tally(stopped=watch.stopped)
        run_id = resume_replay(
            request.resume,
            candles,
            funding,
            audit,
            database,
            tally,
            frames=frames,
            depth=depth,
            actions=actions,
            events=events,
            until_ms=until_ms,
        )
        return tally, run_id
    replay = build(
        configuration(
            request.config,
            candles,
            request.overrides,
            category=request.category,
            caller=request.caller,
        ),
        candles,
        started_at_ms=clock.wall_ms(),
        from_ms=from_ms,
        until_ms=until_ms,
        funding=funding,
        mode=request.mode,
        database=database,
        warnings=request.warnings,
        frames=frames,
        depth=depth,
        actions=actions,
        events=events,
    )
    with watch.progress(replay) as advance:
        tally = Tally(progress=advance, stopped=watch.stopped)
        run_replay(replay, audit, tally)
    return tally, replay.run.run_id


def _time(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        return instant(text)
    except ConfigInvalid:
        raise ConfigInvalid(
            f"{option} is {text!r}; write an ISO time such as 2025-06-01 or UTC milliseconds."
        ) from None


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a question that the loop asks; the second one interrupts."""
    asked = False

    def remember(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(replay: Replay, *, quiet: bool) -> Iterator[Progress]:
    """Show bars, bars a second and the time left on a terminal; nothing elsewhere."""
    if quiet:
        yield lambda _bars: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=replay.feed.bar_count, rate="")

        def advance(bars: int) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f} bars/s" if speed else ""
            bar.update(task, completed=bars, rate=rate)

        yield advance


def _say(made: Made, check: ParityCheck | None, *, as_json: bool) -> None:
    database, run_id, tally, seconds = made.database, made.run_id, made.tally, made.seconds
    if as_json:
        print_json(
            {
                "run_id": run_id,
                "database": str(database),
                "bars": tally.bars,
                "decisions": tally.decisions,
                "equity": float(unscaled(tally.equity, MONEY_DECIMALS)),
                "equity_text": unscaled(tally.equity, MONEY_DECIMALS),
                "seconds": round(seconds, 3),
                "finished": tally.finished,
                **({} if check is None else {"parity": check}),
            }
        )
        return
    console, program = Terminal(), program_name()
    sequence = decision_to_explain(database, run_id)
    show_summary(console, summarise(database, run_id))
    if not tally.finished:
        console.print(
            f"Interrupted; `tracepaper replay --resume {run_id} …` goes on.", markup=False
        )
    if check is not None:
        console.print(f"Parity of the run with its replay: {check.reason}.", markup=False)
    console.print(
        f"{count_of(tally.bars, 'bar')} in {seconds:,.1f} s. Next:\n"
        f"  {program} audit verify last --db {database}\n"
        f"  {program} verify last --db {database}\n"
        f"  {program} explain last:{0 if sequence is None else sequence} --db {database}",
        soft_wrap=True,
        markup=False,
    )
