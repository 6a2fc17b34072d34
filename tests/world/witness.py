"""A witness in the world: it remembers over all lives what it signed, and fails as drawn.

Whether an answer fails, and how, has a stream of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from tracepaper.daemon.clock import SystemClock
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.cosigner import Cosigner
from tracepaper.storage.witness.judge import COSIGNED, PLAIN, Note, NoteKey, Refused, judge
from tracepaper.storage.witness.keys import key_text, make_key, read_key
from tracepaper.storage.witness.leaves import witness_folder
from tracepaper.storage.witness.log import WitnessLog
from tracepaper.storage.witness.publish import publish
from tracepaper.strategies.errors import DataInvalid

ORIGIN: Final = "world.example/log"
NAME: Final = "world.example/witness"
PORT: Final = 9_002
FAULTS: Final = ("away", "slow", "wrong in time", "nonsense", "an error", "lost")
SHARE: Final = 0.3
"""How often an answer fails."""
NONSENSE: Final = ("", "\0", "— x\n", "— nobody AAAA\n", "99999999999999999999\n")
ERRORS: Final = (307, 400, 403, 404, 500, 503)


class WitnessService:
    """A witness at an address of this loop; *answer* stands for its answer while it is set."""

    port = 8790

    def __init__(self, folder: Path, log: NoteKey) -> None:
        if not (folder / "served").exists():
            make_key(folder / "served", NAME, COSIGNED)
        signer = read_key(folder / "served", COSIGNED)
        self.key = signer.key
        self.cosigner = Cosigner(signer, {log.name: log}, folder / "served.state")
        self.answer: Callable[[web.Request], Awaitable[web.Response]] | None = None
        self.requests = 0

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.answer is not None:
            return await self.answer(request)
        status, text = self.cosigner.add_checkpoint(await request.text(), now_s())
        return web.Response(status=status, text=text)

    @property
    def section(self) -> dict[str, Any]:
        """The section [witness] that names it."""
        return {"url": [f"http://127.0.0.1:{self.port}"], "keys": [key_text(self.key)]}

    @asynccontextmanager
    async def served(self) -> AsyncIterator[dict[str, Any]]:
        """Serve while the block runs; yield the section [witness]."""
        application = web.Application()
        application.router.add_post("/add-checkpoint", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", self.port)
            await site.start()
            yield self.section
        finally:
            await runner.cleanup()


class FaultyWitness(WitnessService):
    """The witness of a life; *rng* draws its faults and *struck* tells of each, until *is_calm*."""

    port = PORT

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        network_s: Callable[[], float],
        is_calm: Callable[[], bool],
        struck: Callable[[str], None],
    ) -> None:
        super().__init__(folder, read_key(witness_folder(folder / "run.db") / "key", PLAIN).key)
        self.signed_s = self.failing_until_s = -1.0
        self.forks: list[str] = []
        self._rng, self._network_s, self._is_calm, self._struck = rng, network_s, is_calm, struck

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        rng, at_s = self._rng, self._network_s()
        fault = rng.choice(FAULTS) if rng.random() < SHARE and not self._is_calm() else ""
        if fault:
            self._struck(f"witness: {fault}")
        wait_s = rng.expovariate(1 / 20) if fault in {"away", "slow"} else 0.0
        if fault == "away":
            self.failing_until_s = max(self.failing_until_s, at_s + wait_s)
        if at_s < self.failing_until_s:
            return self._cut_off(request)
        wrong_s = rng.choice((-86_400, -90, 90, 86_400)) if fault == "wrong in time" else 0
        if fault == "nonsense":
            return web.Response(status=rng.choice((200, 409)), text=rng.choice(NONSENSE))
        if fault == "an error":
            return web.Response(status=rng.choice(ERRORS), text=rng.choice(NONSENSE))
        status, text = self.cosigner.add_checkpoint(body, now_s() + wrong_s)
        size = Note.parse(body.partition("\n\n")[2]).size
        if status == 422 or (status == 409 and int(text) > size):
            self.forks.append(f"{status} {text.strip()} to a note of {size} leaves")
        if fault == "slow":  # after it read: a request that is read late is of an older note
            await asyncio.sleep(wait_s)
        if fault == "lost":
            return self._cut_off(request)
        if status == 200:
            self.signed_s = self._network_s()
        return web.Response(status=status, text=text)

    def _cut_off(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


def now_s() -> int:
    """Return the machine's time in seconds."""
    return SystemClock().wall_ms() // 1000


def new_log(folder: Path) -> None:
    """Make the log of the record in *folder*."""
    make_key(witness_folder(folder / "run.db") / "key", ORIGIN, PLAIN)


def refused(folder: Path, *, is_restored: bool, is_pruned: bool) -> str:
    """Return why the judge refuses the log of the record in *folder*, published; empty if not.

    An older record that was put back ends the log, and nothing else does. A prune leaves its leaves
    and notes, which the judge holds to each other before it misses the proof of a run.
    """
    log = WitnessLog(folder / "run.db")
    with closing(open_reader(folder / "run.db")) as reader:
        try:
            log.check_record(reader)
        except DataInvalid as error:
            return "" if is_restored else str(error)
        if log.dated:
            publish(log, reader, folder / "published")
            key = WitnessService(folder, log.signer.key).key
            try:
                judge([folder / "published"], log.signer.key, [key])
            except Refused as error:
                if not (is_pruned and str(error).startswith("Runs of the log are not shown")):
                    return f"the judge refuses the published log: {error}"
    return ""
