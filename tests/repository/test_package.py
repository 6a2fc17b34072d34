"""The import name ``tracepaper``: what it offers, and that every tool finds all of it."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import metadata

import pytest
from programs import ROOT
from waiting import deadline_s

import tracepaper
from tracepaper.daemon.version import version

PACKAGES = ("daemon", "replay", "storage", "strategies")


def test_every_module_is_found_by_walking_the_package() -> None:
    walked = {module.name for module in pkgutil.walk_packages(tracepaper.__path__, "tracepaper.")}
    walked.discard("tracepaper.setup")  # in a checkout alone: what builds it lies at its root
    paths = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    paths += [ROOT / "models.py", ROOT / "__main__.py"]
    written = {
        ".".join(("tracepaper", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths
    }
    assert walked == {name.removesuffix(".__init__") for name in written}


def test_the_version_is_that_of_the_installed_distribution_with_this_commit() -> None:
    assert tracepaper.__version__ == version()
    installed = metadata.version("tracepaper")
    assert tracepaper.__version__.partition("+")[0] == installed.partition("+")[0]


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
    names = {"__init__.py", "__main__.py", "models.py", "py.typed", *PACKAGES}
    assert {path.name for path in links.iterdir()} == names
    assert all(path.resolve() == ROOT / path.name for path in links.iterdir())
