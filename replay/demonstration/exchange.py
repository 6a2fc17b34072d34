"""The embedded exchange beside a demo: a process of its own, and the calls that control it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tracepaper.strategies.errors import DataInvalid, FeedLost

ENDS_WITHIN_S: Final = 5.0
LOOKED_AT_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class ServedExchange:
    """The exchange's process, and what it says it serves."""

    process: subprocess.Popen[str]
    served: dict[str, Any]

    def require_alive(self) -> None:
        """Raise ``FeedLost`` where the process has ended before its time."""
        if (code := self.process.poll()) is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise FeedLost(f"The process of the embedded exchange {how}; run the demo again.")


@contextmanager
def exchange_beside(
    data: Sequence[str], speed: float, *, start: int | None = None
) -> Iterator[ServedExchange]:
    """Run the embedded exchange in a process of its own.

    Its time stands still, *start* bars into the data, until candles are subscribed. It ends with
    us, however we end: it watches the pipe that is its standard input.
    """
    command = [sys.executable, "-m", "tracepaper.daemon.cli", "exchange"]
    for path in data:
        command += ["--data", path]
    command += ["--speed", str(speed), "--hold", "--until-eof"]
    if start is not None:
        command += ["--start", str(start)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C is for the daemon, which then ends the exchange
        )
        try:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                process.wait(ENDS_WITHIN_S)
                said.seek(0)
                raise DataInvalid(said.read().strip() or "The embedded exchange did not start.")
            yield ServedExchange(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.communicate(timeout=ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
