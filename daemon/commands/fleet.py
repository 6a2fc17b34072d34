"""``tracepaper fleet``, ``db ship`` and ``db pull``."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    answers,
    database_path,
    rows_counted,
    say,
)
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError
from tracepaper.strategies.units import count_of, money_text

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tracepaper.storage.fleet.overview import FleetRun
    from tracepaper.storage.fleet.server import ShipProgress

STATUS_KEYS = (
    *("state", "halted_by", "ready", "not_ready", "run_id", "pid", "code_version", "model_id"),
)
"""Keys of a daemon's status that the fleet stores."""
ID_SHOWN = 8
"""Characters of a database's id in the table; ``--database`` accepts such a prefix."""
NICE = 10
"""Niceness of a daemon's shipping process."""
STAY_S = 5.0
"""Most seconds that the shipping process outlives its daemon, to ship the last steps."""
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="The PostgreSQL, without a password; by default storage.ship_to.",
    ),
]


@answers
def ship(
    *,
    to: ToOption = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Ship what is there and stop; without it, keep following."),
    ] = False,
    new_id: Annotated[
        bool,
        typer.Option(
            "--new-id",
            help="First give the file another id, if it is a copy that goes its own way.",
        ),
    ] = False,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    service: Annotated[bool, typer.Option("--service", hidden=True)] = False,
) -> CommandAnswer | None:
    """Copy committed steps into a fleet's PostgreSQL, once and in order, while a daemon runs.

    The password comes from PGPASSWORD, a service file or .pgpass. Ctrl-C ends it; the next start
    continues after the last step that arrived.
    """
    from tracepaper.storage.fleet.follow import ship_once
    from tracepaper.storage.fleet.ship import database_id
    from tracepaper.storage.fleet.ship import new_id as make_new_id

    path = database_path(db, config)
    url, option = server_of(to, config)
    if new_id:
        say(f"{path} has the id {make_new_id(path)} now.")
    if not once:
        _follow(path, url, option, service=service)
        return None
    shipped = ship_once(path, url, needed_by=option)
    for hole in shipped.holes:
        say(f"warning: {hole}", err=True)
    document = {
        "database": str(path),
        "database_id": database_id(path),
        "steps": shipped.steps,
        "holes": shipped.holes,
    }
    return CommandAnswer(document, f"Shipped {count_of(shipped.steps, 'step')} of {path}.")


def server_of(to: str | None, config: Path | None) -> tuple[str, str]:
    """Return the checked address of the server, and the option or key that set it."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.storage.fleet.server import checked
    from tracepaper.strategies.extras import require

    option = "--to" if to is not None else "[storage] ship_to"
    url = to if to is not None else load(config).storage.ship_to
    if not url:
        raise ConfigInvalid("No server is named; give --to URL or set storage.ship_to.")
    address = checked(url, option)
    require("psycopg", option)
    return address, option


def reject_unshipped(path: Path) -> None:
    """Raise ``ConfigInvalid`` if the last daemon of the database *path* shipped it.

    The current configuration does not ship it, so unshipped steps would be pruned silently.
    """
    from tracepaper.daemon.config.loading import restore
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.fleet.server import shown
    from tracepaper.strategies.types.market import RunKind

    with Reader.open(path) as reader:
        runs = [reader.stored_run(run_id).run for run_id in reader.run_ids()]
    live = [run for run in runs if run.kind is RunKind.LIVE]
    if live and (url := restore(live[-1].config).storage.ship_to):
        raise ConfigInvalid(
            f"{path} is shipped to {shown(url)} by the configuration of its last daemon: give that "
            "by --config, and all is shipped before, or --hole."
        )


def ship_before_prune(path: Path, url: str | None) -> Callable[[], None]:
    """Ship the database *path* to *url*; return a function that later ships the prune itself.

    Raises ``TracepaperError`` if shipping fails, since a prune would then leave a hole.
    """
    from tracepaper.storage.fleet.follow import ship_once

    if url is None:
        return lambda: None
    option = "[storage] ship_to"
    try:
        ship_once(path, url, needed_by=option)
    except TracepaperError as error:
        reason = str(error).rstrip(".")
        raise TracepaperError(
            f"Nothing was pruned, since not all is shipped: {reason}. With --hole it is pruned all "
            "the same, and what was not shipped is recorded as a hole."
        ) from None

    def ship_prune() -> None:
        try:
            ship_once(path, url, needed_by=option)
        except TracepaperError as error:
            say(f"Warning: the prune is not shipped yet: {error}", err=True)

    return ship_prune


def _follow(path: Path, url: str, option: str, *, service: bool) -> None:
    import os
    import threading

    from tracepaper.daemon.clock import SystemClock
    from tracepaper.daemon.session.child import frame_of
    from tracepaper.daemon.session.shutdown import handle_signals
    from tracepaper.storage.fleet.follow import Follower
    from tracepaper.storage.fleet.server import shown

    seconds = SystemClock().network_s
    stop = threading.Event()
    if service:
        _stay_with_daemon(path, stop, seconds)
    else:
        handle_signals(lambda _number: stop.set())
        say(f"Shipping {path} to {shown(url)} until Ctrl-C.", err=True)
    reported, steps = "", 0

    def report(progress: ShipProgress) -> None:
        nonlocal reported, steps
        steps = progress.steps
        if service:
            with suppress(OSError):  # the daemon has ended; its last steps are still shipped
                os.write(1, frame_of(progress))
        elif progress.error != reported:
            reported = progress.error
            say(reported or "Shipping goes on.", err=True)

    follower = Follower(
        path,
        url,
        stop=stop,
        seconds=seconds,
        report=report,
        daemon=lambda: _daemon(path),
        needed_by=option,
    )
    follower.run()
    if not service:
        say(f"Shipped {count_of(steps, 'step')} of {path}.")


def _stay_with_daemon(path: Path, stop: threading.Event, seconds: Callable[[], float]) -> None:
    """Set *stop* when the daemon has ended, which closes stdin, and has released the database."""
    import os
    import signal
    import threading

    from tracepaper.storage.database.lock import holder_of

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # this process ends with the daemon
    with suppress(OSError):
        os.nice(NICE)

    def wait() -> None:
        while os.read(0, 1):
            pass
        until = seconds() + STAY_S
        while seconds() < until and holder_of(path) is not None:
            stop.wait(0.05)
        stop.set()

    threading.Thread(target=wait, name="daemon", daemon=True).start()


def _daemon(path: Path) -> str:
    """Return the status of the database's daemon as JSON; empty without a daemon.

    ``{}`` means that the daemon cannot be reached, for example from another container.
    """
    import msgspec

    from tracepaper.daemon.http.client import ask
    from tracepaper.storage.database.lock import holder_of

    try:
        document = ask(path, "/status")
    except TracepaperError:
        return "" if holder_of(path) is None else "{}"
    return msgspec.json.encode({key: document.get(key) for key in STATUS_KEYS}).decode()


@answers
def pull(
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="The PostgreSQL, without a password.")
    ],
    db: Annotated[Path, typer.Option("--db", metavar="FILE", help="The new file.")],
    run: Annotated[
        str, typer.Option("--run", metavar="RUN", help="Only this run: its id or a unique prefix.")
    ] = "",
    database: Annotated[
        str,
        typer.Option(
            "--database", metavar="ID", help="The id of one database, if there are several."
        ),
    ] = "",
) -> CommandAnswer:
    """Write a database of a fleet, or one of its runs, into a new file, equal row by row.

    The file has no weights of models: copy the folder FILE.checkpoints of the machine next to it.
    """
    from tracepaper.storage.fleet.pull import pull as pull_database

    with rows_counted() as progress:
        pulled = pull_database(source, db, run=run, database=database, progress=progress)
    document = {
        "database": str(db),
        "database_id": pulled.database_id,
        "run_ids": pulled.run_ids,
        "rows": pulled.rows,
        "absent": pulled.absent or None,
    }
    runs = ", ".join(pulled.run_ids)
    shown = f"Pulled {count_of(pulled.rows['steps'], 'step')} of {runs} into {db}."
    if pulled.absent:
        shown += f"\nRun {pulled.absent}, opened before it in the same database, is absent."
    return CommandAnswer(document, shown)


@answers
def fleet(
    url: Annotated[str, typer.Argument(metavar="URL", help="The PostgreSQL, without a password.")],
) -> CommandAnswer:
    """Show every daemon and run of a fleet: health, lag, positions, equity, last decision, alarms.

    Exit code 1 if there is an alarm.
    """
    from tracepaper.storage.fleet.overview import overview

    runs = overview(url)
    nothing = "The fleet holds no run yet; `tracepaper db ship` brings the first."
    has_alarm = any(run.alarms for run in runs)
    return CommandAnswer(runs, _table(runs) if runs else nothing, int(has_alarm))


def _table(runs: list[FleetRun]) -> object:
    from rich.table import Table
    from rich.text import Text

    from tracepaper.strategies.units import visible

    table = Table(box=None, pad_edge=False, header_style="dim")
    has_several = len({run.database_id for run in runs}) > 1
    place = "host, file, database" if has_several else "host, file"
    for name in (place, "run", "health", "lag", "equity"):
        table.add_column(
            name,
            justify="right" if name in {"lag", "equity"} else "left",
            no_wrap=name in {"run", "health", "equity"},
            overflow="fold",
        )
    table.add_column("positions, last decision, alarms", overflow="fold")
    for run in runs:
        held = ", ".join(f"{position.instrument} {position.quantity}" for position in run.positions)
        lag = f"{run.lag_steps} in {run.lag_s:.1f} s" if run.lag_steps else "0"
        equity = "" if run.equity is None else money_text(Decimal(run.equity))
        alarms = (f"alarm: {alarm}" for alarm in run.alarms)
        state = "\n".join(
            visible(line) for line in (held or "flat", run.last_decision, *alarms) if line
        )
        database = run.database_id[:ID_SHOWN] if has_several else ""
        host = "\n".join(visible(line) for line in (run.host, run.file, database) if line)
        cells = (run.run_id, run.health, lag, equity)
        table.add_row(Text(host), *(Text(visible(cell)) for cell in cells), Text(state))
    return table
