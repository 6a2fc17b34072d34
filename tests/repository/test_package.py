"""The import name ``tracepaper``: what it offers, and that every tool finds all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from programs import ROOT
from waiting import deadline_s

import tracepaper

PACKAGES = ("daemon", "replay", "storage", "strategies")


def test_the_public_names_are_listed_before_they_are_imported() -> None:
    assert set(tracepaper.__all__) <= set(dir(tracepaper))
    assert all(hasattr(tracepaper, name) for name in tracepaper.__all__)


def test_a_name_that_it_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'close_run'"):
        _ = tracepaper.close_run


def test_importing_it_imports_neither_its_parts_nor_a_library() -> None:
    program = (
        "import sys, tracepaper; dir(tracepaper); heavy = ('numpy', 'polars', 'sqlite3', 'torch'); "
        "print([name for name in sys.modules if name.startswith('tracepaper.') or name in heavy]); "
        "from tracepaper import Action, Signal, Strategy, buy; "
        "engine = ('tracepaper.daemon', 'tracepaper.replay', 'tracepaper.storage', 'sqlalchemy', "
        "'polars', 'torch'); print([name for name in sys.modules if name.startswith(engine)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline_s(),
    )
    assert done.stdout.split() == ["[]", "[]"]


def test_what_a_checkout_shows_to_type_checkers_is_the_package_itself() -> None:
    links = ROOT / ".types" / "tracepaper"
    if not links.is_dir():  # a checkout without `make dev`
        pytest.skip("make dev makes the links")
    names = {"__init__.py", "__main__.py", "attention.py", "models.py", "py.typed", *PACKAGES}
    assert {path.name for path in links.iterdir()} == names
    assert all(path.resolve() == ROOT / path.name for path in links.iterdir())
