"""Command-line options that several commands share."""

from __future__ import annotations

import inspect
import json
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, ParamSpec, TypeVar

import typer

from tracepaper.strategies.errors import (
    ConfigInvalid,
    DataInvalid,
    InvariantBroken,
    TracepaperError,
)

if TYPE_CHECKING:
    from tracepaper.storage.database.chunks import RunLocation

DatabaseOption = Annotated[
    Path | None,
    typer.Option("--db", metavar="FILE", help="The database; by default the configuration's."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration; by default tracepaper.toml in the working folder.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A section.key of the configuration, over file and environment; repeat.",
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="A name or module:Class, as --set strategy.name=NAME.",
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="An id, a prefix, last, or FILE#RUN.")
]
PageOption = Annotated[
    Path | None, typer.Option("--page", metavar="FILE", help="Write a self-contained page.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page.")
]
ServiceOption = Annotated[
    bool,
    typer.Option("--service", help="Run as the daemon does: low priority; end when stdin closes."),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout and nothing else."),
]

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="FIELD=NAME",
        help="Name a column: close=Price; repeat.",
    ),
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="T", help="First bar: ISO time or UTC ms.")
]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="T", help="End, exclusive: ISO time or UTC ms.")
]
DepthOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--depth",
        metavar="FILE",
        help="Recorded order books; repeat.",
    ),
]

P = ParamSpec("P")
R = TypeVar("R")


def reads_record(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap *command*, which reads a record, so that a damaged record causes no traceback.

    A changed row and a bug may raise the same errors, so the record is checked before the message
    blames it.
    """

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        from msgspec import MsgspecError

        try:
            return command(*args, **kwargs)
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            InvariantBroken,
            LookupError,
            MemoryError,
            MsgspecError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            what = f"{type(error).__name__}: {reason}"
            if isinstance(error, UnicodeEncodeError):
                raise ConfigInvalid(
                    f"A text cannot be written in {error.encoding}; set PYTHONIOENCODING=utf-8."
                ) from error
            if _is_changed((*args, *kwargs.values()), kwargs):
                raise DataInvalid(
                    f"The record was changed or damaged ({what}): run `tracepaper audit verify` "
                    "and restore a backup."
                ) from error
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise InvariantBroken(
                f"tracepaper failed at {Path(frame.filename).name}:{frame.lineno} ({what}), and "
                "`tracepaper audit verify` finds nothing wrong with the record: report this fault."
            ) from error

    return guarded


class CommandAnswer(NamedTuple):
    """The answer of a command: one JSON document, and the output for people.

    ``shown`` is a text, an object that Rich renders, or a function that prints.
    """

    document: object
    shown: object
    code: int = 0  # exit code of the process


def answers(command: Callable[..., CommandAnswer | None]) -> Callable[..., None]:
    """Add --json to *command*, print its answer, and exit with the answer's code."""
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter(
        "json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
    )

    @wraps(command)
    def run(*args: Any, json: bool = False, **given: Any) -> None:  # noqa: ANN401 - options
        if (answer := command(*args, **given)) is None:
            return
        if json:
            print_json(answer.document)
        elif isinstance(answer.shown, str):
            if answer.shown:
                say(answer.shown)
        elif callable(answer.shown):
            answer.shown()
        else:
            from tracepaper.daemon.terminal.console import unwrapped

            unwrapped().print(answer.shown)
        if answer.code:
            raise typer.Exit(answer.code)

    parameters = [*signature.parameters.values(), option]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - typer reads it
    return run


def _is_changed(arguments: Iterable[object], options: Mapping[str, Any]) -> bool:
    """Return whether the audit of the record that a command reads finds a problem."""
    from tracepaper.storage.chain.integrity import audit_runs
    from tracepaper.storage.database.reader import Reader

    spec = next((text for text in arguments if isinstance(text, str) and "#" in text), "")
    try:
        path = (
            Path(spec.rpartition("#")[0])
            if spec
            else database_path(options.get("db"), options.get("config"))
        )
        with Reader.open(path) as reader:
            audits = audit_runs(reader.connection, reader.run_ids())
            return any(audit.problem is not None for audit in audits)
    except ConfigInvalid:
        return False
    except (TracepaperError, sqlite3.Error):
        return True


def database_of(run: str, db: Path | None, config: Path | None) -> Path | None:
    """Return where to look for *run*: None where it is FILE#RUN, which names its file itself."""
    return None if "#" in run else database_path(db, config)


def database_path(db: Path | None, config: Path | None = None) -> Path:
    """Return *db*, or the database that the configuration file *config* names."""
    if db is not None:
        return db
    from tracepaper.daemon.config.loading import load

    return load(config).storage.path


def settings_with(settings: Sequence[str] | None, strategy: str | None) -> list[str]:
    """Return the *settings* of ``--set`` with the one that ``--strategy`` stands for."""
    return [*(settings or ()), *([] if strategy is None else [f"strategy.name={strategy}"])]


def say(text: str, *, err: bool = False) -> None:
    """Print *text* with its control characters escaped, since stored text may contain some."""
    from tracepaper.strategies.units import visible

    typer.echo(visible(text), err=err)


def tell(text: str) -> None:
    """Print *text* on stderr as ``say`` does, for progress and notes."""
    say(text, err=True)


def reject_without_effect(options: Mapping[str, object], remedy: str) -> None:
    """Raise ``ConfigInvalid`` with the *remedy* if one of *options*, by name, was given."""
    if given := [name for name, value in options.items() if value]:
        raise ConfigInvalid(f"{given[0]} has no effect here; {remedy}, or leave {given[0]} out.")


def print_json(document: object) -> None:
    """Print *document* as one JSON document; numbers that are not finite become null."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # JSON with escapes needs only ASCII
        text = json.dumps(json.loads(text), indent=2)
    sys.stdout.write(text + "\n")


@contextmanager
def rows_counted() -> Iterator[Callable[[str, int], None]]:
    """Yield a function of (table, rows) that shows the number of rows done on a terminal."""
    is_shown = sys.stderr.isatty()

    def progress(table: str, rows: int) -> None:
        if is_shown:
            typer.echo(f"\r{table}: {rows:,} rows\x1b[K", err=True, nl=False)

    yield progress
    typer.echo("\r\x1b[K" if is_shown else "", err=True, nl=False)


def located(run: str, db: Path | None, config: Path | None = None) -> RunLocation:
    """Find *run* in *db* or the configured database; warn if the run is visibly damaged.

    A run FILE#RUN names its database itself.
    """
    from tracepaper.storage.database.reader import Reader, resolve

    place = resolve(database_of(run, db, config), run)
    with Reader.open(place.path) as reader:
        if damage := reader.damage(place.run_id):
            say(f"Warning: {damage}", err=True)
    return place
