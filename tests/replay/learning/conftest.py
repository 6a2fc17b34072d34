"""Shared fixtures of the tests of learning."""

from __future__ import annotations

import pytest
from command_line import Cli
from learning import Say


@pytest.fixture
def say(cli: Cli) -> Say:
    """Return a function that runs a command and returns exit code, output and error line."""

    def run(*words: object) -> tuple[int, str, str]:
        answer = cli(*words)
        return answer.code, answer.out, " ".join(answer.err.split())

    return run
