"""``tracepaper``: finds commands by entry points and imports each when it is called.

An entry point of the group ``tracepaper.commands`` names a function, which becomes a command, or
a ``typer.Typer``, which becomes a group. Only the called command is imported; ``--help`` imports
all of them, so their modules keep heavy imports inside functions.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from tracepaper.daemon.session.shutdown import (
    exit_without_waiting,
    exit_zero_on_signals,
    interrupt_on_signals,
)
from tracepaper.daemon.version import version as own_version
from tracepaper.storage.paths import at_home
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError
from tracepaper.strategies.units import visible

GROUP: Final = "tracepaper.commands"
DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

PANELS: Final = {
    "Begin with": ("demo", "replay", "report", "ui", "run", "status"),
    "Check": ("sweep", "verify", "parity", "lookahead", "recursive"),
    "Understand": ("explain", "whatif", "risk"),
    "Learn": ("train", "evaluate", "models"),
    "Records and candles": ("audit", "account", "exchange", "data", "bench"),
    "Operate": ("command", "notify", "db", "config", "doctor"),
}
"""The order and the headings of the help; commands of other distributions come last."""
OTHER_PANEL: Final = "Added by other packages"

ELSEWHERE: Final = {
    "backtest": "tracepaper replay",
    "backtesting": "tracepaper replay",
    "trade": "tracepaper run",
    "live": "tracepaper run",
    "start": "tracepaper run",
    "stop": "Ctrl-C, or tracepaper command halt",
    "hyperopt": "tracepaper sweep",
    "optimize": "tracepaper sweep",
    "plot": "tracepaper report --chart FILE, or tracepaper ui",
    "plot-dataframe": "tracepaper report --chart FILE, or tracepaper ui",
    "web": "tracepaper ui",
    "webserver": "tracepaper ui",
    "download": "tracepaper data fetch",
    "download-data": "tracepaper data fetch",
    "convert-data": "tracepaper data check, which prints the lines that convert a file",
    "init": "tracepaper config init",
    "new-config": "tracepaper config init",
    "lookahead-analysis": "tracepaper lookahead",
    "recursive-analysis": "tracepaper recursive",
    "--timerange": "--from and --to of tracepaper replay",
    "--timeframe": "--set market.interval=VALUE",
    "--interval": "--set market.interval=VALUE",
    "--pair": "--symbol, or --set market.symbols=VALUE",
    "--pairs": "--set market.symbols=VALUE",
    "--datadir": "--data",
    "--strategy-path": "--set strategy.name=module:Class, in the working folder",
    "--dry-run": "tracepaper run, which only ever trades on paper",
}
"""Commands and options of other tools, with what does the same here."""

NEW_OBJECTS: Final = 20_000
"""New objects after which the garbage collector runs; Python's default is 700."""

Command = Callable[..., object]
Entries = dict[str, metadata.EntryPoint]


def main() -> None:
    """Run the command line of this process and exit, even if other threads wait."""
    if sys.platform == "win32":  # which has neither fcntl's locks nor SIGHUP
        sys.stderr.write("tracepaper does not run on Windows itself; install it in WSL 2.\n")
        sys.exit(WRONG_USAGE)
    # By default a waiting OpenMP thread spins, and may keep the thread it waits for from running.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A collection visits every imported object, half a million with a model.
    gc.set_threshold(NEW_OBJECTS)
    interrupt_on_signals()
    if sys.argv[1:2] == ["run"]:  # O1, also while its modules are imported
        exit_zero_on_signals()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character without an encoding raises nothing
            stream.reconfigure(errors="replace")
    try:
        code = invoke(sys.argv[1:])
    except Exception:  # noqa: BLE001 - a bug: its traceback is printed
        traceback.print_exc()
        code = FAILED
    exit_without_waiting(code)
    gc.freeze()  # else Python runs several collections at exit
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. Every error is one sentence on stderr."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE or error.filename is not None:
            return _explain(error)
        # Nobody reads the output, so the rest of the buffer goes to /dev/null at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (
        TracepaperError,
        BaseExceptionGroup,
        typer.TyperException,
        MemoryError,
        RuntimeError,
        sqlite3.DatabaseError,
    ) as error:
        return _explain(error)
    return code


# ---------------------------------------------------------------- a machine that lacks something


def _open_closed_streams() -> None:
    """Open closed standard streams on /dev/null, so that no database gets their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "r+", closefd=False)))


def _shortage(error: BaseException) -> str:
    """Return what the machine lacks and what to do, if *error* says that; else ''."""
    if isinstance(error, MemoryError):
        return "The machine has no memory left for this; give it less at once."
    if "start new thread" in str(error) or getattr(error, "errno", None) == errno.EAGAIN:
        return "The machine starts no more threads or processes; raise their limit, and try again."
    return ""


def _run(arguments: Sequence[str]) -> int:
    entries = _entries()
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name in entries:
        from tracepaper.daemon.terminal import console

        # Log lines go to stderr from the start, since stdout is for the command's answer. A command
        # that reads a configuration may change this.
        console.configure()
        commands = {name: _load(entries[name])}
    else:
        commands = {each: _load_or_stand_in(entry) for each, entry in entries.items()}
    group = typer.main.get_command(_application(commands))
    assert isinstance(group, TyperGroup)
    group.commands = {each: group.commands[each] for each in commands}
    result = group.main(
        [*map(at_home, arguments)] or ["--help"], "tracepaper", standalone_mode=False
    )
    return result if isinstance(result, int) else DONE


def _entries() -> Entries:
    """Return the declared commands in the order of the help."""
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    listed = [name for names in PANELS.values() for name in names]
    order = [name for name in listed if name in entries] + sorted(set(entries) - set(listed))
    return {name: entries[name] for name in order}


def _application(commands: Mapping[str, typer.Typer | Command]) -> typer.Typer:
    application = typer.Typer(add_completion=False, rich_markup_mode="rich")
    application.callback()(tracepaper)
    for name, command in commands.items():
        panel = next((panel for panel, names in PANELS.items() if name in names), OTHER_PANEL)
        if isinstance(command, typer.Typer):
            application.add_typer(command, name=name, rich_help_panel=panel)
        else:
            application.command(name, rich_help_panel=panel)(command)
    return application


def _load(entry: metadata.EntryPoint) -> typer.Typer | Command:
    try:
        command: typer.Typer | Command = entry.load()
    except (ImportError, AttributeError) as error:
        raise TracepaperError(
            f"The command {entry.name} cannot be loaded from {entry.value} ({error}); "
            "reinstall the package that brings it."
        ) from None
    return command


def _load_or_stand_in(entry: metadata.EntryPoint) -> typer.Typer | Command:
    """Return the command, or a placeholder, so that a broken command does not hide the others."""
    try:
        return _load(entry)
    except TracepaperError:

        def stand_in() -> None:
            """Cannot be loaded; call it to read why."""

        return stand_in


def _print_version(is_given: bool) -> None:  # noqa: FBT001 - the library's signature
    if is_given:
        typer.echo(f"tracepaper {own_version()}")
        raise typer.Exit


def tracepaper(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Paper trading on Bybit whose every decision can be traced, re-run and believed."""


def _explain(error: BaseException) -> int:
    """Print *error* as one sentence on stderr and return its exit code; re-raise a bug."""
    match error:
        case TracepaperError():
            sentence = str(error)
            code = WRONG_USAGE if isinstance(error, ConfigInvalid) else FAILED
        case BaseExceptionGroup():
            explained = error.subgroup(TracepaperError)
            if explained is None:
                raise error
            return _explain(explained.exceptions[0])
        case typer.TyperException():
            sentence, code = _usage_sentence(error), error.exit_code
        case sqlite3.DatabaseError():
            from tracepaper.storage.database.remedies import unusable

            sentence, code = unusable("The database", error), FAILED
        case _ if lacking := _shortage(error):
            sentence, code = lacking, FAILED
        case OSError():
            sentence, code = _file_problem(error)
        case _:
            raise error
    typer.echo(visible(sentence), err=True)
    return code


def _file_problem(error: OSError) -> tuple[str, int]:
    """Return the sentence and the exit code of an error of the system."""
    from tracepaper.storage.database.remedies import remedy_of, unusable

    if not error.filename:  # of a connection, say
        return f"{error.strerror or error}; correct that and try again.", FAILED
    path = Path(str(error.filename)).absolute()
    return unusable(path, error), remedy_of(error).exit_code


_UNKNOWN: Final = re.compile(r"^No such (?:command|option:) '?([\w-]+)")


def _usage_sentence(error: typer.TyperException) -> str:
    """Return one sentence about a wrong command line."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tracepaper"
    words = error.format_message().replace("Value error, ", "").split()
    message = " ".join(words).rstrip(".")
    for name in _UNKNOWN.findall(message):
        if name in ELSEWHERE:
            return f"tracepaper has no {name}; use {ELSEWHERE[name]}."
    if "unexpected extra argument" in message and ".toml" in message:
        message += "; give a configuration by --config"
    return f"{message}; see `{path} --help`."


if __name__ == "__main__":
    main()
