"""The id of a user's class: it covers what the class is made of, and nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.run_record import strategy_sha256
from tracepaper.daemon.session.user_source import class_sha256

MINE = """
import helper
from pack import inner
from tracepaper.strategies.strategy import Strategy

class Mine(Strategy):
    def decide(self, outlook):
        import late
        return importlib.import_module("named")
"""
FILES = {
    "mine.py": MINE,
    "helper.py": "import deep",
    "deep.py": "",
    "late.py": "",
    "named.py": "",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import beside",
    "pack/beside.py": "",
}
Hashed = Callable[[], str]


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashed]:
    for name, text in {**FILES, "stranger.py": "", "data.csv": "1"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield lambda: class_sha256(importlib.import_module("mine").Mine)
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_file_that_it_is_made_of_changes_the_id(
    hashed: Hashed, tmp_path: Path, name: str
) -> None:
    before = hashed()
    with (tmp_path / name).open("a") as file:
        file.write("\n# changed\n")
    assert hashed() != before


@pytest.mark.parametrize("name", ["stranger.py", "data.csv"])
def test_a_file_that_it_does_not_import_does_not_change_the_id(
    hashed: Hashed, tmp_path: Path, name: str
) -> None:
    before = hashed()
    (tmp_path / name).write_text("another")
    assert hashed() == before


def test_a_linked_file_counts_by_what_it_holds(hashed: Hashed, tmp_path: Path) -> None:
    before = hashed()
    elsewhere = tmp_path.with_name("elsewhere.py")
    (tmp_path / "helper.py").rename(elsewhere)
    (tmp_path / "helper.py").symlink_to(elsewhere)
    assert hashed() == before
    elsewhere.write_text("changed = 1")
    assert hashed() != before


def test_a_file_that_python_cannot_read_counts_as_it_stands(hashed: Hashed, tmp_path: Path) -> None:
    before = hashed()
    (tmp_path / "late.py").write_text("print 'for an older Python'")
    assert hashed() != before


def test_the_id_does_not_depend_on_where_the_folder_lies(hashed: Hashed, tmp_path: Path) -> None:
    before = hashed()
    moved = tmp_path / "moved"
    for name in FILES:
        (moved / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(moved / name)
    del sys.modules["mine"]
    sys.path[0] = str(moved)
    importlib.invalidate_caches()
    assert hashed() == before


@pytest.mark.parametrize("other", ["x + 2", "y + 1", "-x"])
def test_a_typed_class_is_told_by_its_code(other: str) -> None:
    def typed(answer: str) -> str:
        made: dict[str, type] = {}
        text = f"class Mine:\n def decide(self, x, y):\n  return {answer}"
        exec(text, {"__name__": "typed"}, made)
        return class_sha256(made["Mine"])

    assert typed("x + 1") == typed("x + 1")
    assert typed("x + 1") != typed(other)


def test_a_strategy_of_ours_needs_no_id() -> None:
    assert strategy_sha256(load(None, {"strategy": {"name": "persistence"}})) == ""
