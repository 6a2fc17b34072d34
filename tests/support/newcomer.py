"""What a newcomer types in an empty folder, and the facts of a record by plain SQL.

Every sentence that the user sees is printed (``pytest -s``).
"""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from command_line import Cli
from programs import environment
from waiting import deadline_s

CASH: Final = Decimal(100_000)
"""What an account begins with, by default."""
COMMAND_S: Final = 240.0


def shown(command: str, text: str) -> str:
    """Print a command with the *text* that it answers; return the text as one line."""
    sys.stdout.write(f"$ {command}\n{text}")
    return " ".join(text.split())


@dataclass(frozen=True)
class TerminalInProcess:
    """Commands of ``tracepaper``, called in this process."""

    cli: Cli

    def __call__(self, words: str, code: int = 0) -> str:
        """Return what a command prints, as one line; it ends with *code*."""
        answer = self.cli(*shlex.split(words))
        text = shown(f"tracepaper {words}", answer.err + answer.out)
        assert answer.code == code, text
        return text


@dataclass(frozen=True)
class Shell:
    """Programs of this environment, run in *folder*."""

    folder: Path

    def words(self, command: str) -> list[str]:
        """Return the words of *command*, the path of its program first."""
        name, *others = shlex.split(command)
        return [shutil.which(name, path=environment()["PATH"]) or name, *others]

    def __call__(self, command: str, code: int = 0) -> str:
        """Return what a command prints, as one line; it ends with *code*."""
        done = subprocess.run(
            self.words(command),
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline_s(COMMAND_S),
        )
        text = shown(command, done.stderr + done.stdout)
        assert done.returncode == code, text
        return text


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of *query*, which may hold texts of exact numbers."""
    with closing(sqlite3.connect(database)) as record:
        return record.execute(query).fetchall()


@dataclass(frozen=True)
class Account:
    """One account of one instrument, computed from its fills and the newest close alone."""

    equity: Decimal
    fees: Decimal
    held: Decimal
    fills: int
    largest: Decimal  # the largest fill, in quote currency


def account_of(database: Path) -> Account:
    """Return the account of the only run of *database*, without funding."""
    cash, held, fees, largest = CASH, Decimal(0), Decimal(0), Decimal(0)
    fills = rows(database, "SELECT side, quantity_text, price_text, fee_text FROM v_fills")
    for side, *texts in fills:
        quantity, price, fee = map(Decimal, texts)
        bought = quantity if side == "BUY" else -quantity
        held += bought
        cash -= bought * price + fee
        fees += fee
        largest = max(largest, quantity * price)
    newest = "SELECT close_text FROM v_bars ORDER BY sequence DESC LIMIT 1"
    ((close,),) = rows(database, newest)
    return Account(cash + held * Decimal(close), fees, held, len(fills), largest)
