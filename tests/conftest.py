"""What every test run shares: the option that rewrites golden files, and where GPU tests run."""

from __future__ import annotations

import os
from asyncio import AbstractEventLoop, new_event_loop
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Cli
from hypothesis import HealthCheck, settings
from postgres_server import postgres, postgres_url  # noqa: F401 - fixtures
from user_strategies import forgetting
from wheels import InstalledWheel, installed_with_all
from world import client as world_client
from world.loop import loop_without_delays

world_client.install()

pytest_plugins = ("costs",)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Give tests a loop in which no time passes and nothing has a socket, but those of sockets."""
    is_real = item.get_closest_marker("sockets")
    return {"loop": new_event_loop if is_real else loop_without_delays}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for a PostgreSQL, and let what asks for the wheel come first.

    Begun last, a test of the wheel would work alone at the end.
    """
    items.sort(key=lambda item: "installed" not in getattr(item, "fixturenames", ()))
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make golden` rewrite the golden files."""
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite tests/data/golden_*")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line each what this machine could not test."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"Not tested ({count}): {reason}")


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written from what was found."""
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return what calls the program's commands."""
    return Cli(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty folder, in which the test runs and from which nothing stays imported."""
    monkeypatch.chdir(tmp_path)
    with forgetting(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    """Build the wheel once for all workers, and install it beside every package that is here."""
    own, base = tmp_path_factory.mktemp("wheel"), tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return replace(installed_with_all(shared / "shared_wheel"), folder=own)


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
# Nor does a busy machine, which draws them slowly, fail a test.
settings.register_profile(
    "repository",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")
