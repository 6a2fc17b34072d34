"""``tracepaper db upgrade|backup|prune``: schema, a consistent copy, retention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    database_path,
    print_json,
    say,
)
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError

if TYPE_CHECKING:
    from tracepaper.storage.beginning import Lookback

app = typer.Typer(help="Upgrade, back up and prune the database.")


@app.command()
def upgrade(
    *, db: DatabaseOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """Bring the database to this version's schema; it is as it was if that fails."""
    from tracepaper.storage.migrations.upgrade import upgrade as upgrade_database

    path = database_path(db, config)
    before, after = upgrade_database(path)
    if json:
        print_json({"database": str(path), "from": before, "to": after})
    elif before == after:
        typer.echo(f"{path} has schema {after} already; its views were made anew.")
    else:
        typer.echo(f"{path} was upgraded from schema {before} to {after}.")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Copy the database consistently, also while a daemon writes it, and the models of its runs.

    Checkpoints and vectors come to lie beside FILE, as they do beside the database.
    """
    from tracepaper.storage.retention import backup as back_up

    path = database_path(db, config)
    beside = back_up(path, file)
    if json:
        said = {"database": str(path), "backup": str(file), "bytes": file.stat().st_size}
        print_json({**said, "beside": [str(one) for one in beside]})
        return
    typer.echo(f"Copied {path} to {file} ({file.stat().st_size:,} bytes).")
    for folder in sorted({one.relative_to(file.parent).parts[0] for one in beside}):
        typer.echo(f"{file.parent / folder} holds what its runs were decided by: it belongs to it.")


@app.command()
def prune(
    *,
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="DAYS", help="Days to keep; by default storage.keep_days."),
    ] = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Drop bars and decisions older than DAYS before a run's newest bar; trades are kept.

    The bars stay that the first decision of those days looks back on, so that `verify` derives all
    of them. Refused while a daemon has the database open.
    """
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.open import recorded_reach
    from tracepaper.storage.retention import prune as prune_database

    days = keep or load(config).storage.keep_days
    if days is None:
        raise ConfigInvalid("How many days should be kept? Give --keep DAYS or storage.keep_days.")
    path = database_path(db, config)
    unknown: dict[str, str] = {}

    def reach(run_id: str) -> Lookback | None:
        try:
            return recorded_reach(path, run_id)
        except (TracepaperError, ValueError) as error:
            unknown[run_id] = " ".join(str(error).split())
            return None

    now_ms = SystemClock().wall_ms()
    prunings = prune_database(path, keep_days=days, pruned_at_ms=now_ms, reach=reach)
    for run_id, why in unknown.items():
        say(
            f"Warning: what run {run_id} looks back on was told by its record alone, since its "
            f"strategy or model cannot be loaded here: {why}",
            err=True,
        )
    if json:
        print_json({"database": str(path), "runs": prunings})
        return
    for pruning in prunings:
        typer.echo(
            f"Run {pruning.run_id}: {pruning.steps:,} steps dropped; the chain holds from step "
            f"{pruning.until_sequence + 1}."
        )
    typer.echo(f"{path} now takes {path.stat().st_size:,} bytes.")
