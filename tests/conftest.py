"""What every test run shares: the option that rewrites golden files, and where GPU tests run."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from postgres_server import fleet_url, postgres  # noqa: F401 - fixtures
from wheels import Installed, installed_with_all

LONG: Final = (
    # Kinds of networks, of checkpoints and of examples beyond the first ones.
    re.compile(r"test_every_network\.py::.*\[(?!flash|trading)"),
    re.compile(r"test_export\.py::test_an_onnx_file.*\[(?!flash)"),
    re.compile(r"test_build_absurd_cards\.py::test_every_key.*\[(?!flash)"),
    re.compile(r"test_together\.py::test_it_is_trained.*\[portfolio"),
    re.compile(r"test_examples\.py::.*\[(?!trend)"),
    re.compile(r"test_(judged_together|ensemble_of_two_schemas)\.py::"),
    re.compile(r"test_further\.py::test_the_tails_follow"),
    re.compile(r"test_pair\.py::test_a_pair_trades_thirty_thousand_bars"),
    # What ends a demo beyond Ctrl-C.
    re.compile(r"test_show\.py::test_(an_exchange|a_daemon)_that_dies"),
    re.compile(r"test_show\.py::test_open_opens_the_page_that_is_named\[demo1"),
    re.compile(r"test_product\.py::test_ctrl_c_ends_a_demo"),
    # Clusters of Ray beyond one of two workers; attention over assets beyond the first kind.
    re.compile(r"test_on_ray\.py::test_(a_worker|a_cell_over|a_node|a_part)"),
    re.compile(r"test_library\.py::.*\[Diagnostics: cross-asset"),
    # What a campaign does itself, in small.
    re.compile(r"test_campaign_fleet\.py::test_two_daemons"),
    # What takes half a minute and more: a demo without extras.
    re.compile(r"test_wheel\.py::test_without_extras_the_demo"),
    re.compile(r"test_product\.py::test_no_color"),
)
"""Tests of whole trainings and of the tenth kind of a thing: ``make campaign`` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is ``long``, and what asks for a PostgreSQL; begin with what takes longest.

    The pages are read once, in minutes, by the worker that builds the wheel. Begun last, it would
    work alone at the end; or the other would steal half of its tests, and read them again.
    """
    items.sort(key=lambda item: "installed" not in getattr(item, "fixturenames", ()))
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)
        if any(one.search(item.nodeid) for one in LONG):
            item.add_marker(pytest.mark.long)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make golden` rewrite the golden files; write what each test costs into a table."""
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite tests/data/golden_*")
    parser.addoption("--costs", metavar="FILE", help="append CPU seconds and name of each test")


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Append what the test cost, its fixtures included, to the table of ``--costs``."""
    before = _cpu_s()
    done = yield
    if (path := item.config.getoption("--costs")) is not None:
        with Path(path).open("a", encoding="utf-8") as table:
            table.write(f"{_cpu_s() - before:.2f}\t{item.nodeid}\n")
    return done


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written from what was found."""
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel once, and install it beside every package that is here."""
    return installed_with_all(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep features below the tests' own folder, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, obj: object
) -> list[pytest.Item] | None:
    """Make no test of what is marked ``gpu`` unless CUDA is there; torch is asked only then."""
    marks = [*collector.iter_markers(), *getattr(obj, "pytestmark", ())]
    if "gpu" not in {mark.name for mark in marks}:
        return None
    import torch

    return None if torch.cuda.is_available() else []


# The same examples on every machine and in every run; a campaign of chance is `--hypothesis-seed`.
settings.register_profile("repository", derandomize=True, deadline=None)
settings.load_profile("repository")
