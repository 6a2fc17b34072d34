"""What every test run shares: the option that rewrites golden files, and where GPU tests run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from wheels import Installed, installed_with_all


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make golden` rewrite the golden files instead of comparing with them."""
    parser.addoption("--rewrite-golden", action="store_true", help="rewrite tests/data/golden_*")


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
