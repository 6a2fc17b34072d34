"""``tracepaper audit`` and ``tracepaper db``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    answers,
    database_path,
    located,
    print_json,
    reads_record,
    rows_counted,
    say,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import URL

    from tracepaper.storage.chain.integrity import AuditResult
    from tracepaper.storage.database.queries import QueryAnswer
    from tracepaper.storage.database.run_views import Row
    from tracepaper.storage.database.view_columns import View

audit_app = typer.Typer(help="Check the log's chain, and ask it read-only questions.")

RunArgument = Annotated[
    str, typer.Argument(metavar="[RUN]", help="An id, a unique prefix, `last`, or FILE#RUN.")
]


@audit_app.command()
@answers
def verify(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|FILE...]",
            help="An id, a unique prefix, `last`, or FILE#RUN; or the files of one account.",
        ),
    ] = None,
    *,
    head: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="A digest kept elsewhere, which must be in the chain."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every run of the database.")] = False,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Check the file and every link of a run's chain; exit 1 with the first that is wrong.

    Of files every run is checked, and that each begins with the account at the end of another.
    """
    from tracepaper.storage.chain.integrity import audit_runs
    from tracepaper.storage.database.connection import is_at_rest
    from tracepaper.storage.database.reader import Reader, resolve
    from tracepaper.storage.database.run_views import RunViews

    if every and (head is not None or given):
        raise ConfigInvalid("--all checks every run; give neither a run nor --head with it.")
    digest = None if head is None else _digest(head)
    run, *more = given or ["last"]
    if more or Path(run).is_file():
        return _verify_files([Path(file) for file in (run, *more)], digest)
    path, run_id = resolve(None if "#" in run else database_path(db, config), run)
    kept = None
    with Reader.open(path) as reader:
        if digest is not None and run.rpartition("#")[2] == "last":
            query = "SELECT run_id FROM v_commits WHERE digest = ?"
            (run_id,) = reader.connection.execute(query, (digest.hex(),)).fetchone() or (run_id,)
        stored = reader.run_ids()
        ids = stored if every else [run_id]
        audits = audit_runs(reader.connection, ids, head=digest)
        # What is damaged may not say whether it has ended.
        if audits[0].passes and reader.ended_at_ms(run_id) is None and is_at_rest(path):
            say(
                f"warning: run {run_id} has not ended: if this file was copied without its -wal "
                "while a daemon wrote it, newer steps may be missing; `tracepaper db backup` "
                "copies all.",
                err=True,
            )
        if (first := audits[0].chain.head_at) is not None:
            (kept,) = RunViews(reader.connection, run_id).rows("v_commits", sequence=first)
    documents = [_document(str(path), audited, kept) for audited in audits]
    # A problem of the file is the same for every run, so it is printed once.
    lines = list(dict.fromkeys(_sentence(audited, kept) for audited in audits))
    if len(stored) > len(ids) and audits[0].passes:
        lines.append(f"{len(stored) - 1} other runs were not checked: --all checks every run.")
    for warning in audits[0].warnings:
        say(f"warning: {warning}", err=True)
    is_broken = not all(audited.passes for audited in audits)
    return CommandAnswer(documents if every else documents[0], "\n".join(lines), int(is_broken))


def _verify_files(files: Sequence[Path], head: bytes | None) -> CommandAnswer:
    """Check every run of the *files* of one account, and each joint between two runs."""
    from tracepaper.daemon.session.account_chain import account_chain, joints_of
    from tracepaper.storage.chain.integrity import ADDED_SINCE, NEVER_FOUND, audit_runs
    from tracepaper.storage.database.reader import Reader

    for file in files:
        if not file.is_file():
            raise ConfigInvalid(f"{file} is no file; give one run, or the files of one account.")
    chain = account_chain(files)
    documents, lines, kept = list[object](), list[str](), list[tuple[str, str]]()
    passes = True
    for path in dict.fromkeys(each.path for each in chain):
        with Reader.open(path) as reader:
            if head is not None:
                query = "SELECT run_id, market_iso FROM v_commits WHERE digest = ?"
                kept += reader.connection.execute(query, (head.hex(),)).fetchall()
            for audited in audit_runs(reader.connection, reader.run_ids()):
                documents.append(_document(str(path), audited, None))
                passes &= audited.passes
                lines.append(f"{path}: {_sentence(audited, None).splitlines()[0]}")
    joints = joints_of(chain)
    passes &= all(joint.follows is not False for joint in joints) and bool(kept or head is None)
    lines += [joint.sentence for joint in joints]
    if head is None:
        lines.append(f"The newest head is {chain[-1].head}: keep a copy elsewhere. {NEVER_FOUND}")
    elif kept:
        run_id, time = kept[0]
        lines.append(
            f"Run {run_id} had the head that was kept at market time {time}. {ADDED_SINCE}"
        )
    else:
        lines.append("No run of these files had the head that was kept.")
    document = {"passes": passes, "runs": documents, "joints": joints, "head": chain[-1].head}
    return CommandAnswer(document, "\n".join(lines), int(not passes))


def _document(database: str, audited: AuditResult, kept: Row | None) -> dict[str, object]:
    report = audited.chain
    return {
        "run_id": report.run_id,
        "database": database,
        "passes": audited.passes,
        "steps": report.steps,
        "head": report.head.hex(),
        "kept_head": kept,
        "problem": audited.problem,
        "warnings": audited.warnings,
    }


def _sentence(audited: AuditResult, kept: Row | None) -> str:
    from tracepaper.storage.chain.integrity import ADDED_SINCE, NEVER_FOUND

    report = audited.chain
    if audited.problem is not None:
        broken = "" if report.problem is None else f"The chain of run {report.run_id} is broken. "
        return f"{broken}{audited.problem.sentence}"
    if not report.steps:
        return f"Run {report.run_id} holds no step: no link of its chain was checked."
    sentence = f"The chain of run {report.run_id} holds: {count_of(report.steps, 'step')}."
    if kept is None:
        head = f"Its head is {report.head.hex()}: keep a copy elsewhere\n"
        return f"{sentence}\n{head}(`audit verify --head HEX`). {NEVER_FOUND} {ADDED_SINCE}"
    first, last, time = kept["sequence"], kept["last_sequence"], kept["market_iso"]
    head = f"The head that was kept is the digest of the commit from step {first} to step {last},"
    return f"{sentence}\n{head} at market time {time}. {ADDED_SINCE}"


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:  # bytes of a SHA-256
        raise ConfigInvalid("--head takes the 64 hexadecimal digits that `audit head` prints.")
    return digest


@audit_app.command()
@answers
def head(
    run: RunArgument = "last", *, db: DatabaseOption = None, config: ConfigOption = None
) -> CommandAnswer:
    """Print the last commit of a run: its last step, time and digest; keep them elsewhere."""
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.database.run_views import RunViews

    path, run_id = located(run, db, config)
    with Reader.open(path) as reader:
        commits = RunViews(reader.connection, run_id).rows("v_commits", newest=1)
    if not commits:
        raise DataInvalid(f"Run {run_id} has no commit yet; ask again once it has a step.")
    (last,) = commits
    document = {
        "run_id": run_id,
        "steps": last["last_sequence"] + 1,
        "sequence": last["last_sequence"],
        "market_ms": last["market_ms"],
        "market_iso": last["market_iso"],
        "head": last["digest"],
    }
    return CommandAnswer(document, "{run_id} {sequence} {market_iso} {head}".format(**document))


@audit_app.command()
@answers
def sql(
    question: Annotated[
        str,
        typer.Argument(
            metavar="SELECT",
            help="One SELECT, in quotes, in which :run is the run; or decisions, fills or equity: "
            "the newest of the run.",
        ),
    ],
    *,
    run: Annotated[
        str, typer.Option(metavar="RUN", help="An id, a unique prefix, `last`, or FILE#RUN.")
    ] = "last",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000_000,
            metavar="N",
            help="At most N rows; by default 100,000, of decisions, fills and equity 20.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.001, max=86_400, metavar="S", help="Give up after S seconds.")
    ] = 60.0,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Query the views (v_runs, v_decisions, v_gates, v_fills, v_equity, …) by SQL, read-only."""
    from tracepaper.storage.database.queries import NAMED, NAMED_ROWS, ROWS_MOST, ask_within

    select = NAMED.get(question, question)
    if ":run" in select:
        path, run_id = located(run, db, config)
    else:
        path, run_id = database_path(db, config), ""
    rows_most = rows or (NAMED_ROWS if question in NAMED else ROWS_MOST)
    parameters: dict[str, object] = {"run": run_id}
    return _rows(ask_within(path, select, parameters, rows_most=rows_most, seconds=seconds))


@audit_app.command()
@reads_record
@answers
def export(
    run: RunArgument = "last",
    *,
    parquet: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Parquet by run, view and day, into DIR.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Tables in a database, as postgresql://USER:env:NAME@HOST/DATABASE or "
            "sqlite:///FILE; the password is env:NAME or credential:NAME.",
        ),
    ] = None,
    views: Annotated[
        str, typer.Option(metavar="V,V", help="Only these views, such as v_fills,v_decisions.")
    ] = "",
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Write every view of a run as Parquet by day, or as tables of a database.

    Repeat it to add new rows. Files that differ are replaced.
    """
    from tracepaper.storage.database.exports import export as write
    from tracepaper.storage.database.exports import views_of
    from tracepaper.storage.database.reader import Reader
    from tracepaper.strategies.extras import require

    require("pyarrow", "--parquet", parquet)
    wanted = views_of(views)
    if to is not None and parquet is None:
        return _copied(run, to, wanted, db, config)
    if parquet is None or to is not None:
        raise ConfigInvalid("Give one of --parquet DIR and --to URL.")
    path, run_id = located(run, db, config)
    with Reader.open(path) as reader, rows_counted() as progress:
        written = write(reader, run_id, parquet, wanted, progress)
    lines = [f"{view}\t{rows}" for view, rows in written.rows.items()]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in written.files.items())
    lines.append(f"files\t{counts}")
    document = {"run_id": run_id, "folder": str(parquet), **written._asdict()}
    return CommandAnswer(document, "\n".join(lines))


def _copied(
    run: str, to: str, views: Sequence[View], db: Path | None, config: Path | None
) -> CommandAnswer:
    """Copy *views* of the run into the database at the address *to*."""
    from tracepaper.storage.database.copies import check_driver, copy_run
    from tracepaper.storage.database.reader import Reader

    url = _address(to)
    check_driver(url)
    path, run_id = located(run, db, config)
    with Reader.open(path) as reader, rows_counted() as progress:
        written = copy_run(reader, run_id, url, views, progress)
    lines = [f"{view}\t{rows}" for view, rows in written.items()]
    lines.append(f"{count_of(sum(written.values()), 'row')} written.")
    return CommandAnswer({"run_id": run_id, "rows": written}, "\n".join(lines))


def _address(to: str) -> URL:
    """Return the address *to*, with the password to which it refers."""
    import os

    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from tracepaper.daemon.config.secrets import is_reference, read_secret

    try:
        url = make_url(to)
    except (ArgumentError, ValueError):
        raise ConfigInvalid(
            "--to takes an address such as postgresql://USER:env:NAME@HOST/DATABASE or "
            "sqlite:///FILE; write it so."
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigInvalid("--to names no file; write sqlite:///FILE.")
    password = url.password
    if {"password", "passwd"} & url.query.keys() or (password and not is_reference(password)):
        raise ConfigInvalid(
            "--to holds a password, which a list of processes shows; write env:NAME, an "
            "environment variable, or credential:NAME, a credentials file, in its place."
        )
    return url.set(password=read_secret(password, os.environ)) if password else url


def _rows(result: QueryAnswer) -> CommandAnswer:
    """Return the rows as a table on a terminal, else as tab-separated lines."""
    if result.cut:
        say(f"Shown: {result.cut}; there are more (--rows N).", err=True)
    lines = [[_text(value) for value in row] for row in result.rows]
    if not sys.stdout.isatty():
        cells = (
            (text.replace("\t", " ").replace("\n", " ") for text in line)
            for line in (list(map(_text, result.columns)), *lines)
        )
        return CommandAnswer(result.documents(), "\n".join(map("\t".join, cells)))
    from rich.table import Column, Table
    from rich.text import Text

    columns = (Column(Text(_text(name))) for name in result.columns)
    table = Table(*columns, box=None, header_style="bold")
    for line in lines:
        table.add_row(*map(Text, line))
    return CommandAnswer(result.documents(), table)


def _text(value: object) -> str:
    from tracepaper.strategies.units import visible

    if value is None:
        return ""
    return value.hex() if isinstance(value, bytes) else visible(str(value))


account_app = typer.Typer(help="Take an account from one record to another.")


@account_app.callback()
def _group() -> None:
    """Make Typer keep ``export`` as a subcommand, though it is the only one."""


@account_app.command("export")
def export_account(*, db: DatabaseOption = None, config: ConfigOption = None) -> None:
    """Print the account at the end of the newest live run as JSON, for `run --account FILE`.

    It has its positions with their entries, its orders and its sums, but no history.
    """
    from tracepaper.daemon.session.account_file import exported

    print_json(exported(database_path(db, config)))


db_app = typer.Typer(help="Back up the database, or go on in a new file.")


@db_app.command()
@answers
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")],
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Copy the database consistently, also while a daemon writes it, and the models of its runs.

    Checkpoints and covariates are copied to folders next to FILE.
    """
    from tracepaper.storage.maintenance import backup as back_up

    path = database_path(db, config)
    folders = back_up(path, file)
    size = file.stat().st_size
    document = {"database": str(path), "backup": str(file), "bytes": size}
    lines = [f"Copied {path} to {file} ({size:,} bytes)."]
    lines += [
        f"{file.parent / folder} belongs to the copy: keep both together."
        for folder in sorted({copy.relative_to(file.parent).parts[0] for copy in folders})
    ]
    copies = [str(copy) for copy in folders]
    return CommandAnswer({**document, "beside": copies}, "\n".join(lines))


@db_app.command()
@answers
def rotate(
    older: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="The older file's new name; by default the database's and a date."
        ),
    ] = None,
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Let the account go on in a new file; the record until now stays in FILE beside it.

    The daemon must be stopped. `audit verify FILE DATABASE` checks that one goes on with the other.
    """
    from tracepaper.daemon.session.rotation import rotate as go_on

    rotated = go_on(database_path(db, config), older)
    origin = rotated.origin
    document = {"database": str(rotated.file), "older": str(rotated.older), "origin": origin}
    shown = (
        f"{rotated.older} holds the record until now.\n{rotated.file} is new: its first run goes "
        f"on with the account of run {origin.run_id},\nwhose head is {origin.digest}."
    )
    return CommandAnswer(document, shown)
