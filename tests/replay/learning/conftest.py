"""What the tests of learning share."""

from __future__ import annotations

import pytest
from command_line import Cli
from learning import Say


@pytest.fixture
def say(cli: Cli) -> Say:
    """Return a function that calls a command; it gives the exit code, output and error line."""

    def run(*words: object) -> tuple[int, str, str]:
        answer = cli(*words)
        return answer.code, answer.out, " ".join(answer.err.split())

    return run
