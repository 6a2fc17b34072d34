"""The command line: commands by entry point, exit codes, one sentence an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli
from waiting import deadline_s

from tracepaper.daemon.cli import PANELS, invoke, main
from tracepaper.daemon.commands.options import database_path, print_json
from tracepaper.strategies.errors import ConfigInvalid

COMMANDS = '''
import typer
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid

app = typer.Typer(help="A group.")

@app.command()
def inner(number: int, *, fast: bool = False) -> None:
    """An inner command."""
    typer.echo(f"{number} {fast}")

@app.command()
def other() -> None:
    """Another."""

def single(kind: str = "fine") -> None:
    """One command."""
    match kind:
        case "config":
            raise ConfigInvalid("The key is wrong; correct it.")
        case "fatal":
            raise AuditUnwritable("The disk is full; free some space.")
        case "nested":
            raise ExceptionGroup("a", [ExceptionGroup("b", [AuditUnwritable("Deep; dig.")])])
        case "interrupt":
            raise KeyboardInterrupt
        case "declined":
            raise typer.Abort
        case "log":
            import structlog
            structlog.get_logger().warning("something")
        case "exit":
            raise typer.Exit(1)
        case "file":
            open("/nowhere/at/all")
        case "pipe":
            raise BrokenPipeError
        case "bug":
            raise ZeroDivisionError
    typer.echo(kind)

def unanswered(kind: str = "fine") -> None:
    """One command, while a thread of its loop waits for an answer that never comes."""
    import asyncio
    import socket
    from tracepaper.daemon.session.shutdown import run_loop

    ours, theirs = socket.socketpair()

    async def work() -> None:
        theirs.send(b"asked")
        asyncio.get_running_loop().run_in_executor(None, ours.recv, 5)
        asyncio.get_running_loop().run_in_executor(None, ours.recv, 5)
        single(kind)

    run_loop(work())
'''


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a small distribution that brings commands of its own."""
    (tmp_path / "added_commands.py").write_text(COMMANDS)
    distribution = tmp_path / "added-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(
        "[tracepaper.commands]\n"
        "zz-single = added_commands:single\n"
        "zz-unanswered = added_commands:unanswered\n"
        "zz-group = added_commands:app\n"
        "zz-broken = added_absent:app\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("added")
def test_functions_become_commands_and_typers_become_groups(cli: Cli) -> None:
    assert cli.out("zz-single") == "fine\n"
    assert cli.out("zz-group", "inner", "7", "--fast") == "7 True\n"


MISSING = (
    "/nowhere/at/all cannot be found or made (No such file or directory); choose another place.\n"
)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("config", 2, "The key is wrong; correct it.\n"),
        ("fatal", 1, "The disk is full; free some space.\n"),
        ("nested", 1, "Deep; dig.\n"),
        ("file", 2, MISSING),
        ("declined", 130, ""),
    ],
)
def test_errors_are_one_sentence_with_their_exit_code(
    kind: str, code: int, sentence: str, cli: Cli
) -> None:
    streams = cli("zz-single", "--kind", kind)
    assert streams.code == code
    assert (streams.out, streams.err) == ("", sentence)


def test_windows_itself_is_told_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "WSL 2" in capsys.readouterr().err


@pytest.mark.usefixtures("added")
def test_log_lines_never_mix_with_the_answer(cli: Cli) -> None:
    streams = cli("zz-single", "--kind", "log")
    assert streams.code == 0
    assert streams.out == "log\n"
    assert json.loads(streams.err)["event"] == "something"


@pytest.mark.usefixtures("added")
def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        invoke(["zz-single", "--kind", "bug"])


@pytest.mark.parametrize(
    ("kind", "code", "last_words"),
    [
        ("fine", 0, ""),
        ("config", 2, "The key is wrong; correct it."),
        ("interrupt", 130, ""),
        ("exit", 1, ""),
        ("bug", 1, "ZeroDivisionError"),
    ],
)
def test_no_thread_of_a_loop_holds_up_the_end(
    kind: str, code: int, last_words: str, added: Path
) -> None:
    """Such as one that asks for the address of a name."""
    done = subprocess.run(
        [sys.executable, "-m", "tracepaper.daemon.cli", "zz-unanswered", "--kind", kind],
        env={**os.environ, "PYTHONPATH": str(added)},
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(120),
    )
    assert done.returncode == code
    assert done.stdout == ("fine\n" if kind == "fine" else "")
    assert (done.stderr.splitlines() or [""])[-1] == last_words


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'; see `tracepaper --help`."),
        (["zz-group"], "Missing command; see `tracepaper zz-group --help`."),
        (["zz-group", "inner"], "Missing argument 'number'; see `tracepaper zz-group inner"),
        (["zz-group", "inner", "x"], "Invalid value for 'number'"),
        (["zz-single", "--kynd", "a"], "No such option: --kynd"),
        (["--fast"], "No such option: --fast"),
    ],
)
def test_wrong_usage_is_one_sentence_and_two(arguments: list[str], words: str, cli: Cli) -> None:
    error = cli.err(*arguments, code=2)
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("added")
def test_a_command_that_cannot_be_loaded_does_not_hide_the_others(cli: Cli) -> None:
    listing = cli.out()
    assert "Cannot be loaded" in listing
    assert "A group." in listing
    assert "No module named 'added_absent'" in cli.err(
        "zz-broken", "anything", "--at", "all", code=1
    )


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(),
    )


def test_the_end_of_a_process_collects_nothing_that_a_command_imported() -> None:
    done = python(
        "import atexit, gc, sys\n"
        "import runpy\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000, len(gc.get_objects())))\n"
        "sys.argv = ['tracepaper', '--version']\n"
        "runpy.run_module('tracepaper', run_name='__main__', alter_sys=True)"
    )
    version, end = done.stdout.splitlines()
    assert version.startswith("tracepaper ")
    frozen, left = end.split()
    assert frozen == "True"
    assert int(left) < 1_000  # what is made after the command


def test_help_begins_with_what_a_user_needs_first(cli: Cli) -> None:
    text = cli.out("--help")
    places = [text.index(f"│ {name} ") for name in [*PANELS["Begin with"], "verify", "audit"]]
    assert places == sorted(places)
    assert len(PANELS["Begin with"]) == 6


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\n"
        "from tracepaper.daemon.cli import main\n"
        "sys.argv = ['tracepaper', '--help']\n"
        "code = 0\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'sqlalchemy', 'aiohttp', 'numpy', 'scipy', 'polars', 'alembic'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    assert done.stderr == "0 []\n"
    assert "doctor" in done.stdout


@pytest.mark.slow
def test_loading_a_model_imports_no_compiler() -> None:
    done = python(
        "import sys\n"
        "from tracepaper.storage import checkpoints\n"
        "from tracepaper.strategies.forecasters.build import build, filled\n"
        "from tracepaper.strategies.networks.encodings import ENCODINGS, Sizes\n"
        "from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork\n"
        "sizes = Sizes(16, 2, 32)\n"
        "names = ('learned', 'mixture', 'context')\n"
        "kinds = [lambda name=name: ENCODINGS[name](sizes) for name in names]\n"
        "for make in [*kinds, lambda: OrderBookNetwork(OrderBookConfig())]:\n"
        "    filled(make, make().state_dict())\n"
        "for folder in checkpoints.bundled().values():\n"
        "    found = checkpoints.load(folder)\n"
        "    print(build(found.card, found.tensors).model_id)\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)), file=sys.stderr)"
    )
    assert done.stderr == "[]\n"
    assert len(done.stdout.split()) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_that_wait_leave_the_processor_to_others(variables: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "from tracepaper.daemon.cli import main\nmain()", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(),
        env={**kept, **variables, "OMP_DISPLAY_ENV": "verbose"},
    )
    # The library of OpenMP prints it when torch loads it.
    [spins] = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert (int(spins) == 0) is (not variables)


def test_a_closed_pipe_is_quiet() -> None:
    done = python(
        "import os, sys\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 1)\n"
        "from tracepaper.daemon.cli import main\n"
        "sys.argv = ['tracepaper', '--help']\n"
        "main()"
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_the_database_is_the_named_one_or_the_configured_one(tmp_path: Path) -> None:
    config = tmp_path / "paper.toml"
    config.write_text('[storage]\nurl = "sqlite:////data/run.db"')
    assert database_path(Path("my.db"), config) == Path("my.db")
    assert database_path(None, config) == Path("/data/run.db")
    with pytest.raises(ConfigInvalid):
        database_path(None, tmp_path / "absent.toml")


def test_json_is_one_document_without_numbers_that_json_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"a": float("nan"), "b": [1.5, "x"]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, "x"]}


@pytest.mark.slow
def test_a_replay_without_a_model_imports_no_torch(tmp_path: Path) -> None:
    candles = Path(__file__).parent.parent / "data/candles/binance_um_SOLUSDT_1m_2025-05.csv.gz"
    done = python(
        "import os, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "os.environ['TRACEPAPER_STRATEGY__NAME'] = 'sma_cross'\n"
        "from tracepaper.daemon.cli import invoke\n"
        f"codes = [invoke(['replay', {str(candles)!r}, '--db', 'run.db', '--json'])]\n"
        "codes += [invoke([*words, 'last', '--db', 'run.db']) for words in\n"
        "          (['audit', 'verify'], ['verify'])]\n"
        "heavy = {'torch', 'scipy', 'polars', 'matplotlib'}\n"
        "print(codes, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    assert done.stderr.splitlines()[-1] == "[0, 0, 0] []"
    words = ["whatif", "last", "--db", str(tmp_path / "run.db"), "--set"]
    done = python(
        "import sys\n"
        "from tracepaper.daemon.cli import invoke\n"
        f"code = invoke([*{words!r}, 'execution.taker_fee=0.0002'])\n"
        "heavy = {'torch', 'scipy', 'sqlalchemy', 'aiohttp', 'tracepaper.replay.archive'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    assert done.stderr == "0 []\n"
