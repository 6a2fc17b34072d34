"""``tracepaper replay|sweep|demo|exchange``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    CommandAnswer,
    HtmlOption,
    JsonOption,
    answers,
    tell,
)
from tracepaper.daemon.session.shutdown import signals_handled
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, command
from tracepaper.replay.commands.train import OnOption
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.market import Category, ParityOutcome
from tracepaper.strategies.units import MONEY_DECIMALS, count_of, unscaled

if TYPE_CHECKING:
    from tracepaper.replay.backtest.build import Replay
    from tracepaper.replay.backtest.make import MadeRun
    from tracepaper.replay.exchange.faults import FaultPlan
    from tracepaper.replay.run import Run
    from tracepaper.replay.sweep.space import Objective
    from tracepaper.strategies.types.market import ParityCheck

INTERRUPTED: Final = 130


@command(Consumer.REPLAY)
@answers
def replay(
    *,
    spec: RunSpec,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Verify the run at its end, and store the result."),
    ] = False,
) -> CommandAnswer:
    """Backtest on candles, or replay the events of a recorded run; every decision is stored.

    --data FILE.db#RUN names a run instead of candles.
    """
    from tracepaper.replay.backtest.make import make_run
    from tracepaper.replay.backtest.run import Watch

    @contextmanager
    def bars_done(replay: Replay) -> Iterator[Callable[[int], None]]:
        if sys.stderr.isatty():
            typer.echo(
                "".join(f"Warning: {text}.\n" for text in replay.run.warnings), err=True, nl=False
            )
        with _progress("bars") as advance:
            yield lambda bars: advance(bars, replay.feed.bar_count, None)

    with _interruptible() as stopped:
        run = make_run(spec, Watch(bars_done, stopped))
    check = None
    if verify and run.tally.finished:
        from tracepaper.replay.checks.parity import check_whole

        check = check_whole(run.database, run.run_id, kind="verify")
    tally = run.tally
    document = {
        "run_id": run.run_id,
        "database": str(run.database),
        "bars": tally.bars,
        "decisions": tally.decisions,
        "equity": float(unscaled(tally.equity, MONEY_DECIMALS)),
        "equity_text": unscaled(tally.equity, MONEY_DECIMALS),
        "seconds": round(run.seconds, 3),
        "finished": tally.finished,
        **({} if check is None else {"parity": check}),
    }
    differs = check is not None and check.outcome is not ParityOutcome.IDENTICAL
    code = int(differs) if tally.finished else INTERRUPTED
    return CommandAnswer(document, lambda: _show_run(run, check), code)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal has come; Ctrl-C then interrupts at once."""
    interrupted = False

    def handle(number: int) -> None:
        nonlocal interrupted
        if interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        interrupted = True

    with signals_handled(handle):
        yield lambda: interrupted


@contextmanager
def _progress(noun: str) -> Iterator[Callable[[int, int, str | None], None]]:
    """Yield a function of (done, total, note) that shows progress on a terminal.

    A note of None shows the rate per second.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if not sys.stderr.isatty():
        yield lambda _done, _total, _note: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(noun, total=None, note="")

        def advance(done: int, total: int, note: str | None) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f} {noun}/s" if speed else ""
            bar.update(task, completed=done, total=total, note=rate if note is None else note)

        yield advance


def _show_run(run: MadeRun, check: ParityCheck | None) -> None:
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.document.terminal import show_document
    from tracepaper.replay.report.terminal import (
        decision_to_explain,
        program_name,
        summary_document,
    )

    database, run_id, tally = run.database, run.run_id, run.tally
    console, program = Terminal(), program_name()
    sequence = decision_to_explain(database, run_id)
    show_document(console, summary_document(database, run_id), blank_lines=False)
    if not tally.finished:
        console.print(
            f"Interrupted; `tracepaper replay --resume {run_id} …` goes on.", markup=False
        )
    if check is not None:
        console.print(f"Parity of the run with its replay: {check.reason}.", markup=False)
    console.print(
        f"{count_of(tally.bars, 'bar')} in {run.seconds:,.1f} s. Next:\n"
        f"  {program} audit verify last --db {database}\n"
        f"  {program} verify last --db {database}\n"
        f"  {program} explain last:{0 if sequence is None else sequence} --db {database}",
        soft_wrap=True,
        markup=False,
    )


@command(Consumer.SWEEP)
@answers
def sweep(
    *,
    space: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUES",
            help="Values 5,10,20, 5..50:5 or 0.1..10:log of an option or section.key; repeat.",
        ),
    ],
    objective: Annotated[
        str,
        typer.Option(
            help="A figure's key (sharpe), or a module:function of a run.",
            show_default=False,
        ),
    ] = "sharpe",
    sampler: Annotated[
        str, typer.Option(help="grid (default), random or tpe.", show_default=False)
    ] = "grid",
    trials: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Points of random and tpe (100)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random and tpe (0).", show_default=False)] = 0,
    walk: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIN/TEST",
            help="Walk-forward windows: 90d/30d; with an embargo of two days, 90d/30d/2d.",
        ),
    ] = None,
    direction: Annotated[str | None, typer.Option(help="maximize or minimize.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes; by default one per core.")
    ] = None,
    on: OnOption = None,
    limit: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="S",
            help="Seconds that a run may take (600).",
            show_default=False,
        ),
    ] = 600.0,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File that keeps the results."),
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option("--chart", metavar="FILE", help="Draw the heat map, as .png or .svg."),
    ] = None,
    spec: RunSpec,
    html: HtmlOption = None,
) -> CommandAnswer:
    """Try many configurations on the same candles; estimate how much of the best result is luck.

    The same command continues an interrupted sweep. Exit code 1 if every run failed.
    """
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.sweep.result import sweep_document
    from tracepaper.replay.sweep.run import carry_out_sweep, executor_for
    from tracepaper.replay.sweep.space import axis_of_text
    from tracepaper.replay.sweep.trial import Search, default_state, read_request

    if chart is not None:
        from tracepaper.replay.document.pictures import check_picture_file

        check_picture_file(chart, "--chart")
    require("ray", "--on ray", on == "ray")
    require("optuna", f"--sampler {sampler}", sampler in {"random", "tpe"})
    axes = [axis_of_text(text) for text in space]
    if len({axis.name for axis in axes}) < len(axes):
        raise ConfigInvalid("--space names an option twice; give all its values at once.")
    request = read_request(
        spec,
        {axis.name: axis for axis in axes},
        _objective(objective),
        Search(
            sampler=sampler,
            trials=trials,
            seed=seed,
            windows=walk,
            direction=direction,
            limit_s=limit,
        ),
    )
    state = state or default_state(request)
    with _progress("runs") as advance, executor_for(request, jobs, on) as executor:
        result = carry_out_sweep(
            request,
            executor,
            state=state,
            progress=lambda done, total, best: advance(
                done, total, "" if best is None else f"best {best:.4g}"
            ),
        )
    if html is not None:
        result.report(html=html)
    if chart is not None:
        from tracepaper.replay.document.pictures import write_picture
        from tracepaper.replay.sweep.result import heat_chart

        try:
            write_picture(heat_chart(result), chart)
            tell(f"The chart is {chart}.")
        except DataInvalid as error:  # the other results are printed all the same
            tell(str(error))

    def print_result() -> None:
        show(Terminal(), sweep_document(result).parts, blank_lines=False)
        typer.echo(
            f"Its cells are in {state}, the page is {html}."
            if html
            else f"Its cells are in {state}; to look at them: tracepaper ui --db {state}"
        )

    return CommandAnswer(result.document(), print_result, int(result.best is None))


def _objective(text: str) -> Objective:
    """Return the figure's key, or the function that ``module:function`` names."""
    if ":" not in text:
        return text
    from tracepaper.daemon.session.user_class import imported

    function = imported(text, key="--objective")
    if not callable(function):
        raise ConfigInvalid(f"--objective {text} is no function; name one as module:function.")
    return cast("Callable[[Run[object]], float]", function)


def demo(
    *,
    days: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.5, help="Days of the bundled month; by default all."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=1, max=3_600, help="Wall seconds that it takes.")
    ] = 90.0,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A bundled checkpoint, or the folder of one.")
    ] = "flash-15m",
    incidents: Annotated[
        bool, typer.Option(help="Inject crashes, outages and cut streams while it trades.")
    ] = True,
    db: Annotated[
        Path | None, typer.Option("--db", metavar="FILE", help="By default a new file.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open its page in the browser.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Trade a month of real candles at high speed on a local exchange, with incidents."""
    from tracepaper.daemon.session.shutdown import exit_zero_on_signals
    from tracepaper.replay.commands.page import open_in_browser
    from tracepaper.replay.demo.run import Show, perform

    exit_zero_on_signals()
    perform(
        Show(
            days=days,
            seconds=seconds,
            model=model,
            has_incidents=incidents,
            database=db,
            as_json=json,
            listening=open_in_browser if open_page else None,
        )
    )


def exchange(
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Candles: PATH or SYMBOL=PATH; repeat."),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="linear or spot; by default from the file's name.")
    ] = None,
    columns: ColumnsOption = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, metavar="N", help="0, the default, picks one.", show_default=False
        ),
    ] = 0,
    speed: Annotated[
        float,
        typer.Option(help="Market seconds per wall second; by default 1.", show_default=False),
    ] = 1.0,
    start: Annotated[
        int | None,
        typer.Option(
            help="First bar, counted from the data's start; by default 7,250, or three quarters of "
            "a shorter file."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the prices inside bars; by default 0.", show_default=False),
    ] = 0,
    hold: Annotated[
        bool, typer.Option("--hold", help="Wait until a client subscribes to candles.")
    ] = False,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="End when standard input ends.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Shift the candles so that market time is wall time.")
    ] = False,
    faults: Annotated[Path | None, typer.Option(help="Faults to inject: a TOML file.")] = None,
    fault_seed: Annotated[
        int,
        typer.Option(help="Seed of the schedule of faults; by default 0.", show_default=False),
    ] = 0,
    fault_every: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="S",
            help="Seconds between scheduled faults; by default none.",
            show_default=False,
        ),
    ] = 0.0,
    list_faults: Annotated[
        bool, typer.Option("--list-faults", help="Print every kind of fault, and exit.")
    ] = False,
    list_routes: Annotated[
        bool, typer.Option("--list-routes", help="Print every REST route and topic, and exit.")
    ] = False,
) -> None:
    """Serve candles over the Bybit v5 protocol on loopback.

    The first line on stdout, when ready, is one JSON object with rest_url, stream_url (add
    /v5/public/linear) and control_url. Ctrl-C or SIGTERM ends it in good order.

    Inject faults by POST control_url/fault with {"kind": "http_status", "status": 503}, from a file
    (seed, every_s, kinds, and a list faults with after_s) or from a seeded schedule.
    """
    if list_faults or list_routes:
        _print(*(["routes", "topics"] if list_routes else []), *(["faults"] if list_faults else []))
        return
    import asyncio

    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.exchange.server import ExchangeSettings, serve

    if category is not None and category not in tuple(Category):
        raise ConfigInvalid(f"--category is {category!r}: give linear or spot.")
    settings = ExchangeSettings(
        data=tuple(data or ()),
        category=None if category is None else Category(category),
        columns=tuple(columns or ()),
        port=port,
        speed=speed,
        start=start,
        seed=seed,
        hold=hold,
        faults=_plan(faults, fault_seed, fault_every),
        wall_ms=SystemClock().wall_ms if now else None,
    )
    asyncio.run(serve(settings, until_eof=until_eof))


def _print(*parts: str) -> None:
    """Print the entries of *parts* of the exchange's listing, with their descriptions."""
    from tracepaper.replay.exchange.surface import listing

    entries = {name: text for part in parts for name, text in listing()[part].items()}
    width = max(map(len, entries))
    for name, text in entries.items():
        typer.echo(f"{name:<{width}}  {text}")


def _plan(path: Path | None, seed: int, every_s: float) -> FaultPlan:
    """Return the fault plan of the file at *path*, with the schedule of the options."""
    from msgspec import structs

    from tracepaper.replay.exchange.faults import read_plan

    plan = read_plan(path)
    return structs.replace(plan, seed=seed, every_s=every_s) if every_s else plan
