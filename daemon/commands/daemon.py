"""``tracepaper run|status|command|config|doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    SetOption,
    StrategyOption,
    answers,
    database_path,
    settings_with,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import CommandKind, RunKind

if TYPE_CHECKING:
    from tracepaper.daemon.terminal.status import Status


def run(
    config: ConfigOption = None,
    settings: SetOption = None,
    strategy: StrategyOption = None,
    db: DatabaseOption = None,
    bars: Annotated[
        int | None, typer.Option(min=1, help="End after this many decided bars that were not late.")
    ] = None,
    account: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Begin an empty database with what `account export` printed."
        ),
    ] = None,
) -> None:
    """Trade the exchange's public streams on paper until Ctrl-C or SIGTERM."""
    from tracepaper.daemon.config.loading import load, with_settings
    from tracepaper.daemon.session.daemon import Daemon
    from tracepaper.daemon.session.shutdown import run_loop
    from tracepaper.daemon.terminal import console
    from tracepaper.daemon.terminal.watcher import watched

    loaded = load(with_settings(config, settings_with(settings, strategy)))
    console.configure(level=loaded.log.level, output=loaded.log.format)
    database = db or loaded.storage.path
    if account is not None:
        from tracepaper.daemon.session.account_file import begin_with

        begin_with(account, database, loaded)
    with watched(limit=bars, database=database) as watcher:
        daemon = Daemon(
            loaded, database, kind=RunKind.LIVE, opened=watcher.opened, watch=watcher.watch
        )
        watcher.starts(daemon.outage)
        run_loop(daemon.run())
    watcher.print_summary(database)


@answers
def status(
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="Print only whether it is ready, or why not.")
    ] = False,
) -> CommandAnswer:
    """Show the running daemon: health, account, and the last decision with its gates.

    Exit code 1 if it is not ready.
    """
    from tracepaper.daemon.http.client import ask
    from tracepaper.daemon.terminal.status import status_text

    document: Status = ask(database_path(db, config), "/status")
    readiness = "\n".join(document["not_ready"]) or "ready"
    shown = readiness if ready else status_text(document)
    return CommandAnswer(document, shown, 0 if document["ready"] else 1)


@answers
def command(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="HALT|RESUME|FLATTEN",
            help="HALT stops trading, RESUME allows it again, FLATTEN halts and closes positions.",
        ),
    ],
    *,
    note: Annotated[str, typer.Option(help="Reason, stored with the event.")] = "",
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Halt, resume or flatten the running daemon."""
    from tracepaper.daemon.http.client import give

    if kind.upper() not in set(CommandKind):
        raise ConfigInvalid(
            f"{kind!r} is no command; write {', '.join(CommandKind)}. Ctrl-C or SIGTERM stops the "
            "daemon."
        )
    answer = give(database_path(db, config), CommandKind(kind.upper()), note)
    return CommandAnswer(answer, f"{kind.upper()} is event {answer['sequence']} of the run.")


notify_app = typer.Typer(help="Try the addresses of notices.")


@notify_app.callback()
def _group() -> None:
    """Make Typer keep ``test`` as a subcommand, though it is the only one."""


@notify_app.command("test")
@answers
def notify_test(config: ConfigOption = None, settings: SetOption = None) -> CommandAnswer:
    """Send one message to each of notify.addresses, and say which accepted it.

    Exit code 1 if an address has not accepted it.
    """
    from tracepaper.daemon.config.loading import load, with_settings
    from tracepaper.daemon.session.messenger import send_test
    from tracepaper.daemon.session.shutdown import run_loop

    deliveries = run_loop(send_test(load(with_settings(config, settings)).notify))
    lines = [
        f"{each.address}: {f'not delivered: {each.error}' if each.error else 'delivered'}"
        for each in deliveries
    ]
    has_failed = any(delivery.error for delivery in deliveries)
    return CommandAnswer({"deliveries": deliveries}, "\n".join(lines), int(has_failed))


config_app = typer.Typer(help="Write, check and print the configuration.")


@config_app.command()
@answers
def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Target file; by default tracepaper.toml.")
    ] = None,
    *,
    short: Annotated[
        bool, typer.Option("--short", help="Write only the keys that are changed first.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> CommandAnswer:
    """Write a configuration in which every key is documented."""
    from tracepaper.daemon.config.loading import DEFAULT_FILE, example, short_example

    path = file or Path(DEFAULT_FILE)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as target:
            target.write(short_example() if short else example())
    except FileExistsError:
        raise ConfigInvalid(f"{path} exists; name another file or add --force.") from None
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be written ({error.strerror}); name another place."
        ) from None
    return CommandAnswer({"file": str(path)}, f"Wrote {path}; `tracepaper run -c {path}` uses it.")


ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The configuration, as with --config.")
]


@config_app.command()
@answers
def check(
    file: ConfigArgument = None,
    *,
    config: ConfigOption = None,
    settings: SetOption = None,
    strategy: StrategyOption = None,
) -> CommandAnswer:
    """Build every part of a run, without the network, and say whether it can start."""
    from tracepaper.daemon.config.loading import load, with_settings
    from tracepaper.daemon.http.access import tokens_of
    from tracepaper.daemon.session.build import with_usual_warmup
    from tracepaper.daemon.session.bundled_bars import asked_over_bundled_bars
    from tracepaper.daemon.session.messenger import services_of
    from tracepaper.daemon.session.run_row import preflight

    loaded = load(with_settings(file or config, settings_with(settings, strategy)))
    tokens_of(loaded.http)
    services_of(loaded.notify)
    warnings = preflight(loaded, loaded.storage.path)
    chosen = with_usual_warmup(loaded, None).chosen
    market = loaded.market
    asked = asked_over_bundled_bars(loaded)
    return CommandAnswer(
        {
            "valid": True,
            "config_sha256": loaded.sha256(),
            "chosen": chosen or None,
            "bundled_bars": asked or None,
            "warnings": warnings,
        },
        f"The configuration can be used: {loaded.strategy.name} on {', '.join(market.symbols)} "
        f"({market.category}, interval {market.interval}), hash {loaded.sha256()[:12]}."
        + f"\nChosen: {chosen}." * bool(chosen)
        + f"\n{asked}" * bool(asked)
        + "".join(f"\nWarning: {text}." for text in warnings),
    )


@config_app.command()
@answers
def show(
    file: ConfigArgument = None,
    *,
    config: ConfigOption = None,
    settings: SetOption = None,
    strategy: StrategyOption = None,
) -> CommandAnswer:
    """Print the effective configuration, including defaults and environment."""
    from tracepaper.daemon.config.loading import load, render, with_settings

    loaded = load(with_settings(file or config, settings_with(settings, strategy)))
    document = {**loaded.settings(), "config_sha256": loaded.sha256()}
    return CommandAnswer(document, render(loaded).rstrip("\n"))


@answers
def doctor(
    *,
    config: ConfigOption = None,
    settings: SetOption = None,
    strategy: StrategyOption = None,
    db: DatabaseOption = None,
    online: Annotated[
        bool,
        typer.Option("--online", help="Check also the exchange."),
    ] = False,
) -> CommandAnswer:
    """Check Python, packages, SQLite, disk, checkpoint and, with --online, the exchange."""
    from tracepaper.daemon.config.loading import load, with_settings
    from tracepaper.daemon.session.diagnostics import Verdict, ask_exchange, diagnose
    from tracepaper.daemon.session.shutdown import run_loop

    loaded = load(with_settings(config, settings_with(settings, strategy)))
    database = db or loaded.storage.path
    findings = list(diagnose(loaded, database))
    if online:
        findings += run_loop(ask_exchange(loaded))
    marks = {Verdict.OK: "✓", Verdict.WARN: "!", Verdict.FAIL: "✗"}
    width = max(len(finding.check) for finding in findings)
    lines = (f"{marks[each.verdict]} {each.check:<{width}}  {each.detail}" for each in findings)
    has_failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    return CommandAnswer({"findings": findings}, "\n".join(lines), int(has_failed))
