"""What the tests of learning share."""

from __future__ import annotations

import pytest
from learning import Say

from tracepaper.daemon.cli import invoke


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Return a function that calls a command; it gives the exit code, output and error line."""

    def run(*words: object) -> tuple[int, str, str]:
        code = invoke([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, " ".join(said.err.split())

    return run
