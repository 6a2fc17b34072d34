"""What a user's class opens is heard, whichever way it opens it; what belongs to it is exempt."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import user_strategies as users
from builders import bar, instrument, run

from tracepaper.daemon.config.loading import load
from tracepaper.replay.checks.derived import Setup, send_again
from tracepaper.replay.checks.external_inputs import NAMES_KEPT
from tracepaper.replay.checks.isolation import FreshProcesses

_NUMBERS = count()


class OpenedInputs:
    """Hears what a class opens in a process of its own, until it has decided once."""

    def __init__(self, fresh: FreshProcesses) -> None:
        self._fresh = fresh

    def __call__(self, folder: Path, **bodies: str) -> list[tuple[str, str]]:
        name = f"heard_{next(_NUMBERS)}"
        (folder / f"{name}.py").write_text(users.source(**bodies))
        of_bars = {"execution": {"model": "next_open"}}
        config = load(None, {"strategy": {"name": f"{name}:Mine"}, **of_bars})
        setup = Setup(config, run(instruments=[instrument()]))
        with (
            users.importable(folder),
            self._fresh.child(send_again, setup, None) as child,
        ):
            child.receive()
            child.ask([(0, True, bar(), None)])
            accesses = child.ask(None).accesses
        return [(item.what, item.name) for item in accesses.opened]


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenedInputs]:
    with FreshProcesses() as fresh:
        yield OpenedInputs(fresh)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write what strategies may read: a table, an array and a database."""
    (tmp_path / "mine.csv").write_text("close\n1\n2\n")
    np.save(tmp_path / "mine.npy", np.arange(3))
    connection = sqlite3.connect(tmp_path / "mine.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    return tmp_path


READS = [
    ("open('{}/mine.csv').close()", "mine.csv"),
    ("import os; os.close(os.open('{}/mine.csv', os.O_RDONLY))", "mine.csv"),
    ("import pathlib; pathlib.Path('{}/mine.csv').read_text()", "mine.csv"),
    ("import io; io.FileIO('{}/mine.csv').close()", "mine.csv"),
    ("import sqlite3; sqlite3.connect('{}/mine.db').close()", "mine.db"),
    ("import sqlite3; sqlite3.connect('file:{}/mine.db?mode=ro', uri=True).close()", "mine.db"),
    ("import numpy; numpy.load('{}/mine.npy')", "mine.npy"),
    ("import numpy; numpy.load('{}/mine.npy', mmap_mode='r')", "mine.npy"),
    ("import numpy; numpy.fromfile('{}/mine.npy', dtype='u1')", "mine.npy"),
    ("import numpy; numpy.loadtxt('{}/mine.csv', skiprows=1)", "mine.csv"),
    ("import os; os.listdir('{}')", ""),
    ("import glob; glob.glob('{}/*.csv')", ""),
    ("import shutil; shutil.copy('{}/mine.csv', '{}/copy.csv')", "copy.csv"),
    ("import linecache; linecache.getlines('{}/mine.csv')", "mine.csv"),
    ("import os; os.chdir('{}'); open('mine.csv').close()", "mine.csv"),
]


@pytest.mark.parametrize("where", ["top", "init", "observe", "decide"])
def test_a_file_is_heard_wherever_the_class_opens_it(
    opened: OpenedInputs, data: Path, where: str
) -> None:
    bodies = {where: f"open('{data}/mine.csv').close()"}
    if where == "decide":
        bodies[where] += "\nreturn by(True)"
    assert opened(data, **bodies) == [("file", f"{data}/mine.csv")]


@pytest.mark.parametrize(("line", "name"), READS)
def test_every_way_to_read_is_heard(
    opened: OpenedInputs, data: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    monkeypatch.chdir(data)
    names = opened(data, observe=line.replace("{}", str(data)))
    assert ("file", str(data / name)) in names


def test_a_mapped_file_is_named_although_no_name_opened_it(
    opened: OpenedInputs, tmp_path: Path
) -> None:
    line = "import mmap, os; fd = os.memfd_create('mine'); os.write(fd, b'1'); mmap.mmap(fd, 1)"
    assert opened(tmp_path, observe=line) == [("file", "/memfd:mine (deleted)")]


def test_an_address_is_heard(opened: OpenedInputs, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = f"import socket; socket.create_connection(('127.0.0.1', {port})).close()"
        assert ("address", f"127.0.0.1:{port}") in opened(tmp_path, init=line)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import subprocess; subprocess.run(['true'])", "true"),
        ("import os; os.system('true')", "true"),
        ("import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)", "/bin/true"),
    ],
)
def test_a_program_is_heard(opened: OpenedInputs, tmp_path: Path, line: str, name: str) -> None:
    assert ("program", name) in opened(tmp_path, observe=line)


def test_what_a_thread_of_the_class_opens_is_heard(opened: OpenedInputs, data: Path) -> None:
    names = opened(
        data,
        top=f"import threading\ndef read():\n    open('{data}/mine.csv').close()",
        observe="t = threading.Thread(target=read)\nt.start()\nt.join()",
    )
    assert names == [("file", f"{data}/mine.csv")]


def test_what_a_package_asks_of_the_machine_while_it_is_imported_is_exempt(
    opened: OpenedInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    asks = "def times():\n    open('/proc/stat').close()\n"
    (packages / "machine_asked.py").write_text(f"{asks}times()\n")
    monkeypatch.syspath_prepend(packages)
    stat = ("file", "/proc/stat")
    assert opened(tmp_path, observe="import machine_asked") == []
    assert opened(tmp_path, observe="import machine_asked; machine_asked.times()") == [stat]
    assert opened(tmp_path, observe="open('/proc/stat').close()") == [stat]
    (tmp_path / "my_machine.py").write_text(f"{asks}times()\n")
    assert opened(tmp_path, observe="import my_machine") == [stat]


def test_a_library_loaded_by_hand_is_heard(opened: OpenedInputs, tmp_path: Path) -> None:
    names = opened(tmp_path, init="import ctypes; ctypes.CDLL('libc.so.6')")
    assert ("file", "libc.so.6") in names


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    (tmp_path / "my_helper.py").write_text("def twice(x):\n    return 2 * x\n")
    return tmp_path


@pytest.mark.parametrize(
    "bodies",
    [
        {},
        {"top": "import my_helper", "decide": "return by(my_helper.twice(bar.close) > 1)"},
        {"decide": "import my_helper\nreturn by(my_helper.twice(bar.close) > 1)"},
        {"top": "import numpy", "decide": "return by(numpy.mean([bar.close]) > 1)"},
        {"top": "import polars", "decide": "return by(polars.Series([bar.close]).mean() > 1)"},
        {"top": "import json, decimal, statistics, email.message, xml.dom.minidom"},
        {"top": "import zoneinfo; zoneinfo.ZoneInfo('Europe/Berlin')"},
        {"top": "import zoneinfo; zoneinfo.available_timezones()"},
        {"observe": "import mmap; mmap.mmap(-1, 16)"},
        {"observe": "import sqlite3; sqlite3.connect(':memory:').close()"},
        {"observe": "import random; random.random()"},
    ],
)
def test_what_python_packages_and_the_class_itself_are_made_of_is_exempt(
    opened: OpenedInputs, helper: Path, bodies: dict[str, str]
) -> None:
    assert opened(helper, **bodies) == []


def test_a_class_that_opens_without_end_is_not_remembered_without_end(
    opened: OpenedInputs, tmp_path: Path
) -> None:
    names = opened(tmp_path, observe=f"for n in range(999): open(f'{tmp_path}/{{n}}', 'w').close()")
    assert 100 < len(names) <= NAMES_KEPT


def test_a_module_from_elsewhere_is_heard(
    opened: OpenedInputs, helper: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (helper / "my_helper.py").rename(elsewhere / "far_helper.py")
    folder = tmp_path / "here"
    folder.mkdir()
    with users.importable(elsewhere):
        names = opened(folder, top="import far_helper")
    assert "far_helper.py" in [Path(name).name for _, name in names]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_python_may_write_and_read_compiled_code(
    opened: OpenedInputs, helper: Path, tmp_path_factory: pytest.TempPathFactory, *, elsewhere: bool
) -> None:
    """The settings of a process are not its children's, so the class says them."""
    compiled = tmp_path_factory.mktemp("compiled") if elsewhere else helper
    prefix = str(compiled) if elsewhere else None
    top = f"import sys; sys.dont_write_bytecode = False; sys.pycache_prefix = {prefix!r}\n"
    twice = "import xml.dom.minidom, my_helper; del sys.modules['my_helper']; import my_helper"
    assert opened(helper, top=top + twice) == []
    assert list(compiled.rglob("my_helper.*.pyc"))


def test_an_installed_class_is_heard_although_packages_are_exempt(
    opened: OpenedInputs, data: Path
) -> None:
    packages = data / "site-packages"
    packages.mkdir()
    with users.importable(packages):
        names = opened(packages, observe=f"open('{data}/mine.csv').close()")
    assert names == [("file", f"{data}/mine.csv")]


def test_what_it_opens_by_ours_is_heard(opened: OpenedInputs, data: Path) -> None:
    top = "from tracepaper.daemon.session.user_code import file_sha256\nfrom pathlib import Path"
    names = opened(data, top=top, observe=f"file_sha256(Path('{data}/mine.csv'))")
    assert names == [("file", f"{data}/mine.csv")]


def test_a_declared_file_is_exempt_unless_it_is_written(opened: OpenedInputs, data: Path) -> None:
    reads = "open(self.files['mine.csv']).close()"
    assert opened(data, head="files = ('mine.csv',)", init=reads) == []
    writes = "open(self.files['mine.csv'], 'a').close()"
    names = opened(data, head="files = ('mine.csv',)", init=writes)
    assert names == [("file", f"{data}/mine.csv")]
