"""``Witnessing``: has witnesses date the newest commits. The rules are docs/operations.md, O30."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import WitnessSection
from tracepaper.daemon.config.values import CALENDAR
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import Companion, repeat
from tracepaper.daemon.session.clocks import (
    ClockFault,
    Send,
    authority_token,
    calendar_promise,
    calendar_proof,
)
from tracepaper.daemon.session.loop import Worker
from tracepaper.storage.covariates import write_whole
from tracepaper.storage.database.connection import open_reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, ModelChange

if TYPE_CHECKING:
    from tracepaper.storage.witness.judge import NoteKey
    from tracepaper.storage.witness.log import WitnessLog

ANSWER_S: Final = 10.0
"""Wall seconds within which a witness has to answer."""
ANSWER_BYTES: Final = 10_000
CLOCK_S: Final = 60
"""Most seconds by which the clock of a witness may differ from ours without being named."""
SECTION: Final = "[witness]"
TEXT: Final = "text/plain"
PROMISES: Final = 30
"""Most hashes whose way into Bitcoin a calendar is asked for a day."""

log = Logger("witness")


class NotWitnessed(Exception):
    """No witness has cosigned; the text names each with its fault."""


async def send(url: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
    """Answer as ``Send`` does, with at most ``ANSWER_BYTES``.

    Raises an error of aiohttp or ``TimeoutError``.
    """
    limit, headers = aiohttp.ClientTimeout(total=ANSWER_S), {"Content-Type": kind, "Accept": kind}
    async with (
        aiohttp.ClientSession(timeout=limit, headers=headers) as session,
        session.request(
            "GET" if body is None else "POST", url, data=body, allow_redirects=False
        ) as answer,
    ):
        return answer.status, await answer.content.read(ANSWER_BYTES)


def witness_keys(section: WitnessSection, database: Path) -> list[NoteKey]:
    """Return the keys of [witness]; empty without a witness.

    Raises ``ConfigInvalid`` if one is wrong, a library of the clocks is missing, or the log beside
    *database* has no private key.
    """
    if not section.url and not section.clocks:
        return []
    require("cryptography", SECTION)
    from tracepaper.storage.witness.judge import COSIGNED, PLAIN
    from tracepaper.storage.witness.keys import parse_key, read_key
    from tracepaper.storage.witness.leaves import witness_folder

    for package in ("opentimestamps", "rfc3161_client") if section.clocks else ():
        require(package, f"{SECTION} clocks")
        import_module(package)  # now: no step waits for it later
    keys = [parse_key(text, f"{SECTION} keys") for text in section.keys]
    if section.url and (not keys or any(key.kind != COSIGNED for key in keys)):
        raise ConfigInvalid(f"{SECTION} keys: name the key that `witness serve` prints.")
    read_key(witness_folder(database) / "key", PLAIN)
    return keys


class Witnessing(Companion):
    """Submits the newest checkpoint after each closed bar, one request at a time to each witness.

    No step waits for it. A checkpoint is signed only after a witness has cosigned the one before,
    and none claims to know another history: so a log that was put back is never signed over.
    """

    key = "witness"

    def __init__(
        self,
        section: WitnessSection,
        keys: Sequence[NoteKey],
        database: Path,
        run: RunRow,
        clock: Clock,
        send: Send = send,
    ) -> None:
        self._section, self._keys, self._database, self._run = section, keys, database, run
        self._clock, self._send, self._worker = clock, send, Worker("witness")
        self._log: WitnessLog | None = None
        self._due, self._clocks_due = asyncio.Event(), asyncio.Event()
        self._due.set()
        self._may_sign = not section.url
        self._faults: dict[str, str] = {}  # by address
        self._is_doubted = False  # whether a witness claims to know another history
        self._size, self._cosigned = 0, 0  # leaves
        self._waiting_s: float | None = clock.network_s()  # since when a leaf waits
        self._error = self._clock_error = ""

    def status(self) -> dict[str, object]:
        """Return leaves, how many of them are cosigned, since when others wait, and the faults."""
        since = self._waiting_s
        return {
            "leaves": self._size,
            "cosigned": self._cosigned,
            "away_s": 0.0 if since is None else self._clock.network_s() - since,
            "horizon_s": self._run.forecast_bars * self._run.interval_ms / 1000,
            "error": "; ".join(filter(None, (self._error, self._clock_error))),
        }

    def observe(self, step: Step) -> None:
        """Begin a round once a bar, or the start of the run, is stored."""
        if isinstance(step.event, Bar | ModelChange):
            self._due.set()
            if self._waiting_s is None:
                self._waiting_s = self._clock.network_s()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(repeat(self._round, self._clock, self._failed, self._sleep))
            if self._section.clocks:
                group.create_task(repeat(self._ask_clocks, self._clock, self._clock_failed))

    async def _sleep(self, seconds: float) -> None:
        """Wait *seconds*, or until a bar is stored: it is submitted at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()
        self._due.set()

    def _failed(self, error: Exception, pause_s: float) -> None:
        if str(error) != self._error:
            log.warning("not witnessed", error=str(error), again_s=pause_s)
        self._error = str(error)

    async def _round(self) -> None:
        await self._due.wait()
        self._due.clear()
        while await self._worker.submit(self._extend):
            pass
        note = await self._worker.submit(self._newest)
        if not self._size:  # the run is stored with its first commit
            return
        self._clocks_due.set()
        if not self._section.url:
            self._waiting_s = None
            return
        answers = await asyncio.gather(*(self._ask(url, note) for url in self._section.url))
        self._may_sign = any(answers) and not self._is_doubted
        faults = "; ".join(self._faults.values())
        if not self._may_sign:
            raise NotWitnessed(faults)
        await self._worker.submit(self._keep, note + "".join(answers))
        if self._error and not faults:
            log.info("witnessed again")
        self._error = faults
        if self._cosigned < self._size:
            self._due.set()
        else:
            self._waiting_s = None

    async def _ask(self, url: str, note: str) -> str:
        """Return the cosignatures of the witness at *url* on *note*; empty after a fault."""
        assert self._log is not None
        old, fault = (size := int(note.split("\n")[1])), ""
        try:
            for _ in range(2):
                body = await self._worker.submit(self._log.request, old, note)
                status, answer = await self._send(f"{url}/add-checkpoint", body.encode(), TEXT)
                text = answer.decode()
                if status == 200:
                    return await self._worker.submit(self._checked, url, note, text)
                their_size = int(text) if status == 409 else size
                if status == 422 or their_size > size or (status == 409 and their_size == old):
                    self._is_doubted = True
                    self._faults[url] = (
                        f"{url} knows another history of this log, of {their_size} leaves, and "
                        f"ours has {size}: an older copy was put back, or the key is used twice; "
                        f"nothing is signed over it. Move {self._log.folder} away to begin "
                        "another log"
                    )
                    return ""
                fault = f"{url} answers {status}"
                if status != 409:
                    break
                old = their_size
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            fault = f"{url} does not answer ({type(error).__name__})"
        self._faults[url] = fault
        return ""

    # ------------------------------------------------------------ public clocks

    async def _ask_clocks(self) -> None:
        """Have each clock that has not done so today date the newest signed note."""
        await self._clocks_due.wait()
        self._clocks_due.clear()
        faults = [await self._ask_clock(clock) for clock in self._unasked()]
        if text := "; ".join(filter(None, faults)):
            raise NotWitnessed(text)
        self._clock_error = ""

    def _unasked(self) -> list[str]:
        """Return the clocks that have dated no note today."""
        assert self._log is not None
        return [each for each in self._section.clocks if not self._log.clock_files(each, self._day)]

    @property
    def _day(self) -> str:
        return f"{datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC):%Y-%m-%d}"

    def _clock_failed(self, error: Exception, pause_s: float) -> None:
        if str(error) != self._clock_error:
            log.warning("no date of a clock", error=str(error), again_s=pause_s)
        self._clock_error = str(error)

    async def _ask_clock(self, clock: str) -> str:
        """Keep the token of *clock* on the newest note; return a fault."""
        assert self._log is not None
        url, note, day = clock.removeprefix(CALENDAR), self._log.signed, self._day
        run = self._worker.submit
        try:
            if url == clock:
                text, ending = note.rpartition("\n\n")[0] + "\n", "tsr"
                token = await authority_token(url, text, self._send)
            else:
                for path in self._log.clock_files(clock, ending="pending")[-PROMISES:]:
                    if proof := await calendar_proof(url, path.read_bytes(), self._send):
                        await run(write_whole, (proof,), path.with_suffix(".ots"))
                        path.unlink()
                token, ending = await calendar_promise(url, note, self._send), "pending"
            await run(self._log.keep_token, day, note, clock, ending, token)
        except ClockFault as fault:
            return f"{clock} {fault}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"{clock} does not answer ({type(error).__name__})"
        return ""

    # ------------------------------------------------------------ in the worker

    def _extend(self) -> int:
        """Add new commits to the log; return how many, 0 if it has all."""
        from tracepaper.storage.witness.log import WitnessLog

        with closing(open_reader(self._database)) as connection:
            if self._log is None:
                opened = WitnessLog(self._database)
                opened.check_record(connection)
                self._log = opened
            return self._log.extend(connection)

    def _newest(self) -> str:
        """Return the note to submit, signed now if that may be; empty without a commit."""
        assert self._log is not None
        self._size = len(self._log.tree)
        if not self._section.url:
            self._may_sign, self._cosigned = bool(self._unasked()), self._log.dated
        self._faults.clear()
        self._is_doubted = False
        signed = self._log.signed
        is_next = self._may_sign and self._size > int(signed.split("\n")[1]) if signed else True
        return self._log.sign() if is_next and self._size else signed

    def _checked(self, url: str, note: str, text: str) -> str:
        """Return the lines of *text* by a key that we know; none if one is false or there is none.

        A clock that differs from ours is named, and its date is kept: it is the witness's word.
        """
        from tracepaper.storage.witness.judge import Note

        dated = dict[str, int]()
        with suppress(ValueError):
            for line in text.splitlines():
                cosigned = Note.parse(f"{note}{line}\n")
                dated |= {f"{line}\n": at for k in self._keys if (at := k.signed_at(cosigned))}
        if not dated:
            self._faults[url] = f"{url} does not sign with a key that [witness] keys names"
            return ""
        away_s = max(abs(at_s - self._clock.wall_ms() // 1000) for at_s in dated.values())
        if away_s > CLOCK_S:
            self._faults[url] = f"{url} has a clock that differs by {away_s} s from this machine's"
        return "".join(dated)

    def _keep(self, note: str) -> None:
        assert self._log is not None
        self._log.keep(note)
        self._cosigned = int(note.split("\n")[1])
