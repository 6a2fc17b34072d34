"""What a user's class opens is heard, whichever way it opens it; what belongs to it is exempt."""

from __future__ import annotations

import socket
import sqlite3
import sys
from itertools import count
from pathlib import Path

import numpy as np
import own_strategies as own
import pytest
from builders import bar, instrument

from tracepaper.daemon.session import external_inputs
from tracepaper.daemon.session.user_class import make_own, user_class
from tracepaper.strategies.api.context import BarContext

_NUMBERS = count()


def opened(folder: Path, **bodies: str) -> list[tuple[str, str]]:
    """Return what a class of these bodies opens until it has decided once."""
    name = f"heard_{next(_NUMBERS)}"
    (folder / f"{name}.py").write_text(own.source(**bodies))
    with own.importable(folder):
        strategy = make_own(f"{name}:Mine", {}, ["BTCUSDT"])["BTCUSDT"]
        strategy.observe(bar())
        strategy.decide(BarContext.of([bar()], instrument()))
    return [(item.what, item.name) for item in external_inputs.opened(f"{name}:Mine")]


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
def test_a_file_is_heard_wherever_the_class_opens_it(data: Path, where: str) -> None:
    bodies = {where: f"open('{data}/mine.csv').close()"}
    if where == "decide":
        bodies[where] += "\nreturn by(True)"
    assert opened(data, **bodies) == [("file", f"{data}/mine.csv")]


@pytest.mark.parametrize(("line", "name"), READS)
def test_every_way_to_read_is_heard(
    data: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    monkeypatch.chdir(data)
    found = opened(data, observe=line.replace("{}", str(data)))
    assert ("file", str(data / name)) in found


def test_a_mapped_file_is_named_although_it_was_opened_by_others(data: Path) -> None:
    with (data / "mine.csv").open() as file:
        line = f"import mmap; mmap.mmap({file.fileno()}, 0, access=mmap.ACCESS_READ)"
        assert opened(data, observe=line) == [("file", f"{data}/mine.csv")]


def test_an_address_is_heard(tmp_path: Path) -> None:
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
def test_a_program_is_heard(tmp_path: Path, line: str, name: str) -> None:
    assert ("program", name) in opened(tmp_path, observe=line)


def test_what_a_thread_of_the_class_opens_is_heard(data: Path) -> None:
    found = opened(
        data,
        top=f"import threading\ndef read():\n    open('{data}/mine.csv').close()",
        observe="t = threading.Thread(target=read)\nt.start()\nt.join()",
    )
    assert found == [("file", f"{data}/mine.csv")]


def test_a_thread_of_ours_is_not_the_class_although_we_lie_in_its_folder(data: Path) -> None:
    found = opened(
        data,
        top=(
            f"import threading\nfrom tracepaper.daemon.session import external_inputs as outside\n"
            f"outside.belongs('around', outside._HERE)\n"
            f"def read():\n    open('{data}/mine.csv').close()"
        ),
        observe="t = threading.Thread(target=read)\nt.start()\nt.join()",
    )
    assert found == [("file", f"{data}/mine.csv")]
    assert external_inputs.opened("around") == ()


def test_what_a_package_asks_of_the_machine_while_it_is_imported_is_exempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_library_loaded_by_hand_is_heard(tmp_path: Path) -> None:
    found = opened(tmp_path, init="import ctypes; ctypes.CDLL('libc.so.6')")
    assert ("file", "libc.so.6") in found


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
        {"observe": "import mmap; mmap.mmap(-1, 16)"},
        {"observe": "import sqlite3; sqlite3.connect(':memory:').close()"},
        {"observe": "import random; random.random()"},
    ],
)
def test_what_python_packages_and_the_class_itself_are_made_of_is_exempt(
    helper: Path, bodies: dict[str, str]
) -> None:
    assert opened(helper, **bodies) == []


def test_what_we_open_ourselves_is_not_the_class(data: Path) -> None:
    name = "quiet"
    (data / "quiet.py").write_text(own.source())
    with own.importable(data):
        make_own("quiet:Mine", {}, ["BTCUSDT"])["BTCUSDT"].observe(bar())
        (data / "mine.csv").read_text()
    assert external_inputs.opened(f"{name}:Mine") == ()


def test_a_class_that_opens_without_end_is_not_remembered_without_end(tmp_path: Path) -> None:
    found = opened(tmp_path, observe=f"for n in range(999): open(f'{tmp_path}/{{n}}', 'w').close()")
    assert 100 < len(found) <= external_inputs.NAMES_KEPT


def test_python_may_write_compiled_code_beside_the_class(
    helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (helper / "compiled.py").write_text(own.source(top="import my_helper"))
    monkeypatch.syspath_prepend(helper)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    user_class("compiled:Mine")
    assert list(helper.glob("__pycache__/compiled.*.pyc"))
    assert external_inputs.opened("compiled:Mine") == ()


def test_a_module_from_elsewhere_is_heard(helper: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (helper / "my_helper.py").rename(elsewhere / "far_helper.py")
    folder = tmp_path / "here"
    folder.mkdir()
    with own.importable(elsewhere):
        found = opened(folder, top="import far_helper")
    assert "far_helper.py" in [Path(name).name for _, name in found]
