"""``DailyDrift``: compares a run with its backtest once a day, in a separate process.

No decision waits for it, and nothing of it is stored. The process reads the backtest once, and of
the run only what is new. The rules are docs/drift.md, Q7 and Q8.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import ScheduledJob
from tracepaper.daemon.session.child import ChildFailed, ChildProcess, StartProcess, TimeLimits
from tracepaper.storage.database.reader import resolve
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import RunRow
from tracepaper.strategies.units import DAY_MS

PROGRAM: Final = (sys.executable, "-m", "tracepaper.daemon.cli", "drift")
"""The process that compares: the same command that a user may run."""
ANSWER_S: Final = 3_600.0
"""Wall seconds for a comparison; the first reads the whole backtest."""
SECTION: Final = "[drift] against"

log = Logger("drift")


class DriftState(Struct, frozen=True):
    """The newest comparison: its sentence, what is outside and since when, and until when."""

    sentence: str = ""
    outside: dict[str, int] = {}
    until_ms: int = 0  # the end of the last whole day; 0 before the first comparison
    error: str = ""


def reference_of(config: Config) -> str:
    """Return ``FILE#RUN`` of [drift] against with an absolute path; empty without it.

    Raises ``ConfigInvalid`` if there is no such run.
    """
    against = config.drift.against
    if against is None:
        return ""
    file, separator, wanted = against.rpartition("#")
    if not separator:
        raise ConfigInvalid(f"{SECTION} is {against!r}; write FILE#RUN.")
    path = Path(file) if config.folder is None else config.folder / file
    try:
        place = resolve(path.absolute(), wanted)
    except DataInvalid as error:
        raise ConfigInvalid(f"{SECTION}: {error}") from None
    return f"{place.path}#{place.run_id}"


class DailyDrift(ScheduledJob):
    """Compares a run with *reference*, ``FILE#RUN``, at its start and once each UTC day is over."""

    key = "drift"

    def __init__(
        self,
        config: Config,
        reference: str,
        database: Path,
        run: RunRow,
        clock: Clock,
        *,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        super().__init__()
        self.due_ms = 0
        self.state = DriftState()
        self._clock = clock
        command = (
            *(*PROGRAM, run.run_id, "--against", reference),
            *("--level", str(config.drift.level), "--db", str(database), "--service"),
        )
        self._child = start_process("comparison", command, TimeLimits(ANSWER_S, "an hour"))

    def status(self) -> dict[str, object]:
        """Return ``state`` as plain values."""
        return asdict(self.state)

    async def _work(self) -> None:
        async with self._child:
            await super()._work()

    async def _run_job(self) -> None:
        # The first bar that closes after midnight: then every symbol has its last bar of the day.
        self.due_ms = self._clock.market_ms() // DAY_MS * DAY_MS + DAY_MS + 1
        before = self.state
        try:
            self.state = await self._child.ask(DriftState, {})
        except ChildFailed as error:
            self.state = replace(before, error=str(error))
            log.warning("not compared", error=str(error))
        else:
            is_new = self.state.outside.keys() - before.outside.keys()
            (log.warning if is_new else log.info)("drift", result=self.state.sentence)
