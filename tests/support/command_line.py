"""The program's commands, called in this process as a user would type them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tracepaper.daemon.cli import invoke


class Answer(NamedTuple):
    """What a command ends with, and what it prints."""

    code: int
    out: str
    err: str


class Cli:
    """Calls commands: words of any type, of which each is one argument."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Answer:
        """Return exit code, stdout and stderr of a command."""
        self._capsys.readouterr()
        code = invoke([str(word) for word in words])
        return Answer(code, *self._capsys.readouterr())

    def out(self, *words: object) -> str:
        """Return what a command prints on stdout, which succeeds."""
        answer = self(*words)
        assert answer.code == 0, answer.err
        return answer.out

    def err(self, *words: object, code: int) -> str:
        """Return what a command prints on stderr, which ends with *code*."""
        answer = self(*words)
        assert answer.code == code, answer
        return answer.err

    def json(self, *words: object) -> Any:
        """Return the document that a command prints, which succeeds."""
        return json.loads(self.out(*words, "--json"))
